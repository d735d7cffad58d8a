"""What a student learns from its teacher: the losses, what is refused, and what is held side by side."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from cloze_api.distillation import Relation
from cloze_api.manifest import WEIGHTS_FILE, Limits, Lineage, Manifest, SpecialTokens, tokenizer_fingerprint
from cloze_api.pretrain import Architecture
from cloze_api.task import Problem, Task
from cloze_trainer.base import BaseModel
from cloze_trainer.data import word_blanks
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.distillation import beside, relation, teacher
from cloze_trainer.distillation.relation import RelationLoss, divergence
from cloze_trainer.distillation.teacher import Teacher
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import TrainerError
from cloze_trainer.export import Graph, export_graph
from cloze_trainer.heads import Classes
from cloze_trainer.model import build
from cloze_trainer.quality.scores import Scores

CONFIG = EncoderConfig(vocab_size=60, layers=3, hidden_size=16, heads=2, intermediate_size=32, max_length=16, dropout=0)
STUDENT = Task.SEQUENCE_CLASSIFICATION, Problem.SINGLE_LABEL, ("ham", "spam")
TOKENIZER = {"model": {"vocab": {"a": 0}}}


def test_relations_diverge_as_the_paper_has_it() -> None:
    """Equation 5 of arXiv:2012.15828, token by token and head by head, for states of unlike widths and with padding."""
    torch.manual_seed(0)
    own, theirs, lengths, heads = torch.randn(2, 5, 8), torch.randn(2, 5, 12), (5, 3), 4
    visible = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    found = divergence(own, theirs, visible, heads)
    for row, length in enumerate(lengths):
        total = 0.0
        for head in range(heads):
            ours, others = own[row, :length, 2 * head : 2 * head + 2], theirs[row, :length, 3 * head : 3 * head + 3]
            p = torch.softmax(others @ others.T / math.sqrt(3), -1)
            q = torch.softmax(ours @ ours.T / math.sqrt(2), -1)
            total += float((p * (p / q).log()).sum())
        assert float(found[row]) == pytest.approx(total / (heads * length), rel=1e-5)
    assert torch.allclose(divergence(own[1:, :3], theirs[1:, :3], None, heads), found[1:])


@pytest.mark.parametrize("architecture", list(Architecture))
def test_what_is_heard_is_what_attention_sees(architecture: Architecture) -> None:
    """Of each architecture; its gradient is the same where activations are computed again, and a model that is its own
    teacher has nothing to learn.
    """
    torch.manual_seed(0)
    config = replace(CONFIG, architecture=architecture, epsilon=0.0)
    student, other = (build(Task.SEQUENCE_CLASSIFICATION, config, 2) for _ in range(2))
    ids_BT = torch.randint(5, 60, (2, 9))
    inputs = (ids_BT, torch.arange(9)[None] < torch.tensor([[9], [4]]))
    gradients = []
    for recompute in (False, True):
        student.encoder.recompute = recompute
        student.zero_grad()
        loss = RelationLoss(Relation(), other.eval(), config, config)
        with loss.hearing(student) as heard:
            logits = student(*inputs)
        (loss.losses(heard, inputs).sum() + logits.sum()).backward()
        gradients.append(torch.cat([each.grad.flatten() for each in student.parameters() if each.grad is not None]))
    assert torch.equal(*gradients)
    assert all(not module._forward_hooks for module in (*student.modules(), *other.modules()))
    itself = RelationLoss(Relation(), student.eval(), config, config)
    with itself.hearing(student) as heard:
        student(*inputs)
    assert float(itself.losses(heard, inputs).detach().abs().max()) < 1e-6


def test_relation_heads_and_layers_must_be_there() -> None:
    """Refused before the training: heads that don't divide both widths, and a layer that a model doesn't have."""
    narrow = replace(CONFIG, hidden_size=12)
    with pytest.raises(TrainerError, match="8 relation heads divide the teacher's width 16 and the student's 12 not"):
        RelationLoss(Relation(heads=8), nn.Identity(), CONFIG, narrow)
    with pytest.raises(TrainerError, match=r"studentLayer is 3, and there are 3 layers"):
        RelationLoss(Relation(student_layer=3), nn.Identity(), CONFIG, CONFIG)


def student_base(folder: Path, tokenizer: Any = TOKENIZER) -> BaseModel:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return BaseModel(
        folder=folder, name="base/1", digest="sha256:x", special_tokens=SPECIAL_IDS, lowercase=True, config=CONFIG
    )


def a_teacher(folder: Path, **manifest: Any) -> Teacher:
    lineage = Lineage(job="a/b", job_uid="u", kind="FineTuneJob", created="2026-01-01T00:00:00Z", trainer_version="1")
    parts = {
        "name": "large",
        "task": Task.SEQUENCE_CLASSIFICATION,
        "architecture": "BertForSequenceClassification",
        "labels": ["ham", "spam"],
        "limits": Limits(max_length=16, vocab_size=60),
        "special_tokens": SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4),
        "lowercase": True,
        "tokenizer_fingerprint": tokenizer_fingerprint(TOKENIZER),
        "inputs": ["input_ids", "attention_mask", "token_type_ids"],
        "output": "logits",
        "lineage": lineage,
        "files": {},
    }
    made = Manifest.model_validate(parts | manifest)
    return Teacher(
        folder=folder,
        name="large/1",
        digest="sha256:y",
        special_tokens=made.special_tokens,
        lowercase=True,
        manifest=made,
    )


@pytest.mark.parametrize(
    ("manifest", "reason", "words"),
    [
        ({"task": Task.TOKEN_CLASSIFICATION}, "TeacherTaskDiffers", "is for token-classification"),
        ({"problem": Problem.MULTI_LABEL}, "TeacherTaskDiffers", r"\(multi-label\), not for .* \(single-label\)"),
        ({"labels": ["ham", "eggs"]}, "TeacherLabelsDiffer", "has the labels eggs, ham, and the student ham, spam"),
        ({"tokenizer_fingerprint": "0" * 64}, "TeacherTokenizerDiffers", "has the fingerprint 000000000000"),
        ({"limits": Limits(max_length=8, vocab_size=60)}, "TeacherTooShort", "set spec.maxLength to 8"),
    ],
)
def test_a_teacher_that_answers_something_else_is_refused(
    tmp_path: Path, manifest: dict[str, Any], reason: str, words: str
) -> None:
    """Another task or problem, other labels, another tokenizer, shorter texts: a sentence each, before the training."""
    base = student_base(tmp_path)
    good = a_teacher(tmp_path, labels=["spam", "ham"])
    teacher.check(good, *STUDENT, base=base, max_length=16)
    with pytest.raises(TrainerError, match=words) as refusal:
        teacher.check(a_teacher(tmp_path, **manifest), *STUDENT, base=base, max_length=16)
    assert refusal.value.reason == reason


def test_padding_and_truncation_of_a_tokenizer_dont_tell_it_from_another(tmp_path: Path) -> None:
    """The fingerprint leaves out what a server sets by itself."""
    base = student_base(tmp_path, {**TOKENIZER, "truncation": {"max_length": 5}, "padding": None})
    teacher.check(a_teacher(tmp_path), *STUDENT, base=base, max_length=16)


def test_a_teacher_of_words_is_compared_by_what_is_made_of_its_tokenizer(tmp_path: Path) -> None:
    """The student's gets a blank before words: a teacher with the base's own tokenizer fits, and one that has had its
    blanks; another one doesn't, and neither does it fit for texts.
    """
    own = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = json.loads(own.to_str())
    blanks = word_blanks.with_blanks(plain)
    other = {**plain, "model": {**plain["model"], "vocab": {"a": 1, "b": 0}}}
    base = student_base(tmp_path / "base", plain)
    for task in (Task.TOKEN_CLASSIFICATION, Task.SEQUENCE_CLASSIFICATION):
        for number, (theirs, fits) in enumerate(
            ((plain, True), (blanks, task is Task.TOKEN_CLASSIFICATION), (other, False))
        ):
            folder = tmp_path / f"{task}-{number}"
            student_base(folder, theirs)
            found = a_teacher(folder, task=task, tokenizer_fingerprint=tokenizer_fingerprint(theirs))
            with nullcontext() if fits else pytest.raises(TrainerError, match="has the fingerprint"):
                teacher.check(found, task, *STUDENT[1:], base=base, max_length=16)


def test_layers_are_taken_from_teachers_of_the_same_sizes() -> None:
    """The student gets as many; a layer that isn't there, other sizes, and a ModernBERT whose layers would look
    elsewhere are refused.
    """
    fewer = teacher.fitting(replace(CONFIG, layers=6), replace(CONFIG, dropout=0.1), [0, 5], "large/1")
    assert fewer == replace(CONFIG, layers=2, dropout=0.1)
    for config, student, layers, reason in (
        (CONFIG, CONFIG, [0, 3], "TeacherLayersUnknown"),
        (CONFIG, replace(CONFIG, hidden_size=8), [0, 2], "TeacherSizesDiffer"),
    ):
        with pytest.raises(TrainerError) as refusal:
            teacher.fitting(config, student, layers, "large/1")
        assert refusal.value.reason == reason
    modern = replace(CONFIG, architecture=Architecture.MODERNBERT, layers=12)
    assert teacher.fitting(modern, modern, [0, 4, 5, 6, 10, 11], "large/1").layers == 6
    with pytest.raises(TrainerError, match="looks everywhere"):
        teacher.fitting(modern, modern, [0, 3, 6], "large/1")


@pytest.mark.parametrize("task", [Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION])
def test_every_figure_beside_the_teacher_can_have_a_gate(task: Task) -> None:
    """The names that gates may use are those that the comparison gives; the share is of the task's main figure."""
    labels = ("O", "B-PER") if task is Task.TOKEN_CLASSIFICATION else ("ham", "spam")
    right, half = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]], np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    student, taught = (Scores(logits, np.array([0, 1, 0, 1]), np.arange(4), 4) for logits in (half, right))
    found = beside.figures(student, taught, labels, task=task, sizes=(10, 30))
    assert sorted(found) == sorted(beside.figure_names(task, labels))
    assert found["teacher_share"] == 0.5
    assert found["teacher_accuracy"] == 1.0
    assert (found["parameters"], found["teacher_parameters"]) == (10, 30)


