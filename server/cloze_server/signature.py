"""Who made an artifact, as far as the server is concerned: the contract's check, with the server's ways to end."""

from collections.abc import Iterable
from pathlib import Path

from cloze_api import signature
from cloze_api.manifest import ArtifactError
from cloze_server.exits import ExitCode, FatalError


class TrustedKeys:
    """Public keys, of which any may have signed."""

    def __init__(self, keys: signature.TrustedKeys) -> None:
        self._keys = keys

    @classmethod
    def read(cls, places: Iterable[str]) -> "TrustedKeys | None":
        """The keys at these places; None when none is named. Raises FatalError (CONFIGURATION)."""
        try:
            keys = signature.TrustedKeys.read(places, "--verify-key")
        except signature.VerifyKeyError as error:
            raise FatalError(ExitCode.CONFIGURATION, "VerifyKeyInvalid", str(error)) from error
        return cls(keys) if keys else None

    def verify(self, folder: Path, digest: str) -> None:
        """Whether the folder's manifest, which has this digest, is signed. Raises FatalError (SIGNATURE)."""
        try:
            self._keys.verify(folder, digest)
        except ArtifactError as error:
            raise FatalError(ExitCode.SIGNATURE, error.reason, str(error)) from error
