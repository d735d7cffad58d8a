"""Whole life cycles of the local cluster: it comes up, serves, stays apart from others, and leaves nothing behind.

All in a HOME of their own, with clusters, a registry and kernel settings of its own, beside whatever else is up here.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CLUSTER = Path(__file__).resolve().parents[2] / "hack" / "cluster"
sys.path.insert(0, str(CLUSTER.parent))

from cluster import images, tools  # noqa: E402

ALONE, FIRST, SECOND = "lifecycle", "lifecycle-a", "lifecycle-b"

pytestmark = [
    pytest.mark.timeout(1800),  # the first start on a machine builds the control plane
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and mounts need root"),
]

WORKLOAD = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: once}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: many}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Mi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsUser: 4711, runAsNonRoot: true}
      containers:
      - name: web
        image: cloze.local/busybox:1
        command: [sh, -c, "touch /once/$HOSTNAME /many/$HOSTNAME && echo serving && echo WHO > /tmp/index.html &&
          exec httpd -f -p 8080 -h /tmp"]
        readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}
        volumeMounts: [{name: once, mountPath: /once}, {name: many, mountPath: /many}]
      volumes:
      - {name: once, persistentVolumeClaim: {claimName: once}}
      - {name: many, persistentVolumeClaim: {claimName: many}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""


@dataclass(frozen=True)
class Home:
    """A HOME that shares with the person's only the cluster's binaries, which take minutes to build."""

    path: Path
    registry_port: int

    @property
    def clusters(self) -> Path:
        return self.path / ".cache/cloze/clusters"

    @property
    def env(self) -> dict[str, str]:
        """This process's environment without what it says about another cluster."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CLOZE_")}
        return {**inherited, "HOME": str(self.path), "CLOZE_REGISTRY_PORT": str(self.registry_port)}

    def cluster(self, command: str, name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one command of the cluster's program for the cluster `name`."""
        return subprocess.run(
            [sys.executable, CLUSTER, command, *arguments, "--name", name],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=1700,
            check=False,
        )

    def kubectl(self, name: str, *arguments: str, stdin: str | None = None) -> str:
        folder = self.clusters / name
        argv = [folder / "bin/kubectl", "--kubeconfig", folder / "kubeconfig", *arguments]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def free_port() -> int:
    """A port of loopback that nobody has, in the range that the cluster takes."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port <= 60000:
            return port


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    real = Path.home() / ".cache"
    tools.ensure(real / "cloze")
    # Beside the real cache: /tmp may lie in memory, or on a file system that overlays can't be laid over. The space
    # in its name is there since a person's HOME may have one.
    path = Path(tempfile.mkdtemp(prefix="cloze test ", dir=real))
    (path / ".cache/cloze").mkdir(parents=True)
    (path / ".cache/cloze/tools").symlink_to(real / "cloze/tools")
    one = Home(path, free_port())
    yield one
    for name in (ALONE, FIRST, SECOND):
        one.cluster("reset", name, "--images")
    shutil.rmtree(path)


def fetch(address: str) -> str:
    """An HTTP GET by hand, repeated for as long as kube-proxy may take to program a new service."""
    deadline = time.monotonic() + 10
    while True:
        done = subprocess.run(["curl", "-sS", "-m", "2", address], capture_output=True, text=True, check=False)
        if done.returncode == 0 or time.monotonic() > deadline:
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()
        time.sleep(0.2)


def push(image: str, layer: bytes, config: dict[str, object]) -> None:
    """Put an image into a registry by its HTTP API: the blobs, then the manifest under its tag."""
    archive, digest = images.oci_archive(image, layer, config)
    host, repository, tag = re.fullmatch(r"([^/]+)/(.+):(.+)", image).groups()  # type: ignore[union-attr]
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        members = [member for member in opened if member.name.startswith("blobs/")]
        blobs = {f"sha256:{Path(one.name).name}": opened.extractfile(one).read() for one in members}  # type: ignore[union-attr]
    manifest = blobs.pop(digest)
    with contextlib.closing(http.client.HTTPConnection(host)) as registry:

        def ask(method: str, path: str, body: bytes, kind: str) -> str:
            registry.request(method, path, body, {"Content-Type": kind})
            reply = registry.getresponse()
            assert reply.status in {201, 202}, reply.read()
            reply.read()
            return reply.headers["Location"]

        for name, blob in blobs.items():
            upload = ask("POST", f"/v2/{repository}/blobs/uploads/", b"", "application/octet-stream")
            ask("PUT", f"{upload}&digest={name}", blob, "application/octet-stream")
        ask("PUT", f"/v2/{repository}/manifests/{tag}", manifest, json.loads(manifest)["mediaType"])


def output(*argv: str) -> list[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


def traces(home: Home) -> dict[str, set[str]]:
    """All that a cluster could leave on this machine outside its own folder.

    Processes and mounts of other programs come and go meanwhile, so only those count that a cluster could have made.
    """
    ours = (str(home.path), "cloze/clusters", "containerd", "kubelet", "netns", "cni")
    processes = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (folder / "cmdline").read_text().replace("\0", " ")  # empty for a zombie
            group = (folder / "cgroup").read_text()
            if argv and (str(home.path) in argv or "cloze-lifecycle" in group):
                processes.add(argv)
    settings = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")
    values = [Path("/proc/sys", name) for name in settings]
    values += Path("/proc/sys/net/ipv4/conf").glob("*/forwarding")
    return {
        "processes": processes,
        "mounts": {line for line in Path("/proc/mounts").read_text().splitlines() if any(o in line for o in ours)},
        "links": {line.split(":")[1] for line in output("ip", "-o", "link")},
        "routes": set(output("ip", "route")),
        "nft": set(output("nft", "list", "tables")),
        "iptables": {line for line in output("iptables-save") if not line.startswith(("#", ":"))},
        "netns": set(output("ip", "netns")),
        "cgroups": {str(path) for path in Path("/sys/fs/cgroup").glob("*cloze-*")}
        | {str(path) for path in Path("/sys/fs/cgroup").glob("*/cloze-*")},
        "run": {
            str(path) for path in Path("/run").glob("*") if any(o in path.name for o in ("contain", "cni", "netns"))
        },
        "settings": {f"{path}={path.read_text().strip()}" for path in values},
    }


def left(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is there now and was not before; what another cluster took away meanwhile is not ours."""
    return {kind: found for kind in before if (found := after[kind] - before[kind])}


@pytest.fixture(scope="module")
def before(home: Home) -> dict[str, set[str]]:
    return traces(home)


@pytest.fixture(scope="module")
def both(home: Home, before: dict[str, set[str]]) -> dict[str, float]:
    """Two clusters side by side, with the seconds that each took."""
    seconds = {}
    for name in (FIRST, SECOND):
        began = time.monotonic()
        started = home.cluster("up", name)
        assert started.returncode == 0, started.stderr
        assert started.stdout == "started\n"
        seconds[name] = time.monotonic() - began
    return seconds


@pytest.mark.cluster
@pytest.mark.alone
def test_up_and_down_leave_nothing_behind(home: Home) -> None:
    clean = traces(home)
    try:
        started = home.cluster("up", ALONE)
        assert (started.returncode, started.stdout) == (0, "started\n"), started.stderr
        kinds = {"processes", "links", "routes", "nft", "cgroups"}
        assert left(clean, traces(home)).keys() >= kinds  # or it would be no wonder that nothing is left
    finally:
        stopped = home.cluster("down", ALONE)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped the image registry" in stopped.stderr
    assert left(clean, traces(home)) == {}


@pytest.mark.full
def test_both_are_healthy_and_a_warm_start_is_quick(home: Home, both: dict[str, float]) -> None:
    """The second start had nothing to build; half a minute is promised until its node is Ready."""
    assert both[SECOND] < 30
    for name in (FIRST, SECOND):
        done = home.cluster("status", name)
        assert done.returncode == 0, done.stdout
        assert "healthy" in done.stdout


@pytest.mark.full
def test_a_second_up_finds_the_first_and_changes_no_process(home: Home, both: dict[str, float]) -> None:
    record = home.clusters / FIRST / "node.json"
    node = json.loads(record.read_text())
    again = home.cluster("up", FIRST)
    assert again.returncode == 0, again.stderr
    assert again.stdout == "running\n"
    assert "already up" in again.stderr
    assert json.loads(record.read_text()) == node


@pytest.mark.full
def test_each_serves_volumes_services_and_names_to_a_user_who_is_not_root(home: Home, both: dict[str, float]) -> None:
    for name in (FIRST, SECOND):
        home.kubectl(name, "apply", "--filename=-", stdin=WORKLOAD.replace("WHO", name))
    for name in (FIRST, SECOND):
        home.kubectl(name, "rollout", "status", "deployment/web", "--timeout=90s")
        pod = home.kubectl(name, "get", "pods", "--selector=app=web", "--output=jsonpath={.items[0].metadata.name}")
        pod_address = home.kubectl(name, "get", "pod", pod, "--output=jsonpath={.status.podIP}")
        service_address = home.kubectl(name, "get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
        assert fetch(f"http://{pod_address}:8080") == name
        assert fetch(f"http://{service_address}") == name
        request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 web.default.svc.cluster.local 80 | tail -n 1"
        for _ in range(6):  # by chance the pod also meets itself behind the service
            assert home.kubectl(name, "exec", pod, "--", "sh", "-c", request) == name
        assert len(home.kubectl(name, "exec", pod, "--", "ls", "/many").split()) == 2
        assert home.kubectl(name, "logs", pod) == "serving"


@pytest.mark.full
def test_an_address_of_nothing_is_refused_at_once(home: Home, both: dict[str, float]) -> None:
    record = json.loads((home.clusters / FIRST / "cluster.json").read_text())
    service = record["service_cidr"].rsplit(".", 1)[0] + ".251"
    began = time.monotonic()
    done = subprocess.run(["curl", "-s", "-m", "5", f"http://{service}"], capture_output=True, check=False)
    assert done.returncode == 7  # could not connect; 28 would be a timeout
    assert time.monotonic() - began < 2


@pytest.mark.full
def test_the_node_pulls_from_the_registry_on_loopback(home: Home, both: dict[str, float]) -> None:
    environment = dict(
        line.removeprefix("export ").split("=", 1) for line in home.cluster("env", FIRST).stdout.splitlines()
    )
    image = f"{environment['CLOZE_REGISTRY']}/lifecycle/pulled:1"
    push(image, images.busybox_layer(images.BUSYBOX, ["sh", "echo"]), {"Entrypoint": ["/bin/sh", "-c", "echo pulled"]})
    home.kubectl(FIRST, "run", "pulled", f"--image={image}", "--restart=Never")
    home.kubectl(FIRST, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/pulled", "--timeout=60s")
    assert home.kubectl(FIRST, "logs", "pulled") == "pulled"


@pytest.mark.full
def test_one_goes_down_and_the_other_does_not_notice(home: Home, both: dict[str, float]) -> None:
    assert home.cluster("down", SECOND).returncode == 0
    assert home.cluster("status", SECOND).returncode == 1
    assert home.cluster("status", FIRST).returncode == 0
    address = home.kubectl(FIRST, "get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
    assert fetch(f"http://{address}") == FIRST


@pytest.mark.full
def test_what_ran_before_a_down_runs_again_after_the_next_up(home: Home, both: dict[str, float]) -> None:
    assert home.cluster("down", FIRST).returncode == 0
    started = home.cluster("up", FIRST)
    assert started.returncode == 0, started.stderr
    home.kubectl(FIRST, "wait", "--for=condition=Ready", "pod", "--selector=app=web", "--timeout=60s")
    address = home.kubectl(FIRST, "get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
    assert fetch(f"http://{address}") == FIRST


@pytest.mark.full
def test_a_killed_daemon_is_started_again(home: Home, both: dict[str, float]) -> None:
    group = next(path for path in Path("/sys/fs/cgroup").rglob(f"cloze-{FIRST}/node/cgroup.procs"))
    for pid in group.read_text().split():
        if Path(f"/proc/{pid}/comm").read_text().strip() == "kube-scheduler":
            os.kill(int(pid), 9)
    deadline = time.monotonic() + 20
    while "kube-scheduler ended with -9" not in (home.clusters / FIRST / "log/kube-scheduler.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while home.cluster("status", FIRST).returncode != 0:
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.full
def test_a_node_that_was_killed_is_cleaned_up_and_comes_back(home: Home, both: dict[str, float]) -> None:
    record = json.loads((home.clusters / FIRST / "node.json").read_text())
    os.kill(record["pid"], 9)
    time.sleep(1)
    assert home.cluster("status", FIRST).returncode == 1
    started = home.cluster("up", FIRST)
    assert started.returncode == 0, started.stderr


@pytest.mark.full
def test_an_interrupted_start_takes_back_what_it_began(home: Home, both: dict[str, float]) -> None:
    """SIGTERM in the middle: no node, no link; the next start is a whole one."""
    assert home.cluster("down", SECOND).returncode == 0
    link = f"cloze{json.loads((home.clusters / SECOND / 'cluster.json').read_text())['slot']}"
    argv = [sys.executable, CLUSTER, "up", "--name", SECOND]
    with subprocess.Popen(argv, env=home.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stderr
        while "loading the node's own images" not in (line := starting.stderr.readline()):
            assert line, "it ended before it was interrupted"
        assert Path("/sys/class/net", link).exists()
        starting.terminate()
        starting.communicate(timeout=60)
    assert starting.returncode == 128 + signal.SIGTERM
    assert not Path("/sys/class/net", link).exists()
    assert not (home.clusters / SECOND / "node.json").exists()
    assert home.cluster("up", SECOND).returncode == 0


@pytest.mark.full
def test_after_the_owner_is_gone_the_next_one_starts_over(home: Home, both: dict[str, float]) -> None:
    assert home.cluster("down", SECOND).returncode == 0
    with subprocess.Popen(["sleep", "600"]) as owner, subprocess.Popen(["sleep", "600"]) as next_owner:
        owned = home.cluster("up", SECOND, CLOZE_CLUSTER_OWNER=str(owner.pid))
        assert owned.stdout == "started\n"
        home.kubectl(SECOND, "create", "configmap", "mine")
        refused = home.cluster("up", SECOND, CLOZE_CLUSTER_OWNER=str(next_owner.pid))
        assert refused.returncode == 1
        assert f"in use by process {owner.pid}" in refused.stderr
        owner.kill()
        owner.wait()
        again = home.cluster("up", SECOND, CLOZE_CLUSTER_OWNER=str(next_owner.pid))
        assert again.stdout == "started\n", again.stderr
        assert "mine" not in home.kubectl(SECOND, "get", "configmaps", "--output=name")
        assert home.cluster("down", SECOND).returncode == 0
        next_owner.kill()
    assert not (home.clusters / SECOND / "owner.json").exists()


@pytest.mark.full
def test_after_down_nothing_is_left(home: Home, both: dict[str, float], before: dict[str, set[str]]) -> None:
    for name in (FIRST, SECOND):
        assert home.cluster("down", name).returncode == 0
    assert left(before, traces(home)) == {}


@pytest.mark.full
def test_a_cluster_that_is_not_ours_is_only_looked_at(home: Home, tmp_path: Path, before: dict[str, set[str]]) -> None:
    missing = tmp_path / "kubeconfig"
    assert home.cluster("env", FIRST, CLOZE_KUBECONFIG=str(missing)).stdout.startswith(f"export KUBECONFIG={missing}")
    checked = home.cluster("up", FIRST, CLOZE_KUBECONFIG=str(missing))
    assert checked.returncode == 1
    assert checked.stdout == ""
    assert str(missing) in checked.stderr
    assert "not ours" in home.cluster("down", FIRST, CLOZE_KUBECONFIG=str(missing)).stderr
    assert left(before, traces(home)) == {}
