"""Whole life cycles of the local cluster: it comes up, serves, stays apart from others, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLUSTER = Path(__file__).resolve().parents[2] / "hack" / "cluster"
sys.path.insert(0, str(CLUSTER.parent))

from cluster import images  # noqa: E402

FIRST, SECOND = "lifecycle-a", "lifecycle-b"

pytestmark = [
    pytest.mark.full,
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


def cluster(command: str, name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one command of the cluster's program for the cluster `name`."""
    return subprocess.run(
        [sys.executable, CLUSTER, command, *arguments, "--name", name],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )


def kubectl(name: str, *arguments: str, stdin: str | None = None) -> str:
    home = Path.home() / ".cache/cloze/clusters" / name
    argv = [home / "bin/kubectl", "--kubeconfig", home / "kubeconfig", *arguments]
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


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


def traces() -> dict[str, object]:
    """All that a cluster could leave on this machine outside its own folder.

    Processes and mounts of other programs come and go meanwhile, so only those count that a cluster could have made.
    """
    ours = ("cloze/clusters", "containerd", "kubelet", "netns", "cni")
    processes = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (folder / "cmdline").read_text().replace("\0", " ")  # empty for a zombie
            group = (folder / "cgroup").read_text()
            ours_by_name = any(f"/{who}" in argv or f"cloze-{who}" in group for who in (FIRST, SECOND))
            if argv and (ours_by_name or "docker-registry" in argv):
                processes.add(argv)
    settings = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")
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
        "settings": {name: Path("/proc/sys", name).read_text() for name in settings},
        "forwarding": {
            path.parent.name: path.read_text() for path in Path("/proc/sys/net/ipv4/conf").glob("*/forwarding")
        },
    }


@pytest.fixture(scope="module")
def before() -> Iterator[dict[str, object]]:
    for name in (FIRST, SECOND):
        cluster("reset", name, "--images")
    yield traces()
    for name in (FIRST, SECOND):
        cluster("reset", name, "--images")


@pytest.fixture(scope="module")
def both(before: dict[str, object]) -> dict[str, float]:
    """Two clusters side by side, with the seconds that each took."""
    seconds = {}
    for name in (FIRST, SECOND):
        began = time.monotonic()
        started = cluster("up", name)
        assert started.returncode == 0, started.stderr
        seconds[name] = time.monotonic() - began
    return seconds


def test_both_are_healthy_and_a_warm_start_is_quick(both: dict[str, float]) -> None:
    """The second start had nothing to build; half a minute is promised until its node is Ready."""
    assert both[SECOND] < 30
    for name in (FIRST, SECOND):
        done = cluster("status", name)
        assert done.returncode == 0, done.stdout
        assert "healthy" in done.stdout


def test_a_second_up_finds_the_first_and_changes_no_process(both: dict[str, float]) -> None:
    record = Path.home() / ".cache/cloze/clusters" / FIRST / "node.json"
    node = json.loads(record.read_text())
    again = cluster("up", FIRST)
    assert again.returncode == 0, again.stderr
    assert "already up" in again.stderr
    assert json.loads(record.read_text()) == node


