"""What a rollout has to remember between two looks, kept in one object: whoever reads it goes on where another stopped.

The children follow from the record: weights, numbers of pods, selectors. So a look either changes the record, by one
guarded write, or carries it out, and being killed between any two writes loses nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar, Final

from pydantic import AwareDatetime, ConfigDict, TypeAdapter

from cloze_operator.decide.fields import Object, dig, format_time
from cloze_operator.desired.record import KEY

_REJECTIONS_KEPT: Final = 10


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a revision was taken back. quarantined: it isn't tried again by itself."""

    reason: str
    message: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Where a ModelDeployment's rollout is. Revisions are named by their hash; empty means none.

    stable: serves what isn't the canary's. canary: the one that is tried.
    step: index into the plan's shares. asked: when the present step, or the first revision, was decided on.
    since: when the step's share was in force.
    began: when the canary was first given requests; evidence counts from there.
    pause: why it waits for a person; resumed: when a person last said to go on without what was missing.
    previous: the former stable revision, whose pods are kept since `promoted`.
    burning: since when half of the requests are back at `previous`. blamed: it was found that both burn.
    retired: revisions whose pods go at a time. rejected: the last ones that were taken back.
    retried: a rejected revision that a person wants tried again.
    obeyed: the command that has been carried out and may still stand in the annotation.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    stable: str = ""
    canary: str = ""
    step: int = 0
    asked: AwareDatetime | None = None
    since: AwareDatetime | None = None
    began: AwareDatetime | None = None
    pause: str = ""
    pause_message: str = ""
    resumed: bool = False
    previous: str = ""
    promoted: AwareDatetime | None = None
    burning: AwareDatetime | None = None
    blamed: bool = False
    retired: Mapping[str, AwareDatetime] = field(default_factory=dict)
    rejected: Mapping[str, Rejection] = field(default_factory=dict)
    retried: str = ""
    obeyed: str = ""

    @property
    def in_use(self) -> frozenset[str]:
        """Revisions that have pods."""
        return frozenset({self.stable, self.canary, self.previous, *self.retired} - {""})

    def trying(self, canary: str, now: datetime) -> "Record":
        """With a new canary at its first step. The former one's pods go, and so do those of a former stable one."""
        cleared = self.without_canary(now).forgetting(now)
        retired = {name: at for name, at in cleared.retired.items() if name != canary}
        return replace(cleared, canary=canary, asked=now, retired=retired)

    def at_step(self, step: int, now: datetime) -> "Record":
        """At another step, whose share isn't in force yet."""
        return replace(self, step=step, asked=now, since=None, pause="", pause_message="", resumed=False)

    def without_canary(self, now: datetime) -> "Record":
        """Without a canary: nothing goes to it any more, and its pods go."""
        freed = replace(
            self, canary="", step=0, asked=None, since=None, began=None, pause="", pause_message="", resumed=False
        )
        return freed.retiring(self.canary, now)

    def rejecting(self, revision: str, rejection: Rejection) -> "Record":
        """With a revision noted as taken back."""
        others = {name: found for name, found in self.rejected.items() if name != revision}
        kept = dict([*others.items(), (revision, rejection)][-_REJECTIONS_KEPT:])
        return replace(self, rejected=kept, retried="" if self.retried == revision else self.retried)

    def promoting(self, now: datetime) -> "Record":
        """The canary is the stable revision now; the former one keeps its pods for a while."""
        old = self.stable
        fresh = replace(self.without_canary(now), stable=self.canary, previous=old, promoted=now, blamed=False)
        pardoned = {name: found for name, found in self.rejected.items() if name != self.canary}
        retired = {name: at for name, at in fresh.retired.items() if name not in (self.canary, old)}
        return replace(fresh, retired=retired, rejected=pardoned, retried="")

    def forgetting(self, now: datetime) -> "Record":
        """The former stable revision's pods go."""
        return replace(self, previous="", promoted=None, burning=None, blamed=False).retiring(self.previous, now)

    def retiring(self, revision: str, now: datetime) -> "Record":
        """With a revision's pods told to go."""
        return replace(self, retired={**self.retired, revision: now}) if revision else self

    def paused(self, reason: str, message: str) -> "Record":
        """Waiting for a person."""
        return replace(self, pause=reason, pause_message=message)


_READER: Final = TypeAdapter(Record)


def dump(record: Record) -> str:
    """The record as text."""
    told = {key: value for key, value in asdict(record).items() if value}
    return json.dumps(_plain(told), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return format_time(value)
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def load(stored: Object | None) -> Record:
    """The record in a ConfigMap; an empty one when there is none.

    Raises ValueError for one that somebody has edited into nonsense, or that a later Cloze has written.
    """
    text = dig(stored, "data", KEY)
    return _READER.validate_json(text) if text else Record()
