"""Keys that sign artifacts, in files."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from cloze_api.manifest import verify
from cloze_trainer.signing import SigningKey


class Keys:
    """A pair of keys in files."""

    def __init__(
        self,
        folder: Path,
        name: str,
        key: Any = None,
        encryption: KeySerializationEncryption | None = None,
    ) -> None:
        key = key or ec.generate_private_key(ec.SECP256R1())
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pem"
        self.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
        self.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def sign(self, folder: Path) -> None:
        """Sign an artifact as the trainer does."""
        key = load_pem_private_key(self.private.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        SigningKey(key).sign(folder, verify(folder))
