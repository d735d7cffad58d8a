"""The command line."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import base, builder, content, registry
from .buildah import Buildah
from .builder import Builder, Order
from .catalog import IMAGES, Image
from .console import ImageError, output, say, size
from .docker import Docker
from .registry import LocalRegistry

_COMMANDS = {
    "build": "build the images that changed",
    "push": "build what changed and push it to a registry: the local cluster's, or --registry",
    "list": "print the references that this checkout's content has, without building",
    "prune": "delete images that are not this checkout's, here and in the local registry",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are, from the environment."""

    root: Path
    cache: Path
    wheels: Path
    registry: str
    base_image: str | None

    def reference(self, image: Image) -> str:
        tag = content.tag(image, self.root, self.base_image or base.key())
        return f"{self.registry}/{image.repository}:{tag}"


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    try:
        chosen = _chosen(arguments.images)
        settings = _settings(os.environ, arguments.registry)
        match arguments.command:
            case "list":
                _list(settings, chosen, as_json=arguments.json)
            case "build":
                with _alone(settings):
                    _build(settings, chosen)
            case "push":
                with _alone(settings):
                    _push(settings, chosen)
            case "prune":
                with _alone(settings):
                    _prune(settings)
    except (ImageError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _chosen(names: list[str]) -> list[Image]:
    if unknown := sorted(set(names) - IMAGES.keys()):
        raise ImageError(f"no image is called {', '.join(unknown)}: choose from {', '.join(IMAGES)}")
    return [image for name, image in IMAGES.items() if name in names or not names]


def _list(settings: Settings, images: list[Image], *, as_json: bool) -> None:
    references = {image.name: settings.reference(image) for image in images}
    if as_json:
        print(json.dumps(references))
        return
    for name, reference in references.items():
        print(f"{name:10}{reference}")


def _build(settings: Settings, images: list[Image]) -> None:
    maker = _builder(settings)
    for image in images:
        _ensure_built(settings, maker, image)
    _list(settings, images, as_json=False)


def _push(settings: Settings, images: list[Image]) -> None:
    local = LocalRegistry(settings.registry) if registry.is_local(settings.registry) else None
    if local:
        registry.started(local, settings.root)
    maker: Builder | None = None
    for image in images:
        reference = settings.reference(image)
        if local and local.digest(image.repository, reference.rpartition(":")[2]):
            say(f"{image.name}: the registry has {reference}")
            continue
        maker = maker or _builder(settings)
        built = _ensure_built(settings, maker, image)
        began = time.monotonic()
        say(f"{image.name}: pushing (new libraries: 2 minutes for train, seconds otherwise)")
        maker.push(built, reference, plain_http=local is not None)
        say(f"{image.name}: pushed {reference} in {time.monotonic() - began:.1f} s")
    if local:
        _list(settings, images, as_json=False)
        return
    # What the chart's values need, ready to paste.
    print("images:")
    for image in images:
        print(f"  {image.name}: {settings.reference(image)}")


def _ensure_built(settings: Settings, maker: Builder, image: Image) -> str:
    """The image under its name in the builder's store, which is the same whatever registry it goes to."""
    tag = settings.reference(image).rpartition(":")[2]
    reference = f"localhost/{image.repository}:{tag}"
    if maker.has(reference):
        say(f"{image.name}: {tag} is built")
        return reference
    began = time.monotonic()
    say(f"{image.name}: building {tag} (seconds when only code changed; from nothing {image.cold})")
    order = Order(
        image=image,
        reference=reference,
        root=settings.root,
        base_image=settings.base_image,
        version=content.project_table(settings.root)["version"],
        revision=_revision(settings.root),
    )
    maker.build(order)
    say(f"{image.name}: built in {time.monotonic() - began:.1f} s")
    return reference


def _prune(settings: Settings) -> None:
    before = _occupied(settings)
    references = {image: settings.reference(image).rpartition(":")[2] for image in IMAGES.values()}
    _builder(settings).prune({f"localhost/{image.repository}:{tag}" for image, tag in references.items()})
    if registry.is_local(settings.registry) and (settings.cache / "registry" / "config.json").exists():
        local = LocalRegistry(settings.registry)
        ours = registry.started(local, settings.root)
        registry.forget(local, {image.repository: tag for image, tag in references.items()})
        registry.collect_garbage(settings.cache / "registry" / "config.json")
        if ours:
            registry.cluster_command(settings.root, "down")
    say(f"freed {size(max(0, before - _occupied(settings)))}")


def _occupied(settings: Settings) -> int:
    folders = [str(settings.cache / name) for name in ("buildah", "registry") if (settings.cache / name).exists()]
    lines = output("du", "--summarize", "--block-size=1", *folders).splitlines() if folders else []
    return sum(int(line.split()[0]) for line in lines)


def _builder(settings: Settings) -> Builder:
    if builder.name(os.environ) == "docker":
        return Docker(settings.cache / "logs")
    return Buildah(settings.cache, settings.wheels)


def _revision(root: Path) -> str:
    try:
        return output("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").strip()
    except (ImageError, FileNotFoundError):
        return "unknown"


def _settings(env: Mapping[str, str], given_registry: str | None) -> Settings:
    cache = Path.home() / ".cache" / "cloze"
    return Settings(
        root=Path(__file__).resolve().parents[2],
        cache=cache,
        wheels=Path(env.get("UV_CACHE_DIR") or cache / "uv").expanduser(),
        registry=registry.address(env, given_registry),
        base_image=env.get("CLOZE_BASE_IMAGE") or None,
    )


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One build at a time: two would make the same layers twice, and a prune would take them away."""
    settings.cache.mkdir(parents=True, exist_ok=True)
    with (settings.cache / "images.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another image command is running, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 hack/images", description="The container images of this checkout.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, explanation in _COMMANDS.items():
        command = commands.add_parser(name, help=explanation, description=explanation)
        if name == "prune":
            command.set_defaults(images=[])
        else:
            command.add_argument("images", nargs="*", metavar="image", help=", ".join(IMAGES))
        command.add_argument("--registry", help="such as ghcr.io/me (default: $CLOZE_REGISTRY, else the local one)")
        if name == "list":
            command.add_argument("--json", action="store_true", help="one object, reference by image")
    return parser
