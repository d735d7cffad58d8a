"""Fill-mask without weights: how much a request may ask for, and how little is kept of its logits."""

from typing import Any

import numpy as np
import pytest

from cloze_api.task import Task
from cloze_server.bounds import PREDICTIONS_MAX
from cloze_server.dummy import dummy_model
from cloze_server.tasks.fill_mask import FillMask, FillMaskRequest
from cloze_server.tasks.handler import Item
from cloze_server.tokenization import Encoded
from cloze_server.windows import Window

pytestmark = pytest.mark.anyio


def load() -> Any:
    """The stand-in."""
    return dummy_model(Task.FILL_MASK)


async def test_more_predictions_than_a_reply_may_have_are_refused(serving: Any) -> None:
    """Before any is computed; the document says how many are allowed."""
    texts = ["[MASK] " * 100]
    async with serving(load) as client:
        refused = await client.post("/v1/fill-mask", json={"inputs": texts, "top_k": PREDICTIONS_MAX // 100 + 1})
        answered = await client.post("/v1/fill-mask", json={"inputs": texts, "top_k": PREDICTIONS_MAX // 100})
    assert refused.status_code == 413
    assert refused.json()["type"].endswith("request-too-large")
    assert refused.json()["limit"] == PREDICTIONS_MAX
    assert answered.status_code == 200


def test_no_more_than_the_asked_tokens_is_kept_of_a_vocabulary() -> None:
    """A request's masks may be thousands, each with a score for every token: those can't wait for the reply."""
    model = dummy_model(Task.FILL_MASK)
    logits = np.random.default_rng(1).normal(size=(6, 30_000)).astype(np.float32)
    item = Item(0, Encoded([0] * 4), lead=[2], tail=[3], positions=[0, 3])
    kept = FillMask(model).keep(FillMaskRequest(inputs="", top_k=3), item, Window(0, 4, 0, 4), logits)
    for ranking, position in zip(kept, (1, 4), strict=True):
        scores = np.exp(logits[position]) / np.exp(logits[position]).sum()
        assert ranking.classes == np.argsort(-scores)[:3].tolist()
        assert ranking.scores == pytest.approx(np.sort(scores)[::-1][:3].tolist(), rel=1e-4)
        assert isinstance(ranking.scores, list), "a view would hold the whole row"
