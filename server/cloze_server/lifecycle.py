"""Where the process is between start and end; probes, replies and the HTTP server read it."""

from enum import StrEnum

from cloze_server.exits import FatalError


class State(StrEnum):
    """Stages of a server's life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """The present state. It only moves forward: a model that is loaded while the process drains isn't ready."""

    def __init__(self) -> None:
        self.state = State.LOADING
        self.failure: FatalError | None = None

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
        self.state = State.FAILED
        self.failure = error
