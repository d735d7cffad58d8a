"""What becomes of a finished run: figures and plots in MLflow, a signed artifact, a registered version."""

from cloze_api.figures import by_importance
from cloze_api.manifest import MANIFEST_FILE, file_sha256, version_tags
from cloze_api.pretrain import PretrainJobSpec
from cloze_api.progress import Outcome
from cloze_api.resources import TrainingJob
from cloze_api.task import Task
from cloze_trainer import artifact, card, outcome, tracking
from cloze_trainer.artifact import EVALUATION_FILE
from cloze_trainer.errors import GateError
from cloze_trainer.gang import Gang
from cloze_trainer.privacy import workload as privacy
from cloze_trainer.progress import ProgressFile
from cloze_trainer.run import Run
from cloze_trainer.signing import SigningKey


def signing_key(run: Run) -> SigningKey | None:
    """What the artifact is signed by, if it is. Raises InputError."""
    return SigningKey.find(asked=run.job.spec.registry.signing is not None)


def tracker_of(run: Run, gang: Gang, task: Task) -> tracking.MlflowTracker | tracking.Silent:
    """Where rank 0's figures go during the training."""
    if run.tracking_uri is None or not gang.leads:
        return tracking.Silent()
    return tracking.MlflowTracker(run.tracking_uri, _tags(run, task))


def _tags(run: Run, task: Task) -> tracking.JobTags:
    return tracking.JobTags(run.identity, run.label, str(task), run.job.spec.registry.name, repeatable=run.local)


def params(job: TrainingJob) -> dict[str, str]:
    """The spec as flat parameters, `optimization.learningRate` and so on."""
    flat: dict[str, str] = {"kind": job.kind}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif value not in (None, "", [], {}):
            flat[prefix] = str(value)

    parts = {
        "optimization",
        "model",
        "masking",
        "tokenizer",
        "cleaning",
        "topology",
        "task",
        "problem",
        "max_length",
        "truncate",
        "base",
        "distillation",
        "privacy",
        "evaluation",
        "export",
    }
    parts &= set(type(job.spec).model_fields)
    if isinstance(job.spec, PretrainJobSpec) and job.spec.pretrained:
        # The defaults of what isn't trained here say nothing.
        parts -= {"model", "tokenizer"} if job.spec.base else {"tokenizer"}
    walk("", job.spec.model_dump(mode="json", by_alias=True, include=parts))
    return flat


def conclude(run: Run, progress: ProgressFile) -> Outcome:
    """Register the artifact, once, and mark the run as done. Rank 0 alone."""
    manifest = artifact.finished(run)
    assert manifest is not None, "the artifact was published before"
    digest = f"sha256:{file_sha256(run.artifact / MANIFEST_FILE)}"
    privacy.forget(run)
    # There may not be room for all.
    figures = by_importance(manifest.evaluation, run.job.spec.evaluation.gates)
    if why := artifact.refusal(run):
        raise GateError(
            f"the model is not registered: {why}; it is in {run.artifact}, and figures are in its {EVALUATION_FILE}",
            figures,
        )
    if key := signing_key(run):
        key.sign(run.artifact, manifest)
    result = Outcome(
        reason="Completed",
        message=f"the artifact is in {run.artifact}; it is not registered, as there is no registry: set "
        "MLFLOW_TRACKING_URI, or install mlflow for one in a file" + artifact.remarks(run, manifest),
        model_digest=digest,
        metrics=figures,
    )
    if run.tracking_uri is not None:
        progress.stage("registration")
        from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

        registered = registry.register(
            run.tracking_uri,
            _tags(run, manifest.task),
            run.artifact,
            digest,
            facts=version_tags(manifest),
            params=params(run.job),
            figures=manifest.evaluation,
            description=card.describe(run.artifact),
        )
        result = result.model_copy(
            update={
                "reason": "Registered",
                "message": f"registered {registered.name} version {registered.version}"
                # Whom no cluster shows it.
                + (f" in {run.tracking_uri}, and the artifact is in {run.artifact}" if run.local else "")
                + ("" if registered.digest == digest else ", by an earlier attempt, whose digest counts")
                + artifact.remarks(run, manifest),
                "model_digest": registered.digest,
                "model_name": registered.name,
                "model_version": registered.version,
                "run_id": registered.run_id,
            }
        )
    outcome.finish(
        run.workspace, run.identity, result, sources=manifest.lineage.data, base=manifest.lineage.base_digest
    )
    progress.stage("done")
    return result
