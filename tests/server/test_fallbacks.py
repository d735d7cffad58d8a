"""Another model answers where one abstains."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from cloze_api.manifest import Calibration
from cloze_api.task import Task
from cloze_server import fallbacks
from cloze_server.app import create_app
from cloze_server.backend import DummyBackend, Ids, Logits
from cloze_server.dummy import dummy_model
from cloze_server.exits import FatalError
from cloze_server.lifecycle import Lifecycle, State
from cloze_server.model import LoadedModel
from cloze_server.settings import Settings, read

pytestmark = pytest.mark.anyio

TEXTS = ["Ada lived here", "my card", "late"]
_CLASSIFY, _TAG = Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION
_PAIR = ("small=large",)


class Large:
    """Another model of the same labels: it likes them the other way round. Counts the sequences that it was given."""

    def __init__(self, task: Task) -> None:
        self._backend = dummy_model(task).backend
        self.sequences = 0
        self.fails = False
        self.go = threading.Event()
        self.go.set()

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: N803 - as in Backend
        assert self.go.wait(10)
        if self.fails:
            raise RuntimeError("on purpose")
        self.sequences += len(ids_BL)
        return -self._backend.infer(ids_BL, mask_BL)


def small(task: Task = _CLASSIFY, threshold: float = 1.0, **changes: Any) -> LoadedModel:
    """The first model. threshold: below it, it abstains."""
    return replace(dummy_model(task), name="small", calibration=Calibration(thresholds=threshold), **changes)


def large(backend: Any, task: Task = _CLASSIFY, threshold: float = 0.0, **changes: Any) -> LoadedModel:
    """Its fallback."""
    calibration = Calibration(thresholds=threshold)
    return replace(dummy_model(task), name="large", backend=backend, calibration=calibration, **changes)


def loads(*models: LoadedModel) -> list[Any]:
    """A loader for each."""
    return [lambda each=each: each for each in models]


async def counted(client: Any, metric: str, model: str) -> dict[str, float]:
    """A metric's samples of one model, by what is after its name and version."""
    lines = (await client.get("/metrics")).text.splitlines()
    found = [line for line in lines if line.startswith(metric + "{") and f'model="{model}"' in line]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in found}


async def test_only_what_was_abstained_is_answered_by_the_other(serving: Any) -> None:
    """Each in its place, and each says who answered; the other is asked for no more than that."""
    async with serving(loads(small(threshold=0.0))) as client:
        plain = (await client.post("/v1/classify", json={"inputs": TEXTS, "top_k": 1})).json()["results"]
    scores = sorted(result["predictions"][0]["score"] for result in plain)
    backend = Large(_CLASSIFY)
    models = loads(small(threshold=scores[1]), large(backend))
    async with serving(models, fallback=_PAIR) as client:
        before = backend.sequences
        answered = await client.post("/v1/classify", json={"inputs": TEXTS, "top_k": 1, "model": "small"})
        assert backend.sequences == before + 1
        alone = await client.post("/v1/classify", json={"inputs": TEXTS, "top_k": 1, "model": "large"})
        tallies = [
            sum((await counted(client, "cloze_predictions_total", each)).values()) for each in ("small", "large")
        ]
        did = await counted(client, "cloze_fallback_inputs_total", "small")
        withheld = await counted(client, "cloze_abstained_predictions_total", "small")
    reply = answered.json()
    assert (reply["model"], answered.headers["x-cloze-model"]) == ("small", "small")
    unsure = [result["predictions"][0]["score"] < scores[1] for result in plain]
    for result, before_it, other, fell_back in zip(
        reply["results"], plain, alone.json()["results"], unsure, strict=True
    ):
        expected = other if fell_back else before_it
        assert result["predictions"] == expected["predictions"]
        assert result["model"] == ("large/local" if fell_back else "small/local")
        assert result.get("fallback", False) == fell_back
        assert not result["abstained"]
    assert reply["tokens"] == sum(result["tokens"] for result in reply["results"])
    # Each model's predictions are its own: the share that abstained would be none otherwise.
    assert tallies == [3, 1 + 3]
    assert sum(withheld.values()) == 1
    assert [each for each in did.values() if each] == [1]
    # A model without a fallback says nothing of it.
    assert all("model" not in result and "fallback" not in result for result in alone.json()["results"])


@pytest.mark.parametrize("body", [{"inputs": TEXTS}, {"words": [["Ada", "lived"], ["late"]]}])
async def test_tags_fall_back_with_their_whole_text(serving: Any, body: dict[str, Any]) -> None:
    """One tag below its threshold is enough."""
    async with serving(loads(small(_TAG), large(Large(_TAG), _TAG)), fallback=_PAIR) as client:
        first = (await client.post("/v1/token-classify", json={**body, "model": "small"})).json()["results"]
        other = (await client.post("/v1/token-classify", json={**body, "model": "large"})).json()["results"]
    assert [result["tags"] for result in first if result.get("fallback")] == [
        result["tags"] for mine, result in zip(first, other, strict=True) if mine.get("fallback")
    ]
    assert any(result.get("fallback") for result in first)


