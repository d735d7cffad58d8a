"""The Debian packages that a node needs, recognised by one file each: another vendor's build of a file serves too."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from .console import ClusterError, say

PROBES = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "docker-registry": "docker-registry",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "busybox-static": "/bin/busybox",
    "iptables": "iptables",
    "nftables": "nft",
    "iproute2": "ip",
    "util-linux": "nsenter",
    "openssl": "openssl",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
}
_POLICY = Path("/usr/sbin/policy-rc.d")
_MARK = "# Written by hack/cluster of Cloze for the time of one apt-get; delete it if none is running."


def present(probe: str) -> bool:
    """Whether a file, or a program on PATH or among the administrator's, is there."""
    if probe.startswith("/"):
        return Path(probe).exists()
    return shutil.which(probe) is not None or Path("/usr/sbin", probe).exists()


def missing(is_present: Callable[[str], bool] = present) -> list[str]:
    return [package for package, probe in PROBES.items() if not is_present(probe)]


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
    """Debian's own switch against starting what was installed: the cluster runs private copies instead.

    Another's switch is respected; one with our mark was left by an install that was killed, and goes with this one.
    """
    if _POLICY.exists() and _MARK not in _POLICY.read_text(errors="replace"):
        yield
        return
    _POLICY.write_text(f"#!/bin/sh\n{_MARK}\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()
