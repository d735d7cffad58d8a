"""The served answers are those of transformers on the same weights."""

import asyncio
import re
from typing import Any

import pytest

from cloze_api.task import Task

pytestmark = pytest.mark.anyio

TEXTS = [
    "Ada Lovelace lived in London, near St. James's Square.",
    "my card was charged twice",
    "Grace Hopper found a moth in the relay of the computer",
    "hello",
    "The parcel arrived late and nobody answers the phone at Harvard",
]


def logits_of(artifact: Any, text: str | list[str]) -> tuple[Any, Any]:
    """torch's logits for one input, and its encoding."""
    import torch  # noqa: PLC0415 - takes seconds, and most tests do without

    encoded = artifact.tokenizer(text, return_tensors="pt", is_split_into_words=isinstance(text, list))
    with torch.no_grad():
        return artifact.model(**encoded).logits[0], encoded


async def test_fill_mask_scores_are_those_of_the_pipeline(artifacts: Any, serving: Any) -> None:
    """Same tokens, same order, same probabilities, for one mask and for several."""
    from transformers import pipeline  # noqa: PLC0415

    artifact = artifacts(Task.FILL_MASK)
    reference = pipeline("fill-mask", model=artifact.model, tokenizer=artifact.tokenizer, top_k=4)
    texts = ["Ada lived in [MASK].", "my [MASK] was [MASK] twice", "[MASK]"]
    async with serving(artifact.load) as client:
        reply = (await client.post("/v1/fill-mask", json={"inputs": texts, "top_k": 4})).json()
    assert (reply["model"], reply["version"], reply["digest"]) == ("mails", "3", artifact.digest)
    for text, result in zip(texts, reply["results"], strict=True):
        expected = reference(text)
        expected = expected if isinstance(expected[0], list) else [expected]
        assert len(result["masks"]) == text.count("[MASK]")
        ids = artifact.tokenizer(text)["input_ids"]
        assert [mask["position"] for mask in result["masks"]] == [
            i for i, token in enumerate(ids) if token == artifact.tokenizer.mask_token_id
        ]
        for mask, best in zip(result["masks"], expected, strict=True):
            assert [p["token_id"] for p in mask["predictions"]] == [p["token"] for p in best]
            assert [p["score"] for p in mask["predictions"]] == pytest.approx([p["score"] for p in best], rel=1e-3)
            assert [p["token"] for p in mask["predictions"]] == artifact.tokenizer.convert_ids_to_tokens(
                [p["token"] for p in best]
            )


async def test_classification_scores_are_those_of_the_pipeline(artifacts: Any, serving: Any) -> None:
    """All labels, best first."""
    from transformers import pipeline  # noqa: PLC0415

    artifact = artifacts(Task.SEQUENCE_CLASSIFICATION)
    reference = pipeline("text-classification", model=artifact.model, tokenizer=artifact.tokenizer, top_k=None)
    async with serving(artifact.load) as client:
        reply = (await client.post("/v1/classify", json={"inputs": TEXTS})).json()
        one = (await client.post("/v1/classify", json={"inputs": TEXTS[0], "top_k": 1})).json()
    for result, expected in zip(reply["results"], reference(TEXTS), strict=True):
        assert [p["label"] for p in result["predictions"]] == [p["label"] for p in expected]
        assert [p["score"] for p in result["predictions"]] == pytest.approx([p["score"] for p in expected], rel=1e-3)
    assert [p["label"] for p in one["results"][0]["predictions"]] == [reply["results"][0]["predictions"][0]["label"]]


async def test_special_tokens_in_a_text_to_classify_are_text(artifacts: Any, serving: Any) -> None:
    """As transformers reads it when told to split them; the writer of a mail can't end or empty the sequence."""
    import torch  # noqa: PLC0415 - takes seconds, and most tests do without

    artifact = artifacts(Task.SEQUENCE_CLASSIFICATION)
    text = "my card [SEP] was [PAD][CLS] charged [MASK] twice [UNK]"
    encoded = artifact.tokenizer(text, split_special_tokens=True, return_tensors="pt")
    special = {artifact.tokenizer.convert_tokens_to_ids(name) for name in ("[SEP]", "[PAD]", "[CLS]", "[MASK]")}
    assert not special & set(encoded["input_ids"][0, 1:-1].tolist())
    with torch.no_grad():
        scores = artifact.model(**encoded).logits[0].softmax(-1)
    async with serving(artifact.load) as client:
        result = (await client.post("/v1/classify", json={"inputs": text})).json()["results"][0]
    assert result["tokens"] == encoded["input_ids"].shape[1]
    assert {p["label"]: p["score"] for p in result["predictions"]} == pytest.approx(
        {artifact.model.config.id2label[i]: float(score) for i, score in enumerate(scores)}, rel=1e-3
    )


