"""Devices on a real machine of the cluster: the scheduler gives them to runs, and says when there are none left."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client

from cloze_api.resources import parse_job

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator_address")]

GPU = "nvidia.com/gpu"


@pytest.fixture
def two_gpus(api_client: client.ApiClient) -> Iterator[str]:
    """A machine that says it has two, as the Kubernetes documentation's extended resources do; nothing drives them."""
    core = client.CoreV1Api(api_client)
    nodes = core.list_node().items
    if any(GPU in (node.status.capacity or {}) for node in nodes):
        pytest.skip("this cluster has real ones, which are nobody's to hide")
    node = nodes[0].metadata.name

    def patch(**operation: str) -> None:
        # What there is, and what of it may be given away: the kubelet makes this of that, some seconds later.
        parts = ("capacity", "allocatable")
        core.patch_node_status(node, [{**operation, "path": f"/status/{part}/nvidia.com~1gpu"} for part in parts])

    patch(op="add", value="2")
    try:
        yield node
    finally:
        patch(op="remove")


def job(name: str, gpus: int) -> dict[str, Any]:
    """A run of one pod with so many."""
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": name},
        "spec": {
            "corpus": [{"uri": "https://example.org/text"}],
            "registry": {"name": name},
            "storage": {"ephemeral": True},
            "checkpoint": {"uri": "s3://runs"},
            "topology": {"resources": {"limits": {GPU: str(gpus)}}},
        },
    }


def test_gpus_are_given_by_the_scheduler(objects: Any, eventually: Any, two_gpus: str) -> None:
    """A run gets the machine with its devices and a process for each; one that finds none left says so meanwhile."""

    def placed(name: str) -> Any:
        pods = objects.list("Pod", f"cloze.dev/owner={name}")
        return pods[0] if pods and pods[0]["spec"].get("nodeName") == two_gpus else None

    objects.create(job("first", 2))
    pod = eventually(lambda: placed("first"), "the pod to get its machine")
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["requests"][GPU] == container["resources"]["limits"][GPU] == "2"
    given = parse_job(yaml.safe_load(objects.get("ConfigMap", "first-pretrain-spec")["data"]["job.yaml"]))
    assert given.spec.topology.processes == 2

    objects.create(job("second", 1))
    found = objects.wait_for_reason("PretrainJob", "second", "Running", "Unschedulable")
    assert f"Insufficient {GPU}" in found["message"]
    assert objects.get("PretrainJob", "second")["status"]["state"] == "Pending"
    objects.delete("PretrainJob", "first")
    eventually(lambda: placed("second"), "the devices to be given on", 60)
