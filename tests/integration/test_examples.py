"""The examples as they are: the API server takes each object, and tenants' jobs run under their quotas."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, dynamic

from cloze_api.names import GROUP

pytestmark = pytest.mark.cluster

Document = dict[str, Any]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIGEST = "sha256:" + "a" * 64


def documents(path: Path) -> list[Document]:
    """The objects of a file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


EACH = [(path, document) for path in sorted(EXAMPLES.glob("*.yaml")) for document in documents(path)]


@pytest.mark.parametrize(
    ("path", "document"), EACH, ids=[f"{path.stem}-{one['kind']}-{one['metadata']['name']}" for path, one in EACH]
)
def test_an_example_is_accepted(api_client: client.ApiClient, path: Path, document: Document) -> None:
    """With every rule of the schema, and without a field that the API server doesn't know."""
    cluster = dynamic.DynamicClient(api_client)
    resource = cluster.resources.get(api_version=document["apiVersion"], kind=document["kind"])
    metadata = {key: value for key, value in document["metadata"].items() if key != "namespace"}
    # Not under the name of something that is there.
    body = {**document, "metadata": {**metadata, "name": f"example-{metadata['name']}"}}
    options = {"query_params": [("fieldValidation", "Strict")], "dry_run": "All"}
    cluster.create(resource, body=body, namespace="default" if resource.namespaced else None, **options)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_says_what_it_is_of(path: Path) -> None:
    """A header for whoever opens the file; what is served is registered by a job, and named once."""
    assert path.read_text(encoding="utf-8").startswith("# ")
    objects = documents(path)
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)
    made = {one["spec"]["registry"]["name"] for one in objects if one["kind"] in ("PretrainJob", "FineTuneJob")}
    followed = {
        one["spec"]["model"]["name"]
        for one in objects
        if one["kind"] == "ModelDeployment" and "follow" in one["spec"]["model"]
    }
    assert followed <= made


def test_a_tenants_job_waits_for_the_shared_encoder_and_runs_under_its_quota(
    objects: Any, registry: Any, kubelet: Any, operator_address: str
) -> None:
    """Its pods get what the LimitRange says, or the quota would refuse them."""
    job = next(one for one in documents(EXAMPLES / "tenants.yaml") if one["kind"] == "FineTuneJob")
    team = job["metadata"]["namespace"]
    for one in documents(EXAMPLES / "tenants.yaml"):
        if one["metadata"].get("namespace") == team and GROUP not in one["apiVersion"]:
            objects.create({**one, "metadata": {**one["metadata"], "namespace": objects.namespace}})
    objects.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "examples"},
            "data": {"train.jsonl": "", "test.jsonl": ""},
        }
    )
    spec = {**job["spec"], "topology": {"nodeSelector": kubelet.NOWHERE}}
    objects.create({**job, "metadata": {"name": "spam"}, "spec": spec})
    objects.wait_for_reason("FineTuneJob", "spam", "BaseReady", "ModelNotFound")
    registry.register("shared-encoder", "3", digest=DIGEST)
    registry.aliases["shared-encoder", "challenger"] = "3"
    objects.wait_for_reason("FineTuneJob", "spam", "Running", "Unschedulable")
    (pod,) = kubelet.pods("spam", 1)
    assert pod["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "500m", "memory": "1Gi"},
        "limits": {"memory": "4Gi"},
    }
    used = objects.get("ResourceQuota", "training-and-serving")["status"]["used"]
    assert {name: used[name] for name in ("requests.cpu", "requests.storage", "count/jobs.batch")} == {
        "requests.cpu": "500m",
        "requests.storage": "5Gi",
        "count/jobs.batch": "1",
    }


def test_a_team_may_do_what_its_models_need_and_no_more() -> None:
    """Fine-tune and serve; neither pretrain nor touch what the operator makes, nor read Secrets."""
    (role,) = [one for one in documents(EXAMPLES / "tenants.yaml") if one["kind"] == "ClusterRole"]
    may = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert ("cloze.dev", "finetunejobs", "create") in may
    assert not [one for one in may if one[1] in ("secrets", "jobs", "pretrainjobs", "roles", "networkpolicies")]
    assert not [one for one in may if "*" in one]
