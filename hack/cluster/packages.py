"""The Debian packages that a node needs, recognised by one file each: another vendor's build of a file serves too."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .console import ClusterError, say

PROBES = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "docker-registry": "docker-registry",
    "busybox-static": "/bin/busybox",
    "iptables": "iptables",
    "nftables": "nft",
    "iproute2": "ip",
    "util-linux": "nsenter",
    "openssl": "openssl",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
}
_POLICY = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    return [package for package, probe in PROBES.items() if not _present(probe)]


def install(names: list[str]) -> None:
    """Install packages with apt-get, visibly, removing nothing and starting no service of theirs."""
    say(f"installing Debian packages: {' '.join(names)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        for argv in (
            ["apt-get", "update", "-q"],
            ["apt-get", "install", "-q", "-y", "--no-install-recommends", "--no-remove", *names],
        ):
            say(f"  {' '.join(argv)}")
            if subprocess.run(argv, env=env, stdout=2, stdin=subprocess.DEVNULL, check=False).returncode:
                raise ClusterError(f"`{' '.join(argv)}` failed, see its messages above")
    if left := sorted(set(names) & set(missing())):
        raise ClusterError(f"packages were installed, but the files of {', '.join(left)} are not where expected")


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Debian's own switch against starting what was installed: the cluster runs private copies instead."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _present(probe: str) -> bool:
    if probe.startswith("/"):
        return Path(probe).exists()
    return shutil.which(probe) is not None or Path("/usr/sbin", probe).exists()
