"""Inputs longer than the model: parts as transformers cuts them, and answers that follow from torch's for each."""

from typing import Any

import numpy as np
import pytest

from cloze_api.task import Task

pytestmark = pytest.mark.anyio

MAX_LENGTH = 48
LONG = (
    "Ada Lovelace lived in London, near St. James's Square, and Grace Hopper found a moth in the relay of the computer "
    "at Harvard University while my card was charged twice and nobody answers the phone, so the parcel arrived late. "
) * 2


def windows_of(artifact: Any, text: str | list[str], stride: int) -> list[tuple[Any, Any, range]]:
    """transformers' windows of a text: torch's logits, ids, and the places of the window's tokens in the text."""
    import torch  # noqa: PLC0415 - takes seconds, and most tests do without

    tokenizer = artifact.tokenizer
    cut = tokenizer(
        text,
        is_split_into_words=isinstance(text, list),
        truncation=True,
        max_length=MAX_LENGTH,
        stride=stride,
        return_overflowing_tokens=True,
    )
    result, start = [], 0
    for ids in cut["input_ids"]:
        with torch.no_grad():
            logits = artifact.model(torch.tensor([ids])).logits[0].numpy()
        result.append((logits, ids, range(start, start + len(ids) - 2)))
        start += len(ids) - 2 - stride
    return result


def rows_with_most_context(windows: list[tuple[Any, Any, range]]) -> list[Any]:
    """For each token of the text the logits of the window whose nearer cut is farthest; the earlier of equals."""
    end = windows[-1][2].stop

    def context(places: range, token: int) -> int:
        left = token - places.start if places.start else end
        return min(left, places.stop - 1 - token if places.stop < end else end)

    rows = []
    for token in range(end):
        logits, _, places = max(
            (each for each in windows if token in each[2]), key=lambda each: context(each[2], token)
        )
        rows.append(logits[token - places.start + 1])
    return rows


def softmax(logits: Any) -> Any:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("stride", [0, 11, 23])
async def test_class_logits_are_averaged_by_tokens(artifacts: Any, serving: Any, stride: int) -> None:
    """The last window is short, and weighs as little; windows share a queue with other inputs."""
    artifact = artifacts(Task.SEQUENCE_CLASSIFICATION)
    windows = windows_of(artifact, LONG, stride)
    expected = softmax(np.average([w[0] for w in windows], axis=0, weights=[len(w[2]) for w in windows]))
    body = {"inputs": ["hello", LONG, "late"], "truncate": "window", "stride": stride}
    async with serving(artifact.load, max_batch_tokens=128) as client:
        reply = (await client.post("/v1/classify", json=body)).json()
        single = (await client.post("/v1/classify", json={"inputs": ["hello", "late"]})).json()
    assert len(windows) > 2
    result = reply["results"][1]
    assert (result["windows"], result["truncated"]) == (len(windows), False)
    assert result["tokens"] == sum(len(w[1]) for w in windows)
    got = {p["label"]: p["score"] for p in result["predictions"]}
    assert [got[label] for label in artifact.model.config.id2label.values()] == pytest.approx(expected, rel=1e-3)
    for before, after in zip(single["results"], reply["results"][::2], strict=True):
        assert [p["label"] for p in after["predictions"]] == [p["label"] for p in before["predictions"]]
        assert [p["score"] for p in after["predictions"]] == pytest.approx(
            [p["score"] for p in before["predictions"]], rel=1e-4
        )
    assert reply["windows"] == sum(each["windows"] for each in reply["results"])
    assert reply["tokens"] == sum(each["tokens"] for each in reply["results"])
    assert reply["truncated"] == 0


async def test_each_mask_is_filled_where_it_has_most_context(artifacts: Any, serving: Any) -> None:
    """Its position is that in the whole input; windows without a mask aren't read."""
    artifact = artifacts(Task.FILL_MASK)
    text = f"the [MASK] arrived {LONG} [MASK] my card {LONG} Harvard [MASK]"
    windows = windows_of(artifact, text, 16)
    rows = rows_with_most_context(windows)
    ids = artifact.tokenizer(text)["input_ids"]
    masks = [place for place, token in enumerate(ids) if token == artifact.tokenizer.mask_token_id]
    body = {"inputs": text, "top_k": 3, "truncate": "window", "stride": 16}
    async with serving(artifact.load) as client:
        result = (await client.post("/v1/fill-mask", json=body)).json()["results"][0]
    assert [mask["position"] for mask in result["masks"]] == masks
    for mask in result["masks"]:
        scores = softmax(rows[mask["position"] - 1])
        best = np.argsort(-scores)[:3]
        assert [p["token_id"] for p in mask["predictions"]] == best.tolist()
        assert [p["score"] for p in mask["predictions"]] == pytest.approx(scores[best].tolist(), rel=1e-3)
    assert 3 <= result["windows"] <= 4 < len(windows)
    assert result["truncated"] is False