def test_each_serves_volumes_services_and_names_to_a_user_who_is_not_root(both: dict[str, float]) -> None:
    for name in (FIRST, SECOND):
        kubectl(name, "apply", "--filename=-", stdin=WORKLOAD.replace("WHO", name))
    for name in (FIRST, SECOND):
        kubectl(name, "rollout", "status", "deployment/web", "--timeout=90s")
        pod = kubectl(name, "get", "pods", "--selector=app=web", "--output=jsonpath={.items[0].metadata.name}")
        pod_address = kubectl(name, "get", "pod", pod, "--output=jsonpath={.status.podIP}")
        service_address = kubectl(name, "get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
        assert fetch(f"http://{pod_address}:8080") == name
        assert fetch(f"http://{service_address}") == name
        request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 web.default.svc.cluster.local 80 | tail -n 1"
        for _ in range(6):  # by chance the pod also meets itself behind the service
            assert kubectl(name, "exec", pod, "--", "sh", "-c", request) == name
        assert len(kubectl(name, "exec", pod, "--", "ls", "/many").split()) == 2
        assert kubectl(name, "logs", pod) == "serving"


def test_an_address_of_nothing_is_refused_at_once(both: dict[str, float]) -> None:
    record = json.loads((Path.home() / ".cache/cloze/clusters" / FIRST / "cluster.json").read_text())
    service = record["service_cidr"].rsplit(".", 1)[0] + ".251"
    began = time.monotonic()
    done = subprocess.run(["curl", "-s", "-m", "5", f"http://{service}"], capture_output=True, check=False)
    assert done.returncode == 7  # could not connect; 28 would be a timeout
    assert time.monotonic() - began < 2


def test_the_node_pulls_from_the_registry_on_loopback(both: dict[str, float]) -> None:
    environment = dict(line.removeprefix("export ").split("=", 1) for line in cluster("env", FIRST).stdout.splitlines())
    image = f"{environment['CLOZE_REGISTRY']}/lifecycle/pulled:1"
    push(image, images.busybox_layer(images.BUSYBOX, ["sh", "echo"]), {"Entrypoint": ["/bin/sh", "-c", "echo pulled"]})
    kubectl(FIRST, "run", "pulled", f"--image={image}", "--restart=Never")
    kubectl(FIRST, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/pulled", "--timeout=60s")
    assert kubectl(FIRST, "logs", "pulled") == "pulled"


def test_one_goes_down_and_the_other_does_not_notice(both: dict[str, float]) -> None:
    assert cluster("down", SECOND).returncode == 0
    assert cluster("status", SECOND).returncode == 1
    assert cluster("status", FIRST).returncode == 0
    address = kubectl(FIRST, "get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
    assert fetch(f"http://{address}") == FIRST


def test_what_ran_before_a_down_runs_again_after_the_next_up(both: dict[str, float]) -> None:
    assert cluster("down", FIRST).returncode == 0
    started = cluster("up", FIRST)
    assert started.returncode == 0, started.stderr
    kubectl(FIRST, "wait", "--for=condition=Ready", "pod", "--selector=app=web", "--timeout=60s")
    address = kubectl(FIRST, "get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
    assert fetch(f"http://{address}") == FIRST


def test_a_killed_daemon_is_started_again(both: dict[str, float]) -> None:
    home = Path.home() / ".cache/cloze/clusters" / FIRST
    group = next(path for path in Path("/sys/fs/cgroup").rglob(f"cloze-{FIRST}/node/cgroup.procs"))
    for pid in group.read_text().split():
        if Path(f"/proc/{pid}/comm").read_text().strip() == "kube-scheduler":
            os.kill(int(pid), 9)
    deadline = time.monotonic() + 20
    while "kube-scheduler ended with -9" not in (home / "log/kube-scheduler.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while cluster("status", FIRST).returncode != 0:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_node_that_was_killed_is_cleaned_up_and_comes_back(both: dict[str, float]) -> None:
    record = json.loads((Path.home() / ".cache/cloze/clusters" / FIRST / "node.json").read_text())
    os.kill(record["pid"], 9)
    time.sleep(1)
    assert cluster("status", FIRST).returncode == 1
    started = cluster("up", FIRST)
    assert started.returncode == 0, started.stderr


def test_after_down_nothing_is_left(both: dict[str, float], before: dict[str, object]) -> None:
    for name in (FIRST, SECOND):
        assert cluster("down", name).returncode == 0
    assert traces() == before


def test_a_cluster_that_is_not_ours_is_only_looked_at(tmp_path: Path, before: dict[str, object]) -> None:
    missing = tmp_path / "kubeconfig"
    assert cluster("env", FIRST, CLOZE_KUBECONFIG=str(missing)).stdout.startswith(f"export KUBECONFIG={missing}")
    checked = cluster("up", FIRST, CLOZE_KUBECONFIG=str(missing))
    assert checked.returncode == 1
    assert str(missing) in checked.stdout
    assert "not ours" in cluster("down", FIRST, CLOZE_KUBECONFIG=str(missing)).stderr
    assert traces() == before
