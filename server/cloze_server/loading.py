"""From a reference of the settings to a loaded model."""

import hashlib
import logging
import threading
from dataclasses import replace

from cloze_api.manifest import MANIFEST_FILE
from cloze_api.precision import Precision
from cloze_api.task import Task
from cloze_server import echo, logs
from cloze_server.cache import Cache
from cloze_server.dummy import dummy_model
from cloze_server.exits import ExitCode, FatalError
from cloze_server.lifecycle import Lifecycle, Stage
from cloze_server.model import LOCAL_VERSION, LoadedModel, check_precision, load_artifact
from cloze_server.providers import Placement
from cloze_server.reference import Dummy, Folder, RegisteredVersion, parse_reference
from cloze_server.settings import Settings
from cloze_server.source import Trust, fetch, open_folder, registered_digest

_log = logging.getLogger(__name__)


def current_digest(reference: str, settings: Settings) -> str | None:
    """The digest of what a reference names now; None for one that stands for the same always.

    Raises FatalError, OSError and RegistryUnreachableError.
    """
    match parse_reference(reference):
        case Dummy():
            return None
        case Folder(path):
            return "sha256:" + hashlib.sha256((path / MANIFEST_FILE).read_bytes()).hexdigest()
        case RegisteredVersion() as version:
            from cloze_server.registry import Registry  # noqa: PLC0415 - as above

            return registered_digest(Registry(settings.mlflow_uri), version)


def _trust(settings: Settings) -> Trust | None:
    """The keys as they are now. Raises FatalError (CONFIGURATION)."""
    if not settings.verify_key:
        return None
    from cloze_server.signature import TrustedKeys  # noqa: PLC0415 - a library that few servers need

    return TrustedKeys.read(settings.verify_key)


def load_model(place: int, settings: Settings, stop: threading.Event, lifecycle: Lifecycle) -> LoadedModel:
    """Fetch, verify and load one of the settings' models, of which `place` is the index.

    Raises FatalError and StoppedError.
    """
    digest = settings.digest[place] if settings.digest else None
    match parse_reference(settings.model[place]):
        case Dummy(task, seconds, given):
            if settings.precision is not Precision.FP32:
                message = f"a dummy has no {settings.precision}: leave --precision out"
                raise FatalError(ExitCode.CONFIGURATION, "PrecisionMissing", message)
            model = dummy_model(task, seconds)
            return replace(model, name=given) if given else model
        case Folder(path, given):
            artifact = open_folder(path, digest, _trust(settings))
            name, number = given or artifact.manifest.name, LOCAL_VERSION
        case RegisteredVersion(name, number) as version:
            from cloze_server.registry import Registry  # noqa: PLC0415 - httpx, which a folder does without

            artifact = fetch(
                version,
                digest,
                trust=_trust(settings),
                cache=Cache(settings.cache.expanduser()),
                connect=lambda: Registry(settings.mlflow_uri),
                stop=stop,
                lifecycle=lifecycle,
            )
    _log.info("artifact verified", extra=logs.fields(digest=artifact.digest))
    lifecycle.report(Stage.LOADING)
    if artifact.manifest.task is Task.ECHO:
        check_precision(settings.precision, artifact.manifest)
        return echo.load_artifact(artifact.folder, artifact.manifest, name=name, version=number, digest=artifact.digest)
    return load_artifact(
        artifact.folder,
        artifact.manifest,
        name=name,
        version=number,
        digest=artifact.digest,
        threads=settings.batch_threads,
        precision=settings.precision,
        placement=Placement(settings.provider, settings.device_memory_bytes),
    )
