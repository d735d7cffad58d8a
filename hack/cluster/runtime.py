"""Configuration of the container runtime: containerd, the pods' network and where images come from."""

from __future__ import annotations

import json
from pathlib import Path

from .settings import Settings

SOCKET = "/run/containerd/containerd.sock"
ETC = "/run/cloze/etc"
PAUSE_IMAGE = "cloze.local/pause:1"
BUSYBOX_IMAGE = "cloze.local/busybox:1"


def write(settings: Settings, folder: Path, mtu: int) -> None:
    (folder / "containerd.toml").write_text(_containerd())
    network = folder / "cni"
    network.mkdir(exist_ok=True)
    (network / "10-cloze.conflist").write_text(json.dumps(_pod_network(settings, mtu), indent=2) + "\n")
    hosts = folder / "registries" / settings.registry
    hosts.mkdir(parents=True, exist_ok=True)
    (hosts / "hosts.toml").write_text(_registry_hosts(settings))


def _containerd() -> str:
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE a sandbox can't lower its score, and would not start.
    # discard_unpacked_layers: a layer is kept once, unpacked, instead of packed and unpacked.
    # runc, cgroupfs: the one runtime and driver that serve cgroup v1, v2 and machines with both.
    # The opt plugin would make a folder in /opt of this machine.
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{SOCKET}"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{ETC}/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    discard_unpacked_layers = true
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{ETC}/registries"
"""


def _pod_network(settings: Settings, mtu: int) -> dict[str, object]:
    # Point-to-point links instead of a bridge: every packet between pods passes the node's rules, so services work
    # without the br_netfilter module, and nothing has to be loaded into this machine's kernel.
    return {
        "cniVersion": "0.4.0",
        "name": "cloze",
        "plugins": [
            {
                "type": "ptp",
                "mtu": mtu,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": str(settings.pod_cidr)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/run/cni/networks",
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _registry_hosts(settings: Settings) -> str:
    # Inside the node `localhost` is the node itself; the registry is at the other end of the wire.
    registry = f"http://{settings.gateway}:{settings.registry_port}"
    return f"""server = "{registry}"

[host."{registry}"]
  capabilities = ["pull", "resolve"]
"""