async def test_a_fallback_that_cannot_answer_leaves_the_first_answer(serving: Any) -> None:
    """Abstained as it is: that is worth more than an error; and one that is as unsure says so itself."""
    backend = Large(_CLASSIFY)
    async with serving(loads(small(), large(backend, threshold=1.0)), fallback=_PAIR) as client:
        unsure = (await client.post("/v1/classify", json={"inputs": "a", "model": "small"})).json()["results"][0]
        backend.fails = True
        failed = await client.post("/v1/classify", json={"inputs": "a", "model": "small"})
        did = await counted(client, "cloze_fallback_inputs_total", "small")
    assert (unsure["model"], unsure["abstained"]) == ("large/local", True)
    assert failed.status_code == 200
    result = failed.json()["results"][0]
    assert (result["model"], result["abstained"], "fallback" in result) == ("small/local", True, False)
    assert {name.partition('result="')[2].partition('"')[0]: count for name, count in did.items()} == {
        "answered": 0,
        "abstained": 1,
        "failed": 1,
    }


async def test_a_text_that_only_the_fallback_finds_too_long_keeps_its_answer(serving: Any) -> None:
    """Its limits are its own."""
    models = loads(small(), large(Large(_CLASSIFY), max_length=16))
    async with serving(models, fallback=_PAIR) as client:
        answered = await client.post("/v1/classify", json={"inputs": "a " * 40, "model": "small"})
    assert (answered.status_code, answered.json()["results"][0]["model"]) == (200, "small/local")


async def test_the_deadline_is_of_both(serving: Any) -> None:
    """A fallback that hangs costs no more time than the request has."""
    backend = Large(_CLASSIFY)
    async with serving(loads(small(), large(backend)), fallback=_PAIR) as client:
        backend.go.clear()
        late = await client.post("/v1/classify", json={"inputs": "a", "model": "small", "timeout_ms": 100})
        backend.go.set()
    assert late.status_code == 504


async def test_a_fallback_is_not_asked_first(serving: Any) -> None:
    """Who names no model means the one that the other stands in for; by its name the other answers too."""
    async with serving(loads(small(threshold=0.0), large(Large(_CLASSIFY))), fallback=_PAIR) as client:
        unnamed = await client.post("/v1/classify", json={"inputs": "a"})
        named = await client.post("/v1/classify", json={"inputs": "a", "model": "large"})
    assert [each.headers["x-cloze-model"] for each in (unnamed, named)] == ["small", "large"]


async def test_a_kept_reply_of_two_models_is_counted_for_both(serving: Any) -> None:
    """As if it had been made again."""
    backend = Large(_CLASSIFY)
    async with serving(loads(small(), large(backend)), fallback=_PAIR, cache_bytes=1 << 20) as client:
        replies = [await client.post("/v1/classify", json={"inputs": "a", "model": "small"}) for _ in range(2)]
        tallies = [
            sum((await counted(client, "cloze_predictions_total", each)).values()) for each in ("small", "large")
        ]
        did = await counted(client, "cloze_fallback_inputs_total", "small")
    assert [each.headers["x-cloze-cache"] for each in replies] == ["miss", "hit"]
    assert replies[0].content == replies[1].content
    assert tallies == [2, 2]
    assert sum(did.values()) == 2


def other_labels(model: LoadedModel) -> LoadedModel:
    """The same with one label more."""
    backend = DummyBackend(classes=9, per_token=False)
    return replace(model, labels=[*model.labels, "more"], backend=backend)


@pytest.mark.parametrize(
    ("names", "models", "said"),
    [
        ("small=large", [small(), other_labels(large(None))], "must be the same"),
        ("small=large", [small(), large(None, _TAG)], "must be the same"),
        ("small=huge", [small(), large(None)], "'huge' is none of the models small/local, large/local"),
        ("small=large", [small(), large(None), large(None, version="2")], "'large' is several"),
        ("small=small/local", [small()], "another model"),
        ("small=large", [small(Task.EMBEDDING), large(None, Task.EMBEDDING)], "only classifiers"),
    ],
)
def test_a_fallback_that_does_not_fit_is_refused(names: str, models: list[LoadedModel], said: str) -> None:
    """When the models are loaded, in a sentence that says why."""
    with pytest.raises(FatalError, match=said) as refused:
        fallbacks.resolve(fallbacks.declared([names]), models)
    assert refused.value.reason == "FallbackInvalid"


def test_the_order_of_labels_does_not_matter() -> None:
    """Replies name them."""
    turned = replace(large(None), labels=list(reversed(large(None).labels)))
    assert fallbacks.resolve({"small": "large"}, [small(), turned]) == {"small/local": "large/local"}


@pytest.mark.parametrize("text", ["small", "small=", "=large", "small=small"])
def test_a_declaration_that_is_wrong_is_refused_at_the_start(text: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(FatalError, match="--fallback"):
        read(["--model", "x", "--fallback", text], {})


async def test_a_process_with_a_fallback_that_does_not_fit_ends() -> None:
    """With the reason, instead of serving without."""
    lifecycle = Lifecycle()
    models = loads(small(), other_labels(large(None)))
    app = create_app(Settings(model=("dummy:", "dummy:"), fallback=_PAIR), models, lifecycle)
    failed = threading.Event()
    original = lifecycle.fail
    lifecycle.fail = lambda error: (original(error), failed.set())[0]  # type: ignore[method-assign]
    async with app.router.lifespan_context(app):
        assert await asyncio.to_thread(failed.wait, 20)
    assert lifecycle.state is State.FAILED
    assert lifecycle.failure is not None
    assert lifecycle.failure.reason == "FallbackInvalid"
