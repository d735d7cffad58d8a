"""Registration in a real MLflow: one version for a job, nothing orphaned, and each refusal called by its name."""

import errno
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from cloze_api.manifest import MANIFEST_FILE
from cloze_trainer import connection, registry
from cloze_trainer.errors import BaseModelError, RegistryError
from cloze_trainer.tracking import JobTags, MlflowTracker


@pytest.fixture(autouse=True)
def short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connection.ENV_BUDGET, "2")


@pytest.fixture
def tags(request: pytest.FixtureRequest) -> JobTags:
    name = request.node.name.replace("[", "-").replace("]", "")
    return JobTags(f"uid-{name}", f"tests/{name}", "fill-mask", name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / MANIFEST_FILE).write_text("{}")
    return tmp_path / "artifact"


def register(mlflow: str, tags: JobTags, folder: Path, digest: str, nodes: str = "1") -> registry.Registered:
    return registry.register(
        mlflow,
        tags,
        folder,
        digest,
        facts={"cloze.dev/tokenizer": "t"},
        params={"a": "1", "topology.nodes": nodes},
        figures={"f1_grün & blau": 0.5, "f1_C#": 0.25, "f1_C+": 0.3, "f1_/": 0.4, "f1_да": 0.1, "f1_но": 0.2},
    )


def models(mlflow: str, tags: JobTags) -> list[Any]:
    client = MlflowClient(mlflow)
    experiment = client.get_experiment_by_name(tags.experiment).experiment_id
    return list(client.search_logged_models([experiment]))


def run_status(mlflow: str, run_id: str) -> str:
    return str(MlflowClient(mlflow).get_run(run_id).info.status)


def test_a_clusters_job_has_one_version_whatever_its_digest(mlflow: str, tags: JobTags, folder: Path) -> None:
    """An attempt after the workspace was lost gets the version that is there, with that version's own digest."""
    first = register(mlflow, tags, folder, "sha256:a")
    assert register(mlflow, tags, folder, "sha256:a") == first
    assert register(mlflow, tags, folder, "sha256:b") == first
    assert first.digest == "sha256:a"
    assert run_status(mlflow, first.run_id) == "FINISHED"
    figures = {"f1_grün _26 blau": 0.5, "f1_C_23": 0.25, "f1_C_2b": 0.3, "f1__2f": 0.4, "f1_да": 0.1, "f1_но": 0.2}
    assert MlflowClient(mlflow).get_run(first.run_id).data.metrics == figures


def test_a_persons_job_with_another_result_is_another_version(mlflow: str, tags: JobTags, folder: Path) -> None:
    """The same file on changed data: a new version in a run of its own; the same result is registered once."""
    tags = JobTags(tags.uid, tags.job, tags.task, tags.experiment, repeatable=True)
    first, second = (register(mlflow, tags, folder, digest) for digest in ("sha256:a", "sha256:b"))
    assert (first.version, second.version) == ("1", "2")
    assert first.run_id != second.run_id
    assert register(mlflow, tags, folder, "sha256:a") == first


def test_aliases_are_the_operators(mlflow: str, tags: JobTags, folder: Path) -> None:
    """A trainer makes versions; what is served, and what is tried, isn't for it to say."""
    tags = JobTags(tags.uid, tags.job, tags.task, tags.experiment, repeatable=True)
    client, name = MlflowClient(mlflow, mlflow), register(mlflow, tags, folder, "sha256:a").name
    assert client.get_registered_model(name).aliases == {}
    client.set_registered_model_alias(name, "champion", "1")
    assert register(mlflow, tags, folder, "sha256:b").version == "2"
    assert client.get_registered_model(name).aliases == {"champion": "1"}


