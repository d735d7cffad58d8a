"""MLflow: one run and one model version for each job, however often it is tried."""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cloze_api.manifest import MANIFEST_FILE
from cloze_api.names import TAG_DIGEST, TAG_JOB, TAG_JOB_UID, TAG_TASK
from cloze_trainer.console import log
from cloze_trainer.errors import BaseModelError, RegistryError
from cloze_trainer.tracking import JobTags

# MLflow's own retries would block for minutes; ours know the budget.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

ENV_BUDGET = "CLOZE_REGISTRY_BUDGET_SECONDS"
DEFAULT_BUDGET_SECONDS = 600.0
_FIRST_DELAY_SECONDS = 1.0
_LONGEST_DELAY_SECONDS = 30.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered version."""

    name: str
    version: str
    run_id: str


def budget_seconds() -> float:
    """How long calls are repeated before the run gives up."""
    return float(os.environ.get(ENV_BUDGET) or DEFAULT_BUDGET_SECONDS)


_FINAL_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED")


def persist(what: str, call: Callable[[], Result], *, seconds: float) -> Result:
    """Repeat a call with growing, jittered delays until it works. Raises RegistryError when the seconds are spent."""
    deadline = time.monotonic() + seconds
    delay = _FIRST_DELAY_SECONDS
    while True:
        try:
            return call()
        except (MlflowException, OSError) as error:
            code = getattr(error, "error_code", type(error).__name__)
            if code in _FINAL_CODES:
                raise
            if time.monotonic() + delay > deadline:
                raise RegistryError(
                    f"MLflow could not {what} within {seconds:.0f} s ({code}): check MLFLOW_TRACKING_URI and the "
                    "registry; the artifact is kept and registered at the next attempt"
                ) from error
            log("registry unreachable", what=what, why=code, retry_in_seconds=round(delay, 1))
            time.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, no secret
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)


def client(tracking_uri: str) -> MlflowClient:
    """A client of the tracking server and registry at one address."""
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def find_or_create_run(connection: MlflowClient, tags: JobTags) -> str:
    """Id of the job's run in the experiment named after the registered model."""
    found = connection.get_experiment_by_name(tags.experiment)
    if found is None:
        try:
            experiment = connection.create_experiment(tags.experiment)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = connection.get_experiment_by_name(tags.experiment).experiment_id
    else:
        experiment = found.experiment_id
    runs = connection.search_runs([experiment], filter_string=f"tags.`{TAG_JOB_UID}` = '{tags.uid}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    marks = {TAG_JOB_UID: tags.uid, TAG_JOB: tags.job, TAG_TASK: tags.task}
    return str(connection.create_run(experiment, tags=marks, run_name=tags.job).info.run_id)


def log_metrics(connection: MlflowClient, run_id: str, rows: list[tuple[int, str, float, int]]) -> None:
    """Log figures: (step, name, value, milliseconds since the epoch)."""
    for start in range(0, len(rows), 500):
        connection.log_batch(
            run_id,
            metrics=[Metric(name, value, stamp, step) for step, name, value, stamp in rows[start : start + 500]],
        )


def register(
    tracking_uri: str,
    tags: JobTags,
    folder: Path,
    digest: str,
    *,
    params: Mapping[str, str],
    figures: Mapping[str, float],
) -> Registered:
    """Upload the artifact and create the job's model version, unless an earlier attempt did; no alias is touched.

    The files lie at the root of a logged model's artifacts, which the version's source names. Raises RegistryError.
    """
    seconds = budget_seconds()
    deadline = time.monotonic() + seconds
    connection = client(tracking_uri)

    def attempt(what: str, call: Callable[[], Result]) -> Result:
        try:
            return persist(what, call, seconds=max(1.0, deadline - time.monotonic()))
        except (MlflowException, OSError) as error:
            code = getattr(error, "error_code", type(error).__name__)
            raise RegistryError(f"MLflow refused to {what} ({code}): check its permissions and storage") from error

    run_id = attempt("find the run", lambda: find_or_create_run(connection, tags))

    def find() -> Registered | None:
        try:
            versions = connection.search_model_versions(f"name='{tags.experiment}'", max_results=1000)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        for item in versions:
            if item.tags.get(TAG_JOB_UID) == tags.uid:
                return Registered(tags.experiment, str(item.version), item.run_id or run_id)
        return None

    def finish_run() -> None:
        connection.log_batch(run_id, params=[Param(key, value[:500]) for key, value in params.items()])
        stamp = int(time.time() * 1000)
        connection.log_batch(run_id, metrics=[Metric(key, value, stamp, 0) for key, value in figures.items()])
        connection.set_tag(run_id, TAG_DIGEST, digest)
        connection.set_terminated(run_id)

    def create_model() -> None:
        try:
            connection.create_registered_model(tags.experiment)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    if (earlier := attempt("search the versions", find)) is not None:
        return earlier
    attempt("create the registered model", create_model)
    marks = {TAG_JOB_UID: tags.uid, TAG_JOB: tags.job, TAG_TASK: tags.task, TAG_DIGEST: digest}
    attempt("log the figures", finish_run)

    def upload() -> Any:
        experiment = connection.get_run(run_id).info.experiment_id
        logged = connection.create_logged_model(
            experiment, name=tags.experiment, source_run_id=run_id, tags=marks, model_type=tags.task
        )
        connection.log_model_artifacts(logged.model_id, str(folder))
        return connection.finalize_logged_model(logged.model_id, "READY")

    logged = attempt("upload the artifact", upload)

    def create_version() -> Registered:
        # The reply of an earlier call may have been lost after the version was made.
        if (made := find()) is not None:
            return made
        made_version = connection.create_model_version(
            tags.experiment,
            source=logged.artifact_location,
            run_id=run_id,
            tags=marks,
            model_id=logged.model_id,
            await_creation_for=60,
        )
        return Registered(tags.experiment, str(made_version.version), run_id)

    return attempt("create the model version", create_version)


def version_of_alias(tracking_uri: str, name: str, alias: str) -> str:
    """The version that an alias points to. Raises BaseModelError when there is none, RegistryError."""
    try:
        found = persist(
            "resolve the alias",
            lambda: client(tracking_uri).get_model_version_by_alias(name, alias),
            seconds=budget_seconds(),
        )
    except MlflowException as error:
        raise BaseModelError("BaseNotFound", f"{name} has no alias {alias!r} in MLflow: name a version") from error
    return str(found.version)


def download(tracking_uri: str, name: str, version: str, folder: Path) -> None:
    """Put a version's files into `folder`; all or nothing. Raises BaseModelError when there is no such version."""
    folder.parent.mkdir(parents=True, exist_ok=True)

    def fetch() -> None:
        source = client(tracking_uri).get_model_version_download_uri(name, version)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
            arrived = Path(download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=tracking_uri))
            if not (arrived / MANIFEST_FILE).is_file():
                raise BaseModelError(
                    "BaseManifestMissing", f"{name}/{version} has no {MANIFEST_FILE}: it isn't a Cloze artifact"
                )
            if folder.exists():
                shutil.rmtree(folder)
            arrived.rename(folder)

    try:
        persist("download the base model", fetch, seconds=budget_seconds())
    except MlflowException as error:
        raise BaseModelError(
            "BaseNotFound", f"MLflow has no version {version} of {name}: check spec.base.model"
        ) from error
