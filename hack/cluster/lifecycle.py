"""Up, down and reset: the order in which a cluster's parts come and go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import (
    cgroup,
    components,
    dns,
    images,
    network,
    node,
    packages,
    pki,
    preflight,
    process,
    registry,
    runtime,
    storage,
    sysctl,
    tools,
)
from .client import Client, wait
from .console import ClusterError, say
from .settings import Settings

STOP_SECONDS = 40


def up(settings: Settings) -> None:
    """Bring the cluster up, or find it up: afterwards its node is Ready and its objects are applied."""
    began = time.monotonic()
    if running(settings):
        if settings.link not in network.links():
            raise ClusterError(f"the wire {settings.link} of the running cluster is gone: run `down`, then `up`")
        registry.start(settings.cache, settings.registry_port)
        _finish(settings)
        say(f"cluster {settings.name!r} was already up")
        current = tools.built(settings.cache)
        if current and current.name != (settings.home / "binaries").read_text().strip():
            say("  it runs an earlier build of its binaries; `down` and `up` change to the present one")
        return
    found = preflight.problems(preflight.gather(settings), settings)
    if found:
        raise ClusterError("\n".join(["not starting:", *(f"  - {problem}" for problem in found)]))
    if missing := packages.missing():
        packages.install(missing)
    binaries = tools.ensure(settings.cache)
    _prepare(settings, binaries)
    registry.start(settings.cache, settings.registry_port)
    try:
        _launch(settings, binaries)
        _finish(settings)
    except BaseException:
        say("starting failed, so everything that was started is stopped again; the logs stay")
        down(settings)
        raise
    say(f"cluster {settings.name!r} is up: node Ready {time.monotonic() - began:.1f} s after the command")


def down(settings: Settings) -> None:
    """Stop what this cluster started and nothing else; its files stay."""
    record = settings.home / "node.json"
    if found := running(settings):
        say(f"stopping cluster {settings.name!r}: its pods first, then its daemons")
        inside = [identity for pid in process.children(found.pid) if (identity := process.identify(pid))]
        for first in inside:
            if not process.terminate(first, grace=STOP_SECONDS):
                say("  it did not end by itself, so the kernel ended it")
        process.terminate(found, grace=5)
    if settings.home.exists():
        network.disconnect(settings)
        cgroup.remove(settings.cgroup)
    record.unlink(missing_ok=True)
    if not any_running(settings.cache):
        if registry.stop(settings.cache):
            say("stopped the image registry, as no cluster is up")
        sysctl.restore(settings.cache / "sysctl.json")
    say(f"cluster {settings.name!r} is down")


def reset(settings: Settings, *, with_images: bool) -> None:
    """Down, and forget the cluster: objects, volumes, keys, logs; its pulled images only when asked."""
    down(settings)
    kept = None if with_images else settings.home / "lib" / "containerd"
    for path in sorted(settings.home.glob("*")) + sorted((settings.home / "lib").glob("*")):
        if kept and path in (kept, kept.parent):
            continue
        _delete(path)
    if with_images and settings.home.exists():
        settings.home.rmdir()
    say(f"cluster {settings.name!r} is forgotten" + ("" if with_images else ", its pulled images are kept"))


def running(settings: Settings) -> process.Identity | None:
    return process.recall(settings.home / "node.json")


def any_running(cache: Path) -> list[str]:
    """The names of all clusters that are up."""
    records = sorted((cache / "clusters").glob("*/node.json"))
    return [record.parent.name for record in records if process.recall(record)]


def client(settings: Settings) -> Client:
    return Client(str(settings.home / "bin" / "kubectl"), settings.kubeconfig)


def _prepare(settings: Settings, binaries: Path) -> None:
    """Write the cluster's files: keys, configuration, kubeconfig and the person's commands."""
    home = settings.home
    for folder in ("bin", "etc", "lib", "log"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "cluster.json").write_text(json.dumps(settings.record()) + "\n")
    pki.create(settings, home / "pki")
    servers = network.nameservers()
    components.write(settings, home / "etc", home / "pki", servers)
    runtime.write(settings, home / "etc", network.egress()[1])
    settings.kubeconfig.write_text(pki.kubeconfig(settings, home / "pki", "admin"))
    settings.kubeconfig.chmod(0o600)
    for command in ("kubectl", "helm"):
        link = home / "bin" / command
        link.unlink(missing_ok=True)
        link.symlink_to(binaries / command)
    for log in (home / "log").glob("*.log"):
        log.replace(log.with_suffix(".log.1"))
    (home / "log" / "units.json").unlink(missing_ok=True)
    (home / "binaries").write_text(f"{binaries.name}\n")


def _launch(settings: Settings, binaries: Path) -> None:
    """Start the node's first process in namespaces of its own, connect it and let it go."""
    home = settings.home
    say(f"starting node {settings.node_name} at {settings.node_address}")
    sysctl.remember(settings.cache / "sysctl.json", network.egress()[0])
    joins = cgroup.create(settings.cgroup)
    plan = home / "etc" / "node-plan.json"
    plan.write_text(json.dumps(_plan(settings, binaries), indent=2) + "\n")
    # Joining the groups in the shell keeps the node out of the group, and the fate, of whatever called us.
    join = "".join(f"echo $$ > '{path}'; " for path in joins)
    namespaces = "--mount --propagation=slave --net --pid --uts --ipc --fork --mount-proc --kill-child=SIGKILL"
    command = f"{join}exec unshare {namespaces} {sys.executable} -I {Path(node.__file__)} '{plan}'"
    with (home / "log" / "node.log").open("w") as log:
        started = subprocess.Popen(
            ["sh", "-c", command], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    identity = process.identify(started.pid)
    assert started.stdin
    if identity:
        process.remember(home / "node.json", identity)
    failure = f"the node's first process did not start, see {home / 'log' / 'node.log'}"
    wait(lambda: started.poll() is not None or bool(process.children(started.pid)), 10, lambda: failure)
    first = process.children(started.pid)
    if not first:
        raise ClusterError(failure)
    network.connect(settings, first[0])
    started.stdin.write(b"go\n")
    started.stdin.close()
    say("  loading the node's own images")
    wait(lambda: _enter_ok(first[0]), 20, lambda: f"containerd did not start, see {home / 'log' / 'containerd.log'}")
    images.load(enter(first[0]), binaries, home / "etc")


def _finish(settings: Settings) -> None:
    """Wait until the cluster serves, and apply the objects that belong to it."""
    kubectl = client(settings)
    say("  waiting for the API server")
    logs = settings.home / "log"
    wait(kubectl.ready, 90, lambda: f"the API server is not ready, see {logs / 'kube-apiserver.log'}")
    kubectl.apply([*dns.manifests(settings), *storage.manifests()])
    say("  waiting for the node")
    wait(
        lambda: kubectl.node_ready(settings.node_name), 90, lambda: f"the node is not Ready, see {logs / 'kubelet.log'}"
    )
    ready = f"http://{settings.node_address}:{components.DNS_READY_PORT}/ready"
    wait(lambda: node.reachable(ready), 30, lambda: f"DNS is not ready, see {logs / 'coredns.log'}")


def _plan(settings: Settings, binaries: Path) -> dict[str, object]:
    home = settings.home
    proxies = {name: value for name, value in os.environ.items() if name.lower() in {"https_proxy", "no_proxy"}}
    return {
        "hostname": settings.node_name,
        "mount": shutil.which("mount"),
        "umount": shutil.which("umount"),
        "path": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "env": proxies,
        "binds": [
            [str(binaries), components.BIN],
            [str(home / "pki"), components.KEYS],
            [str(home / "etc"), components.ETC],
            [str(home / "log"), "/var/log"],
            [str(home / "lib"), "/var/lib"],
        ],
        "folders": components.FOLDERS,
        "report": "/var/log/units.json",
        "units": components.units(settings),
    }


def enter(pid: int) -> list[str]:
    """The prefix that runs a command inside the node."""
    return ["nsenter", "--target", str(pid), "--mount", "--net", "--pid"]


def _enter_ok(pid: int) -> bool:
    argv = [*enter(pid), "ctr", "--address", runtime.SOCKET, "version"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
