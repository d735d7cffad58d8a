"""The registered version that a new one is compared with."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import MANIFEST_FILE, ArtifactError, Manifest
from cloze_api.signature import TrustedKeys
from cloze_trainer import tasks, trust
from cloze_trainer.console import log
from cloze_trainer.errors import BaseModelError, InputError
from cloze_trainer.origin import locate_all
from cloze_trainer.quality import judgement
from cloze_trainer.quality.assessment import assess
from cloze_trainer.quality.gates import Comparison
from cloze_trainer.run import Run
from cloze_trainer.tasks.kind import Scored


@dataclass(frozen=True, slots=True)
class Found:
    """A verified artifact. name: `name/version`."""

    folder: Path
    name: str
    manifest: Manifest


def find(run: Run, spec: FineTuneJobSpec) -> Found | None:
    """The champion's artifact in the workspace; None where none is asked for, or nothing has the alias yet.

    Raises InputError where there is no registry to ask, or it can't be used or does another task, or where a key can't
    be used; RegistryError.
    """
    asked = spec.evaluation.champion
    if asked is None:
        return None
    if run.tracking_uri is None:
        raise InputError("RegistryUnset", "spec.evaluation.champion is in MLflow: set MLFLOW_TRACKING_URI")
    from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

    name, keys = spec.registry.name, trust.find()
    try:
        version = registry.version_of_alias(run.tracking_uri, name, asked.alias)
    except BaseModelError as error:
        log("no champion", model=name, alias=asked.alias, why=error.reason)
        return None
    folder = run.workspace / "champion" / version
    manifest = _verified(folder, keys)
    if manifest is None:
        shutil.rmtree(folder, ignore_errors=True)
        registry.download(run.tracking_uri, name, version, folder)
        try:
            manifest = trust.verify(folder, keys)
        except ArtifactError as error:
            raise InputError(
                f"Champion{error.reason}",
                f"{name}/{version}, which has the alias {asked.alias}, can't be used: {error}; move the alias",
            ) from error
    if (manifest.task, manifest.problem) != (spec.task, spec.problem):
        raise InputError(
            "ChampionTaskDiffers",
            f"{name}/{version}, which has the alias {asked.alias}, is for {manifest.task} ({manifest.problem}): give "
            "another registry.name to a model for another task",
        )
    return Found(folder, f"{name}/{version}", manifest)


def _verified(folder: Path, keys: TrustedKeys | None) -> Manifest | None:
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        return trust.verify(folder, keys)
    except (ArtifactError, OSError):
        return None


def compare(run: Run, spec: FineTuneJobSpec, scores: Scored, labels: Sequence[str]) -> Comparison | None:
    """The finished model beside the champion on the test examples; None without one. Raises as `find`, and InputError
    where the champion has other labels.
    """
    found = find(run, spec)
    if found is None or spec.evaluation.champion is None:
        return None
    _, test, *_ = locate_all(run)
    examples = tasks.of(spec.task, spec.problem).read(test.paths)
    theirs = assess(found.folder, found.manifest, examples, labels, spec.truncate)
    return judgement.compare(
        *(scores, theirs, labels),
        task=spec.task,
        problem=spec.problem,
        against=found.name,
        confidence=spec.evaluation.champion.confidence,
    )
