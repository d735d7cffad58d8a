"""Publishes the finished model as an artifact folder."""

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import (
    ONNX_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    ArtifactError,
    Embedding,
    Limits,
    Lineage,
    Manifest,
    digest_files,
    tokenizer_fingerprint,
    verify,
    write_manifest,
)
from cloze_api.precision import Measured, Precision
from cloze_api.pretrain import PretrainJobSpec
from cloze_api.profile import PROFILE_FILE
from cloze_api.task import Problem, Task
from cloze_trainer import card, precisions, sample
from cloze_trainer.console import log
from cloze_trainer.data import examples
from cloze_trainer.data.tokenizer import SETTINGS_FILE
from cloze_trainer.distillation.lesson import Distilling
from cloze_trainer.export import OUTPUT, export
from cloze_trainer.files import publish, write_json
from cloze_trainer.finetune import FineTuning
from cloze_trainer.model import TaskModel, tensors
from cloze_trainer.pretrain import Pretraining
from cloze_trainer.quality.judgement import Judgement
from cloze_trainer.run import Run
from cloze_trainer.static_quantization import CALIBRATION_EXAMPLES
from cloze_trainer.trial import Trial

CONFIG_FILE = "config.json"
EVALUATION_FILE = "evaluation.json"
# Half an hour of one CPU for a large model; the difference between two precisions is known well enough by then.
_MOST_EXAMPLES = 4000
_PRIVATE = "int8 isn't made once more from training texts, for which spec.privacy doesn't account"


def trainer_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("cloze-mlops")
    except PackageNotFoundError:
        return "unknown"


def finished(run: Run) -> Manifest | None:
    """The run's own artifact, when an earlier attempt has published it whole."""
    try:
        manifest = verify(run.artifact)
    except (ArtifactError, OSError):
        return None
    return manifest if manifest.lineage.job_uid == run.identity else None


def write(
    run: Run,
    workload: Pretraining | FineTuning,
    model: TaskModel,
    judged: Judgement,
    sources: dict[str, str],
    *,
    settings: Mapping[str, str] | None = None,
    lesson: Distilling | None = None,
) -> None:
    """Export, describe and publish the trained model in the workspace; all or nothing.

    judged: what the evaluation says of it. sources: SHA-256 of each data source, keyed by its URI. settings: of the
    training, for the card. lesson: what it was distilled by.
    """
    spec = run.job.spec
    base = workload.base
    with publish(run.artifact, marker=False) as staging:
        _write_files(staging, workload, model)
        if lesson is not None:
            judged = judged.beside("teacher", {}, lesson.latencies(staging))
        measured = _add_precisions(staging, spec, workload)
        if isinstance(workload, FineTuning):
            write_json(staging / PROFILE_FILE, workload.profile(judged.said).model_dump(mode="json"))
        if judged.report:
            write_json(staging / EVALUATION_FILE, {**judged.report, "refusal": judged.refusal})
        tokenizer = json.loads((staging / TOKENIZER_FILE).read_text(encoding="utf-8"))
        publish_card(
            staging,
            Manifest(
                name=spec.registry.name,
                task=workload.task,
                architecture=workload.config.class_name(workload.task),
                labels=list(workload.labels),
                problem=_problem(workload),
                embedding=Embedding(dimensions=workload.config.hidden_size, pooling="mean", normalized=True)
                if workload.task is Task.EMBEDDING
                else None,
                limits=Limits(
                    max_length=workload.max_length if isinstance(workload, FineTuning) else workload.config.max_length,
                    vocab_size=workload.config.vocab_size,
                ),
                special_tokens=workload.config.special_tokens,
                lowercase=workload.lowercase,
                tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
                inputs=list(workload.config.inputs),
                output=OUTPUT,
                precisions=measured,
                evaluation={**judged.figures, **data_figures(workload), **_figures(measured)},
                calibration=judged.calibration,
                card=card.stated(spec.registry.card, base.license if base else None, _license(lesson)),
                lineage=Lineage(
                    job=run.label,
                    job_uid=run.identity,
                    kind=run.kind,
                    base=base.name if base else None,
                    base_digest=base.digest if base else None,
                    teacher=lesson.teacher.name if lesson else None,
                    teacher_digest=lesson.teacher.digest if lesson else None,
                    data=sources,
                    created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                    trainer_version=trainer_version(),
                ),
                files={},
            ),
            judged.report,
            settings or {},
        )


