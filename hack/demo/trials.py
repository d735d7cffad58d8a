"""The demo's three rollouts under load: a better model is promoted, two harmful ones are rolled back."""

import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import models
from alerts import ROLLED_BACK, Prometheus, tell
from baseline import read
from canary import Course, follow_canary
from harm import FAILING_SHARE
from rich.console import Console
from senders import Load, Reply, Tally, by_version, mixed_up
from watch import DemoError

#: Requests a second: two cores answer as many with time to spare, which other machines have anyway.
RATE = 30.0
HOST = "spam.example.com"
MODEL = "spam"

Mlflow = Callable[[], AbstractContextManager[str]]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout and what its users saw. expected: whether it was to be promoted.

    canary, stable: of the requests until the decision. alerts: names of those that fired.
    """

    version: str
    what: str
    expected: bool
    course: Course
    canary: Tally
    stable: Tally
    alerts: str

    @property
    def is_as_expected(self) -> bool:
        """Whether the good one was promoted, or the harmful one rolled back."""
        return self.course.decision.promoted == self.expected


@dataclass(frozen=True, slots=True)
class Story:
    """All rollouts, and all requests meanwhile. own_failures: replies in which a version says that it failed."""

    rollouts: list[Rollout]
    sent: int
    lost: int
    mixed_up: int
    own_failures: int


def missing() -> str:
    """What the rollouts need and this environment lacks, in a sentence; empty when nothing is missing."""
    if os.environ.get("CLOZE_GATEWAY"):
        return ""
    return (
        "no canaries: CLOZE_GATEWAY is not set. On a cluster of your own they need a Gateway `cloze` in namespace "
        "`gateway`, its address in CLOZE_GATEWAY, and Prometheus in the chart's value prometheus.url; CLOZE_PROMETHEUS "
        "with an address for this machine adds the alerts"
    )


class Stage:
    """Tries version after version of the deployment `spam` while requests go to it."""

    def __init__(self, namespace: str, folder: Path, mlflow: Mlflow, console: Console) -> None:
        rows = read(folder / "spam-test.jsonl")
        # The file is sorted by label.
        random.Random(7).shuffle(rows)  # noqa: S311 - a reproducible order, no secret
        self._texts = [row["text"] for row in rows]
        self._labels = [row["label"] for row in rows]
        self._namespace, self._mlflow, self._console = namespace, mlflow, console
        address = os.environ.get("CLOZE_PROMETHEUS")
        prometheus = Prometheus(address) if address else None
        self._prometheus = prometheus if prometheus and prometheus.has_rules() else None

    def run(self, before: str, better: str) -> Story:
        """Follow the better version, which is proposed already, and then harmful copies of it."""
        console = self._console
        # The same ones for all three, so that the versions' figures can be compared.
        with Load(os.environ["CLOZE_GATEWAY"], HOST, self._texts, RATE) as load:
            console.print(f"{RATE:.0f} held-out mails a second go through the gateway; version {better} is tried")
            told = [self._follow(load, before, better, "trained for longer", time.monotonic(), expected=True)]
            if not told[0].is_as_expected:
                raise DemoError(f"version {better} wasn't promoted: {told[0].course.decision.message}")
            with self._mlflow() as uri:
                harmful = models.publish_harmful(uri, MODEL, better, self._texts, FAILING_SHARE)
            for one in harmful:
                console.print(f"`challenger` goes to version {one.version}: {one.what}", markup=False, highlight=False)
                with self._mlflow() as uri:
                    models.propose(uri, MODEL, one.version)
                told.append(self._follow(load, better, one.version, one.what, time.monotonic(), expected=False))
        replies = load.replies()
        return Story(
            rollouts=told,
            sent=len(replies),
            lost=sum(reply.is_lost for reply in replies),
            mixed_up=mixed_up(replies),
            own_failures=sum(reply.is_own_failure for reply in replies),
        )

    def _follow(self, load: Load, stable: str, version: str, what: str, began: float, *, expected: bool) -> Rollout:
        # The operator counts in whole seconds, and so do the alerts.
        clock = time.time() - 1
        course = follow_canary(self._namespace, MODEL, version, began, self._console)
        alerts = self._alerts(clock, rolled_back=not course.decision.promoted)
        replies = [reply for reply in load.replies(began) if reply.began <= began + course.seconds]
        tallies = by_version(replies, self._labels)
        found = Rollout(
            version=version,
            what=what,
            expected=expected,
            course=course,
            canary=tallies.get(version, Tally()),
            stable=tallies.get(stable, Tally()),
            alerts=alerts,
        )
        self._tell(found, replies)
        return found

    def _alerts(self, clock: float, *, rolled_back: bool) -> str:
        if self._prometheus is None:
            return "no rules loaded"
        if rolled_back:
            return tell(self._prometheus.await_firing(self._namespace, MODEL, ROLLED_BACK), clock) or "none"
        return tell(self._prometheus.firing(self._namespace, MODEL), clock) or "none"

    def _tell(self, rollout: Rollout, replies: list[Reply]) -> None:
        result = "promoted" if rollout.course.decision.promoted else "rolled back"
        lost = sum(reply.is_lost for reply in replies)
        self._console.print(
            f"{rollout.course.seconds:6.0f} s  version {rollout.version} is {result} after {len(replies)} requests, "
            f"{rollout.canary.requests} of them to it; {lost} lost",
            markup=False,
            highlight=False,
        )
