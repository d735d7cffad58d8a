"""MLflow as the values place its stores: on the chart's volume, or in PostgreSQL and S3."""

from typing import Any

import pytest
from rendering import of_kind, render

pytestmark = pytest.mark.cluster

DATABASE = 'mlflow.backendStoreUri="postgresql://$(USER):$(PASSWORD)@db.example/mlflow"'
BUCKET = 'mlflow.artifactsDestination="s3://models/cloze"'
PRODUCTION = (DATABASE, BUCKET, "mlflow.replicas=3", "mlflow.workers=4", 'mlflow.envFromSecret="stores"')


def server(*values: str) -> dict[str, Any]:
    """The Deployment's spec."""
    (found,) = [d for d in of_kind(render(*values), "Deployment") if d["metadata"]["name"] == "cloze-mlflow"]
    spec: dict[str, Any] = found["spec"]
    return spec


def container(spec: dict[str, Any], which: str = "containers") -> dict[str, Any]:
    (found,) = spec["template"]["spec"][which]
    return dict(found)


def environment(*values: str) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(server(*values))["env"]}


def test_default_keeps_all_on_one_volume() -> None:
    """One pod, which is gone before the next one opens its SQLite."""
    spec = server()
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert [claim["metadata"]["name"] for claim in of_kind(render(), "PersistentVolumeClaim")] == ["cloze-mlflow"]
    for which in ("initContainers", "containers"):
        assert {"name": "data", "mountPath": "/mlflow"} in container(spec, which)["volumeMounts"]


@pytest.mark.parametrize("outside", [(DATABASE,), (BUCKET,)])
def test_one_store_outside_leaves_the_other_on_the_volume(outside: tuple[str, ...]) -> None:
    """The claim stays, and so does the one pod that may have it."""
    assert of_kind(render(*outside), "PersistentVolumeClaim")
    assert server(*outside)["strategy"] == {"type": "Recreate"}


def test_stores_outside_need_no_volume_and_no_pause() -> None:
    """No claim, replicas on several machines, replaced one after the other, and drained one by one."""
    documents, spec = render(*PRODUCTION), server(*PRODUCTION)
    assert not of_kind(documents, "PersistentVolumeClaim")
    assert {volume["name"] for volume in spec["template"]["spec"]["volumes"]} == {"tmp", "scripts"}
    assert spec["replicas"] == 3
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    pods = spec["selector"]["matchLabels"]
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == pods
    (budget,) = [d for d in of_kind(documents, "PodDisruptionBudget") if d["metadata"]["name"] == "cloze-mlflow"]
    assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": pods}}
    assert "--workers=4" in container(spec)["args"]


def test_one_replica_has_no_budget() -> None:
    """It would hold up the drain of its machine for nothing."""
    assert [d["metadata"]["name"] for d in of_kind(render(), "PodDisruptionBudget")] == ["cloze-operator"]


def test_schema_is_migrated_before_the_server_starts() -> None:
    """By the server's own image, in the database of the server, with the same secret."""
    spec = server(*PRODUCTION)
    migrate, serve = container(spec, "initContainers"), container(spec)
    assert migrate["command"] == ["python3", "/scripts/migrate.py"]
    (uri,) = migrate["args"]
    assert f"--backend-store-uri={uri}" in serve["args"]
    assert migrate["image"] == serve["image"]
    assert migrate["envFrom"] == serve["envFrom"] == [{"secretRef": {"name": "stores"}}]
    assert {"name": "scripts", "mountPath": "/scripts", "readOnly": True} in migrate["volumeMounts"]
    (scripts,) = [d for d in of_kind(render(), "ConfigMap") if d["metadata"]["name"] == "cloze-mlflow-scripts"]
    assert "pg_advisory_lock" in scripts["data"]["migrate.py"]


def test_database_is_asked_by_the_driver_of_the_image() -> None:
    """A URI that names no driver would be opened with one that the image hasn't; one that names it is left alone."""
    (uri,) = container(server(*PRODUCTION), "initContainers")["args"]
    assert uri == "postgresql+psycopg2://$(USER):$(PASSWORD)@db.example/mlflow"
    named = 'mlflow.backendStoreUri="postgresql+psycopg://db.example/mlflow"'
    assert container(server(named), "initContainers")["args"] == ["postgresql+psycopg://db.example/mlflow"]


def test_other_s3_stores_get_no_checksums_that_they_may_not_know() -> None:
    """Their address is the server's alone: clients that had it would go past MLflow."""
    found = environment(BUCKET, 'mlflow.s3.endpointUrl="https://s3.example:9000"', 'mlflow.s3.region="here"')
    assert found["MLFLOW_S3_ENDPOINT_URL"] == "https://s3.example:9000"
    assert found["AWS_REQUEST_CHECKSUM_CALCULATION"] == found["AWS_RESPONSE_CHECKSUM_VALIDATION"] == "WHEN_REQUIRED"
    assert found["AWS_DEFAULT_REGION"] == "here"


def test_amazons_s3_is_asked_as_boto3_does() -> None:
    """Nothing is weakened where nothing is said."""
    assert not {name for name in environment(BUCKET) if "S3" in name or "AWS" in name}


def test_clouds_identity_replaces_keys() -> None:
    """Pods run as the service account of the values; no token of the cluster's API is mounted all the same."""
    spec = server(BUCKET, 'mlflow.serviceAccountName="models-writer"')["template"]["spec"]
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("models-writer", False)


def test_several_replicas_need_a_lock_on_the_schema() -> None:
    """Said before anything is installed."""
    with pytest.raises(AssertionError, match=r"mlflow\.replicas above 1 needs PostgreSQL"):
        render('mlflow.backendStoreUri="mysql://db.example/mlflow"', BUCKET, "mlflow.replicas=2")