async def test_tokens_are_tagged_where_they_have_most_context(artifacts: Any, serving: Any) -> None:
    """Every token once, at its own characters: none is lost at 48 tokens, as transformers#15177 was about, and a
    token in two windows has one tag."""
    artifact = artifacts(Task.TOKEN_CLASSIFICATION)
    rows = rows_with_most_context(windows_of(artifact, LONG, 20))
    body = {"inputs": LONG, "aggregation": "none", "truncate": "window", "stride": 20}
    async with serving(artifact.load) as client:
        result = (await client.post("/v1/token-classify", json=body)).json()["results"][0]
    assert "".join(tag["word"] for tag in result["tags"]) == LONG.replace(" ", "")
    labels = artifact.model.config.id2label
    assert [tag["label"] for tag in result["tags"]] == [labels[int(row.argmax())] for row in rows]
    assert [tag["score"] for tag in result["tags"]] == pytest.approx([softmax(row).max() for row in rows], rel=1e-3)
    for tag in result["tags"]:
        assert tag["word"] == LONG[tag["start"] : tag["end"]]


async def test_words_that_the_request_brings_are_read_in_windows_too(artifacts: Any, serving: Any) -> None:
    """One tag each, from the window where the first sub-word has most context."""
    artifact = artifacts(Task.TOKEN_CLASSIFICATION)
    words = LONG.split()
    rows = rows_with_most_context(windows_of(artifact, words, 9))
    places = artifact.tokenizer(words, is_split_into_words=True).word_ids()[1:-1]
    body = {"words": [words, ["hello"]], "truncate": "window", "stride": 9}
    async with serving(artifact.load) as client:
        result = (await client.post("/v1/token-classify", json=body)).json()["results"][0]
    assert [tag["word"] for tag in result["tags"]] == words
    labels = artifact.model.config.id2label
    assert [tag["label"] for tag in result["tags"]] == [
        labels[int(rows[places.index(word)].argmax())] for word in range(len(words))
    ]


async def test_left_drops_the_beginning(artifacts: Any, serving: Any) -> None:
    """What is left is the end, framed as any text; words that were dropped have no label."""
    import torch  # noqa: PLC0415 - takes seconds, and most tests do without

    artifact = artifacts(Task.SEQUENCE_CLASSIFICATION)
    whole = artifact.tokenizer(LONG)["input_ids"]
    ids = [whole[0], *whole[-MAX_LENGTH + 1 :]]
    with torch.no_grad():
        scores = artifact.model(torch.tensor([ids])).logits[0].softmax(-1)
    async with serving(artifact.load) as client:
        reply = (await client.post("/v1/classify", json={"inputs": [LONG, "hello"], "truncate": "left"})).json()
    result = reply["results"][0]
    assert (result["tokens"], result["truncated"], result["windows"], reply["truncated"]) == (MAX_LENGTH, True, 1, 1)
    got = {p["label"]: p["score"] for p in result["predictions"]}
    assert [got[label] for label in artifact.model.config.id2label.values()] == pytest.approx(scores.tolist(), rel=1e-3)
    words = LONG.split()
    async with serving(artifacts(Task.TOKEN_CLASSIFICATION).load) as client:
        body = {"words": [words], "truncate": "left"}
        tags = (await client.post("/v1/token-classify", json=body)).json()["results"][0]["tags"]
    labelled = [tag["label"] is not None for tag in tags]
    assert labelled == sorted(labelled)
    assert (labelled[0], labelled[-1]) == (False, True)


async def test_the_overlap_is_a_quarter_of_a_window_and_at_most_half(artifacts: Any, serving: Any) -> None:
    """`stride` is the overlap, not the step (transformers#22391); 46 tokens of text fit, 23 may overlap."""
    artifact = artifacts(Task.SEQUENCE_CLASSIFICATION)
    async with serving(artifact.load) as client:

        async def ask(**options: Any) -> Any:
            return await client.post("/v1/classify", json={"inputs": LONG, "truncate": "window", **options})

        plain, quarter, half = await ask(), await ask(stride=11), await ask(stride=23)
        beyond = await ask(stride=24)
        short = await client.post("/v1/classify", json={"inputs": "hello", "truncate": "window", "stride": 24})
    assert plain.json() == quarter.json()
    assert half.json()["windows"] > plain.json()["windows"]
    assert (beyond.status_code, beyond.json()["limit"]) == (422, 23)
    assert beyond.json()["type"].endswith("input-invalid")
    assert short.status_code == 200, "nothing is cut"


async def test_windows_are_admitted_with_what_they_share(artifacts: Any, serving: Any) -> None:
    """The queue's bound is on tokens that the model will read."""
    artifact = artifacts(Task.SEQUENCE_CLASSIFICATION)
    body = {"inputs": LONG, "truncate": "window", "stride": 20}
    async with serving(artifact.load) as client:
        tokens = (await client.post("/v1/classify", json=body)).json()["tokens"]
    async with serving(artifact.load, max_batch_tokens=64, max_queue_tokens=tokens) as client:
        assert (await client.post("/v1/classify", json=body)).status_code == 200
    async with serving(artifact.load, max_batch_tokens=64, max_queue_tokens=tokens - 1) as client:
        refused = await client.post("/v1/classify", json=body)
    assert refused.status_code == 413
    assert refused.json()["type"].endswith("request-too-large")
    assert f"{tokens} tokens" in refused.json()["detail"]
