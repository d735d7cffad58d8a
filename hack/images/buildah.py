"""Builds with buildah in a store of our own, on a base image of our own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from . import base, packages
from .builder import DamagedError, Order
from .console import ImageError, output, say, succeeds, work

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_WHEELS = "/var/cache/uv-mounted"


class Buildah:
    def __init__(self, cache: Path, wheels: Path) -> None:
        packages.require()
        self._store = cache / "buildah"
        self._logs = cache / "logs"
        self._wheels = wheels
        self._store.mkdir(parents=True, exist_ok=True)
        # Mounts and locks die with the machine's boot, so they belong in /run, one folder for each store.
        run = Path("/run/cloze", hashlib.sha256(str(self._store).encode()).hexdigest()[:12])
        self._buildah = [
            *("buildah", "--root", str(self._store), "--runroot", str(run), "--storage-driver", "overlay"),
        ]
        # A build that was killed leaves its container and its layer's archive, 6 GB each for torch. Nothing else
        # builds here now, so both can go.
        temporary = cache / "buildah-tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        os.environ["TMPDIR"] = str(temporary)
        output(*self._buildah, "rm", "--all")

    def has(self, reference: str) -> bool:
        return succeeds(*self._buildah, "inspect", "--type", "image", reference)

    def build(self, order: Order) -> None:
        base_image = order.base_image or self._base()
        # The host's authorities, for a network whose proxy signs with its own; the layers keep the base's file.
        trust = ["--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"] if _CERTIFICATES.exists() else []
        self._wheels.mkdir(parents=True, exist_ok=True)
        work(
            f"building {order.image.name}",
            [
                # A changed root is all the isolation that unpacking wheels needs, and it starts no runtime.
                *(*self._buildah, "build", "--isolation", "chroot", "--layers", "--target", order.image.target),
                *("--volume", f"{self._wheels}:{_WHEELS}:rw", *trust),
                *("--build-arg", f"UV_CACHE_DIR={_WHEELS}", "--build-arg", f"BASE_IMAGE={base_image}"),
                *(*order.build_arguments(), "--file", str(order.context / order.image.dockerfile)),
                *("--tag", order.reference, str(order.context)),
            ],
            self._logs / f"{order.image.name}.log",
        )
        self._forget_older(order.reference)

    def push(self, reference: str, destination: str, *, plain_http: bool) -> None:
        log = self._logs / "push.log"
        try:
            work(
                f"pushing {destination}",
                [
                    *(*self._buildah, "push", f"--tls-verify={'false' if plain_http else 'true'}"),
                    # The fast level: on two cores gzip takes a third longer than the whole build.
                    *("--compression-format", "zstd", "--compression-level", "1"),
                    *(reference, f"docker://{destination}"),
                ],
                log,
            )
        except ImageError as error:
            if "file integrity checksum failed" in log.read_text(errors="replace"):
                raise DamagedError(f"{reference} was changed in {self._store} after it was built") from error
            raise

    def forget(self) -> None:
        output(*self._buildah, "rmi", "--all", "--force")

    def prune(self, keep: set[str]) -> None:
        """Delete what `keep` does not need; for its layers, an older build stays where the kept one is not here."""
        present = set(self._references())
        stay = {_repository(reference) for reference in keep - present}
        keep = keep | {_base_reference()}
        for reference in present - keep:
            if "/cloze-" in reference and _repository(reference) not in stay:
                output(*self._buildah, "rmi", reference)
        output(*self._buildah, "rmi", "--prune")

    def _base(self) -> str:
        reference = _base_reference()
        if self.has(reference):
            return reference
        say("making the base image with debootstrap (half a minute to a minute)")
        container = output(*self._buildah, "from", "scratch").strip()
        try:
            folder = Path(output(*self._buildah, "mount", container).strip())
            base.unpack(folder, self._logs / "base.log")
            output(*self._buildah, "commit", "--quiet", container, reference)
        finally:
            output(*self._buildah, "rm", container)
        return reference

    def _forget_older(self, reference: str) -> None:
        """Keep one build of each image: the registry has the others, and a torch layer is 6 GB."""
        for older in self._references():
            if older != reference and _repository(older) == _repository(reference):
                output(*self._buildah, "rmi", older)

    def _references(self) -> list[str]:
        listed = json.loads(output(*self._buildah, "images", "--json") or "[]")
        return [name for image in listed or [] for name in image.get("names") or []]


def _base_reference() -> str:
    return f"localhost/cloze-base:{base.key()}"


def _repository(reference: str) -> str:
    return reference.rpartition(":")[0]
