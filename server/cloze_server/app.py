"""The ASGI application: routes, errors, and the model that is loaded behind it."""

import asyncio
import contextlib
import functools
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import CancelledError
from importlib.metadata import version as distribution_version
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from cloze_server import fallbacks, garbage, logs, own_limits, paths
from cloze_server.cache import StoppedError
from cloze_server.exits import ExitCode, FatalError
from cloze_server.feedback import Forwarder, HttpSink
from cloze_server.feedback import build_router as build_feedback_router
from cloze_server.hosting import Hosted, Room
from cloze_server.keys import KeyFile
from cloze_server.lifecycle import Lifecycle, Stage
from cloze_server.middleware import RequestMiddleware
from cloze_server.model import LoadedModel, Loader, identity
from cloze_server.oip.routes import build_router as build_protocol_router
from cloze_server.pages import build_router as build_page_router
from cloze_server.problems import ProblemError, ProblemType, invalid_request
from cloze_server.reference import ModelReference, RegisteredVersion, parse_reference
from cloze_server.reload import Reloader, Reloading
from cloze_server.replies import ReplyCache
from cloze_server.routes import build_endpoints, build_router
from cloze_server.schema import complete
from cloze_server.segments import Segments, declared
from cloze_server.service import Service
from cloze_server.settings import Settings
from cloze_server.telemetry import Instruments, RequestCounter, Telemetry
from cloze_server.turns import Turns

if TYPE_CHECKING:
    from cloze_server.tracing import Tracing

_log = logging.getLogger(__name__)

_CORS_REQUEST_HEADERS = (
    "authorization",
    "content-type",
    "x-api-key",
    "x-request-id",
    "traceparent",
    "x-cloze-model",
    "x-cloze-timeout-ms",
)
_CORS_REPLY_HEADERS = (
    *("x-request-id", "x-cloze-model", "x-cloze-version", "x-cloze-digest"),
    *("server-timing", "x-cloze-cache", "retry-after", "www-authenticate"),
)


def create_app(
    settings: Settings,
    loaders: Sequence[Loader],
    lifecycle: Lifecycle | None = None,
    reloading: Reloading | None = None,
    instruments: Instruments | None = None,
) -> FastAPI:
    """The application. `loaders`, one for each model of the settings, run one after the other in a thread once the
    server listens, so that probes are answered meanwhile. reloading: how models are replaced; None: never.

    When one raises, `lifecycle.failure` says so, and whoever runs the server ends it. Raises FatalError (CONFIGURATION)
    for a model reference or a file of keys that can't be read.
    """
    references = [parse_reference(each) for each in settings.model]
    lifecycle = lifecycle or Lifecycle()
    instruments = instruments or Instruments()
    counter, turns = _counter(references, settings, instruments), Turns(settings.parallel_batches)
    room = Room(lifecycle, instruments, counter, models=len(loaders), turns=turns)
    if settings.cache_bytes:
        room.replies = ReplyCache(settings.cache_bytes, settings.cache_ttl_seconds, instruments.replies)

    forwarder = None
    if settings.feedback_url:
        forwarder = Forwarder(HttpSink(settings.feedback_url, settings.feedback_token_file), instruments.feedback)

    tracing = _tracing(settings, instruments)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        threading.Thread(target=_load, args=(loaders, settings, room, loop), name="load", daemon=True).start()
        if forwarder:
            forwarder.start()
        reloader = Reloader(room, settings, reloading, loop) if reloading else None
        if reloader:
            reloader.start()
        yield
        if reloader:
            reloader.close()
        if forwarder:
            await forwarder.close()
        if tracing:
            await asyncio.to_thread(tracing.close)
        room.close()

    # The framework's own pages load scripts from other hosts, which a cluster may not reach.
    app = FastAPI(
        title="Cloze inference server",
        openapi_url=paths.SCHEMA,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Of its own; what is counted and traced here is said above.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=lifespan,
    )
    app.include_router(build_router(room, settings))
    app.include_router(build_protocol_router(room))
    app.include_router(build_feedback_router(forwarder, Segments(declared(settings.metadata))))
    if settings.playground:
        app.include_router(build_page_router())
    describe = app.openapi
    # Once: the framework gives the same document each time, and completing it again would make it grow.
    app.openapi = functools.cache(lambda: complete(describe()))  # type: ignore[method-assign]
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    app.add_exception_handler(HTTPException, _http_problem)
    keys = KeyFile(settings.api_keys, instruments.key_file_errors.inc) if settings.api_keys else None
    app.add_middleware(
        RequestMiddleware,
        settings=settings,
        room=room,
        endpoints=build_endpoints(room),
        keys=keys,
        tracing=tracing,
    )
    if settings.cors_origins:
        # Around the other, so that a browser may read refusals too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=_CORS_REQUEST_HEADERS,
            expose_headers=_CORS_REPLY_HEADERS,
        )
    return app


