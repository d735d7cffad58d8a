"""A FineTuneJob that starts from a folder in Hugging Face's format: what was trained there is where it begins."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES
from safetensors.torch import load_file, save_file
from small_runs import finetune_of
from tokenizers import Tokenizer
from tuning import ALONE

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import tokenizer_fingerprint, verify
from cloze_api.task import Task
from cloze_trainer import artifact, preparation, worker
from cloze_trainer.errors import BaseModelError, InputError
from cloze_trainer.finetune import FineTuning
from cloze_trainer.model import TaskModel
from cloze_trainer.progress import ProgressFile
from cloze_trainer.quality.judgement import Judgement
from cloze_trainer.run import Run
from cloze_trainer.worker import initial_model

LABELS = ["B-PER", "I-PER", "O"]
TEXTS = Task.SEQUENCE_CLASSIFICATION


def row(task: Task, number: int, text: str) -> dict[str, Any]:
    words = text.split()
    match task:
        case Task.TOKEN_CLASSIFICATION:
            return {"tokens": words, "labels": [LABELS[(number + place) % 3] for place in range(len(words))]}
        case Task.QUESTION_ANSWERING:
            answers = {"text": [words[0]], "answer_start": [0]}
            return {"question": f"what is {number}?", "context": text, "answers": answers}
        case Task.EMBEDDING:
            return {"text": text, "positive": " ".join(reversed(words))}
        case _:
            return {"text": text, "label": LABELS[number % 3]}


def run_of(folder: Path, task: Task) -> tuple[Run, FineTuneJobSpec]:
    examples = {}
    for name in ("train", "test"):
        texts = [f"{name} {'ships' if number % 3 else 'islands'} of {number * number}" for number in range(12)]
        examples[name] = [row(task, number, text) for number, text in enumerate(texts)]
    return finetune_of(folder, examples, task=task, optimization={"batchSequences": 4})


def workload_of(folder: Path, task: Task) -> tuple[Run, FineTuning]:
    run, spec = run_of(folder, task)
    # As the other ranks get it.
    prepared = pickle.loads(pickle.dumps(preparation.prepare(run, spec, ProgressFile(None))))  # noqa: S301 - made here
    return run, FineTuning(spec, prepared, torch.device("cpu"))


def save(folder: Path, tiny: Any, family: str, task: Task) -> None:
    """A model as this trainer's networks are; ModernBERT's local layers see 64 tokens to each side."""
    tiny.save(folder, family, task)
    if family == "modernbert":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"local_attention": 128}))


@pytest.mark.parametrize("task", [Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION])
@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_and_pooler_are_those_of_the_folder(family: str, task: Task, tmp_path: Path, tiny: Any) -> None:
    """With the folder's own last layer put back, logits are those of transformers' model; only that one is new."""
    save(tmp_path / "model", tiny, family, task)
    auto = (
        transformers.AutoModelForTokenClassification
        if task is Task.TOKEN_CLASSIFICATION
        else transformers.AutoModelForSequenceClassification
    )
    theirs = auto.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    _, workload = workload_of(tmp_path, task)
    model: TaskModel = initial_model(workload, 1).eval()
    assert not isinstance(model.classifier, torch.Tensor)
    last = getattr(theirs.classifier, "out_proj", theirs.classifier)
    assert not torch.equal(model.classifier.weight, last.weight)
    model.classifier.load_state_dict(last.state_dict())
    ids = torch.tensor([[workload.config.special_tokens.cls, 7, 9, 11, workload.config.special_tokens.sep]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("made_for", "task", "labels", "told"),
    [
        (TEXTS, TEXTS, ["ham", "spam"], "for ham, spam is left, and a new one for B-PER, I-PER, O is trained"),
        (TEXTS, TEXTS, list("abcde"), "for a, b, c and 2 others is left, and a new one for B-PER, I-PER, O is trained"),
        (TEXTS, TEXTS, ["O", "B-PER", "I-PER"], "is left, and a new one for the same labels is trained"),
        (Task.QUESTION_ANSWERING, Task.QUESTION_ANSWERING, [], "is left, and a new one is trained"),
        (TEXTS, Task.TOKEN_CLASSIFICATION, ["ham", "spam"], None),
        (Task.FILL_MASK, TEXTS, [], None),
        (Task.EMBEDDING, Task.EMBEDDING, [], None),
    ],
)
def test_a_head_that_is_left_is_told(
    tmp_path: Path,
    tiny: Any,
    capfd: pytest.CaptureFixture[str],
    made_for: Task,
    task: Task,
    labels: list[str],
    told: str | None,
) -> None:
    """Of a base for the same task, whether its labels are the job's or others: in the log before anything is trained,
    in `evaluation.json` and in the outcome. The new head has nothing of it.
    """
    tiny.save(tmp_path / "model", "bert", made_for)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    if labels:
        # The weights of a head for so many.
        given = load_file(tmp_path / "model" / "model.safetensors")
        given |= {"classifier.weight": torch.ones(len(labels), 16), "classifier.bias": torch.ones(len(labels))}
        save_file(given, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
        named = {str(number): label for number, label in enumerate(labels)}
        config |= {"id2label": named, "label2id": {label: int(number) for number, label in named.items()}}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    run, workload = workload_of(tmp_path, task)
    assert ("head left" in capfd.readouterr().err) == (told is not None)
    model: TaskModel = initial_model(workload, 1)
    if told and labels:
        assert not any((each == 1).any() for each in model.get_submodule("classifier").parameters())
    leader: Any = SimpleNamespace(leads=True, **vars(ALONE))
    judged = worker._judge(run, workload, model, leader, None)
    artifact.write(run, workload, model, judged, {})
    sentence = f"the head of file://{tmp_path}/model {told}"
    assert artifact.remarks(run, verify(run.artifact)) == ("" if told is None else f"; {sentence}")
    report = json.loads((run.artifact / "evaluation.json").read_text())
    assert report.get("head", {}).get("base") == (None if told is None else labels)


@pytest.mark.parametrize("task", [Task.QUESTION_ANSWERING, Task.EMBEDDING])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_is_the_base_of_tasks_with_other_answers(
    family: str, task: Task, tmp_path: Path, tiny: Any
) -> None:
    """As most bases are: its hidden states are those of transformers' encoder, and the artifact of it is whole."""
    save(tmp_path / "model", tiny, family, Task.FILL_MASK)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    run, workload = workload_of(tmp_path, task)
    model: TaskModel = initial_model(workload, 1).eval()
    ids = torch.tensor([[workload.config.special_tokens.cls, 7, 9, 11, workload.config.special_tokens.sep]])
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(ids, None, None), theirs(ids).last_hidden_state, rtol=1e-4, atol=1e-5)
    artifact.write(run, workload, model, Judgement({}), {})
    assert verify(run.artifact).task is task


