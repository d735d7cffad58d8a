"""Signs an artifact with a private key, so that who trusts the public one loads it.

`model.sig` is what OpenSSF Model Signing writes for a folder and a key (https://github.com/sigstore/model-transparency):
a Sigstore bundle with a DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto statement that
lists the folder's files with their digests. `cloze_api.signature` reads it, and so does `model_signing verify key`.
"""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cloze_api.manifest import MANIFEST_FILE, SIGNATURE_FILE, Manifest, file_sha256
from cloze_api.names import ENV_SIGNING_KEY
from cloze_api.signature import HASHES, PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, encoded, fingerprint
from cloze_trainer.console import log
from cloze_trainer.errors import InputError
from cloze_trainer.files import write_atomically

# What Model Signing passes over in a folder.
_IGNORED: Final = (SIGNATURE_FILE, ".git", ".gitattributes", ".github", ".gitignore")


class SigningKey:
    """A private key. It is shown nowhere; `name` is that of its public key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.name = fingerprint(key.public_key())

    @classmethod
    def find(cls, *, asked: bool = False) -> "SigningKey | None":
        """The key in the file that the environment names. Raises InputError for one that can't be used.

        asked: whether there has to be one.
        """
        place = os.environ.get(ENV_SIGNING_KEY)
        if not place:
            if asked:
                raise InputError(
                    "SigningKeyMissing",
                    "spec.registry.signing is mounted by the operator, inside a cluster: outside set "
                    f"{ENV_SIGNING_KEY} to the private key's file",
                )
            return None
        try:
            key = load_pem_private_key(Path(place).read_bytes(), password=None)
        except OSError as error:
            raise _unusable(place, f"it can't be read ({error.strerror})") from error
        except TypeError as error:
            raise _unusable(place, "it is encrypted by a password, of which none is known") from error
        # Not the library's own words: they may repeat what stands in the file.
        except (ValueError, UnsupportedAlgorithm):
            raise _unusable(place, "it is no private key in PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in HASHES:
            raise _unusable(place, "it isn't on P-256, P-384 or P-521")
        return cls(key)

    def sign(self, folder: Path, manifest: Manifest) -> None:
        """Put a signature beside the manifest of a verified artifact, in the place of one that is there."""
        payload = json.dumps(_statement(folder, manifest)).encode()
        signature = self._key.sign(encoded(payload), ec.ECDSA(HASHES[self._key.curve.name]))
        bundle = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": self.name}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }
        write_atomically(folder / SIGNATURE_FILE, json.dumps(bundle).encode())
        log("signed", key=self.name)


def _statement(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The files with their digests, in order, and one digest over all of these."""
    files = dict(sorted({**manifest.files, MANIFEST_FILE: file_sha256(folder / MANIFEST_FILE)}.items()))
    root = hashlib.sha256(b"".join(map(bytes.fromhex, files.values()))).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": folder.name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_IGNORED),
            },
            "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in files.items()],
        },
    }


def _unusable(place: str, why: str) -> InputError:
    message = f"the signing key {place} can't be used: {why}; give an unencrypted private key in PEM"
    return InputError("SigningKeyInvalid", message)
