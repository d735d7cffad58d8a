"""From what `--model` names to a verified artifact on disk."""

import contextlib
import hashlib
import json
import logging
import random
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from cloze_api.manifest import MANIFEST_FILE, SIGNATURE_FILE, ArtifactError, Manifest, verify_with_digest
from cloze_server.cache import Cache, StoppedError
from cloze_server.exits import ExitCode, FatalError
from cloze_server.lifecycle import Lifecycle, Stage
from cloze_server.logs import fields
from cloze_server.reference import RegisteredVersion

_log = logging.getLogger(__name__)

# What a new download mends. Anything else is in the artifact itself.
_DAMAGE = frozenset(
    {"ManifestMissing", "DigestMismatch", "FileMissing", "FileCorrupt", "FileUnlisted", "FileNotRegular"}
    # It may have been signed since, or by another key.
    | {"SignatureMissing", "SignatureInvalid"}
)

_FOREIGN_CONFIG = "config.json"

_BACKOFF_FIRST_SECONDS = 0.5
_BACKOFF_MAX_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class VerifiedArtifact:
    """A folder whose every file has been checked."""

    folder: Path
    manifest: Manifest
    digest: str


class RegistryUnreachableError(Exception):
    """The registry can't be reached or is failing: worth another try."""


class ModelRegistry(Protocol):
    """Where model versions are kept. Both methods raise RegistryUnreachableError and FatalError."""

    def artifact_root(self, version: RegisteredVersion) -> str:
        """Path of the version's folder."""
        ...

    def download(self, root: str, name: str, target: Path) -> None:
        """Stream one file of a version to disk. Raises FileNotFoundError when there is none, and OSError."""
        ...


class Trust(Protocol):
    """Who may have made an artifact."""

    def verify(self, folder: Path, digest: str) -> None:
        """Whether the folder's manifest, which has this digest, is signed. Raises FatalError (SIGNATURE)."""
        ...


def backoff_seconds(attempt: int) -> float:
    """Wait before try `attempt` (1 is the first repetition): doubling, with jitter, at most half a minute."""
    delay = min(_BACKOFF_FIRST_SECONDS * 2.0 ** (attempt - 1), _BACKOFF_MAX_SECONDS)
    return delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreads replicas out, guards nothing


def open_folder(folder: Path, digest: str | None, trust: Trust | None = None) -> VerifiedArtifact:
    """Verify an artifact that is already on disk. Raises FatalError (ARTIFACT_INVALID, SIGNATURE).

    trust: asks for a signature.
    """
    if (folder / _FOREIGN_CONFIG).is_file() and not (folder / MANIFEST_FILE).exists():
        message = (
            f"{folder} is a model in Hugging Face's format and no Cloze artifact: make one with "
            f"`cloze-train import {folder} --task TASK --name NAME --output DIR`"
        )
        raise FatalError(ExitCode.ARTIFACT_INVALID, "NotImported", message)
    try:
        manifest, found = verify_with_digest(folder, digest)
    except ArtifactError as error:
        raise FatalError(ExitCode.ARTIFACT_INVALID, error.reason, str(error)) from error
    if trust is not None:
        trust.verify(folder, found)
    return VerifiedArtifact(folder, manifest, found)


def fetch(
    version: RegisteredVersion,
    digest: str | None,
    *,
    trust: Trust | None = None,
    cache: Cache,
    connect: Callable[[], ModelRegistry],
    stop: threading.Event,
    lifecycle: Lifecycle,
    backoff: Callable[[int], float] = backoff_seconds,
) -> VerifiedArtifact:
    """Get a registered version, from the cache where possible, else from MLflow for as long as that takes.

    With a digest that the cache holds, MLflow isn't asked at all. Without a digest MLflow says which one the version
    has; when it is down, the digest noted at an earlier start counts. What is in the way is reported to `lifecycle`.
    Raises FatalError, and StoppedError when `stop` is set meanwhile.
    """
    try:
        if digest is not None and (cached := _cached(cache, digest, trust, stop)):
            return cached
        registry = connect()
        attempt = 0
        while True:
            try:
                return _download(registry, version, digest, cache, stop, trust=trust)
            except RegistryUnreachableError as error:
                noted = cache.recall(version) if digest is None else None
                if noted is not None and (cached := _cached(cache, noted, trust, stop)):
                    _log.warning("registry unreachable: using the cached version", extra=fields(error=str(error)))
                    return cached
                attempt += 1
                delay = backoff(attempt)
                lifecycle.report(Stage.FETCHING, "RegistryUnavailable", f"{error} ({attempt} times so far)")
                _log.warning(
                    "registry unreachable: will try again",
                    extra=fields(error=str(error), attempt=attempt, delay_seconds=round(delay, 2)),
                )
            if stop.wait(delay):
                raise StoppedError
    except OSError as error:
        message = f"the model cache can't be used: {error}: give it a writable volume with room for the model"
        raise FatalError(ExitCode.STORAGE, "CacheUnusable", message) from error