def _tracing(settings: Settings, instruments: Instruments) -> "Tracing | None":
    """Who sends traces; None where no request is traced."""
    if not settings.trace_sample_ratio:
        return None
    from cloze_server.tracing import Tracing  # noqa: PLC0415 - its library takes a while to load

    resource = {
        "service.version": distribution_version("cloze-mlops"),
        "cloze.deployment": settings.deployment,
        "cloze.revision": settings.revision,
    }
    return Tracing(
        settings.otlp_endpoint,
        settings.trace_sample_ratio,
        resource={name: value for name, value in resource.items() if value},
        count=instruments.traced,
    )


def _counter(references: Sequence[ModelReference], settings: Settings, instruments: Instruments) -> RequestCounter:
    """Counts what no model is known for. Where there is one model, all is counted as that one's."""
    if len(references) > 1:
        return RequestCounter(instruments)
    (reference,) = references
    asked = (reference.name, reference.version) if isinstance(reference, RegisteredVersion) else ("", "")
    return _telemetry(*asked, settings, instruments)


def _telemetry(name: str, version: str, settings: Settings, instruments: Instruments) -> Telemetry:
    return Telemetry(name, version, deployment=settings.deployment, revision=settings.revision, instruments=instruments)


def _load(loaders: Sequence[Loader], settings: Settings, room: Room, loop: asyncio.AbstractEventLoop) -> None:
    """Load the models one after the other and hand each one's service to the event loop."""
    names: set[str] = set()
    models: list[LoadedModel] = []
    try:
        for load in loaders:
            model = load()
            _claim(identity(model), names)
            models.append(model)
            if len(models) == len(loaders):
                own_limits.check(own_limits.declared(settings.limit), models)
                room.fallbacks = fallbacks.resolve(fallbacks.declared(settings.fallback), models)
            telemetry = room.counter
            if not isinstance(telemetry, Telemetry):
                telemetry = _telemetry(model.name, model.version, settings, room.instruments)
            service = Service(model, settings.of(model), telemetry, room.replies, room.turns)
            room.lifecycle.report(Stage.WARMING_UP)
            asyncio.run_coroutine_threadsafe(service.warm_up(), loop).result()
            # A closed loop means that the process ends anyway.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_open, room, Hosted(service, telemetry))
    except (StoppedError, CancelledError):
        return
    except FatalError as error:
        room.lifecycle.fail(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes the reason that the operator shows
        _log.exception("loading failed")
        message = f"{type(error).__name__} while loading: see the log"
        room.lifecycle.fail(FatalError(ExitCode.INTERNAL, "LoadFailed", message))


def _claim(name: str, names: set[str]) -> None:
    """Note a model's name. Raises FatalError (CONFIGURATION) for one that another model has."""
    if name in names:
        message = f"two models are {name}: give --model NAME=… for one of them"
        raise FatalError(ExitCode.CONFIGURATION, "ModelReferenceInvalid", message)
    names.add(name)


def _open(room: Room, hosted: Hosted) -> None:
    model = hosted.service.model
    hosted.telemetry.bind(
        model.name, model.version, digest=model.digest, task=model.task, answers=hosted.service.handler.answers()
    )
    room.add(hosted)
    if room.complete:
        # It holds everything up for a moment, and from now on requests come.
        garbage.set_aside()
    named = {"model": model.name, "version": model.version, "digest": model.digest}
    if room.only:
        logs.set_context(**named)
    _log.info(
        "ready" if room.complete else "one of the models answers",
        extra=logs.fields(**named, task=model.task),
    )


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return _response(request, error)


async def _validation_problem(request: Request, error: Exception) -> Response:
    """What was wrong and where; never the value, which is the user's text."""
    assert isinstance(error, RequestValidationError)
    return await _problem(request, invalid_request(error.errors()))


async def _http_problem(request: Request, error: Exception) -> Response:
    """Errors that the framework raises itself."""
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            known = ", ".join((*paths.INFERENCE, paths.FEEDBACK, paths.MODELS))
            message = f"the routes are {known} and those of {paths.OIP}, as {paths.SCHEMA} describes them"
            problem = ProblemError(ProblemType.NOT_FOUND, message)
        case 405:
            problem = ProblemError(ProblemType.METHOD_NOT_ALLOWED, f"{request.method} isn't allowed here")
        case _:
            problem = ProblemError(ProblemType.BODY_INVALID, "the body can't be parsed as JSON")
    return _response(request, problem, error.headers)


def _response(request: Request, problem: ProblemError, headers: Mapping[str, str] | None = None) -> Response:
    if request.url.path not in paths.UNCOUNTED:
        return problem.response(logs.request_id_variable.get(), headers, path=request.url.path)
    # Probes have none, but for what is wrong with one.
    identity = secrets.token_hex(16)
    return problem.response(identity, {**(headers or {}), "x-request-id": identity}, path=request.url.path)
