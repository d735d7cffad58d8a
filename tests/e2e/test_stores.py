"""MLflow as it runs in production: several replicas of the chart's on a real PostgreSQL and a real S3 store."""

import base64
import json
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import live
import pytest
import rollouts
import stores

from cloze_server.cache import Cache
from cloze_server.lifecycle import Lifecycle
from cloze_server.reference import RegisteredVersion
from cloze_server.registry import Registry
from cloze_server.source import VerifiedArtifact, fetch

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(1800), stores.within_reach]

ROOT = Path(__file__).resolve().parents[2]
MLFLOW = "app.kubernetes.io/component=mlflow"
RELEASE = "stores"


@dataclass(frozen=True)
class Site:
    """A release of MLflow alone, and its stores."""

    namespace: str
    database: stores.Database
    bucket: stores.Bucket

    def install(self, *settings: str) -> None:
        """Install or upgrade, and wait until every replica is ready."""
        images = subprocess.run(
            ["python3", str(ROOT / "hack" / "images"), "list", "--json"], check=True, capture_output=True, text=True
        ).stdout
        values = {
            "images": json.loads(images),
            "crds": {"install": False},
            "operator": {"replicas": 0, "namespaces": [self.namespace]},
            "mlflow": {
                "backendStoreUri": self.database.uri(),
                "artifactsDestination": f"s3://{self.bucket.name}/cloze",
                "s3": {"endpointUrl": self.bucket.endpoint, "region": "us-east-1"},
                "envFromSecret": "stores",
                "replicas": 2,
            },
        }
        flags = [flag for setting in settings for flag in ("--set", setting)]
        command = ["helm", "upgrade", "--install", RELEASE, str(ROOT / "charts" / "cloze"), "--values", "-"]
        command += ["--namespace", self.namespace, "--wait", "--timeout", "10m", *flags]
        subprocess.run(command, input=json.dumps(values), text=True, check=True, stdout=subprocess.DEVNULL)

    def pods(self) -> list[str]:
        """Names of the replicas that are ready."""
        return [pod["metadata"]["name"] for pod in live.items(self.namespace, "pods", MLFLOW) if live.is_ready(pod)]

    def fetch(self, model: str, version: str, pod: str, folder: Path) -> VerifiedArtifact:
        """What a server would load, asked of one replica."""
        with live.forwarded(self.namespace, f"pod/{pod}", 5000) as mlflow:
            return fetch(
                RegisteredVersion(model, version),
                None,
                cache=Cache(folder),
                connect=lambda: Registry(mlflow),
                stop=threading.Event(),
                lifecycle=Lifecycle(),
            )


@pytest.fixture(scope="module")
def site(platform: str) -> Iterator[Site]:
    """Two replicas on empty stores, in a namespace that enforces `restricted`."""
    name = f"stores-{uuid.uuid4().hex[:6]}"
    live.kubectl("create", "namespace", name)
    live.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    with stores.postgres() as database, stores.s3() as bucket:
        secret = {key: base64.b64encode(value.encode()).decode() for key, value in
                  (database.secret() | bucket.secret()).items()}  # fmt: skip
        live.apply(name, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "stores"}, "data": secret})
        made = Site(name, database, bucket)
        made.install()
        yield made
        subprocess.run(["helm", "uninstall", RELEASE, "--namespace", name, "--wait"], check=True)
        live.kubectl("delete", "namespace", name, "--wait=false")


def test_replicas_migrate_an_empty_database_one_after_the_other(site: Site) -> None:
    """Both start at the same time, neither fails, and the database has one schema. Nothing is on a volume."""
    pods = live.items(site.namespace, "pods", MLFLOW)
    assert len(pods) == 2
    for pod in pods:
        (migrate,) = pod["status"]["initContainerStatuses"]
        assert migrate["restartCount"] == 0
        log = live.kubectl("--namespace", site.namespace, "logs", pod["metadata"]["name"], "--container", "migrate")
        assert "the schema of MLflow's database is up to date" in log
    assert len(site.database.rows("SELECT version_num FROM alembic_version")) == 1
    assert live.items(site.namespace, "persistentvolumeclaims") == []


def test_version_registered_at_one_replica_is_served_by_the_other(site: Site, tmp_path: Path) -> None:
    """The trainer's registration, PostgreSQL, S3 and the server's download fit each other, digest and all."""
    one, other = site.pods()
    with live.forwarded(site.namespace, f"pod/{one}", 5000) as mlflow:
        version = rollouts.publish(mlflow, "shared", seed=1)
    served = site.fetch("shared", version, other, tmp_path)
    assert served.manifest.name == "shared"
    assert site.database.rows("SELECT name, version FROM model_versions") == [("shared", int(version))]
    assert [key for key in site.bucket.objects() if key.startswith("cloze/") and key.endswith("/manifest.json")]


def test_upgrade_keeps_a_replica_serving(site: Site, tmp_path: Path) -> None:
    """Pods are replaced one by one, find the schema as it is, and have all versions."""
    with live.forwarded(site.namespace, f"pod/{site.pods()[0]}", 5000) as mlflow:
        version = rollouts.publish(mlflow, "lasting", seed=2)
    before = set(site.pods())
    upgrade = threading.Thread(target=site.install, args=("mlflow.workers=2",))
    upgrade.start()
    fewest = len(before)
    while upgrade.is_alive():
        fewest = min(fewest, len(site.pods()))
        upgrade.join(0.5)
    assert fewest >= 2
    after = site.pods()
    assert before.isdisjoint(after)
    for pod in after:
        assert site.fetch("lasting", version, pod, tmp_path / pod).manifest.name == "lasting"


def test_database_that_is_away_is_named(site: Site) -> None:
    """The pod that can't migrate says which setting to look at, without the password."""
    uri = site.database.uri().replace(f":{site.database.port}/", ":9/").replace("://", "+psycopg2://", 1)
    script = str(ROOT / "charts" / "cloze" / "files" / "scripts" / "migrate.py")
    for key, value in site.database.secret().items():
        uri = uri.replace(f"$({key})", value)
    done = subprocess.run([str(ROOT / ".venv/bin/python"), script, uri], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "see mlflow.backendStoreUri" in done.stderr
    assert site.database.password not in done.stderr
    assert site.database.secret()["DATABASE_PASSWORD"] not in done.stderr
