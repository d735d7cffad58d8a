"""The command line."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import base, builder, content, registry
from .buildah import Buildah
from .builder import Builder, DamagedError, Order
from .catalog import IMAGES, Image
from .console import ImageError, output, say, size
from .docker import DOCKERFILE_BASE, Docker
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
    builder: str

    def tag(self, image: Image, root: Path) -> str:
        # What the builder takes where no base is named; another base is other content.
        default = DOCKERFILE_BASE if self.builder == "docker" else base.key()
        return content.tag(image, root, self.base_image or default)

    def reference(self, image: Image, tag: str) -> str:
        return f"{self.registry}/{image.repository}:{tag}"


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    try:
        chosen = _chosen(arguments.images, every=arguments.all)
        settings = _settings(os.environ, arguments.registry)
        match arguments.command:
            case "list":
                references = {
                    (image.value if arguments.json else image.name): settings.reference(
                        image, settings.tag(image, settings.root)
                    )
                    for image in chosen
                }
                _list(references, as_json=arguments.json)
            case "build":
                with _alone(settings):
                    _build(settings, chosen)
            case "push":
                _require_reachable(os.environ, arguments.registry)
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


def _chosen(names: list[str], *, every: bool = False) -> list[Image]:
    if unknown := sorted(set(names) - IMAGES.keys()):
        raise ImageError(f"no image is called {', '.join(unknown)}: choose from {', '.join(IMAGES)}")
    return [image for name, image in IMAGES.items() if name in names or (not names and (every or not image.optional))]


def _list(references: Mapping[str, str], *, as_json: bool = False) -> None:
    if as_json:
        print(json.dumps(references))
        return
    for name, reference in references.items():
        print(f"{name:10}{reference}")


def _build(settings: Settings, images: list[Image]) -> None:
    maker = _builder(settings)
    tags = {image: _ensure_built(settings, maker, image) for image in images}
    _list({image.name: settings.reference(image, tag) for image, tag in tags.items()})


def _require_reachable(env: Mapping[str, str], given_registry: str | None) -> None:
    """Refuse the default for somebody else's cluster: loopback is its own there, unless a person says otherwise."""
    if env.get("CLOZE_KUBECONFIG") and not (given_registry or env.get("CLOZE_REGISTRY")):
        raise ImageError(
            "the cluster of CLOZE_KUBECONFIG can't pull from this machine's own registry: set CLOZE_REGISTRY to one "
            "that both reach, such as registry.example/me"
        )


def _push(settings: Settings, images: list[Image]) -> None:
    local = LocalRegistry(settings.registry) if registry.is_local(settings.registry) else None
    if local:
        registry.started(local, settings.root)
    tags = {image: settings.tag(image, settings.root) for image in images}
    # Another registry may want a password that only the builder knows, so there a push finds out by itself.
    missing = [image for image, tag in tags.items() if not (local and local.digest(image.repository, tag))]
    for image in images:
        if image not in missing:
            say(f"{image.name}: the registry has {tags[image]}")
    if missing:
        with _alone(settings):
            maker = _builder(settings)
            for image in missing:
                tags[image] = _ensure_built(settings, maker, image)
                try:
                    _upload(settings, maker, image, tags[image], plain_http=local is not None)
                except DamagedError as error:
                    say(f"{error}: building anew")
                    maker.forget()
                    tags[image] = _ensure_built(settings, maker, image)
                    _upload(settings, maker, image, tags[image], plain_http=local is not None)
    references = {image.name: settings.reference(image, tag) for image, tag in tags.items()}
    if local:
        _list(references)
        return
    # What the chart's values need, ready to paste.
    print("images:")
    for image, tag in tags.items():
        named = image.value if image.charted else "# for spec.runtime.image"
        print(f"  {named}: {settings.reference(image, tag)}")


def _upload(settings: Settings, maker: Builder, image: Image, tag: str, *, plain_http: bool) -> None:
    began = time.monotonic()
    say(f"{image.name}: pushing (seconds when only code changed; all of its libraries: {image.upload})")
    maker.push(_stored(image, tag), settings.reference(image, tag), plain_http=plain_http)
    say(f"{image.name}: pushed in {time.monotonic() - began:.1f} s")


def _ensure_built(settings: Settings, maker: Builder, image: Image) -> str:
    """Build the image from the present content unless the builder has it, and return its tag."""
    with tempfile.TemporaryDirectory(prefix="cloze-image-") as folder:
        context = Path(folder)
        content.snapshot(image, settings.root, context)
        tag = settings.tag(image, context)
        reference = _stored(image, tag)
        if maker.has(reference):
            say(f"{image.name}: {tag} is built")
            return tag
        began = time.monotonic()
        say(f"{image.name}: building {tag} (seconds when only code changed; from nothing {image.cold})")
        order = Order(
            image=image,
            reference=reference,
            context=context,
            base_image=settings.base_image,
            version=content.project_table(context)["version"],
            revision=_revision(settings.root),
        )
        maker.build(order)
        say(f"{image.name}: built in {time.monotonic() - began:.1f} s")
        return tag


def _stored(image: Image, tag: str) -> str:
    """The image's name in the builder's store, which is the same whatever registry it goes to."""
    return f"localhost/{image.repository}:{tag}"


def _prune(settings: Settings) -> None:
    before = _occupied(settings)
    tags = {image: settings.tag(image, settings.root) for image in IMAGES.values()}
    _builder(settings).prune({_stored(image, tag) for image, tag in tags.items()})
    if registry.is_local(settings.registry) and (settings.cache / "registry" / "config.json").exists():
        local = LocalRegistry(settings.registry)
        ours = registry.started(local, settings.root)
        registry.forget(local, {image.repository: tag for image, tag in tags.items()})
        registry.collect_garbage(settings.cache / "registry" / "config.json")
        if ours:
            registry.cluster_command(settings.root, "down")
    say(f"freed {size(max(0, before - _occupied(settings)))}")


def _occupied(settings: Settings) -> int:
    folders = [str(settings.cache / name) for name in ("buildah", "registry") if (settings.cache / name).exists()]
    lines = output("du", "--summarize", "--block-size=1", *folders).splitlines() if folders else []
    return sum(int(line.split()[0]) for line in lines)


def _builder(settings: Settings) -> Builder:
    if settings.builder == "docker":
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
        builder=builder.name(env),
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
            command.set_defaults(images=[], all=False)
        else:
            command.add_argument("images", nargs="*", metavar="image", help=", ".join(IMAGES))
            optional = ", ".join(image.name for image in IMAGES.values() if image.optional)
            command.add_argument("--all", action="store_true", help=f"also what few need: {optional}")
        command.add_argument("--registry", help="such as registry.example/me; default: $CLOZE_REGISTRY, else local")
        if name == "list":
            command.add_argument("--json", action="store_true", help="one object, reference by image")
    return parser
