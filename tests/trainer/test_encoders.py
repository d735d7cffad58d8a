"""Networks of our own: each computes what transformers' class of its name computes with the same files."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

from cloze_api.pretrain import Architecture
from cloze_api.task import LABEL_TASKS, Task
from cloze_trainer.encoders.config import LOCAL_REACH, EncoderConfig
from cloze_trainer.export import export
from cloze_trainer.model import TaskModel, build, load_encoder, tensors

TASKS = {
    Task.FILL_MASK: transformers.AutoModelForMaskedLM,
    Task.SEQUENCE_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
    Task.TOKEN_CLASSIFICATION: transformers.AutoModelForTokenClassification,
    Task.QUESTION_ANSWERING: transformers.AutoModelForQuestionAnswering,
    Task.EMBEDDING: transformers.AutoModel,
}
LABELS = ("a", "b", "c")
#: Longer than what ModernBERT's local layers reach.
LENGTH = 2 * LOCAL_REACH + 20
EVERY = pytest.mark.parametrize("architecture", Architecture)
#: Those that tell the texts of a pair apart.
PAIRED = (Architecture.BERT, Architecture.ELECTRA)


def config(architecture: Architecture, *, layers: int = 4, width: int = 16) -> EncoderConfig:
    return EncoderConfig(
        architecture=architecture,
        vocab_size=50,
        layers=layers,
        hidden_size=width,
        heads=2,
        intermediate_size=2 * width,
        max_length=LENGTH,
        dropout=0.1,
        embedding_size=width // 2 if architecture is Architecture.ELECTRA else None,
    )


def labels(task: Task) -> tuple[str, ...]:
    return LABELS if task in LABEL_TASKS else ()


def built(task: Task, architecture: Architecture) -> TaskModel:
    """A model whose attention isn't nearly even, as it is with fresh weights, and whose biases aren't zero."""
    torch.manual_seed(3)
    model = build(task, config(architecture), len(labels(task)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def saved(folder: Path, model: TaskModel) -> None:
    """The files that transformers loads."""
    folder.mkdir(exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors(model).items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    document = model.config.transformers(model.task, labels(model.task))
    (folder / "config.json").write_text(json.dumps(document))


def loaded(folder: Path, task: Task) -> Any:
    """transformers' class with those files, in which nothing is missing and nothing is left over."""
    theirs, info = TASKS[task].from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    left = {key: {name for name in value if "pooler." not in name} for key, value in info.items()}
    # Nothing is made of its pooler where vectors are made of tokens.
    found = left if task is Task.EMBEDDING else {key: set(value) for key, value in info.items()}
    assert not any(found.values()), found
    return theirs.eval()


def answer(output: Any, mask_BT: torch.Tensor) -> torch.Tensor:
    """What transformers' output says, in the form that ours has."""
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    if "logits" in output:
        return torch.as_tensor(output.logits)
    weights_BT1 = mask_BT.unsqueeze(-1).float()
    return functional.normalize((output.last_hidden_state * weights_BT1).sum(1) / weights_BT1.sum(1), dim=-1)