def test_an_imported_teacher_of_any_architecture_answers_by_its_graph(tmp_path: Path, tiny: Any) -> None:
    """Its graph says what its weights say, with classes in the student's order; there is no encoder to take from."""
    model, _ = tiny.save(tmp_path / "given", "bert", Task.SEQUENCE_CLASSIFICATION)
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    shape = Graph(inputs=inputs, output="logits", per_token=False, vocab_size=30, max_length=40, pad=0)
    export_graph(Classes(model, inputs), shape, tmp_path / "model.onnx")
    found = a_teacher(tmp_path, labels=["O", "B-PER", "I-PER"])
    loaded = teacher.load(found, ("I-PER", "O", "B-PER"), torch.device("cpu"))
    ids_BT = torch.randint(5, 30, (3, 7))
    mask_BT = torch.arange(7)[None] < torch.tensor([[7], [4], [2]])
    with torch.no_grad():
        expected = model(input_ids=ids_BT, attention_mask=mask_BT.long()).logits[:, [2, 0, 1]]
    assert torch.allclose(loaded(ids_BT, mask_BT), expected, atol=1e-4)
    assert torch.allclose(loaded(ids_BT[:1]), expected[:1], atol=1e-4)
    assert teacher.size(found, loaded) > 0
    with pytest.raises(TrainerError) as refusal:
        teacher.encoder(found)
    assert refusal.value.reason == "TeacherWeightsMissing"