def publish_card(folder: Path, manifest: Manifest, report: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    """Write the card and then the manifest, which lists all files that are in the folder."""
    (folder / card.CARD_FILE).write_text(card.render(manifest, report, settings), encoding="utf-8")
    write_manifest(folder, manifest.model_copy(update={"files": digest_files(folder)}))


def _license(lesson: Distilling | None) -> str | None:
    """The teacher's."""
    theirs = lesson.teacher.manifest.card if lesson else None
    return theirs.license if theirs else None


def _problem(workload: Pretraining | FineTuning) -> Problem:
    return workload.problem if isinstance(workload, FineTuning) else Problem.SINGLE_LABEL


def data_figures(workload: Pretraining | FineTuning) -> dict[str, float]:
    """What the preparation of the data counted."""
    return {f"data_{name}": value for name, value in workload.report.items()}


def refusal(run: Run) -> str:
    """Why the artifact may not be registered; empty when it may."""
    return str(_report(run).get("refusal", ""))


def _report(run: Run) -> dict[str, Any]:
    path = run.artifact / EVALUATION_FILE
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return report


def remarks(run: Run, manifest: Manifest) -> str:
    """For the outcome: which step was taken, that the base's head wasn't, and what was asked for and is not there;
    often nothing.
    """
    report = _report(run)
    taken = [f"; {report[part]['told']}" for part in ("selection", "head") if part in report]
    return "".join(taken) + small_vocabulary(run, manifest) + left_out(run, manifest)


def small_vocabulary(run: Run, manifest: Manifest) -> str:
    """That the corpus gave fewer entries of a vocabulary than were asked for; empty when it gave all."""
    spec, size = run.job.spec, manifest.limits.vocab_size
    if not isinstance(spec, PretrainJobSpec) or spec.pretrained or size >= spec.tokenizer.vocab_size:
        return ""
    return (
        f"; the vocabulary has {size} entries, fewer than spec.tokenizer.vocabSize ({spec.tokenizer.vocab_size}), as "
        "the corpus gives no more: add text, or lower it"
    )


def left_out(run: Run, manifest: Manifest) -> str:
    """Which precisions were asked for and are not there, and why; empty when all are."""
    spec = run.job.spec
    if isinstance(spec, PretrainJobSpec):
        return ""
    missing = {*spec.export.precisions} - {*manifest.precisions}
    if not missing:
        return ""
    once = f"; {_PRIVATE}" if spec.privacy and Precision.INT8 in missing else ""
    return (
        f"; without {' and '.join(sorted(missing))}, which loses more than spec.export.maxAccuracyLoss, over all "
        f"examples or in a slice: see the log{once}"
    )


def _add_precisions(
    folder: Path, spec: FineTuneJobSpec | PretrainJobSpec, workload: Pretraining | FineTuning
) -> dict[Precision, Measured]:
    if isinstance(spec, PretrainJobSpec) or isinstance(workload, Pretraining) or not spec.export.precisions:
        return {}
    drawn = sample.draw(workload.test, workload.slices, spec.evaluation.min_slice_examples, _MOST_EXAMPLES)
    pad = workload.config.special_tokens.pad
    trial = Trial(
        task=workload.task,
        problem=workload.problem,
        inputs=workload.config.inputs,
        output=OUTPUT,
        labels=workload.labels,
        batches=examples.batches(drawn.rows, pad_id=pad, wide=False),
        examples=len(drawn.rows),
        slices=drawn.slices,
        beside=examples.batches(drawn.beside, pad_id=pad, wide=False),
    )
    # Their activations' ranges would stand in the graph, and no noise covers them.
    calibration = [] if spec.privacy else workload.train.spread(CALIBRATION_EXAMPLES)
    added = precisions.add(folder, spec.export.precisions, trial, spec.export.max_accuracy_loss, calibration)
    if spec.privacy and Precision.INT8 in added.refused:
        log("precision not made anew", precision=Precision.INT8, why=_PRIVATE)
    return added.measured


def _figures(measured: Mapping[Precision, Measured]) -> dict[str, float]:
    """A precision's metric, its worst slice's loss and its time, as `accuracy_int8`, `worst_slice_loss_int8` and
    `latency_ms_int8`.
    """
    found = {f"{each.metric}_{precision}": each.value for precision, each in measured.items()}
    found |= {
        f"worst_slice_loss_{precision}": each.worst_slice.loss
        for precision, each in measured.items()
        if each.worst_slice is not None
    }
    found |= {f"latency_ms_{precision}": each.latency_ms for precision, each in measured.items()}
    return {name: value for name, value in found.items() if value is not None}


def _write_files(folder: Path, workload: Pretraining | FineTuning, model: TaskModel) -> None:
    shutil.copyfile(workload.tokenizer_folder / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    settings = json.loads((workload.tokenizer_folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    # Without it a tokenizer gives types of texts to models that have none.
    settings["model_input_names"] = list(workload.config.inputs)
    write_json(folder / SETTINGS_FILE, settings)
    document = workload.config.transformers(workload.task, workload.labels, _problem(workload))
    (folder / CONFIG_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors(model).items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    export(model, workload.task, workload.config, folder / ONNX_FILE)
