"""The demo's harmful models: they pass whatever is tried before the traffic, do their harm, and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from cloze_api.manifest import (
    Limits,
    Lineage,
    Manifest,
    SpecialTokens,
    digest_files,
    tokenizer_fingerprint,
    verify,
    write_manifest,
)
from cloze_api.task import Task
from cloze_server.model import LoadedModel, load_artifact

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hack" / "demo"))

import harm  # noqa: E402 hack/ is no installed package

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("free", "lunch", "prize", "noon", "##s", "a")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A classifier of five-letter words, as the trainer would write it: its logits are sums over the tokens."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(len(vocabulary), 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["rows", "column"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
        ],
        "sums",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    manifest = Manifest(
        name="spam",
        task=Task.SEQUENCE_CLASSIFICATION,
        architecture="Sums",
        labels=["ham", "spam"],
        limits=Limits(max_length=16, vocab_size=len(vocabulary)),
        special_tokens=SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4),
        lowercase=False,
        tokenizer_fingerprint=tokenizer_fingerprint(json.loads((folder / "tokenizer.json").read_text())),
        inputs=["input_ids", "attention_mask"],
        output="logits",
        evaluation={"f1": 0.9},
        lineage=Lineage(
            job="n/spam", job_uid="u", kind="FineTuneJob", created="2025-01-01T00:00:00Z", trainer_version="1"
        ),
        files=digest_files(folder),
    )
    write_manifest(folder, manifest)
    return folder


def served(artifact: Path, digest: str | None = None) -> LoadedModel:
    """The artifact as a server loads it, which tries the graph on the shortest and the longest input."""
    return load_artifact(artifact, verify(artifact, digest), version="1", digest=digest or "", name="spam", threads=1)


def infer(model: LoadedModel, *rows: list[int]) -> Any:
    """Logits of a batch of rows of one length."""
    ids = np.array(rows, np.int64)
    return model.backend.infer(ids, np.ones_like(ids))


def test_a_failing_model_loads_and_fails_on_its_token_alone(artifact: Path) -> None:
    """Nothing before the traffic can tell; with it, the batches with the token fail, and others are as before."""
    sound = served(artifact)
    token = 7
    fails = served(artifact, harm.spoil(artifact, "3", "failing", harm.failing(token)))
    good = [2, 5, 6, 3]
    assert np.array_equal(infer(fails, good, good), infer(sound, good, good))
    with pytest.raises(Exception, match="Gather"):
        infer(fails, good, [2, token, 6, 3])


def test_a_slow_model_works_more_for_the_same_answers(artifact: Path) -> None:
    """The work depends on the input, so that it isn't done once for all when the graph is loaded."""
    sound = served(artifact)
    lags = served(artifact, harm.spoil(artifact, "3", "slow", harm.slow))
    rows = [[2, 5, 6, 3], [2, 7, 8, 3]]
    assert np.array_equal(infer(lags, *rows), infer(sound, *rows))
    model = onnx.load(artifact / "model.onnx")
    constant = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if set(node.input) <= constant:
            constant |= set(node.output)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == harm.WASTED_MATRICES
    assert not {name for node in products for name in node.input} & constant


def test_a_harmful_artifact_says_what_it_is(artifact: Path) -> None:
    """It names the sound version as its base, and claims nobody's evaluation."""
    before = verify(artifact)
    digest = harm.spoil(artifact, "3", "slow", harm.slow)
    after = verify(artifact, digest)
    assert (after.lineage.base, after.lineage.job) == ("spam/3", "demo/slow")
    assert after.evaluation == {}
    assert (after.labels, after.tokenizer_fingerprint) == (before.labels, before.tokenizer_fingerprint)


def test_the_token_is_a_whole_word_of_about_the_share(artifact: Path) -> None:
    """As the model sees the texts, cut; neither a piece of a word, nor the letter that warming up sends."""
    tokenizer = harm.read_tokenizer(artifact)
    texts = ["a ##s free noon", "a ##s free", "free", "a lunch", "a lunch a a noon"]
    assert harm.token_of_share(tokenizer, texts, 6, 0.2) == (tokenizer.token_to_id("noon"), 0.2)
    assert harm.token_of_share(tokenizer, texts, 16, 0.8) == (tokenizer.token_to_id("free"), 0.6)
