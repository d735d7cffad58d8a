"""Where the process is between start and end; probes, replies and the HTTP server read it."""

from dataclasses import dataclass
from enum import StrEnum

from cloze_server.exits import FatalError


class State(StrEnum):
    """Stages of a server's life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Stage(StrEnum):
    """What a server that is loading does."""

    FETCHING = "fetching"
    LOADING = "loading"
    WARMING_UP = "warming-up"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far loading is, and what was last in its way; `reason` is CamelCase and fits a condition."""

    stage: Stage
    reason: str = ""
    message: str = ""


class Lifecycle:
    """The present state. It only moves forward: what comes of loading while the process drains doesn't matter any more.

    abandoned: accepted requests that got no answer of the model because the process ended first.
    """

    def __init__(self) -> None:
        self.state = State.LOADING
        self.failure: FatalError | None = None
        self.abandoned = 0
        self.progress = Progress(Stage.FETCHING)

    def report(self, stage: Stage, reason: str = "", message: str = "") -> None:
        """Loading got to a stage, or is held up in it."""
        self.progress = Progress(stage, reason, message)

    def loaded(self) -> None:
        """The model answers."""
        if self.state is State.LOADING:
            self.state = State.READY

    def drain(self) -> None:
        """The process was asked to end."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    def fail(self, error: FatalError) -> None:
        """Loading failed for good."""
        if self.state is State.LOADING:
            self.state = State.FAILED
            self.failure = error
            self.report(self.progress.stage, error.reason, str(error))
