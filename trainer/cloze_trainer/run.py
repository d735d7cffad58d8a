"""One run: the resource, its identity and its folders."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cloze_api.names import CORPUS_MOUNT, ENV_CORPUS_ROOT, ENV_DATA_CACHE, ENV_JOB_UID, ENV_WORKSPACE
from cloze_api.progress import Outcome
from cloze_api.resources import TrainingJob, parse_job
from cloze_trainer import outcome, own_registry
from cloze_trainer.errors import InputError

# Fields of the spec that don't define the result: with others a run goes on from where it is.
_MUTABLE = {
    "suspend",
    "active_deadline_seconds",
    "ttl_seconds_after_finished",
    "failure_policy",
    "storage",
    "image",
    "topology",
    "profile",
}

_KINDS = ("PretrainJob", "FineTuneJob")
# Begins the identity of a run outside Kubernetes.
_LOCAL = "local-"


@dataclass(frozen=True, slots=True)
class Run:
    """What a process of a run knows from the start.

    identity: the resource's UID, or outside Kubernetes a digest of the name and of what defines the result.
    tracking_uri: MLflow's address; None when the artifact is not registered.
    data_cache: where prepared data are that this run shares with others.
    """

    job: TrainingJob
    identity: str
    workspace: Path
    corpus_root: Path
    tracking_uri: str | None
    data_cache: Path | None = None

    @property
    def data(self) -> Path:
        """Folder of the prepared data."""
        return self.data_cache or self.workspace / "data"

    @property
    def kind(self) -> str:
        """The resource's kind."""
        return self.job.kind

    @property
    def label(self) -> str:
        """`namespace/name`."""
        return f"{self.job.metadata.namespace}/{self.job.metadata.name}"

    @property
    def local(self) -> bool:
        """Whether no cluster knows this run: its identity is that of the file's content."""
        return self.identity.startswith(_LOCAL)

    @property
    def artifact(self) -> Path:
        """Folder of the finished artifact."""
        return self.workspace / "artifact"

    def finished(self) -> Outcome | None:
        """The outcome, when an earlier attempt has finished this run."""
        return outcome.finished(self.workspace, self.identity, registered=self.tracking_uri is not None)


def _problem(error: ValidationError) -> str:
    """The problems as sentences that name the fields, without pydantic's own vocabulary."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such field in this kind of job, remove it"
        lines.append(f"{place}: {message}" if place else message)
    return "; ".join(lines)


def _documents(text: str) -> list[Any]:
    """The documents of a file. Raises YAMLError."""
    try:
        return [json.loads(text)]
    except ValueError:
        # JSON isn't left to it, too: it doesn't join the two halves that JSON writes some characters in.
        return [item for item in yaml.safe_load_all(text) if item is not None]


def _training_job(documents: list[Any], file: Path) -> dict[str, Any]:
    """The one training job among a file's documents, which may hold what belongs to it. Raises InputError."""
    resources = [item for item in documents if isinstance(item, dict)]
    jobs = resources if len(documents) == 1 else [item for item in resources if item.get("kind") in _KINDS]
    if len(jobs) == 1:
        return jobs[0]
    found = jobs or resources
    names = ", ".join(f"{item.get('kind')} {(item.get('metadata') or {}).get('name')}" for item in found)
    raise InputError(
        "JobInvalid",
        f"{file} holds {'more than one training job' if jobs else 'no training job'}"
        f"{f' ({names})' if names else ''}: give a file with one PretrainJob or FineTuneJob",
    )


def open_run(file: Path) -> Run:
    """Read the resource and the environment. Raises InputError for a file that is no training job."""
    try:
        documents = _documents(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("JobUnreadable", f"{file} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise InputError("JobInvalid", f"{file}{place} isn't YAML: give one PretrainJob or FineTuneJob") from error
    try:
        job = parse_job(_training_job(documents, file))
    except ValidationError as error:
        raise InputError("JobInvalid", f"{file}: {_problem(error)}") from error
    except ValueError as error:
        raise InputError("JobInvalid", f"{file}: {error}") from error
    parts = [job.kind, job.metadata.name, job.spec.model_dump(mode="json", exclude=_MUTABLE)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    default = Path.cwd() / own_registry.RUNS_FOLDER / job.metadata.name
    return Run(
        job=job,
        identity=os.environ.get(ENV_JOB_UID) or job.metadata.uid or f"{_LOCAL}{digest[:24]}",
        workspace=Path(os.environ.get(ENV_WORKSPACE) or default).resolve(),
        corpus_root=Path(os.environ.get(ENV_CORPUS_ROOT) or CORPUS_MOUNT),
        tracking_uri=own_registry.address(),
        data_cache=Path(cache).resolve() if (cache := os.environ.get(ENV_DATA_CACHE)) else None,
    )
