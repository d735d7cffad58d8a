"""The registered version that a new one is compared with."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import MANIFEST_FILE, ArtifactError, Manifest
from cloze_api.signature import TrustedKeys
from cloze_trainer import files, tasks, trust
from cloze_trainer.console import log
from cloze_trainer.data.lines import compression
from cloze_trainer.data.records import broken_lines, form_of
from cloze_trainer.data.source import SourceFiles
from cloze_trainer.errors import BaseModelError, InputError
from cloze_trainer.files import Damaged, publish, recorded, write_json
from cloze_trainer.quality import gates, judgement
from cloze_trainer.quality.assessment import assess, refuse_other
from cloze_trainer.quality.gates import Verdict
from cloze_trainer.run import Run
from cloze_trainer.tasks.kind import Scored

_EXAMPLES = "champion-examples"


@dataclass(frozen=True, slots=True)
class Found:
    """A verified artifact. name: `name/version`."""

    folder: Path
    name: str
    manifest: Manifest


def check(run: Run, spec: FineTuneJobSpec, labels: Sequence[str]) -> None:
    """Refuse, before the training, a champion that the finished model can't be compared with. Raises as `find`."""
    done, mark = run.workspace / "champion.json", {"job": run.identity}
    # Not at each start: a run goes on while MLflow is away.
    if spec.evaluation.champion is None or (done.is_file() and json.loads(done.read_text("utf-8")) == mark):
        return
    find(run, spec, labels)
    write_json(done, mark)


def keep(run: Run, spec: FineTuneJobSpec, test: SourceFiles, needed: Callable[[], SourceFiles]) -> None:
    """Keep the test examples' files as they are now: both models are to answer the same ones, and in the end the files
    may be others, or gone. Raises InputError where they change meanwhile.

    needed: gives them with their files on this machine, as `test` may only be remembered; raises where they are gone.
    """
    if spec.evaluation.champion is None:
        return
    names = [f"{number:05d}{compression(path)}" for number, path in enumerate(test.paths)]
    try:
        if _kept(run) == dict(zip(names, test.contents.values(), strict=True)):
            return
    except Damaged:
        pass
    with publish(run.workspace / _EXAMPLES, digests=True) as staging:
        there = needed()
        for name, path in zip(names, there.paths, strict=True):
            shutil.copyfile(path, staging / name)
        there.check_unchanged()


def _kept(run: Run) -> dict[str, str]:
    """SHA-256 of the kept files, by name. Raises Damaged where they aren't what was kept."""
    folder = run.workspace / _EXAMPLES
    digests = recorded(folder)
    files.check(folder, digests)
    return digests


def find(run: Run, spec: FineTuneJobSpec, labels: Sequence[str]) -> Found | None:
    """The champion's artifact in the workspace; None where none is asked for, or nothing has the alias yet.

    Raises InputError where there is no registry to ask, or it can't be used, or does another task or has other labels,
    or where a key can't be used; BaseModelError; RegistryError.
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
    try:
        if manifest is None:
            shutil.rmtree(folder, ignore_errors=True)
            registry.download(run.tracking_uri, name, version, folder)
            manifest = trust.verify(folder, keys)
        refuse_other(manifest, tasks.of(spec.task, spec.problem), labels)
    except (ArtifactError, InputError) as error:
        raise InputError(
            f"Champion{error.reason}",
            f"{name}/{version}, which has the alias {asked.alias}, can't be compared with: {error}; move the alias, "
            "give another registry.name, or remove spec.evaluation.champion to be judged without it",
        ) from error
    return Found(folder, f"{name}/{version}", manifest)


def _verified(folder: Path, keys: TrustedKeys | None) -> Manifest | None:
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        return trust.verify(folder, keys)
    except (ArtifactError, OSError):
        return None


def judge(run: Run, spec: FineTuneJobSpec, scores: Scored, labels: Sequence[str]) -> Verdict | None:
    """The finished model beside the champion on the test examples; None without one. Raises RegistryError.

    A champion that it can't be compared with, as the alias has moved since the training began, or as it can't read the
    examples, is a gate that it fails: the model and its figures are kept.
    """
    try:
        found = find(run, spec, labels)
    except (InputError, BaseModelError) as error:
        return gates.incomparable(error.message)
    if found is None or (asked := spec.evaluation.champion) is None:
        return None
    try:
        paths = [run.workspace / _EXAMPLES / name for name in sorted(_kept(run))]
        examples = tasks.of(spec.task, spec.problem).read(paths, form_of(spec.dataset), broken_lines(spec.dataset))
        theirs = assess(found.folder, found.manifest, examples, labels, spec.truncate)
    except (Damaged, InputError) as error:
        return gates.incomparable(f"{found.name}, which has the alias {asked.alias}, can't be compared with: {error}")
    comparison = judgement.compare(
        *(scores, theirs, labels),
        task=spec.task,
        problem=spec.problem,
        against=found.name,
        confidence=asked.confidence,
    )
    return gates.no_worse(comparison, asked.max_loss, asked.confidence)