async def test_special_tokens_in_a_text_to_tag_are_text(artifacts: Any, serving: Any) -> None:
    """They are words like others, with offsets of their own."""
    artifact = artifacts(Task.TOKEN_CLASSIFICATION)
    text = "Ada [SEP] Lovelace [CLS]"
    words = text.split()
    given = artifact.tokenizer(words, is_split_into_words=True, split_special_tokens=True)
    async with serving(artifact.load) as client:
        found = (await client.post("/v1/token-classify", json={"inputs": text, "aggregation": "none"})).json()
        brought = (await client.post("/v1/token-classify", json={"words": [words]})).json()
    assert "".join(tag["word"] for tag in found["results"][0]["tags"]) == text.replace(" ", "")
    assert brought["results"][0]["tokens"] == len(given["input_ids"])
    assert all(tag["label"] is not None for tag in brought["results"][0]["tags"])


async def test_of_the_special_tokens_only_the_mask_means_something_to_fill_mask(artifacts: Any, serving: Any) -> None:
    """Left and right of it is text, whatever it spells."""
    import torch  # noqa: PLC0415 - takes seconds, and most tests do without

    artifact = artifacts(Task.FILL_MASK)
    tokenizer = artifact.tokenizer

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
        return found

    expected = [
        tokenizer.cls_token_id,
        *ids("Ada [SEP] lived"),
        tokenizer.mask_token_id,
        *ids("[PAD] London"),
        tokenizer.sep_token_id,
    ]
    with torch.no_grad():
        logits = artifact.model(torch.tensor([expected])).logits[0]
    async with serving(artifact.load) as client:
        body = {"inputs": "Ada [SEP] lived [MASK] [PAD] London", "top_k": 3}
        result = (await client.post("/v1/fill-mask", json=body)).json()["results"][0]
    position = expected.index(tokenizer.mask_token_id)
    assert (result["tokens"], [mask["position"] for mask in result["masks"]]) == (len(expected), [position])
    best = logits[position].softmax(-1).topk(3)
    assert [p["token_id"] for p in result["masks"][0]["predictions"]] == best.indices.tolist()
    assert [p["score"] for p in result["masks"][0]["predictions"]] == pytest.approx(best.values.tolist(), rel=1e-3)


async def test_word_labels_are_the_argmax_at_first_sub_words(artifacts: Any, serving: Any) -> None:
    """For words that the request brings: one label for each, in order."""
    artifact = artifacts(Task.TOKEN_CLASSIFICATION)
    words = [["Ada", "Lovelace", "lived", "in", "London", "."], ["St.", "James's"], ["hello"]]
    async with serving(artifact.load) as client:
        reply = (await client.post("/v1/token-classify", json={"words": words})).json()
    for given, result in zip(words, reply["results"], strict=True):
        logits, encoded = logits_of(artifact, given)
        firsts = [encoded.word_ids().index(index) for index in range(len(given))]
        expected = [artifact.model.config.id2label[int(logits[first].argmax())] for first in firsts]
        assert [tag["word"] for tag in result["tags"]] == given
        assert [tag["label"] for tag in result["tags"]] == expected
        scores = [float(logits[first].softmax(-1).max()) for first in firsts]
        assert [tag["score"] for tag in result["tags"]] == pytest.approx(scores, rel=1e-3)


async def test_tags_of_a_text_point_to_its_characters(artifacts: Any, serving: Any) -> None:
    """Sub-word tags cover the text; entities are slices of it, also beyond ASCII."""
    artifact = artifacts(Task.TOKEN_CLASSIFICATION)
    text = "Ünïcode 👋 Ada Lovelace, London"
    async with serving(artifact.load) as client:
        subwords = (await client.post("/v1/token-classify", json={"inputs": text, "aggregation": "none"})).json()
        entities = (await client.post("/v1/token-classify", json={"inputs": text})).json()
    logits, encoded = logits_of(artifact, text)
    tags = subwords["results"][0]["tags"]
    inner = range(1, len(encoded["input_ids"][0]) - 1)
    assert [tag["label"] for tag in tags] == [artifact.model.config.id2label[int(logits[i].argmax())] for i in inner]
    assert "".join(tag["word"] for tag in tags) == re.sub(r"\s", "", text)
    for tag in tags + entities["results"][0]["tags"]:
        assert tag["word"] == text[tag["start"] : tag["end"]]
    assert {tag["label"] for tag in entities["results"][0]["tags"]} <= {"PER", "LOC"}


