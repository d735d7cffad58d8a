"""Who made an artifact: a signature over its manifest, by one of the keys that are trusted.

`model.sig` is what OpenSSF Model Signing writes for a folder and a key (https://github.com/sigstore/model-transparency):
a Sigstore bundle with a DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto statement that
lists the folder's files with their digests. Of these only the manifest's counts, because it has those of all others.
Keys are elliptic: P-256, P-384 or P-521.

Nothing else in this package imports this module: the operator has no `cryptography`.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from cloze_api.manifest import MANIFEST_FILE, SIGNATURE_FILE, ArtifactError
from cloze_api.names import INLINE_KEY

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
HASHES: Final = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
"""By curve."""

_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)
_BYTES_MAX = 16 << 20


class VerifyKeyError(ValueError):
    """A place has no public key, or one that can't be used."""


class TrustedKeys:
    """Public keys, of which any may have signed: the old and the new one while keys are changed.

    asked_by: the flag or the variable that named them, for messages.
    """

    def __init__(self, keys: Sequence[ec.EllipticCurvePublicKey], asked_by: str) -> None:
        self._keys = {fingerprint(key): key for key in keys}
        self._asked_by = asked_by

    @classmethod
    def read(cls, places: Iterable[str], asked_by: str) -> "TrustedKeys | None":
        """The keys of PEM files, of folders of them, and such as are given themselves; None when no place is named.

        Raises VerifyKeyError for a place without a key, and for a key that can't be one.
        """
        keys = []
        for place in places:
            try:
                found = [_checked(key) for key in _keys_at(place)]
            except (OSError, ValueError, UnsupportedAlgorithm) as error:
                raise _unusable(asked_by, place, str(error)) from error
            if not found:
                raise _unusable(asked_by, place, "it has no public key in PEM")
            keys += found
        return cls(keys, asked_by) if keys else None

    def verify(self, folder: Path, digest: str) -> None:
        """Whether the folder's signature is one of these keys' and means the manifest with this digest.

        Raises ArtifactError with reason SignatureMissing or SignatureInvalid.
        """
        path = folder / SIGNATURE_FILE
        if not path.is_file():
            message = f"the artifact has no {SIGNATURE_FILE}, and {self._asked_by} asks for a signature: sign it"
            raise ArtifactError("SignatureMissing", message)
        try:
            signed = manifest_digest(self._payload(json.loads(_read(path))))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            # A KeyError tells the name of what is missing.
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactError("SignatureInvalid", f"{SIGNATURE_FILE} isn't valid: {why}") from error
        if f"sha256:{signed}" != digest:
            message = f"{SIGNATURE_FILE} is of the manifest sha256:{signed}, the artifact's is {digest}: sign it again"
            raise ArtifactError("SignatureInvalid", message)

    def _payload(self, bundle: Any) -> Any:
        """What was signed, of a bundle that may be any JSON. Raises ValueError, KeyError and TypeError."""
        envelope = bundle["dsseEnvelope"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError("what is signed is no in-toto statement")
        named = _optional(bundle["verificationMaterial"], "publicKey")
        # Without a hint, as older signers leave it out, any key may be meant.
        hint = None if named is None else _optional(named, "hint")
        keys = [self._keys[hint]] if hint in self._keys else [] if hint else list(self._keys.values())
        payload = _decoded(envelope["payload"])
        signatures = [_decoded(each["sig"]) for each in envelope["signatures"]]
        if not any(_signed_by(key, payload, signature) for key in keys for signature in signatures):
            raise ValueError(f"none of the keys of {self._asked_by} has signed it")
        return json.loads(payload)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """How a signature names its key: SHA-256 of the key's PEM, as hex."""
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def encoded(payload: bytes) -> bytes:
    """What is signed of a statement: DSSE's pre-authentication encoding, so that it can't be taken for another type."""
    return f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def manifest_digest(statement: Any) -> str:
    """SHA-256 (hex) of the manifest in a statement of a folder's files, which may be any JSON.

    Raises ValueError, KeyError and TypeError.
    """
    if statement["_type"] != STATEMENT_TYPE or statement["predicateType"] != PREDICATE_TYPE:
        raise ValueError("what is signed is no list of a model's files")
    listed = [each for each in statement["predicate"]["resources"] if each["name"] == MANIFEST_FILE]
    if len(listed) != 1 or listed[0]["algorithm"] != "sha256":
        raise ValueError(f"it doesn't list {MANIFEST_FILE} with its SHA-256")
    return str(listed[0]["digest"])


def _optional(parent: Any, name: str) -> Any:
    """A field of an object, None where it isn't there. Raises TypeError for what is no object."""
    if not isinstance(parent, dict):
        raise TypeError(f"what should have {name} isn't an object")
    return parent.get(name)


def _keys_at(place: str) -> list[Any]:
    if place.startswith(INLINE_KEY):
        return [load_der_public_key(_decoded(place.removeprefix(INLINE_KEY)))]
    path = Path(place)
    # A mounted ConfigMap has its files behind links, and the former ones in hidden folders.
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    return [load_pem_public_key(block) for each in files for block in _PEM.findall(each.read_bytes())]


def _checked(key: Any) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in HASHES:
        raise ValueError("it has a key that isn't on P-256, P-384 or P-521")
    return key


def _read(path: Path) -> bytes:
    """Raises ValueError for more than a signature has."""
    with path.open("rb") as stream:
        data = stream.read(_BYTES_MAX + 1)
    if len(data) > _BYTES_MAX:
        raise ValueError(f"it has more than {_BYTES_MAX} bytes")
    return data


def _signed_by(key: ec.EllipticCurvePublicKey, payload: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, encoded(payload), ec.ECDSA(HASHES[key.curve.name]))
    except InvalidSignature:
        return False
    return True


def _decoded(text: str) -> bytes:
    """Raises ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("it has text that isn't base64") from error


def _unusable(asked_by: str, place: str, why: str) -> VerifyKeyError:
    shown = "a key" if place.startswith(INLINE_KEY) else place
    return VerifyKeyError(f"{asked_by} {shown} can't be used: {why}")
