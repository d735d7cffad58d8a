"""Pods are asked, and one that says nothing is not taken for one that says something."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cloze_operator.decide.answers import HeldUp, Loaded
from cloze_operator.reports import Direct, Reports

Document = dict[str, Any]
Make = Callable[..., Document]


class Answers:
    """A reach with fixed answers by the pod's name."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}
        self.asked: list[tuple[str, int, str]] = []

    async def fetch(self, pod: Any, port: int, path: str) -> Any:
        name = pod["metadata"]["name"]
        self.asked.append((name, port, path))
        return self.answers.get(name)


def test_progress_comes_from_rank_zero(pod: Make) -> None:
    """Pods without rank 0 answer 404; pods that don't run aren't asked."""
    reach = Answers(run_1={"stage": "training", "step": 3, "total_steps": 9})
    pods = [pod("run-0"), pod("run-1"), pod("run-2", "Pending"), pod("run-3", going=True)]
    found = asyncio.run(Reports(reach).progress(pods))
    assert found is not None
    assert (found.step, found.total_steps) == (3, 9)
    assert sorted(reach.asked) == [("run-0", 9400, "/progress"), ("run-1", 9400, "/progress")]


@pytest.mark.parametrize("answer", [None, [], {}, "text", {"step": "many"}])
def test_nonsense_is_no_progress(pod: Make, answer: Any) -> None:
    """An answer that isn't the contract's is none."""
    assert asyncio.run(Reports(Answers(run_0=answer)).progress([pod("run-0")])) is None


def test_servers_tell_what_they_have_loaded_or_what_is_in_the_way(pod: Make) -> None:
    """Running pods are asked; one that is loading undisturbed, or silent, says nothing."""
    ready = {"conditions": {"Ready": "True"}}
    waits = {"state": "loading", "stage": "fetching", "reason": "RegistryUnavailable", "message": "no answer"}
    reach = Answers(
        s_0={"state": "ready", "models": [{"version": "3", "digest": "sha256:x"}]},
        s_1={"state": "loading", "models": []},
        s_3=waits,
        s_4={"state": "loading", "stage": "fetching", "reason": "", "message": "", "models": []},
    )
    pods = [
        pod("s-0", **ready),
        pod("s-1", **ready),
        pod("s-2", **ready),
        pod("s-3"),
        pod("s-4"),
        pod("s-5", "Pending"),
    ]
    loaded, held_up = asyncio.run(Reports(reach).servers(pods))
    assert loaded == {"s-0": Loaded("3", "sha256:x")}
    assert held_up == {"s-3": HeldUp("RegistryUnavailable", "no answer")}
    assert len(reach.asked) == 5


def test_words_are_clipped_to_what_a_status_holds(pod: Make) -> None:
    """A pod that says too much, or what can't be a reason, must not make the whole status unwritable."""
    ready = pod("s-0", conditions={"Ready": "True"})
    reach = Answers(
        s_0={"models": [{"version": "9" * 99, "digest": "d"}], "stage": "s" * 99},
        s_1={"reason": "no reason at all", "message": "m"},
        s_2={"reason": "Long", "message": "m" * 9999},
    )
    loaded, held_up = asyncio.run(Reports(reach).servers([ready, pod("s-1"), pod("s-2")]))
    assert loaded["s-0"].version == "9" * 32
    assert held_up == {"s-2": HeldUp("Long", "m" * 1024)}
    found = asyncio.run(Reports(reach).progress([ready]))
    assert found is not None
    assert found.stage == "s" * 64


def test_pod_without_an_address_is_not_asked(pod: Make) -> None:
    """A pod gets its address late; an address nobody listens at is silence."""

    async def scenario() -> list[Any]:
        reach = Direct()
        return [await reach.fetch(one, 1, "/progress") for one in (pod("a"), pod("b", podIP="127.0.0.1"))]

    assert asyncio.run(scenario()) == [None, None]
