"""The models of one process, and which of them answers a request."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cloze_api.task import Task
from cloze_server import fallbacks, paths
from cloze_server.lifecycle import Lifecycle
from cloze_server.model import LoadedModel, identity
from cloze_server.problems import ProblemError, ProblemType
from cloze_server.replies import ReplyCache
from cloze_server.service import Service
from cloze_server.telemetry import Instruments, RequestCounter, Telemetry
from cloze_server.turns import Turns

_LOADING_RETRY_SECONDS = 5


def choose(
    models: Sequence[LoadedModel],
    task: Task | None,
    wanted: str | None,
    *,
    complete: bool,
    aside: Collection[str] = (),
) -> int:
    """Index of the model that answers.

    task: what the route answers; None for a route of all tasks. wanted: the `name` or `name/version` that the request
    asks for; without one the only model of the task answers, where those `aside`, by `name/version`, don't count: they
    are others' fallbacks. complete: whether no model is still being loaded.
    Raises ProblemError: the model is unknown, has another task, or several fit.
    """
    named = [index for index, model in enumerate(models) if wanted in (None, model.name, identity(model))]
    fitting = [index for index in named if task in (None, models[index].task)]
    if wanted is None and len(fitting) > 1:
        fitting = [index for index in fitting if identity(models[index]) not in aside] or fitting
    if len(fitting) == 1 and (complete or wanted is not None):
        return fitting[0]
    if not complete:
        raise ProblemError(
            ProblemType.MODEL_LOADING,
            "the model is being fetched, verified or warmed up: /readyz says when it answers",
            retry_after_seconds=_LOADING_RETRY_SECONDS,
        )
    candidates = [identity(models[index]) for index in (fitting or named or range(len(models)))]
    listed = ", ".join(candidates)
    if fitting:
        raise ProblemError(
            ProblemType.MODEL_AMBIGUOUS,
            f"{listed} could answer: name one by the field model or the header x-cloze-model",
            members={"models": candidates},
        )
    if not named:
        # The name isn't repeated: a client may have put anything there.
        raise ProblemError(
            ProblemType.MODEL_UNKNOWN, f"the models here are {listed}: name one of them", members={"models": candidates}
        )
    tasks = {models[index].task for index in named}
    routes = ", ".join(f"{each} at {paths.TASK_PATHS[each]}" for each in sorted(tasks))
    members: dict[str, object] = {"models": candidates}
    if len(tasks) == 1:
        (loaded,) = tasks
        members |= {"loaded_task": loaded, "route": paths.TASK_PATHS[loaded]}
    raise ProblemError(ProblemType.TASK_MISMATCH, f"{listed} can't do that, but: {routes}", members=members)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why another artifact did not take a model's place. digest: its digest, empty where it isn't known.

    `reason` is CamelCase and fits a condition.
    """

    digest: str
    reason: str
    message: str


@dataclass(eq=False, slots=True)
class Hosted:
    """A model that answers.

    telemetry: counts its requests. refused: what was to take its place last and could not. headers: of each of its
    replies.
    """

    service: Service
    telemetry: Telemetry
    refused: Refusal | None = None
    _requests: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    headers: tuple[tuple[bytes, bytes], ...] = field(init=False)

    def __post_init__(self) -> None:
        model = self.service.model
        self.headers = (
            (b"x-cloze-model", model.name.encode()),
            (b"x-cloze-version", model.version.encode()),
            (b"x-cloze-digest", model.digest.encode()),
        )
        self._idle.set()

    def enter(self) -> None:
        """A request is this model's."""
        self._requests += 1
        self._idle.clear()

    def leave(self) -> None:
        """It isn't any more."""
        self._requests -= 1
        if not self._requests:
            self._idle.set()

    async def idle(self) -> None:
        """Until no request is left; one that has been replaced gets no new one."""
        await self._idle.wait()


class Room:
    """What the routes share: the process's state, and the models that answer.

    counter: counts requests that belong to no model of several. turns: whose batch runs. replies: those that are kept;
    None: none are. fallbacks: by `name/version`, who answers where a model abstains; empty until all models are loaded.
    """

    def __init__(
        self, lifecycle: Lifecycle, instruments: Instruments, counter: RequestCounter, *, models: int, turns: Turns
    ) -> None:
        """models: how many are loaded in the end."""
        self.lifecycle = lifecycle
        self.instruments = instruments
        self.counter = counter
        self.turns = turns
        self.hosted: list[Hosted] = []
        self.replies: ReplyCache | None = None
        self.fallbacks: Mapping[str, str] = {}
        self._models: list[LoadedModel] = []
        self._count = models

    @property
    def complete(self) -> bool:
        """Whether all models are loaded."""
        return len(self.hosted) == self._count

    @property
    def only(self) -> Hosted | None:
        """The model, where there is one for all requests."""
        return self.hosted[0] if self._count == 1 and self.hosted else None

    def add(self, hosted: Hosted) -> None:
        """One more model answers."""
        self._models.append(hosted.service.model)
        self.hosted.append(hosted)
        if self.complete:
            self.lifecycle.loaded()

    def replace(self, index: int, hosted: Hosted) -> Hosted:
        """Another artifact of a model answers from now on; the one that did so far."""
        former = self.hosted[index]
        self.hosted[index], self._models[index] = hosted, hosted.service.model
        return former

    def select(self, task: Task | None, wanted: str | None) -> Hosted:
        """Who answers a request. Raises ProblemError: see `choose`."""
        aside = self.fallbacks.values()
        return self.hosted[choose(self._models, task, wanted, complete=self.complete, aside=aside)]

    def fallback(self, hosted: Hosted) -> Hosted | None:
        """Who answers where this model abstains; None where nobody does."""
        model = hosted.service.model
        if (wanted := self.fallbacks.get(identity(model))) is None:
            return None
        found = (each for each in self.hosted if identity(each.service.model) == wanted)
        # An artifact that took another's place may have other labels.
        return next((each for each in found if fallbacks.fits(model, each.service.model)), None)

    def failure(self) -> str | None:
        """Why the process has to be started anew; None while it can answer."""
        for hosted in self.hosted:
            if reason := hosted.service.failure():
                return reason
        return None

    def close(self) -> None:
        """Stop all models' threads and forget what is kept; call when no request is left."""
        if self.replies is not None:
            self.replies.close()
        for hosted in self.hosted:
            hosted.service.close()
