"""Up, down and reset: the order in which a cluster's parts come and go."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import (
    addons,
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
    proxy,
    registry,
    runtime,
    state,
    storage,
    sysctl,
    tools,
)
from .client import Client, wait
from .console import ClusterError, say
from .settings import Settings
from .tools import Builds

STOP_SECONDS = 40


def up(settings: Settings, owner: process.Identity | None = None) -> bool:
    """Bring the cluster up, or find it up: afterwards its node is Ready and its objects are applied.

    Whether it was started now. One that is started for `owner` lives no longer than that process: whoever comes
    later and finds the owner gone starts over.
    """
    began = time.monotonic()
    _respect_owner(settings, owner)
    if found := running(settings):
        _resume(settings, found)
        return False
    facts = preflight.gather(settings)
    if problems := preflight.problems(facts, settings):
        raise ClusterError("\n".join(["not starting:", *(f"  - {problem}" for problem in problems)]))
    for notice in preflight.notices(facts):
        say(notice)
    if missing := packages.missing():
        packages.install(missing)
    builds = tools.ensure(settings.cache)
    try:
        _prepare(settings, builds)
        if owner and not process.recall(_owner_mark(settings)):
            process.remember(_owner_mark(settings), owner)
        registry.start(settings.cache, settings.registry_port)
        _launch(settings, builds)
        _finish(settings, builds)
    except BaseException:
        say("starting failed, so everything that was started is stopped again; the logs stay")
        down(settings)
        raise
    say(f"cluster {settings.name!r} is up, {time.monotonic() - began:.1f} s after the command")
    return True


def down(settings: Settings) -> None:
    """Stop what this cluster started and nothing else; its files stay."""
    found = running(settings)
    if found:
        say(f"stopping cluster {settings.name!r}: its pods first, then its daemons")
        inside = [identity for pid in process.children(found.pid) if (identity := process.identify(pid))]
        for first in inside:
            if not process.terminate(first, grace=STOP_SECONDS):
                say("  it did not end by itself, so the kernel ended it")
        process.terminate(found, grace=5)
    if settings.home.exists():
        sweep(settings, ended=found is not None)
    settle(settings.cache)
    say(f"cluster {settings.name!r} is down")


def sweep(settings: Settings, *, ended: bool = False) -> None:
    """Remove what a node leaves on this machine, also one that was killed: its link, rules, groups and records.

    A cluster of the same name from another HOME has the same groups: processes in them that `down` did not just end
    are its, and then so are the rules.
    """
    if ended or not cgroup.occupied(settings.cgroup):
        network.disconnect(settings)
        cgroup.remove(settings.cgroup)
    else:
        say(f"control group {settings.cgroup} holds processes that {settings.cache} knows nothing of; they stay")
    (settings.home / "node.json").unlink(missing_ok=True)
    _owner_mark(settings).unlink(missing_ok=True)


def settle(cache: Path) -> None:
    """Once no cluster is up: stop the registry, and give the machine its own settings back."""
    if any_running(cache):
        return
    if registry.stop(cache):
        say("stopped the image registry, as no cluster is up")
    # Another HOME's cluster needs them as they are; ours stay written down until a later `down`.
    if not network.slots():
        sysctl.restore(cache / "sysctl.json")


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
    direct = proxy.exceptions(settings, os.environ)
    return Client(str(settings.home / "bin" / "kubectl"), settings.kubeconfig, direct)


def builds_of(home: Path) -> list[str]:
    """The names of the builds that a cluster was last started with."""
    record = home / "binaries"
    return record.read_text().split() if record.exists() else []


def _owner_mark(settings: Settings) -> Path:
    return settings.home / "owner.json"


def _respect_owner(settings: Settings, owner: process.Identity | None) -> None:
    """Refuse a cluster that another process has for itself; clear away one whose owner did not live to do it."""
    marked = process.recorded(_owner_mark(settings))
    if marked is None or marked == owner:
        return
    if not marked.alive():
        say(f"cluster {settings.name!r} was left by process {marked.pid}, which is gone: starting it over")
        reset(settings, with_images=False)
    elif marked.pid not in process.ancestors(os.getpid()):
        raise ClusterError(
            f"cluster {settings.name!r} is in use by process {marked.pid}: choose another TEST_CLUSTER, or wait for it"
        )


def _resume(settings: Settings, found: process.Identity) -> None:
    """See a node that runs through to its end of starting: its command may have been killed on the way."""
    if settings.link not in network.links():
        raise ClusterError(f"the wire {settings.link} of the running cluster is gone: run `down`, then `up`")
    registry.start(settings.cache, settings.registry_port)
    builds = tools.present(settings.cache)
    if builds_of(settings.home) != builds.names:
        # Its parts may be others than those that are known here.
        say(f"cluster {settings.name!r} runs an earlier build; `down` and `up` change to the present one")
        return
    for first in process.children(found.pid):
        _await_runtime(settings, first)
        if not images.loaded(enter(first)):
            images.load(enter(first), builds, settings.home / "etc")
    _finish(settings, builds)
    say(f"cluster {settings.name!r} was already up")


def _prepare(settings: Settings, builds: Builds) -> None:
    """Write the cluster's files: keys, configuration, kubeconfig and the person's commands."""
    home = settings.home
    for folder in ("bin", "etc", "lib", "log"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    state.write(home / "cluster.json", json.dumps(settings.record()) + "\n")
    pki.create(settings, home / "pki")
    servers = network.nameservers()
    components.write(settings, home / "etc", home / "pki", servers)
    runtime.write(settings, home / "etc", network.egress()[1])
    settings.kubeconfig.write_text(pki.kubeconfig(settings, home / "pki", "admin"))
    settings.kubeconfig.chmod(0o600)
    for command in ("kubectl", "helm", "promtool", "prometheus"):
        link = home / "bin" / command
        link.unlink(missing_ok=True)
        link.symlink_to(builds.kubernetes / command)
    for log in (home / "log").glob("*.log"):
        log.replace(log.with_suffix(".log.1"))
    (home / "log" / "units.json").unlink(missing_ok=True)
    state.write(home / "binaries", "\n".join(builds.names) + "\n")


def _launch(settings: Settings, builds: Builds) -> None:
    """Start the node's first process in namespaces of its own, connect it and let it go."""
    home = settings.home
    say(f"starting node {settings.node_name} at {settings.node_address}")
    sysctl.remember(settings.cache / "sysctl.json", network.egress()[0])
    joins = cgroup.create(settings.cgroup)
    plan = home / "etc" / "node-plan.json"
    plan.write_text(json.dumps(_plan(settings, builds.kubernetes), indent=2) + "\n")
    # Joining the groups in the shell keeps the node out of the group, and the fate, of whatever called us.
    join = "".join(f"echo $$ > {shlex.quote(str(path))}; " for path in joins)
    namespaces = "--mount --propagation=slave --net --pid --uts --ipc --fork --mount-proc --kill-child=SIGKILL"
    first_process = shlex.join([sys.executable, "-I", node.__file__, str(plan)])
    command = f"{join}exec unshare {namespaces} {first_process}"
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
    _await_runtime(settings, first[0])
    images.load(enter(first[0]), builds, home / "etc")


