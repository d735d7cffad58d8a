"""How long nobody reconciles after the leader is killed: hack/bench/failover.py [ROUNDS]

Two operators as processes on the cluster of KUBECONFIG, which must have the definitions and no other operator, and 100
objects in a namespace of their own: 60 suspended PretrainJobs, 40 ModelDeployments (without a registry, so each is
asked about again and again). Each round kills the leader by SIGKILL at a moment of its own within the renewal's period,
creates an object, and takes the time until the standby leads and until that object is reconciled.
"""

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kubernetes import client, config, dynamic

from cloze_operator.decide.election import Terms

JOBS, DEPLOYMENTS = 60, 40
GROUP = "cloze.dev/v1alpha1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _one_leads(operators: "Sequence[Operator]") -> bool:
    return sum(operator.leads() for operator in operators) == 1


def wait(check: Callable[[], Any]) -> float:
    """Seconds until it is true."""
    began = time.monotonic()
    while not check():
        if time.monotonic() > began + 120:
            raise SystemExit("waited 120 s in vain")
        time.sleep(0.05)
    return time.monotonic() - began


class Operator:
    """One of the two."""

    def __init__(self, namespace: str, folder: Path) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        environment = os.environ | {
            "CLOZE_NAMESPACES": namespace,
            "CLOZE_LEASE_NAMESPACE": namespace,
            "CLOZE_TRAIN_IMAGE": "cloze.invalid/train:1",
            "CLOZE_SERVE_IMAGE": "cloze.invalid/serve:1",
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
            "CLOZE_OPERATOR_PORT": str(port),
        }
        with (folder / f"{port}.log").open("wb") as log:
            command = [sys.executable, "-m", "cloze_operator"]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        wait(lambda: self.says("/readyz") in ("ok\n", "standby\n"))

    def says(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=5) as reply:  # noqa: S310 - our own address
                return str(reply.read().decode())
        except OSError:
            return ""

    def leads(self) -> bool:
        return "cloze_operator_leader 1.0" in self.says("/metrics")


def job(name: str) -> dict[str, Any]:
    spec = {
        "corpus": [{"uri": "https://example.org/text"}],
        "registry": {"name": name},
        "storage": {"size": "1Mi"},
        "suspend": True,
    }
    return {"apiVersion": GROUP, "kind": "PretrainJob", "metadata": {"name": name}, "spec": spec}


def deployment(name: str) -> dict[str, Any]:
    spec = {"model": {"name": "none", "version": "1"}}
    return {"apiVersion": GROUP, "kind": "ModelDeployment", "metadata": {"name": name}, "spec": spec}


def measure(rounds: int, folder: Path) -> None:
    api = config.new_client_from_config(config_file=os.environ["KUBECONFIG"])
    cluster, core = dynamic.DynamicClient(api), client.CoreV1Api(api)
    jobs = cluster.resources.get(api_version=GROUP, kind="PretrainJob")
    deployments = cluster.resources.get(api_version=GROUP, kind="ModelDeployment")
    namespace = f"failover-{uuid.uuid4().hex[:6]}"
    core.create_namespace({"metadata": {"name": namespace}})
    operators = [Operator(namespace, folder), Operator(namespace, folder)]

    def suspended(name: str) -> bool:
        status = jobs.get(name=name, namespace=namespace).to_dict().get("status") or {}
        return bool(status.get("state") == "Suspended")

    try:
        for number in range(JOBS):
            jobs.create(body=job(f"job-{number}"), namespace=namespace)
        for number in range(DEPLOYMENTS):
            deployments.create(body=deployment(f"model-{number}"), namespace=namespace)
        wait(partial(suspended, f"job-{JOBS - 1}"))
        print(f"{'round':>5}  {'leads after':>11}  {'reconciled after':>16}")
        for number in range(rounds):
            wait(partial(_one_leads, operators))
            leader = next(operator for operator in operators if operator.leads())
            (standby,) = (operator for operator in operators if operator is not leader)
            time.sleep(random.uniform(0, Terms().retry))  # noqa: S311 - any moment of the period, no secret
            leader.process.kill()
            killed = time.monotonic()
            leader.process.wait()
            jobs.create(body=job(f"late-{number}"), namespace=namespace)
            wait(standby.leads)
            leads = time.monotonic() - killed
            wait(partial(suspended, f"late-{number}"))
            print(f"{number + 1:>5}  {leads:>9.1f} s  {time.monotonic() - killed:>14.1f} s", flush=True)
            operators = [standby, Operator(namespace, folder)]
    finally:
        for operator in operators:
            operator.process.terminate()
            operator.process.wait(30)
        core.delete_namespace(namespace)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5, Path(scratch))