@pytest.mark.parametrize("width", [8, 16])
def test_a_discriminator_is_a_base(width: int, tmp_path: Path, tiny: Any) -> None:
    """As ELECTRA's are published, with a head that no task has and embeddings as wide as its layers or narrower."""
    family = tiny.FAMILIES["electra"]
    tokenizer = family.tokenizer()
    config = family.config(len(tokenizer))
    config.embedding_size = width
    theirs = transformers.ElectraForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    _, workload = workload_of(tmp_path, Task.SEQUENCE_CLASSIFICATION)
    model: TaskModel = initial_model(workload, 1).eval()
    ids = torch.tensor([[2, 7, 9, 11, 3]])
    with torch.no_grad():
        expected = theirs.electra(ids).last_hidden_state
        torch.testing.assert_close(model.encoder(ids, None, None), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made_for", [Task.FILL_MASK, Task.EMBEDDING])
def test_what_is_published_has_the_folders_tokenizer(made_for: Task, tmp_path: Path, tiny: Any) -> None:
    """A language model or a bare encoder is a base; the artifact has the fingerprint of its tokenizer and names it."""
    save(tmp_path / "model", tiny, "bert", made_for)
    run, workload = workload_of(tmp_path, Task.SEQUENCE_CLASSIFICATION)
    artifact.write(run, workload, initial_model(workload, 1), Judgement({}), {}, settings={"optimization.epochs": "3"})
    manifest = verify(run.artifact)
    given = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    assert manifest.tokenizer_fingerprint == tokenizer_fingerprint(given)
    assert manifest.lineage.base == f"file://{tmp_path}/model"
    assert workload.base is not None
    assert manifest.lineage.base_digest == workload.base.digest
    card = (run.artifact / "README.md").read_text()
    assert f"| base | file://{tmp_path}/model |" in card
    assert "| optimization.epochs | 3 |" in card
    assert (manifest.limits.vocab_size, manifest.limits.max_length) == (len(given["model"]["vocab"]), 40)


def test_a_base_of_sentence_transformers_reads_capitals_as_that_does(tmp_path: Path, tiny: Any) -> None:
    """`do_lower_case` of its folder is part of the tokenizer that is trained with and published."""
    save(tmp_path / "model", tiny, "modernbert", Task.EMBEDDING)
    (tmp_path / "model" / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    run, workload = workload_of(tmp_path, Task.SEQUENCE_CLASSIFICATION)
    artifact.write(run, workload, initial_model(workload, 1), Judgement({}), {})
    assert verify(run.artifact).lowercase
    published = Tokenizer.from_file(str(run.artifact / "tokenizer.json"))
    given = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert published.encode("A SHIP").ids == given.encode("a ship").ids != given.encode("A SHIP").ids


@pytest.mark.parametrize(
    ("card", "license_"),
    [("---\nlicense: cc-by-4.0\n---\na card", "cc-by-4.0"), ("a card", None), (None, None)],
)
def test_a_bases_licence_is_what_its_folder_states(
    tmp_path: Path, tiny: Any, card: str | None, license_: str | None
) -> None:
    """In the front matter of its card, also when the run starts again; what people say of it makes no other base."""
    save(tmp_path / "model", tiny, "bert", Task.FILL_MASK)
    _, before = workload_of(tmp_path, Task.SEQUENCE_CLASSIFICATION)
    shutil.rmtree(tmp_path / "workspace")
    if card is not None:
        (tmp_path / "model" / "README.md").write_text(card)
    for _ in range(2):
        run, workload = workload_of(tmp_path, Task.SEQUENCE_CLASSIFICATION)
    assert workload.base is not None
    assert workload.base.license == license_
    assert workload.origin == before.origin
    artifact.write(run, workload, initial_model(workload, 1), Judgement({}), {})
    assert f"| its base | {license_ or 'not stated'} |" in (run.artifact / "README.md").read_text()
    stated = verify(run.artifact).card
    assert (stated.base_license if stated else None) == license_


def test_no_mask_token_is_needed(tmp_path: Path, tiny: Any) -> None:
    """A classifier hides nothing, so that a tokenizer without one will do; a PretrainJob refuses it."""
    save(tmp_path / "model", tiny, "bert", Task.EMBEDDING)
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    settings.pop("mask_token")
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "model" / "special_tokens_map.json").unlink(missing_ok=True)
    _, workload = workload_of(tmp_path, Task.SEQUENCE_CLASSIFICATION)
    assert workload.config.special_tokens.mask is None
    initial_model(workload, 1)


def refused(folder: Path) -> InputError | BaseModelError:
    run, spec = run_of(folder, Task.SEQUENCE_CLASSIFICATION)
    with pytest.raises((InputError, BaseModelError)) as refusal:
        preparation.prepare(run, spec, ProgressFile(None))
    assert isinstance(refusal.value, InputError | BaseModelError)
    assert f"file://{folder}/model" in refusal.value.message
    return refusal.value


def test_unsuitable_folders_are_refused_before_the_examples_are_read(tmp_path: Path, tiny: Any) -> None:
    """Pickled weights, a vocabulary beyond the embeddings, embeddings of another size, other special ids."""
    folder = tmp_path / "model"
    _, tokenizer = tiny.save(folder, "bert", Task.FILL_MASK)
    weights, settings = (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_text()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refused(tmp_path).reason == "SafetensorsMissing"
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(json.loads(settings) | {"pad_token_id": 4}))
    assert refused(tmp_path).reason == "BaseArchitectureUnknown"
    (folder / "config.json").write_text(json.dumps(json.loads(settings) | {"vocab_size": len(tokenizer) + 3}))
    assert refused(tmp_path).reason == "WeightsInvalid"
    (folder / "config.json").write_text(settings)
    tokenizer.add_tokens(["beyond"])
    tokenizer.save_pretrained(folder)
    assert refused(tmp_path).reason == "VocabularyInvalid"


def test_more_tokens_than_the_base_reads_are_refused(tmp_path: Path, tiny: Any) -> None:
    """Before the examples are read: positions beyond the last are none. As many as it reads will do."""
    save(tmp_path / "model", tiny, "roberta", Task.FILL_MASK)
    given = {name: [{"text": f"{name} {label}", "label": label} for label in "ab"] for name in ("train", "test")}
    run, spec = finetune_of(tmp_path, given, maxLength=41)
    with pytest.raises(InputError, match="maxLength is 41, the base model's limit is 40") as refusal:
        preparation.prepare(run, spec, ProgressFile(None))
    assert refusal.value.reason == "MaxLengthTooLarge"
    run, spec = finetune_of(tmp_path, given, maxLength=40)
    prepared = preparation.prepare(run, spec, ProgressFile(None))
    assert prepared.open(("train", "test"), per_token=False).max_length == 40
