"""Vectors are those of masked mean pooling over torch's last layer, as sentence-transformers has it."""

import base64
from typing import Any

import numpy as np
import pytest

from cloze_api.task import Task
from cloze_server.dummy import dummy_model

pytestmark = pytest.mark.anyio

MAX_LENGTH = 48
TEXTS = ["Ada Lovelace lived in London, near St. James's Square.", "my card was charged twice", "hello"]
LONG = "Grace Hopper found a moth in the relay of the computer at Harvard University. " * 5


def pooled(artifact: Any, **inputs: Any) -> Any:
    """The mean of the last layer over the tokens that the mask has, of length 1."""
    import torch  # noqa: PLC0415 - takes seconds, and most tests do without

    with torch.no_grad():
        hidden = artifact.model(**inputs).last_hidden_state.numpy()
    mask = inputs["attention_mask"].numpy()[:, :, None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def vectors(reply: Any) -> Any:
    """The reply's vectors, in order."""
    return np.array([each["embedding"] for each in reply["data"]])


async def test_vectors_are_those_of_mean_pooling(artifacts: Any, serving: Any) -> None:
    """In one padded batch for torch; padding is no part of the mean."""
    artifact = artifacts(Task.EMBEDDING)
    expected = pooled(artifact, **artifact.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    async with serving(artifact.load) as client:
        reply = (await client.post("/v1/embeddings", json={"input": TEXTS})).json()
        single = (await client.post("/v1/embeddings", json={"input": TEXTS[0]})).json()
    np.testing.assert_allclose(vectors(reply), expected, atol=1e-5)
    np.testing.assert_allclose(vectors(single), expected[:1], atol=1e-5)


async def test_the_format_is_openais(artifacts: Any, serving: Any) -> None:
    """Objects, indexes and usage; base64 holds the same numbers as 32-bit floats. `user` is taken."""
    artifact = artifacts(Task.EMBEDDING)
    async with serving(artifact.load) as client:
        body = {"input": TEXTS, "model": "mails", "user": "someone"}
        plain = (await client.post("/v1/embeddings", json=body)).json()
        coded = (await client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})).json()
        unknown = await client.post("/v1/embeddings", json={**body, "model": "other"})
    assert (plain["object"], plain["model"]) == ("list", "mails")
    assert [(each["object"], each["index"]) for each in plain["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
        ("embedding", 2),
    ]
    tokens = sum(len(artifact.tokenizer(text)["input_ids"]) for text in TEXTS)
    assert plain["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in coded["data"]]
    np.testing.assert_array_equal(decoded, vectors(plain).astype(np.float32))
    assert unknown.status_code == 404


async def test_only_declared_dimensions_are_given(artifacts: Any, serving: Any) -> None:
    """Cut vectors have length 1 again; any other number is refused with those that there are."""
    artifact = artifacts(Task.EMBEDDING)
    async with serving(artifact.load) as client:
        whole = vectors((await client.post("/v1/embeddings", json={"input": TEXTS, "dimensions": 32})).json())
        cut = vectors((await client.post("/v1/embeddings", json={"input": TEXTS, "dimensions": 8})).json())
        refused = await client.post("/v1/embeddings", json={"input": TEXTS, "dimensions": 16})
        described = (await client.get("/v1/models")).json()["models"][0]
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, atol=1e-6)
    assert refused.status_code == 422
    assert refused.json()["dimensions"] == described["dimensions"] == [8, 32]


async def test_windows_are_pooled_by_tokens(artifacts: Any, serving: Any) -> None:
    """And the mean has length 1 again."""
    artifact = artifacts(Task.EMBEDDING)
    cut = artifact.tokenizer(
        LONG,
        truncation=True,
        max_length=MAX_LENGTH,
        stride=6,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    )
    cut.pop("overflow_to_sample_mapping")
    parts = pooled(artifact, **cut)
    mean = np.average(parts, axis=0, weights=cut["attention_mask"].sum(1).numpy() - 2)
    async with serving(artifact.load) as client:
        body = {"input": ["hello", LONG], "truncate": "window", "stride": 6}
        reply = (await client.post("/v1/embeddings", json=body)).json()
        refused = await client.post("/v1/embeddings", json={"input": LONG})
    assert [each["windows"] for each in reply["data"]] == [1, len(parts)]
    np.testing.assert_allclose(vectors(reply)[1], mean / np.linalg.norm(mean), atol=1e-5)
    assert refused.status_code == 422


async def test_similarity_is_the_cosine(artifacts: Any, serving: Any) -> None:
    """Of a source with each sentence, or of pairs."""
    artifact = artifacts(Task.EMBEDDING)
    expected = pooled(artifact, **artifact.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    async with serving(artifact.load) as client:
        body = {"source": TEXTS[0], "sentences": TEXTS}
        one = (await client.post("/v1/similarity", json=body)).json()
        pairs = [[TEXTS[1], TEXTS[2]], [TEXTS[0], TEXTS[1]]]
        two = (await client.post("/v1/similarity", json={"pairs": pairs})).json()
    assert one["scores"] == pytest.approx((expected @ expected[0]).tolist(), abs=1e-5)
    assert two["scores"] == pytest.approx([expected[1] @ expected[2], expected[0] @ expected[1]], abs=1e-5)
    assert (one["model"], one["windows"]) == ("mails", 4)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"source": "a"},
        {"source": "a", "sentences": []},
        {"pairs": [["a"]]},
        {"source": "a", "sentences": ["b"], "pairs": [["a", "b"]]},
    ],
)
async def test_similarity_takes_one_form(serving: Any, body: dict[str, Any]) -> None:
    """A source with sentences, or pairs."""
    async with serving(lambda: dummy_model(Task.EMBEDDING)) as client:
        assert (await client.post("/v1/similarity", json=body)).status_code == 422


async def test_cosine_does_not_take_length_for_likeness(serving: Any) -> None:
    """The stand-in's vectors have any length."""
    async with serving(lambda: dummy_model(Task.EMBEDDING)) as client:
        same = (await client.post("/v1/similarity", json={"pairs": [["abc", "abc"]]})).json()
        vector = vectors((await client.post("/v1/embeddings", json={"input": ["abc"]})).json())[0]
    assert np.linalg.norm(vector) != pytest.approx(1, rel=1e-2)
    assert same["scores"] == [pytest.approx(1, abs=1e-6)]
