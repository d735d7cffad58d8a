"""The registry on this machine's loopback, asked through the HTTP API that every registry has."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from pathlib import Path

from .console import ImageError, output, say

# What a manifest may be: buildah writes the first, Docker the second; an index is what buildx makes for platforms.
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
DEFAULT_PORT = "5055"


def address(env: Mapping[str, str], given: str | None = None) -> str:
    """The part of a reference before the image's name."""
    port = env.get("CLOZE_REGISTRY_PORT") or DEFAULT_PORT
    return (given or env.get("CLOZE_REGISTRY") or f"localhost:{port}").rstrip("/")


def is_local(registry: str) -> bool:
    """Whether it is this machine's own; a path behind the port names another one that somebody runs here."""
    host, _, port = registry.partition(":")
    return host in {"localhost", "127.0.0.1"} and port.isdigit()


class LocalRegistry:
    """A registry without passwords or TLS, which only a loopback address may be."""

    def __init__(self, host: str) -> None:
        self._url = f"http://{host.replace('localhost', '127.0.0.1', 1)}/v2"

    def answers(self) -> bool:
        try:
            return self._ask("GET", "/")[0] == 200
        except OSError:
            return False

    def digest(self, repository: str, tag: str) -> str | None:
        """The digest of a tag's manifest, or None when the registry has no such tag."""
        status, headers, _ = self._ask("HEAD", f"/{repository}/manifests/{tag}")
        return headers.get("Docker-Content-Digest") if status == 200 else None

    def tags(self, repository: str) -> list[str]:
        status, _, body = self._ask("GET", f"/{repository}/tags/list")
        return sorted(json.loads(body)["tags"] or []) if status == 200 else []

    def blobs(self, repository: str, digest: str) -> dict[str, int]:
        """Size by digest of what one manifest refers to."""
        status, _, body = self._ask("GET", f"/{repository}/manifests/{digest}")
        manifest = json.loads(body) if status == 200 else {}
        parts = [manifest["config"], *manifest["layers"]] if "config" in manifest else []
        return {part["digest"]: part["size"] for part in parts}

    def delete(self, repository: str, kind: str, digest: str) -> None:
        """Forget a manifest or blob of a repository; its bytes go at the next garbage collection."""
        status, _, body = self._ask("DELETE", f"/{repository}/{kind}/{digest}")
        if status not in {202, 404}:
            raise ImageError(f"the registry did not delete {repository} {digest}: {status} {body.decode()[:200]}")

    def _ask(self, method: str, path: str) -> tuple[int, Message, bytes]:
        request = urllib.request.Request(  # noqa: S310 the scheme is fixed above
            self._url + path, method=method, headers={"Accept": ", ".join(_MANIFESTS)}
        )
        # Whatever proxy the environment names, a loopback address is asked directly.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as reply:
                return reply.status, reply.headers, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()


def started(registry: LocalRegistry, root: Path) -> bool:
    """Start the registry unless it answers; whether this call started it."""
    if registry.answers():
        return False
    cluster_command(root, "up")
    if not registry.answers():
        raise ImageError("`python3 hack/cluster registry up` came back, but no registry answers")
    return True


def cluster_command(root: Path, action: str) -> None:
    """Leave the process to `hack/cluster`, which knows who else needs it."""
    done = subprocess.run([sys.executable, root / "hack/cluster", "registry", action], stdout=2, check=False)
    if done.returncode:
        raise ImageError(f"`python3 hack/cluster registry {action}` failed, see above")


def forget(registry: LocalRegistry, keep: Mapping[str, str]) -> None:
    """Delete every tag of the repositories in `keep` except the one named there, and what only those tags used."""
    for repository, current in keep.items():
        kept = registry.digest(repository, current)
        needed = registry.blobs(repository, kept) if kept else {}
        for tag in registry.tags(repository):
            digest = registry.digest(repository, tag)
            if tag == current or digest is None or digest == kept:
                continue
            # The blobs too, by name: the registry remembers those that it has seen, and a later push of the same
            # layer would be told that it is there.
            blobs = registry.blobs(repository, digest)
            registry.delete(repository, "manifests", digest)
            for blob in blobs.keys() - needed.keys():
                registry.delete(repository, "blobs", blob)
            say(f"deleted {repository}:{tag} from the registry")


def collect_garbage(configuration: Path) -> None:
    """Free the bytes of what was forgotten; nothing may be pushed meanwhile."""
    output("docker-registry", "garbage-collect", "--delete-untagged", str(configuration))
