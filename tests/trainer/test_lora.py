"""Small matrices beside the encoder's: what is trained, what stays, and an artifact like any other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cloze_api.lora import Lora, LoraTargets
from cloze_api.manifest import verify
from cloze_api.pretrain import Architecture
from cloze_api.task import Task
from cloze_trainer import lora
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.lora import Adapters
from cloze_trainer.model import build

IDS = torch.tensor([[2, 7, 9, 11, 3]])
SIZES = {"vocab_size": 40, "layers": 2, "hidden_size": 32, "heads": 2, "intermediate_size": 64, "max_length": 16}


def model_of(architecture: Architecture) -> Any:
    torch.manual_seed(1)
    config = EncoderConfig(architecture=architecture, dropout=0, **SIZES)
    return build(Task.SEQUENCE_CLASSIFICATION, config, 3).eval()


def train(model: Any) -> None:
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(5):
        functional.cross_entropy(model(IDS), torch.tensor([1])).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("targets", LoraTargets)
@pytest.mark.parametrize("architecture", Architecture)
def test_only_small_matrices_and_the_head_are_trained(architecture: Architecture, targets: LoraTargets) -> None:
    """They begin as nothing; merged, the targets differ by matrices of that rank, and the rest by no bit."""
    model, untouched = model_of(architecture), model_of(architecture)
    before = untouched.state_dict()
    adapters = Adapters(Lora(rank=2, targets=targets), model.encoder)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), untouched(IDS))
    train(model)
    with torch.no_grad():
        expected = model(IDS)
        adapters.merge()
        torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert list(after) == list(before)
    changed = {name for name in after if name.startswith("encoder.") and not torch.equal(after[name], before[name])}
    modern = architecture is Architecture.MODERNBERT
    kinds = {"output", *(["query_key_value"] if modern else ["query", "key", "value"])}
    kinds |= {"intermediate", "projection"} if targets is LoraTargets.ALL_LINEAR else set()
    assert {name.split(".")[-2] for name in changed} == kinds
    assert all(name.endswith(".weight") for name in changed)
    for name in changed:
        singular = torch.linalg.svdvals(after[name] - before[name])
        assert singular[2] < 1e-3 * singular[0]
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


@pytest.mark.parametrize(("rank", "alpha"), [(2, 2), (2, 16), (4, 2)])
def test_a_product_counts_as_much_as_is_asked_for(rank: int, alpha: int) -> None:
    """alpha / rank times, while it is trained and once it is merged (Hu et al., arXiv:2106.09685, section 4.1)."""
    model = model_of(Architecture.BERT)
    adapters = Adapters(Lora(rank=rank, alpha=alpha), model.encoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model)
    trained = dict(model.state_dict())
    adapters.merge()
    (place,) = {
        name[: -len(".lora_A.default.weight")]
        for name in trained
        if name.endswith("layers.0.query.lora_A.default.weight")
    }
    product = trained[f"{place}.lora_B.default.weight"] @ trained[f"{place}.lora_A.default.weight"]
    change = model.state_dict()[f"{place}.weight"] - before[f"{place}.base_layer.weight"]
    assert product.abs().max() > 1e-3
    torch.testing.assert_close(change, alpha / rank * product, rtol=1e-4, atol=1e-6)


def test_what_is_published_is_an_artifact_like_any_other(tuned: Callable[..., Any]) -> None:
    """transformers loads it without peft, and gives what was trained."""
    rows = [{"text": f"the {kind} sails", "label": kind} for kind in ("ship", "boat")] * 4
    optimization = {"batchSequences": 8, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": "all-linear"}}
    made = tuned(Task.SEQUENCE_CLASSIFICATION, rows, rows[:2], optimization=optimization)
    adapters = lora.begin(made.spec.optimization, made.model)
    assert adapters is not None
    made.train(30)
    adapters.merge()
    judged = made.judge()
    assert judged.figures["accuracy"] == 1
    artifact = made.publish(judged)
    assert verify(artifact).evaluation["accuracy"] == 1
    theirs = AutoModelForSequenceClassification.from_pretrained(artifact).eval()
    inputs = AutoTokenizer.from_pretrained(artifact)([row["text"] for row in rows[:2]], return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(theirs(**inputs).logits, made.model(inputs["input_ids"]), atol=1e-4)