async def test_many_of_mixed_lengths_answer_as_one_at_a_time(artifacts: Any, serving: Any) -> None:
    """Batching, padding and order change no answer."""
    texts = [" ".join([text] * repeat) for repeat in (1, 2) for text in TEXTS]
    artifact = artifacts(Task.SEQUENCE_CLASSIFICATION)
    async with serving(artifact.load, max_batch_tokens=128) as client:

        async def ask(inputs: list[str]) -> list[Any]:
            reply = await client.post("/v1/classify", json={"inputs": inputs, "truncate": "right"})
            return [result["predictions"] for result in reply.json()["results"]]

        singly = [(await ask([text]))[0] for text in texts]
        together = await ask(texts)
        at_once = [answer[0] for answer in await asyncio.gather(*(ask([text]) for text in texts * 3))]
    for answers in (together, at_once):
        for expected, got in zip(singly * 3, answers, strict=False):
            assert [p["label"] for p in got] == [p["label"] for p in expected]
            assert [p["score"] for p in got] == pytest.approx([p["score"] for p in expected], rel=1e-4)


async def test_too_long_a_text_is_refused_or_cut_as_asked(artifacts: Any, serving: Any) -> None:
    """Cut on the right, and said so; by default an error that names the limit."""
    artifact = artifacts(Task.SEQUENCE_CLASSIFICATION)
    text = "the parcel arrived late " * 20
    async with serving(artifact.load) as client:
        refused = await client.post("/v1/classify", json={"inputs": ["hello", text]})
        cut = (await client.post("/v1/classify", json={"inputs": ["hello", text], "truncate": "right"})).json()
        counted = (await client.get("/metrics")).text
    assert refused.status_code == 422
    assert refused.json()["type"].endswith("input-too-long")
    assert (refused.json()["input"], refused.json()["limit"]) == (1, 48)
    assert [(result["truncated"], result["tokens"]) for result in cut["results"]] == [
        (False, cut["results"][0]["tokens"]),
        (True, 48),
    ]
    assert 'cloze_truncated_inputs_total{model="mails",version="3"} 1.0' in counted
    import torch  # noqa: PLC0415 - takes seconds, and most tests do without

    ids = artifact.tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
    with torch.no_grad():
        scores = artifact.model(**ids).logits[0].softmax(-1)
    got = {p["label"]: p["score"] for p in cut["results"][1]["predictions"]}
    assert got == pytest.approx(
        {artifact.model.config.id2label[i]: float(score) for i, score in enumerate(scores)}, rel=1e-3
    )


async def test_a_text_without_a_mask_is_refused(artifacts: Any, serving: Any) -> None:
    """Also when truncation took the mask away."""
    async with serving(artifacts(Task.FILL_MASK).load) as client:
        missing = await client.post("/v1/fill-mask", json={"inputs": ["[MASK]", "no"]})
        cut = await client.post("/v1/fill-mask", json={"inputs": "late " * 60 + "[MASK]", "truncate": "right"})
    assert missing.status_code == cut.status_code == 422
    assert missing.json()["type"].endswith("mask-missing")
    assert "input 1" in missing.json()["detail"]
    assert "truncation" in cut.json()["detail"]


async def test_the_prediction_does_not_depend_on_threads_of_tokenizers(artifacts: Any, serving: Any) -> None:
    """Several tokenizer threads at once give what one gives."""
    artifact = artifacts(Task.TOKEN_CLASSIFICATION)
    async with serving(artifact.load, threads=4) as client:
        replies = await asyncio.gather(
            *(client.post("/v1/token-classify", json={"inputs": text}) for text in TEXTS * 8)
        )
    bodies = [reply.json()["results"] for reply in replies]
    for index in range(len(TEXTS)):
        labels = [[(t["word"], t["label"]) for t in body[0]["tags"]] for body in bodies[index :: len(TEXTS)]]
        assert all(each == labels[0] for each in labels)