def test_version_is_found_among_many(mlflow: str, tags: JobTags, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's own version is asked for by its tag, page by page, however many the model has."""
    tags = JobTags(tags.uid, tags.job, tags.task, tags.experiment, repeatable=True)
    first = register(mlflow, tags, folder, "sha256:a")
    for digest in ("sha256:b", "sha256:c"):
        register(mlflow, tags, folder, digest)
    register(mlflow, JobTags(f"{tags.uid}-other", tags.job, tags.task, tags.experiment), folder, "sha256:a")
    search = MlflowClient.search_model_versions
    monkeypatch.setattr(
        MlflowClient,
        "search_model_versions",
        lambda client, text, max_results, page_token: search(client, text, max_results=1, page_token=page_token),
    )
    assert register(mlflow, tags, folder, "sha256:a") == first


def test_broken_upload_is_taken_up_and_leaves_no_orphan(
    mlflow: str, tags: JobTags, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the upload breaks, and though the artifact was made anew: one logged model, one run."""

    def broken(*_: object, **__: object) -> None:
        raise MlflowException("the storage is away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", broken)
        for digest in ("sha256:a", "sha256:b"):
            with pytest.raises(RegistryError):
                register(mlflow, tags, folder, digest)
    made = register(mlflow, tags, folder, "sha256:b")
    (model,) = models(mlflow, tags)
    assert model.tags["cloze.dev/digest"] == "sha256:b"
    assert str(model.status) == "READY"
    assert model.source_run_id == made.run_id


def test_a_run_of_another_size_registers_too(
    mlflow: str, tags: JobTags, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow lets no parameter of a run change: what the attempt said that had trained stays."""

    def broken(*_: object, **__: object) -> None:
        raise MlflowException("the storage is away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", broken)
        with pytest.raises(RegistryError):
            register(mlflow, tags, folder, "sha256:a", nodes="1")
    made = register(mlflow, tags, folder, "sha256:a", nodes="2")
    assert MlflowClient(mlflow).get_run(made.run_id).data.params == {"a": "1", "topology.nodes": "1"}


def test_run_that_failed_for_good_is_marked(mlflow: str, tags: JobTags) -> None:
    """MLflow shows a diverged training as failed, not as running for ever."""
    tracker = MlflowTracker(mlflow, tags)
    tracker.metrics(1, {"loss": 3.0})
    tracker.close(failed=True)
    run_id = registry.find_or_create_run(connection.client(mlflow), tags)
    assert run_status(mlflow, run_id) == "FAILED"
    assert MlflowClient(mlflow).get_run(run_id).data.metrics == {"loss": 3.0}


def test_a_run_that_is_suspended_has_its_figures_so_far(mlflow: str, tags: JobTags) -> None:
    """What comes next may be of another size, and hours later. Plots are of the end."""
    tracker = MlflowTracker(mlflow, tags)
    tracker.metrics(10, {"loss": 3.0})
    # The time of a pod is short, and that of a test of a busy machine isn't.
    tracker.pause(timeout=60)
    client = MlflowClient(mlflow)
    (run,) = client.search_runs([client.get_experiment_by_name(tags.experiment).experiment_id])
    assert (run.data.metrics, run.info.status) == ({"loss": 3.0}, "RUNNING")
    assert client.list_artifacts(run.info.run_id) == []


def test_what_is_not_there_is_the_jobs_mistake(mlflow: str, tags: JobTags, folder: Path, tmp_path: Path) -> None:
    """A model, a version or an alias that MLflow doesn't have."""
    register(mlflow, tags, folder, "sha256:a")
    for name, alias in ((tags.experiment, "nobody"), ("no-such-model", "champion")):
        with pytest.raises(BaseModelError, match=alias):
            registry.version_of_alias(mlflow, name, alias)
    with pytest.raises(BaseModelError, match="no version 7"):
        registry.download(mlflow, tags.experiment, "7", tmp_path / "base")


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_PARAMETER_VALUE"])
def test_refusal_is_no_missing_base(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that has expired doesn't make the base model vanish: the run may go on when the access is restored."""

    def refuse(*_: object) -> None:
        raise MlflowException("no", error_code=ErrorCode.Value(code))

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", refuse)
    monkeypatch.setattr(MlflowClient, "get_model_version_download_uri", refuse)
    with pytest.raises(RegistryError, match=code):
        registry.version_of_alias("http://127.0.0.1:1", "x", "champion")
    with pytest.raises(RegistryError, match=code):
        registry.download("http://127.0.0.1:1", "x", "1", tmp_path / "base")


def test_full_volume_is_not_the_registrys_fault(
    mlflow: str, tags: JobTags, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What MLflow's threads met on this machine's disk comes out as the disk's error, at once."""
    made = register(mlflow, tags, folder, "sha256:a")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mlflow.store.artifact.http_artifact_repo.HttpArtifactRepository._download_file", full)
    with pytest.raises(OSError, match="No space left") as failure:
        registry.download(mlflow, tags.experiment, made.version, tmp_path / "base")
    assert failure.value.errno == errno.ENOSPC
    assert not (tmp_path / "base").exists()
