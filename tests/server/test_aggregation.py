"""Entities are those of transformers' pipeline, and right where the pipeline isn't."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from cloze_api.manifest import SpecialTokens
from cloze_api.task import Task
from cloze_server.backend import Ids, Logits
from cloze_server.dummy import dummy_model
from cloze_server.model import LoadedModel
from cloze_server.tokenization import frame_of

pytestmark = pytest.mark.anyio

TEXTS = [
    "Ada Lovelace lived in London, near St. James's Square.",
    "Grace Hopper found a moth in the relay of the computer at Harvard University",
    "my card was charged twice and nobody answers the phone",
    "hello",
]


@pytest.mark.parametrize("aggregation", ["simple", "first", "average", "max"])
async def test_entities_are_those_of_the_pipeline(artifacts: Any, serving: Any, aggregation: str) -> None:
    """Labels, characters and scores. B- begins and I- goes on, both in words and in sub-words."""
    from transformers import pipeline  # noqa: PLC0415

    artifact = artifacts(Task.TOKEN_CLASSIFICATION)
    reference = pipeline(
        "token-classification", model=artifact.model, tokenizer=artifact.tokenizer, aggregation_strategy=aggregation
    )
    async with serving(artifact.load) as client:
        body = {"inputs": TEXTS, "aggregation": aggregation}
        reply = (await client.post("/v1/token-classify", json=body)).json()
    found = 0
    for text, result in zip(TEXTS, reply["results"], strict=True):
        expected = reference(text)
        found += len(expected)
        assert [(tag["label"], tag["start"], tag["end"]) for tag in result["tags"]] == [
            (entity["entity_group"], entity["start"], entity["end"]) for entity in expected
        ]
        assert [tag["score"] for tag in result["tags"]] == pytest.approx(
            [float(entity["score"]) for entity in expected], rel=1e-3
        )
    assert found >= 5, "too few to say anything"


async def test_sub_words_are_those_of_the_pipeline(artifacts: Any, serving: Any) -> None:
    """With `none`; the pipeline leaves O out there, which is a label like any other."""
    from transformers import pipeline  # noqa: PLC0415

    artifact = artifacts(Task.TOKEN_CLASSIFICATION)
    reference = pipeline("token-classification", model=artifact.model, tokenizer=artifact.tokenizer)
    async with serving(artifact.load) as client:
        body = {"inputs": TEXTS, "aggregation": "none"}
        reply = (await client.post("/v1/token-classify", json=body)).json()
    for text, result in zip(TEXTS, reply["results"], strict=True):
        named = [tag for tag in result["tags"] if tag["label"] != "O"]
        expected = reference(text)
        assert [(tag["label"], tag["start"], tag["end"]) for tag in named] == [
            (each["entity"], each["start"], each["end"]) for each in expected
        ]
        assert [tag["score"] for tag in named] == pytest.approx([float(each["score"]) for each in expected], rel=1e-3)


class ByToken:
    """Labels each token by its id alone."""

    def __init__(self, labels: dict[int, int], classes: int) -> None:
        self._labels, self._classes = labels, classes

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: N803 - as in Backend
        chosen = np.vectorize(lambda token: self._labels.get(int(token), 0))(ids_BL)
        return np.eye(self._classes, dtype=np.float32)[chosen] * 9


def byte_level(named: dict[str, str]) -> LoadedModel:
    """A model whose tokens are single bytes, none marked as going on; bytes in `named` have a label."""
    model = dummy_model(Task.TOKEN_CLASSIFICATION)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    labels = {vocabulary[byte]: model.labels.index(label) for byte, label in named.items()}
    return replace(
        model,
        tokenizer=tokenizer.to_str(),
        vocabulary=vocabulary,
        frame=frame_of(tokenizer),
        special_tokens=SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4),
        backend=ByToken(labels, len(model.labels)),
    )


@pytest.mark.parametrize("aggregation", ["first", "average", "max"])
async def test_words_are_the_tokenizers_own_also_without_continuing_sub_words(serving: Any, aggregation: str) -> None:
    """transformers#27876: for tokenizers whose sub-words carry no mark, the pipeline takes whatever no space separates
    for one word, so that a bracket or comma decides the label of the name behind it. Here a word is the tokenizer's."""
    text = "in (LONDON), AD and so"
    model = byte_level(dict.fromkeys("LOND", "B-LOC") | {"A": "I-PER"})
    async with serving(lambda: model) as client:
        body = {"inputs": text, "aggregation": aggregation}
        tags = (await client.post("/v1/token-classify", json=body)).json()["results"][0]["tags"]
    found = [(tag["word"], tag["start"], tag["end"]) for tag in tags if tag["label"] == "LOC"]
    assert ("LONDON", 4, 10) in found
    assert all(tag["word"].strip("(), ") == tag["word"] for tag in tags)


async def test_the_space_before_a_word_is_not_the_entitys(serving: Any) -> None:
    """Byte-level tokenizers count it to the word; offsets that include it would highlight it."""
    text = "in LONDON town"
    model = byte_level({"L": "B-LOC", "O": "I-LOC", "N": "I-LOC", "D": "I-LOC", "Ġ": "B-LOC"})
    async with serving(lambda: model) as client:
        tags = (await client.post("/v1/token-classify", json={"inputs": text})).json()["results"][0]["tags"]
    assert ("LONDON", 3, 9) in [(tag["word"], tag["start"], tag["end"]) for tag in tags]
