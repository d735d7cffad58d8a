"""A browser for the tests of pages: the one that is installed, or a headless Chromium that an npm package carries."""

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hack" / "demo"))

import packages  # noqa: E402 hack/ is no installed package

_INSTALLED = ("chromium", "chromium-browser", "google-chrome")
_CACHE = Path.home() / ".cache" / "cloze" / "browsers"
# Built for machines without any of a desktop's libraries and fonts, which it brings along. MIT; Chromium's is BSD.
_PACKAGE = packages.Package(
    "@sparticuz/chromium",
    "153.0.0",
    "sha512-jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA==",
)
_BROTLI = "process.stdin.pipe(require('zlib').createBrotliDecompress()).pipe(process.stdout)"


@dataclass(frozen=True, slots=True)
class Browser:
    """What Playwright starts. environment: what is added to the process's own."""

    path: str
    arguments: list[str]
    environment: dict[str, str]


def find() -> Browser:
    """The browser of this machine; fetched when it has none. Raises RuntimeError with what to do."""
    # A browser's own sandbox can't be had as root.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    if installed := next(filter(None, map(shutil.which, _INSTALLED)), None):
        return Browser(installed, sandbox, {})
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = _unpacked(packages.fetch(_PACKAGE, _CACHE))
    environment = {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_PATH": str(folder / "fonts")}
    # There is no setuid helper beside it, and its own zygote needs one.
    return Browser(str(folder / "chromium"), ["--no-sandbox", "--no-zygote"], environment)


def _unpacked(package: Path) -> Path:
    """The folder with the package's browser, its libraries and its fonts."""
    folder = package / "unpacked"
    if folder.is_dir():
        return folder
    scratch = package / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name in ("al2023.tar", "fonts.tar"):
        _decompress(package / "bin" / f"{name}.br", scratch / name)
        with tarfile.open(scratch / name) as archive:
            archive.extractall(scratch, filter="data")
        (scratch / name).unlink()
    _decompress(package / "bin" / "chromium.br", scratch / "chromium")
    (scratch / "chromium").chmod(0o755)
    scratch.rename(folder)
    return folder


def _decompress(source: Path, target: Path) -> None:
    with source.open("rb") as compressed, target.open("wb") as plain:
        subprocess.run(["node", "-e", _BROTLI], stdin=compressed, stdout=plain, check=True)