def registered_digest(registry: ModelRegistry, version: RegisteredVersion) -> str:
    """The digest that a version has in the registry. Raises FatalError, OSError and RegistryUnreachableError."""
    root = registry.artifact_root(version)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, MANIFEST_FILE)
        registry.download(root, MANIFEST_FILE, target)
        return "sha256:" + hashlib.sha256(target.read_bytes()).hexdigest()


def _cached(cache: Cache, digest: str, trust: Trust | None, stop: threading.Event) -> VerifiedArtifact | None:
    """The cached artifact, verified; a damaged one is removed. Raises FatalError for one that can't be read at all."""
    folder = cache.folder(digest)
    try:
        return open_folder(folder, digest, trust) if folder.is_dir() else None
    except FatalError as error:
        if error.reason not in _DAMAGE:
            raise
    with cache.writing(stop):
        return _cached_or_discarded(cache, digest, trust)


def _cached_or_discarded(cache: Cache, digest: str, trust: Trust | None) -> VerifiedArtifact | None:
    """As `_cached`, for who has the cache to itself: another server may have replaced a damaged artifact by now."""
    folder = cache.folder(digest)
    if not folder.is_dir():
        return None
    try:
        return open_folder(folder, digest, trust)
    except FatalError as error:
        if error.reason not in _DAMAGE:
            raise
        _log.warning("cached artifact is damaged: removed", extra=fields(reason=error.reason, error=str(error)))
    cache.discard(digest)
    return None


def _download(
    registry: ModelRegistry,
    version: RegisteredVersion,
    digest: str | None,
    cache: Cache,
    stop: threading.Event,
    *,
    trust: Trust | None,
) -> VerifiedArtifact:
    root = registry.artifact_root(version)
    with cache.writing(stop), cache.staging() as staged:
        try:
            registry.download(root, MANIFEST_FILE, staged / MANIFEST_FILE)
        except FileNotFoundError as error:
            message = f"{version} has no {MANIFEST_FILE}: it isn't a Cloze artifact"
            raise FatalError(ExitCode.ARTIFACT_INVALID, "ManifestMissing", message) from error
        data = (staged / MANIFEST_FILE).read_bytes()
        actual = "sha256:" + hashlib.sha256(data).hexdigest()
        if digest is not None and actual != digest:
            message = f"the digest of {version} is {actual}, expected {digest}"
            raise FatalError(ExitCode.ARTIFACT_INVALID, "DigestMismatch", message)
        found = _cached_or_discarded(cache, actual, trust)
        if found is None:
            for name in _listed_files(data):
                if stop.is_set():
                    raise StoppedError
                try:
                    registry.download(root, name, staged / name)
                except FileNotFoundError as error:
                    message = f"{name} is listed in {MANIFEST_FILE} of {version} but missing"
                    raise FatalError(ExitCode.ARTIFACT_INVALID, "FileMissing", message) from error
            if trust is not None:
                # Without one, verifying says so.
                with contextlib.suppress(FileNotFoundError):
                    registry.download(root, SIGNATURE_FILE, staged / SIGNATURE_FILE)
            manifest = open_folder(staged, actual, trust).manifest
            found = VerifiedArtifact(cache.publish(staged, actual), manifest, actual)
            _log.info("artifact downloaded", extra=fields(source=str(version), digest=actual))
        cache.remember(version, actual)
    return found


def _listed_files(data: bytes) -> list[str]:
    """Files to download: those in the manifest and no others, so that what else lies in the registry is left there.

    A manifest that can't be read lists none; verifying says what is wrong with it. Raises FatalError for a path that
    leads out of the folder.
    """
    try:
        names = list(json.loads(data)["files"])
    except (ValueError, KeyError, TypeError):
        return []
    for name in names:
        path = PurePosixPath(str(name))
        if path.is_absolute() or ".." in path.parts:
            raise FatalError(ExitCode.ARTIFACT_INVALID, "ManifestInvalid", f"{name!r} leads out of the artifact")
    return names
