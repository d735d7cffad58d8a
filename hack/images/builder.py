"""Who builds: a Docker engine where one answers, else buildah."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .catalog import Image
from .console import ImageError, succeeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One image to build: what, from where, under which reference, and its labels' facts."""

    image: Image
    reference: str
    context: Path
    base_image: str | None
    version: str
    revision: str

    def build_arguments(self) -> list[str]:
        facts = {"VERSION": self.version, "REVISION": self.revision}
        return [word for name, value in facts.items() for word in ("--build-arg", f"{name}={value}")]


class DamagedError(ImageError):
    """The builder's store isn't what it wrote: something else changed or lost files in it."""


class Builder(Protocol):
    def has(self, reference: str) -> bool:
        """Whether the builder's own store holds the image."""

    def build(self, order: Order) -> None: ...

    def push(self, reference: str, destination: str, *, plain_http: bool) -> None:
        """Raises DamagedError when only a new build helps."""

    def forget(self) -> None:
        """Delete the whole store, so that everything is built anew."""

    def prune(self, keep: set[str]) -> None:
        """Delete our images from the builder's store, except those in `keep`."""


def name(env: Mapping[str, str]) -> str:
    """`docker` or `buildah`: as CLOZE_BUILDER says, else what this machine has."""
    asked = env.get("CLOZE_BUILDER", "")
    if asked not in {"", "docker", "buildah"}:
        raise ImageError(f"CLOZE_BUILDER must be docker or buildah, not {asked!r}")
    # A client alone builds nothing: ask the engine.
    return asked or ("docker" if shutil.which("docker") and succeeds("docker", "info") else "buildah")
