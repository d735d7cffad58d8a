"""The cluster's binaries, built from the pinned Go modules in `tools/` and kept by the content that made them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import golang
from .console import ClusterError, duration, say

SOURCE = Path(__file__).resolve().parent / "tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One go.mod: its tools are built into one folder, and a change of it rebuilds nothing of another."""

    name: str
    #: The path whose version is the build's.
    pinned: str
    #: Variables that the linker sets, with `{version}`, `{major}` and `{minor}` of `pinned` in them.
    stamps: Mapping[str, str]
    #: Build tags, in the way that Go wants them.
    tags: str = ""
    #: Packages to build beside the tools that go.mod names.
    own: tuple[str, ...] = ()
    #: A tool that can't be in one command with the others.
    alone: str = ""
    #: Go names a binary after its package's folder.
    renamed: Mapping[str, str] = field(default_factory=dict)
    #: Folders beside the binaries, each from a module's path and a folder in it.
    copied: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: About how many packages an empty compile cache makes it compile, and how many minutes that takes on two cores.
    packages: int
    minutes: int

    @property
    def source(self) -> Path:
        return SOURCE / self.name

    @property
    def version(self) -> str:
        return golang.pinned_version((self.source / "go.mod").read_text(), self.pinned)

    @property
    def key(self) -> str:
        """Names all that the build is made from; the Go in it is the toolchain of go.mod, not PATH's."""
        digest = hashlib.sha256()
        for source in (self.source / "go.mod", self.source / "go.sum", *sorted(self.source.rglob("*.go"))):
            digest.update(source.read_bytes())
        digest.update("\0".join([*self.flags, repr(self.copied)]).encode())
        return f"{self.name}-{digest.hexdigest()[:16]}"

    @property
    def flags(self) -> list[str]:
        version = self.version
        major, minor = version.removeprefix("v").split(".")[:2]
        values = {name: value.format(version=version, major=major, minor=minor) for name, value in self.stamps.items()}
        tags = [f"-tags={self.tags}"] if self.tags else []
        return [
            *tags,
            "-trimpath",
            "-ldflags",
            " ".join(["-s -w", *(f"-X {name}={value}" for name, value in values.items())]),
        ]


_COMPONENT = "k8s.io/component-base/version"
KUBERNETES = Module(
    name="kubernetes",
    pinned="k8s.io/kubernetes",
    stamps={
        f"{_COMPONENT}.gitVersion": "{version}",
        f"{_COMPONENT}.gitMajor": "{major}",
        f"{_COMPONENT}.gitMinor": "{minor}",
    },
    # Of all ways in which Prometheus finds targets it gets the one that a cluster needs; the others would add 180
    # packages, large clients of clouds among them.
    tags="remove_all_sd,enable_kubernetes_sd",
    own=("./pause",),
    # It spells a logging module's path with a capital that everyone else writes small; Go refuses to load both at once.
    alone="github.com/rancher/local-path-provisioner",
    renamed={"server": "etcd"},
    packages=3900,
    minutes=10,
)
TRAEFIK = Module(
    name="traefik",
    pinned="github.com/traefik/traefik/v3",
    stamps={"github.com/traefik/traefik/v3/pkg/version.Version": "{version}"},
    copied={"gateway-api": ("sigs.k8s.io/gateway-api", "config/crd/standard")},
    packages=2100,
    minutes=5,
)
MODULES = (KUBERNETES, TRAEFIK)


@dataclass(frozen=True, slots=True)
class Builds:
    """The folders of a build of every module."""

    kubernetes: Path
    traefik: Path

    @property
    def names(self) -> list[str]:
        return [self.kubernetes.name, self.traefik.name]


def present(cache: Path) -> Builds:
    """Where the builds of the present sources are, or will be."""
    return Builds(*(cache / "tools" / module.key for module in MODULES))


def built(cache: Path, module: Module) -> Path | None:
    """The folder with a module's binaries for its present sources if a build is not needed."""
    folder = cache / "tools" / module.key
    return folder if (folder / "build.json").exists() else None


def missing(cache: Path) -> list[Module]:
    """The modules whose present sources were never built."""
    return [module for module in MODULES if not built(cache, module)]


def ensure(cache: Path) -> Builds:
    """The builds of the present sources, made now if they never were."""
    if modules := missing(cache):
        go = golang.find(cache) or golang.fetch(cache)
        # A compile cache of our own, gone afterwards: gigabytes that nothing needs once the binaries are there.
        compiled = cache / "tools" / "go-build"
        for module in modules:
            _build(module, go, cache / "tools" / module.key, compiled)
        shutil.rmtree(compiled, ignore_errors=True)
    return present(cache)


def _build(module: Module, go: Path, folder: Path, compiled: Path) -> None:
    toolchain = golang.toolchain(go, module.source)
    partial = folder.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    say(f"building {module.name} {module.version} and its companions with {toolchain}")
    say(f"  about {module.minutes} minutes on two cores, once")
    together = [path for path in golang.pinned_tools(go, module.source, toolchain) if path != module.alone]
    progress = golang.Progress(module.packages)
    for packages in filter(None, ([*together, *module.own], [module.alone] if module.alone else [])):
        argv = [str(go), "install", "-v", *module.flags, *packages]
        _install(argv, module.source, partial, compiled, progress, toolchain=toolchain)
    for old, new in module.renamed.items():
        (partial / old).rename(partial / new)
    for name, (path, inner) in module.copied.items():
        # Modules lie write-protected in Go's cache, and so would copies of their folders.
        shutil.rmtree(partial / name, ignore_errors=True)
        (partial / name).mkdir()
        for file in sorted((golang.module_folder(go, module.source, toolchain, path) / inner).iterdir()):
            (partial / name / file.name).write_bytes(file.read_bytes())
    seconds = round(time.monotonic() - began)
    (partial / "build.json").write_text(json.dumps({module.name: module.version, "seconds": seconds}) + "\n")
    partial.rename(folder)
    say(f"built in {duration(seconds)}")


def _install(
    argv: list[str], source: Path, folder: Path, compiled: Path, progress: golang.Progress, *, toolchain: str
) -> None:
    env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": toolchain, "GOBIN": str(folder), "GOCACHE": str(compiled)}
    with subprocess.Popen(
        argv, cwd=source, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as building:
        progress.follow(building)
    if building.returncode:
        raise ClusterError("the build failed:\n  " + "\n  ".join(progress.messages[-15:]))
