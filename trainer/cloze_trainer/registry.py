"""MLflow: one run and one model version for each job, however often it is tried."""

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelStatus, Metric, Param
from mlflow.exceptions import MlflowException

from cloze_api.manifest import MANIFEST_FILE
from cloze_api.names import TAG_DIGEST, TAG_JOB, TAG_JOB_UID, TAG_TASK
from cloze_trainer.connection import Result, budget_seconds, client, persist, refused
from cloze_trainer.console import log
from cloze_trainer.errors import BaseModelError
from cloze_trainer.files import sync_folder, sync_tree
from cloze_trainer.own_registry import artifacts_of
from cloze_trainer.tracking import JobTags

# What may not be in a metric's name. A slash may only where the name is a path, which `/` and `a//b` aren't.
_UNNAMEABLE = re.compile(r"[^\w\-. ]")
_LONGEST_NAME = 250


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered version. digest: of the artifact that it holds."""

    name: str
    version: str
    run_id: str
    digest: str


def find_or_create_run(connection: MlflowClient, tags: JobTags) -> str:
    """Id of the job's run in the experiment named after the registered model."""
    found = connection.get_experiment_by_name(tags.experiment)
    if found is None:
        try:
            place = artifacts_of(str(connection.tracking_uri))
            experiment = connection.create_experiment(tags.experiment, artifact_location=place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = connection.get_experiment_by_name(tags.experiment).experiment_id
    else:
        experiment = found.experiment_id
    mine = _tagged(tags) + (" and attributes.status != 'FINISHED'" if tags.repeatable else "")
    runs = connection.search_runs([experiment], filter_string=mine, max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    marks = {TAG_JOB_UID: tags.uid, TAG_JOB: tags.job, TAG_TASK: tags.task}
    return str(connection.create_run(experiment, tags=marks, run_name=tags.job).info.run_id)


def _tagged(tags: JobTags) -> str:
    """MLflow's filter for what belongs to a job."""
    return f"tags.`{TAG_JOB_UID}` = '{tags.uid}'"


def log_metrics(connection: MlflowClient, run_id: str, rows: list[tuple[int, str, float, int]]) -> None:
    """Log figures: (step, name, value, milliseconds since the epoch).

    MLflow's names have letters, of any script, digits and a few signs; of what else a label's name holds there is the
    code point, so that `C#` (`C_23`) and `C+` (`C_2b`) stay two.
    """
    for start in range(0, len(rows), 500):
        connection.log_batch(
            run_id,
            metrics=[
                Metric(_UNNAMEABLE.sub(_code_point, name)[:_LONGEST_NAME], value, stamp, step)
                for step, name, value, stamp in rows[start : start + 500]
            ],
        )


def _code_point(found: re.Match[str]) -> str:
    return f"_{ord(found[0]):x}"


def _versions(connection: MlflowClient, tags: JobTags) -> Iterator[Any]:
    """The job's versions of its registered model, page by page."""
    token = None
    while True:
        try:
            page = connection.search_model_versions(
                f"name = '{tags.experiment}' and {_tagged(tags)}", max_results=100, page_token=token
            )
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return
            raise
        yield from page
        token = page.token
        if not token:
            return


def _find(connection: MlflowClient, tags: JobTags, digest: str) -> Registered | None:
    """The job's version with this digest; in a cluster any, because a job has one result however often it is tried."""
    found = [
        Registered(tags.experiment, str(item.version), item.run_id or "", item.tags.get(TAG_DIGEST, ""))
        for item in _versions(connection, tags)
    ]
    same = [version for version in found if version.digest == digest]
    return next(iter(same or ([] if tags.repeatable else found)), None)


def _upload(connection: MlflowClient, tags: JobTags, run_id: str, folder: Path, digest: str) -> Any:
    """The logged model that holds the artifact: the one that an earlier attempt began, or a new one."""
    experiment = connection.get_run(run_id).info.experiment_id
    logged = None
    for candidate in connection.search_logged_models([experiment], filter_string=_tagged(tags)):
        if candidate.tags.get(TAG_DIGEST) == digest and candidate.status != LoggedModelStatus.FAILED:
            logged = candidate
        elif not tags.repeatable or candidate.status == LoggedModelStatus.PENDING:
            # An earlier attempt's, of which no version was made.
            connection.delete_logged_model(candidate.model_id)
    if logged is None:
        marks = {TAG_JOB_UID: tags.uid, TAG_JOB: tags.job, TAG_TASK: tags.task, TAG_DIGEST: digest}
        logged = connection.create_logged_model(
            experiment, name=tags.experiment, source_run_id=run_id, tags=marks, model_type=tags.task
        )
    if logged.status == LoggedModelStatus.READY:
        return logged
    connection.log_model_artifacts(logged.model_id, str(folder))
    return connection.finalize_logged_model(logged.model_id, "READY")


def register(
    tracking_uri: str,
    tags: JobTags,
    folder: Path,
    digest: str,
    *,
    facts: Mapping[str, str],
    params: Mapping[str, str],
    figures: Mapping[str, float],
    description: str = "",
) -> Registered:
    """Upload the artifact and create the job's model version, unless an earlier attempt did; no alias is touched.

    facts: further tags of the version, about the artifact. description: Markdown that people see beside it.

    The files lie at the root of a logged model's artifacts, which the version's source names. In a cluster an earlier
    attempt's version stands, even if this artifact's digest is another: the reply has the version's own. Raises
    RegistryError.
    """
    seconds = budget_seconds()
    deadline = time.monotonic() + seconds
    connection = client(tracking_uri)

    def attempt(what: str, call: Callable[[], Result]) -> Result:
        try:
            return persist(what, call, seconds=max(1.0, deadline - time.monotonic()))
        except MlflowException as error:
            raise refused(what, error) from error

    def log_figures() -> None:
        # MLflow refuses another value: what an attempt with another topology has said stays.
        said = connection.get_run(run_id).data.params
        new = [Param(key, value[:500]) for key, value in params.items() if key not in said]
        connection.log_batch(run_id, params=new)
        stamp = int(time.time() * 1000)
        log_metrics(connection, run_id, [(0, key, value, stamp) for key, value in figures.items()])
        connection.set_tag(run_id, TAG_DIGEST, digest)

    def create_model() -> None:
        try:
            connection.create_registered_model(tags.experiment)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def create_version() -> Registered:
        # The reply of an earlier call may have been lost after the version was made.
        if (made := _find(connection, tags, digest)) is not None:
            return made
        made_version = connection.create_model_version(
            tags.experiment,
            source=logged.artifact_location,
            run_id=run_id,
            tags={**facts, TAG_JOB_UID: tags.uid, TAG_JOB: tags.job, TAG_TASK: tags.task, TAG_DIGEST: digest},
            model_id=logged.model_id,
            description=description,
            await_creation_for=60,
        )
        return Registered(tags.experiment, str(made_version.version), run_id, digest)

    registered = attempt("search the versions", lambda: _find(connection, tags, digest))
    if registered is None:
        run_id = attempt("find the run", lambda: find_or_create_run(connection, tags))
        attempt("create the registered model", create_model)
        attempt("log the figures", log_figures)
        logged = attempt("upload the artifact", lambda: _upload(connection, tags, run_id, folder, digest))
        registered = attempt("create the model version", create_version)
    elif registered.digest != digest:
        log("registered before", version=registered.version, digest=registered.digest, this_digest=digest)
    if registered.run_id:
        finished_run = registered.run_id
        attempt("end the run", lambda: connection.set_terminated(finished_run))
    return registered


def version_of_alias(tracking_uri: str, name: str, alias: str) -> str:
    """The version that an alias points to. Raises BaseModelError when there is none, RegistryError."""
    try:
        found = persist(
            "resolve the alias",
            lambda: client(tracking_uri).get_model_version_by_alias(name, alias),
            seconds=budget_seconds(),
        )
    except MlflowException as error:
        # The tracking server calls an unknown alias an invalid parameter.
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or ("alias" in str(error) and "not found" in str(error)):
            raise BaseModelError("BaseNotFound", f"{name} has no alias {alias!r} in MLflow: name a version") from error
        raise refused("resolve the alias of the base model", error) from error
    return str(found.version)


def download(tracking_uri: str, name: str, version: str, folder: Path) -> None:
    """Put a version's files into `folder`; all or nothing.

    Raises BaseModelError when there is no such version, RegistryError when MLflow doesn't give it, OSError when the
    volume can't take it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)

    def fetch() -> None:
        source = client(tracking_uri).get_model_version_download_uri(name, version)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
            arrived = Path(download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=tracking_uri))
            if not (arrived / MANIFEST_FILE).is_file():
                raise BaseModelError(
                    "BaseManifestMissing", f"{name}/{version} has no {MANIFEST_FILE}: it isn't a Cloze artifact"
                )
            sync_tree(arrived)
            if folder.exists():
                shutil.rmtree(folder)
            arrived.rename(folder)
            sync_folder(folder.parent)

    try:
        persist("download the base model", fetch, seconds=budget_seconds())
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise BaseModelError(
                "BaseNotFound", f"MLflow has no version {version} of {name}: check spec.base.model"
            ) from error
        raise refused("give the base model", error) from error
