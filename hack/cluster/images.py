"""The images that a node needs before any registry has one, written by hand as OCI archives."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from . import gateway, runtime
from .process import run
from .tools import Builds

BUSYBOX = Path("/bin/busybox")
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def load(enter: list[str], builds: Builds, folder: Path) -> None:
    """Import the images into the node's containerd unless it has them; `enter` runs a command in the node."""
    ctr = _ctr(enter)
    present = dict(line.split()[:3:2] for line in run(*ctr, "list").splitlines())  # names and digests
    traefik = gateway.image(builds.traefik)
    if traefik not in present:  # its name says of what it is, and it is too large to be made for a comparison
        layer = program_layer(builds.traefik / "traefik")
        _import(ctr, oci_archive(traefik, layer, {"Entrypoint": ["/traefik"]})[0], folder)
        for former in present:
            if former.startswith(f"{gateway.IMAGE}:"):
                run(*ctr, "remove", former)
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name, layer, settings in (
        (runtime.BUSYBOX_IMAGE, busybox_layer(BUSYBOX, applets), {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}),
        # Last, so that it stands for all.
        (runtime.PAUSE_IMAGE, program_layer(builds.kubernetes / "pause"), {"Entrypoint": ["/pause"]}),
    ):
        archive, digest = oci_archive(name, layer, settings)
        if present.get(name) != digest:
            _import(ctr, archive, folder)


def loaded(enter: list[str]) -> bool:
    """Whether an earlier `load` came to its end; cheaper than making the images to compare them."""
    return runtime.PAUSE_IMAGE in run(*_ctr(enter), "list")


def program_layer(program: Path) -> bytes:
    """One static program and nothing else."""
    return _tar([_file(program.name, program.read_bytes(), 0o755)])


def busybox_layer(busybox: Path, applets: list[str]) -> bytes:
    """One static program under all of its names, and the few files that programs expect."""
    members = [
        _folder("bin", 0o755),
        _folder("etc", 0o755),
        _folder("root", 0o700),
        _folder("tmp", 0o1777),
        _file("bin/busybox", busybox.read_bytes(), 0o755),
        _file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n", 0o644),
        _file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n", 0o644),
        _file("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644),
    ]
    for applet in sorted(set(applets) - {"busybox"}):
        link = tarfile.TarInfo(f"bin/{applet}")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        members.append((link, b""))
    return _tar(members)


def oci_archive(name: str, layer: bytes, settings: dict[str, Any]) -> tuple[bytes, str]:
    """An OCI image layout as a tar, and its manifest's digest; equal input gives equal bytes."""
    config = _json(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [_descriptor(_LAYER, layer)],
        }
    )
    named = {**_descriptor(_MANIFEST, manifest), "annotations": {"io.containerd.image.name": name}}
    blobs = [(f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob) for blob in (layer, config, manifest)]
    files = [
        ("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
        ("index.json", _json({"schemaVersion": 2, "manifests": [named]})),
        *blobs,
    ]
    return _tar([_file(path, content, 0o644) for path, content in files]), _digest(manifest)


def _import(ctr: list[str], archive: bytes, folder: Path) -> None:
    path = folder / "image.tar"
    path.write_bytes(archive)
    try:
        run(*ctr, "import", str(path))
    finally:
        path.unlink()


def _ctr(enter: list[str]) -> list[str]:
    return [*enter, "ctr", "--address", runtime.SOCKET, "--namespace", "k8s.io", "images"]


def _architecture() -> str:
    machine = run("uname", "-m").strip()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _file(path: str, content: bytes, mode: int) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(path)
    info.size, info.mode = len(content), mode
    return info, content


def _folder(path: str, mode: int) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(path)
    info.type, info.mode = tarfile.DIRTYPE, mode
    return info, b""


def _tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