def _await_runtime(settings: Settings, first: int) -> None:
    log = settings.home / "log" / "containerd.log"
    wait(lambda: _enter_ok(first), 20, lambda: f"containerd did not start, see {log}")


def _finish(settings: Settings, builds: Builds) -> None:
    """Wait until the cluster serves, and apply the objects that belong to it."""
    kubectl = client(settings)
    say("  waiting for the API server")
    logs = settings.home / "log"
    wait(
        kubectl.ready,
        90,
        lambda: (
            f"the API server is not ready, see {logs / 'kube-apiserver.log'} and etcd.log beside it; if a power "
            "cut came before and nothing else helps, `reset` starts over without the cluster's objects and volumes"
        ),
    )
    say("  giving it the objects of the cluster's parts")
    kubectl.apply([*dns.objects(settings), *storage.objects()])
    addons.install(settings, kubectl, builds)
    say("  waiting for the node")
    wait(
        lambda: kubectl.node_ready(settings.node_name), 90, lambda: f"the node is not Ready, see {logs / 'kubelet.log'}"
    )
    ready = f"http://{settings.node_address}:{components.DNS_READY_PORT}/ready"
    wait(lambda: node.reachable(ready), 90, lambda: f"DNS is not ready, see {logs / 'coredns.log'}")
    addons.wait_for_all(settings, kubectl)


def _plan(settings: Settings, binaries: Path) -> dict[str, object]:
    home = settings.home
    return {
        "hostname": settings.node_name,
        "mount": shutil.which("mount"),
        "umount": shutil.which("umount"),
        "path": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "env": proxy.variables(settings, os.environ),
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
