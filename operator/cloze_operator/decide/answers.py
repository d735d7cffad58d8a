"""What somebody else said when asked: the registry, a pod. Not being told is an answer of its own."""

from dataclasses import dataclass

from cloze_operator.desired.facts import UNKNOWN, Facts


@dataclass(frozen=True, slots=True)
class Version:
    """A model version in the registry."""

    name: str
    version: str
    digest: str
    """Empty when the version carries no digest tag: nobody can verify such a version."""
    run_id: str = ""
    quarantined: str = ""
    """Why a canary of it was rolled back; empty for a version that may be tried."""
    facts: Facts = UNKNOWN

    @property
    def number(self) -> int:
        """The version as a number; the registry counts up."""
        return int(self.version)


@dataclass(frozen=True, slots=True)
class NotFound:
    """The registry answered that there is no such thing."""

    message: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The registry didn't answer. What was known stays true."""

    message: str


Answer = Version | NotFound | Unavailable | None
"""None: nobody asked, since the snapshot didn't need it."""


def current_version(answer: Version | NotFound) -> str | None:
    """The version behind an alias; None for an alias that isn't set."""
    return answer.version if isinstance(answer, Version) else None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a serving pod says it has loaded."""

    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class HeldUp:
    """What a serving pod says is in the way of loading its model."""

    reason: str
    message: str
