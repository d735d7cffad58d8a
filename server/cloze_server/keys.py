"""API keys: a file of hashes, read again whenever it changes.

A key is 256 random bits, so that one round of SHA-256 is enough: there is nothing to guess. The file holds no key; one
that comes is compared with every hash, in a time that doesn't depend on them.
"""

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cloze_server.exits import ExitCode, FatalError
from cloze_server.logs import fields

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LINE = re.compile(rf"({_NAME.pattern}):([0-9a-f]{{64}})")
_BYTES_MAX = 1 << 20
_BEARER = re.compile(rb"bearer +(\S+) *", re.IGNORECASE)
# A file is asked for its state at most so often: a key that was taken away works no longer than that.
_LOOK_SECONDS = 1.0

Hashes = tuple[tuple[str, bytes], ...]
"""The name and the SHA-256 of each key. Two keys may have one name, as while one replaces the other."""


def new_key(name: str) -> tuple[str, str]:
    """A random key, and its line in the file. Raises FatalError (CONFIGURATION) for a name that can't be one."""
    if not _NAME.fullmatch(name):
        message = f"{name!r} can't name a key: use 1 to 63 letters, digits, hyphens, dots and underscores"
        raise FatalError(ExitCode.CONFIGURATION, "ConfigurationInvalid", message)
    key = "cloze_" + secrets.token_urlsafe(32)
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def parse(text: str) -> Hashes:
    """The keys of a file: `name:sha256-hex` a line, `#` begins a comment. Raises ValueError; says where, never what."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        if not (matched := _LINE.fullmatch(content)):
            raise ValueError(f"line {number} isn't NAME:SHA256, which `cloze-server key new NAME` prints")
        found.append((matched[1], bytes.fromhex(matched[2])))
    if not found:
        raise ValueError("it has no key")
    return tuple(found)


def presented(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key that a request brings, by `Authorization: Bearer` or `x-api-key`."""
    if matched := _BEARER.fullmatch(headers.get(b"authorization", b"")):
        return matched[1]
    return headers.get(b"x-api-key")


def owner(hashes: Hashes, key: bytes) -> str | None:
    """Name of a key; None for one that isn't among them. Takes as long for either."""
    digest = hashlib.sha256(key).digest()
    name = None
    for each, expected in hashes:
        if hmac.compare_digest(digest, expected):
            name = each
    return name


def command(arguments: Sequence[str]) -> str:
    """What `cloze-server key …` prints. Raises FatalError (CONFIGURATION)."""
    match arguments:
        case ["new", name]:
            key, line = new_key(name)
            return (
                f"key:  {key}\n"
                "      It is shown this once. Its owner sends it as `authorization: Bearer KEY` or `x-api-key: KEY`.\n"
                f"line: {line}\n"
                "      Add this to the file of --api-keys; running servers read it within a second.\n"
            )
        case _:
            message = "the command is `cloze-server key new NAME`"
            raise FatalError(ExitCode.CONFIGURATION, "ConfigurationInvalid", message)


class KeyFile:
    """The keys in force: those of the file as it is now, or as it was when it could last be read.

    unreadable: called each time that it was looked at in vain. clock: monotonic seconds.
    """

    def __init__(
        self, path: Path, unreadable: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises FatalError (CONFIGURATION) when there is nothing to begin with."""
        self._path = path
        self._unreadable = unreadable
        self._clock = clock
        try:
            self._state = self._look()
            self._hashes = self._read()
        except (OSError, ValueError) as error:
            message = f"--api-keys {path} can't be used: {_reason(error)}"
            raise FatalError(ExitCode.CONFIGURATION, "ApiKeysInvalid", message) from error
        self._looked = clock()
        self._complaint = ""

    def owner(self, key: bytes) -> str | None:
        """Name of a key, None for one that isn't known."""
        if self._clock() - self._looked >= _LOOK_SECONDS:
            self._looked = self._clock()
            self._refresh()
        return owner(self._hashes, key)

    def _refresh(self) -> None:
        try:
            state = self._look()
            if state == self._state:
                return
            self._hashes = self._read()
        except (OSError, ValueError) as error:
            self._unreadable()
            if (reason := _reason(error)) != self._complaint:
                self._complaint = reason
                _log.error("API keys can't be read: the former ones stay in force", extra=fields(reason=reason))
            return
        self._state, self._complaint = state, ""
        _log.info("API keys read", extra=fields(names=sorted({name for name, _ in self._hashes})))

    def _look(self) -> tuple[int, ...]:
        """What changes with the file, whether it is written, replaced, or reached by another link."""
        found = self._path.stat()
        return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)

    def _read(self) -> Hashes:
        with self._path.open("rb") as stream:
            data = stream.read(_BYTES_MAX + 1)
        if len(data) > _BYTES_MAX:
            raise ValueError(f"it has more than {_BYTES_MAX} bytes")
        return parse(data.decode())


def _reason(error: OSError | ValueError) -> str:
    """What was wrong, without any of the content."""
    if isinstance(error, UnicodeDecodeError):
        return "it isn't text"
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