@pytest.mark.parametrize(("settings", "inside"), [({}, True), ({"classifier_pooling": "mean"}, False)])
def test_a_teacher_with_another_head_answers_by_its_graph(
    tmp_path: Path, tiny: Any, *, settings: dict[str, Any], inside: bool
) -> None:
    """A ModernBERT may pool otherwise with the same tensors: it isn't taken for one that is trained here, neither as a
    teacher nor for its layers. One of ours is.
    """
    folder, labels = tmp_path / "given", ("O", "B-PER", "I-PER")
    model, tokenizer = tiny.save(
        folder, "modernbert", Task.SEQUENCE_CLASSIFICATION, local_attention=128, mlp_dropout=0.3, **settings
    )
    inputs, size = ("input_ids", "attention_mask"), len(tokenizer)
    shape = Graph(inputs=inputs, output="logits", per_token=False, vocab_size=size, max_length=40, pad=1)
    export_graph(Classes(model, inputs), shape, folder / "model.onnx")
    found = a_teacher(
        folder,
        labels=list(labels),
        inputs=list(inputs),
        special_tokens=SpecialTokens(pad=1, unk=3, cls=0, sep=2, mask=4),
        files={WEIGHTS_FILE: "0" * 64},
    )
    ids_BT = torch.randint(5, size, (3, 9))
    with torch.no_grad():
        expected = model(input_ids=ids_BT).logits[:, [2, 0, 1]]
        loaded = teacher.load(found, ("I-PER", "O", "B-PER"), torch.device("cpu"))
        assert torch.allclose(loaded(ids_BT), expected, atol=1e-4)
    assert isinstance(loaded, teacher.Graph) is not inside
    if not inside:
        for load in (
            lambda: teacher.load(found, labels, torch.device("cpu"), inside=True),
            lambda: teacher.load_weights(found, teacher.encoder(found), [0, 1, 2]),
        ):
            with pytest.raises(TrainerError, match="only its graph can be used") as refusal:
                load()
            assert refusal.value.reason == "TeacherArchitectureUnknown"


def test_hearing_ends_with_its_block() -> None:
    """Also where the pass fails."""
    layer = build(Task.SEQUENCE_CLASSIFICATION, CONFIG, 2).encoder.layers[0]
    with pytest.raises(ZeroDivisionError), relation.hearing(layer):
        raise ZeroDivisionError
    assert not layer.get_submodule("query")._forward_hooks
