"""Whose artifacts are read: where keys are named, those alone that one of the keys has signed."""

import os
from collections.abc import Sequence
from pathlib import Path

from cloze_api.manifest import Manifest, verify_with_digest
from cloze_api.names import ENV_VERIFY_KEY
from cloze_api.signature import TrustedKeys, VerifyKeyError
from cloze_trainer.errors import InputError

FLAG = "--verify-key"
HELP = (
    "file of public keys in PEM, folder of them, or key:BASE64; an artifact without a signature by one of the "
    f"keys is refused; may be given several times ({ENV_VERIFY_KEY})"
)


def find(given: Sequence[str] = ()) -> TrustedKeys | None:
    """The keys of a command line, else those that the environment names; None where nobody asks for a signature.

    Raises InputError for a place without a key that can be used.
    """
    places, asked_by = (given, FLAG) if given else (os.environ.get(ENV_VERIFY_KEY, "").split(), ENV_VERIFY_KEY)
    try:
        return TrustedKeys.read(places, asked_by)
    except VerifyKeyError as error:
        raise InputError("VerifyKeyInvalid", str(error)) from error


def verify(folder: Path, keys: TrustedKeys | None, expected_digest: str | None = None) -> Manifest:
    """Check an artifact, and its signature where there are keys. Raises ArtifactError."""
    manifest, digest = verify_with_digest(folder, expected_digest)
    if keys is not None:
        keys.verify(folder, digest)
    return manifest