@EVERY
@pytest.mark.parametrize("task", TASKS)
def test_outputs_are_those_of_transformers(task: Task, architecture: Architecture, tmp_path: Path) -> None:
    """With the same files, alone and beside padding; and so are the graph's."""
    model = built(task, architecture)
    saved(tmp_path, model)
    theirs = loaded(tmp_path, task)
    ids_BT = torch.randint(5, 50, (3, LENGTH))
    mask_BT = torch.ones_like(ids_BT)
    for row, length in enumerate((LENGTH, LOCAL_REACH - 1, 3)):
        ids_BT[row, length:], mask_BT[row, length:] = 0, 0
    with torch.no_grad():
        ours, expected = model(ids_BT, mask_BT), answer(theirs(input_ids=ids_BT, attention_mask=mask_BT), mask_BT)
        alone, expected_alone = model(ids_BT[:1]), answer(theirs(input_ids=ids_BT[:1]), mask_BT[:1])
    real = mask_BT.bool() if ours.dim() > 2 else slice(None)
    torch.testing.assert_close(ours[real], expected[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone, expected_alone, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(ours).all()

    export(model, task, model.config, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    given = {"input_ids": ids_BT, "attention_mask": mask_BT, "token_type_ids": torch.zeros_like(ids_BT)}
    names = [node.name for node in session.get_inputs()]
    assert ("token_type_ids" in names) == (architecture in PAIRED)
    (graph,) = session.run(None, {name: given[name].numpy() for name in names})
    np.testing.assert_allclose(graph[np.asarray(real)] if ours.dim() > 2 else graph, ours[real], rtol=1e-3, atol=1e-3)


@EVERY
def test_texts_of_a_pair_are_told_apart_where_the_model_can(architecture: Architecture, tmp_path: Path) -> None:
    """BERT and ELECTRA have types of texts."""
    model = built(Task.FILL_MASK, architecture)
    assert model.config.inputs[2:] == (("token_type_ids",) if architecture in PAIRED else ())
    if architecture in PAIRED:
        saved(tmp_path, model)
        ids_BT = torch.randint(5, 50, (2, 12))
        types_BT = (torch.arange(12) > 5).long().expand(2, 12)
        with torch.no_grad():
            expected = loaded(tmp_path, Task.FILL_MASK)(input_ids=ids_BT, token_type_ids=types_BT).logits
            torch.testing.assert_close(model(ids_BT, None, types_BT), expected, rtol=1e-4, atol=1e-4)


@EVERY
@pytest.mark.parametrize("task", LABEL_TASKS)
def test_a_classifier_starts_from_the_encoder_as_transformers_does(
    task: Task, architecture: Architecture, tmp_path: Path
) -> None:
    """Each tensor that transformers takes from a masked language model's files is taken, and no other."""
    base = built(Task.FILL_MASK, architecture)
    saved(tmp_path, base)
    torch.manual_seed(9)
    model = build(task, base.config, 3)
    fresh = {name: tensor.clone() for name, tensor in tensors(model).items()}
    load_encoder(model, load_file(tmp_path / "model.safetensors"))
    theirs, info = TASKS[task].from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    state, new = theirs.state_dict(), set(info["missing_keys"])
    assert new
    for name, tensor in tensors(model).items():
        assert torch.equal(tensor, fresh[name] if name in new else state[name]), name


@EVERY
def test_a_base_of_other_sizes_is_refused(architecture: Architecture) -> None:
    """With the tensor's name as the file has it."""
    weights = tensors(built(Task.FILL_MASK, architecture))
    model = build(Task.TOKEN_CLASSIFICATION, replace(config(architecture), intermediate_size=8), 3)
    with pytest.raises(ValueError, match=r"has shape"):
        load_encoder(model, weights)
    name = next(name for name in weights if "embeddings" in name)
    with pytest.raises(ValueError, match=f"no tensor {name}"):
        load_encoder(model, {other: weights[other] for other in weights if other != name})


@EVERY
def test_initial_values_spread_as_those_of_transformers(architecture: Architecture) -> None:
    """Tensor by tensor: their deviation decides whether training begins well."""
    torch.manual_seed(1)
    ours = tensors(build(Task.FILL_MASK, config(architecture, width=128)))
    document = config(architecture, width=128).transformers(Task.FILL_MASK)
    theirs = TASKS[Task.FILL_MASK].from_config(transformers.AutoConfig.for_model(**document)).state_dict()
    for name, tensor in ours.items():
        # ModernBERT's matrix is drawn once more as its decoder's in transformers.
        if "tok_embeddings" not in name:
            near = 0.05 if tensor.numel() > 5000 else 0.25
            assert float(tensor.std()) == pytest.approx(float(theirs[name].std()), rel=near, abs=1e-6), name


@EVERY
def test_sizes_are_read_as_they_are_written(architecture: Architecture, tmp_path: Path) -> None:
    """Also what transformers has written again; another kind of the architecture is refused by the field."""
    path, wanted = tmp_path / "config.json", config(architecture)
    path.write_text(json.dumps(wanted.transformers(Task.FILL_MASK)))
    assert EncoderConfig.read(path) == wanted
    assert asdict(wanted)["architecture"] == architecture
    document = json.loads(path.read_text())
    act = next(name for name in document if name in ("hidden_act", "activation", "hidden_activation"))
    path.write_text(json.dumps({**document, act: "relu"}))
    with pytest.raises(ValueError, match=act):
        EncoderConfig.read(path)
    path.write_text(json.dumps({**document, "model_type": "gpt2"}))
    with pytest.raises(ValueError, match="gpt2"):
        EncoderConfig.read(path)


@EVERY
def test_activations_that_are_computed_again_change_nothing(architecture: Architecture) -> None:
    """The same gradients to the bit, also with dropout, of which less is kept meanwhile."""
    ids_BT = torch.randint(5, 50, (4, LENGTH))
    found, kept = [], []
    for recompute in (False, True):
        model = built(Task.FILL_MASK, architecture)
        model.train()
        model.encoder.recompute = recompute
        sizes: list[int] = []
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (sizes.append(tensor.nbytes), tensor)[1], lambda tensor: tensor
        ):
            loss = model(ids_BT).logsumexp(-1).sum()
        loss.backward()
        found.append(
            torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        )
        kept.append(sum(sizes))
    assert torch.equal(*found)
    assert kept[1] < kept[0] / 2


@EVERY
@pytest.mark.parametrize("padded", [False, True])
def test_predictions_are_the_same_whichever_others_are_asked_for(architecture: Architecture, *, padded: bool) -> None:
    """Hidden tokens have the logits, and weights gradients, that they have where all tokens' states are computed."""
    ids_BT = torch.randint(5, 50, (3, LENGTH))
    positions_M = torch.tensor([1, 7, LENGTH, LENGTH + 3, 2 * LENGTH + 90])
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, LENGTH // 2 :] = 0
    model = built(Task.FILL_MASK, architecture)
    found = []
    for some in (True, False):
        model.zero_grad()
        logits = model(ids_BT, mask_BT if padded else None, None, positions_M if some else None)
        logits_MV = logits if some else logits.flatten(0, 1)[positions_M]
        functional.cross_entropy(logits_MV, ids_BT.flatten()[positions_M]).backward()
        gradient = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
        found.append((logits_MV.detach(), gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
