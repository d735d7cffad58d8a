"""One rank of a run, started by torch elastic from the nursery."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, cast

import torch
from torch import nn

from cloze_api.manifest import WEIGHTS_FILE
from cloze_api.names import SECRETS_MOUNT
from cloze_api.pretrain import PretrainJobSpec
from cloze_api.progress import FINAL_EXIT_CODES, ExitCode, Outcome
from cloze_api.task import Task
from cloze_api.training import Optimization
from cloze_trainer import artifact, compiling, left_head, lora, memory, outcome, preparation, pretrain, seeds, selection
from cloze_trainer.attendance import Attendance
from cloze_trainer.audit import judging
from cloze_trainer.base import BaseModel
from cloze_trainer.checkpoint import Checkpoints, LoopState
from cloze_trainer.conclusion import conclude, params, signing_key, tracker_of
from cloze_trainer.console import log
from cloze_trainer.data.order import generator
from cloze_trainer.data.remote import credentials
from cloze_trainer.distillation import lesson as distillation
from cloze_trainer.distillation.lesson import Distilling
from cloze_trainer.encoders.attention import Attention
from cloze_trainer.errors import BaseModelError, TrainerError, classify, technical, trace
from cloze_trainer.finetune import FineTuning
from cloze_trainer.gang import Gang
from cloze_trainer.gradient import Gradient
from cloze_trainer.loop import Surroundings, train
from cloze_trainer.model import TaskModel, build, load_encoder
from cloze_trainer.origin import refuse_changed
from cloze_trainer.pretrain import Pretraining
from cloze_trainer.privacy import workload as privacy
from cloze_trainer.privacy.workload import Private
from cloze_trainer.profiling import Profiler
from cloze_trainer.progress import ProgressFile, own_file
from cloze_trainer.quality import champion, luck
from cloze_trainer.quality.judgement import Judgement, judge
from cloze_trainer.run import Run, open_run
from cloze_trainer.stopping import StopSignal
from cloze_trainer.tracking import Silent
from cloze_trainer.volume import Store, Volume

_INITIALIZATION_DOMAIN = 5

Workload = Pretraining | FineTuning
Ending = Callable[[BaseException], None]


def open_workload(run: Run, gang: Gang, progress: ProgressFile) -> tuple[Workload, dict[str, str]]:
    """Rank 0 prepares the data; all ranks open it. Returns the workload and its sources' digests, keyed by URI."""
    spec = run.job.spec
    if isinstance(spec, PretrainJobSpec):
        corpus = gang.from_leader(pretrain.prepare(run, spec, progress) if gang.leads else None)
        return Pretraining(spec, corpus, gang.device), corpus.sources
    dataset = gang.from_leader(preparation.prepare(run, spec, progress) if gang.leads else None)
    return FineTuning(spec, dataset, gang.device), dataset.sources


def initial_model(workload: Workload, seed: int) -> TaskModel:
    """The model before its first step, the same on every rank."""
    torch.manual_seed(int(generator(seed, _INITIALIZATION_DOMAIN).integers(1 << 63)))
    model = build(workload.task, workload.config, len(workload.labels))
    if workload.base is not None:
        _load_base(model, workload.base)
    return model


def _load_base(model: TaskModel, base: BaseModel) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415 - only a run with a base needs it

    try:
        fresh = load_encoder(model, load_file(base.folder / WEIGHTS_FILE))
    except ValueError as error:
        raise BaseModelError("BaseArchitectureMismatch", f"{base.name}: {error}") from error
    if fresh and model.task is Task.FILL_MASK:
        log("head is new", base=base.name, why="the base has no weights for predicting hidden tokens", tensors=fresh)


def produce(run: Run, gang: Gang, stop: StopSignal, progress: ProgressFile, end: Ending) -> None:
    """Everything up to the published artifact."""
    # What can't be trained is told before the data are prepared.
    is_private = not isinstance(run.job.spec, PretrainJobSpec) and run.job.spec.privacy is not None
    arithmetic = gang.arithmetic(run.job.spec.optimization.arithmetic, scalable=not is_private)
    if run.job.spec.optimization.compile:
        compiling.check(gang.device)
    if gang.leads:
        signing_key(run)
    folder = run.workspace / "checkpoints"
    store = store_of(run, folder)
    if gang.leads:
        store.prepare()
    workload, sources = open_workload(run, gang, progress)
    if isinstance(workload, Pretraining):
        workload.attention = gang.attention(arithmetic, workload.config.hidden_size // workload.config.heads)
    spec = run.job.spec
    tracker = tracker_of(run, gang, workload.task)
    lesson, private = distillation.begin(run, workload, gang), privacy.begin(run, workload, gang)
    if not isinstance(spec, PretrainJobSpec):
        progress.leg(0, spec.evaluation.seeds)
    around = Surroundings(
        gang=gang,
        checkpoints=Checkpoints(folder, spec.checkpoint.keep, workload.origin, store),
        progress=progress,
        tracker=tracker,
        stop=stop,
        attendance=Attendance(gang, spec.failure_policy.stuck_seconds, end),
        gradients=private.gradient if private else Gradient,
        profiler=Profiler(spec.profile if gang.leads else None, run.workspace / "profile", tracker),
        chunk_tokens=min(gang.from_all(memory.recall(run.workspace))),
        selection=workload.selection if isinstance(workload, FineTuning) else None,
    )
    try:
        trained, state = _train(run, workload, around, lesson, private)
        further = _from_further_seeds(run, workload, around, lesson, end)
    except TrainerError as error:
        if isinstance(error, memory.ChunkTooLarge):
            memory.keep(run.workspace, error)
        if error.exit_code in FINAL_EXIT_CODES:
            tracker.close(failed=True)
        elif error.exit_code is ExitCode.SUSPENDED:
            tracker.pause()
        raise
    progress.stage("evaluation")
    judged = _judge(run, workload, trained, gang, lesson, further=further)
    if private is not None and gang.leads:
        judged = judged.beside("privacy", {}, private.figures(state.step))
    if state.choice is not None and gang.leads:
        judged = judged.beside("selection", *selection.told(state.choice, state.step, workload.total_steps))
    # Here, not when it is registered: what fails a gate has figures, too, and the gate may be on one of the data.
    tracker.metrics(state.step, {**judged.figures, **artifact.data_figures(workload)})
    if gang.leads:
        log("evaluated", **judged.figures)
        for verdict in judged.verdicts:
            log("gate", gate=verdict.gate, passed=verdict.passed, why=verdict.message)
        # Before there is an artifact: a start that finds it does none of this again.
        tracker.close(failed=bool(judged.refusal), report=judged.report)
        progress.stage("export")
        settings = params(run.job)
        artifact.write(*(run, workload, cast(TaskModel, trained), judged, sources), settings=settings, lesson=lesson)
    gang.from_leader()


def _train(
    run: Run, workload: Workload, around: Surroundings, lesson: Distilling | None, private: Private | None = None
) -> tuple[nn.Module, LoopState]:
    """The model from the workload's seed, trained, and where its training ended. Raises as `train`."""
    asked, gang = workload.spec.optimization, around.gang
    arithmetic = gang.arithmetic(asked.arithmetic, scalable=private is None)
    optimization: Optimization = asked.model_copy(update={"arithmetic": arithmetic})
    model = initial_model(workload, optimization.seed)
    if lesson is not None:
        lesson.start(model)
    adapters = lora.begin(optimization, model)
    model.encoder.recompute = optimization.activation_checkpointing
    if gang.leads:
        log(
            "training",
            ranks=gang.world,
            seed=optimization.seed,
            arithmetic=str(arithmetic),
            attention=str(workload.attention if isinstance(workload, Pretraining) else Attention.MASKED),
            steps=workload.total_steps,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
            **workload.config.describe(),
        )
    if private is not None:
        optimization = private.careful(optimization)
    given = private or lesson or workload
    trained, state = train(model, given, optimization, run.job.spec.checkpoint.every_steps, around)
    if adapters is not None:
        adapters.merge()
    return trained, state


def _from_further_seeds(
    run: Run, workload: Workload, around: Surroundings, lesson: Distilling | None, end: Ending
) -> seeds.BySeed:
    """The figures of the further seeds that the spec asks for. Raises as `train`."""
    if isinstance(workload, Pretraining):
        return {}
    spec, gang = run.job.spec, around.gang

    def learn(other: FineTuning, number: int) -> nn.Module:
        folder = seeds.checkpoints(run, other.spec.optimization.seed)
        own = replace(
            around,
            checkpoints=Checkpoints(
                folder, spec.checkpoint.keep, other.origin, store_of(run, folder, f"/seed-{folder.parent.name}")
            ),
            tracker=Silent(),
            attendance=Attendance(gang, spec.failure_policy.stuck_seconds, end),
            profiler=Profiler(None, folder, Silent()),
        )
        around.progress.leg(number, other.spec.evaluation.seeds)
        try:
            return _train(run, other, own, lesson.of(other) if lesson else None)[0]
        except TrainerError as error:
            if error.exit_code is ExitCode.DIVERGED:
                error.message = f"spec.evaluation.seeds: from seed {other.spec.optimization.seed}, {error.message}"
            raise

    return seeds.further(run, workload, gang, learn)


def _judge(
    run: Run,
    workload: Workload,
    model: nn.Module,
    gang: Gang,
    lesson: Distilling | None,
    *,
    further: seeds.BySeed | None = None,
) -> Judgement:
    """Evaluate the finished model; only rank 0's judgement of a classifier is whole. Raises as `champion.judge`."""
    if isinstance(workload, Pretraining):
        figures = workload.evaluate(model, gang)
        assert figures is not None, "nothing breaks it off"
        if not gang.leads:
            return Judgement(figures)
        return judging.judge(
            *(workload.spec.evaluation, cast(TaskModel, model), figures),
            folder=workload.tokenizer_folder,
            others=artifact.data_figures(workload),
        )
    scores = workload.score(model, gang)
    if not gang.leads:
        return Judgement({})
    spec = workload.spec
    beside = lesson.figures(model, scores) if lesson else {}
    by_seed = {spec.optimization.seed: workload.figures(scores), **further} if further else {}
    spread = luck.figures(by_seed, workload.watched(by_seed[spec.optimization.seed])) if further else {}
    judged = judge(
        *(scores, workload.labels, spec.evaluation),
        task=workload.task,
        problem=workload.problem,
        others={**artifact.data_figures(workload), **beside, **spread},
        champion=champion.judge(run, spec, scores, workload.labels),
    )
    if further:
        judged = judged.beside("seeds", {str(seed): own for seed, own in by_seed.items()}, spread)
    if left := left_head.find(workload.base, workload.task, workload.labels):
        judged = judged.beside("head", left, {})
    return judged.beside("teacher", lesson.about, beside) if lesson else judged


def store_of(run: Run, folder: Path, part: str = "") -> Store:
    """Where the run's checkpoints are: in a folder of its volume, or in the bucket that the spec names.

    part: of the bucket's prefix, for checkpoints besides the run's own.
    """
    asked = run.job.spec.checkpoint
    if asked.uri is None:
        return Volume(folder)
    from cloze_trainer.bucket import Bucket  # noqa: PLC0415 - half a second, for few

    secret = Path(SECRETS_MOUNT) / asked.credentials.secret_name if asked.credentials else None
    return Bucket(asked.uri, f"{run.label}/{run.identity}{part}", folder, lambda: credentials(secret))


def work(run: Run, gang: Gang, stop: StopSignal, end: Ending) -> Outcome:
    """The whole run, as one rank sees it."""
    progress = own_file(gang.rank)
    manifest = gang.from_leader(artifact.finished(run) if gang.leads else None)
    if manifest is None:
        produce(run, gang, stop, progress, end)
    else:
        refuse_changed(run, manifest.lineage.data)
    result = conclude(run, progress) if gang.leads else Outcome(reason="Completed", message="rank 0 has the result")
    gang.from_leader()
    return result


def main(file: Path) -> None:
    """Carry out the job as the rank that the environment names. A failure ends the process with its code."""
    stop = StopSignal()
    left = Path(os.environ[outcome.ENV_FOLDER]) / f"{os.environ['LOCAL_RANK']}.json"
    ranks = int(os.environ["WORLD_SIZE"])

    def end(error: BaseException) -> NoReturn:
        # The launcher ends all ranks once one has failed.
        stop.ignore()
        failure = classify(error, ranks=ranks)
        if failure.exit_code in (ExitCode.INTERNAL, ExitCode.STORAGE):
            log("trace", rank=os.environ["RANK"], text=trace(error), error=technical(error))
        # Where this rank was when it lost another says nothing: the other one tells why it is gone.
        lost = {"error": technical(error)} if failure.exit_code is ExitCode.PEER_LOST else {}
        log("stopped", rank=os.environ["RANK"], reason=failure.reason, message=failure.message, **lost)
        outcome.write(left, outcome.failed(failure))
        # No orderly farewell: the other ranks learn at once that this one is gone.
        sys.stderr.flush()
        os._exit(int(failure.exit_code))

    try:
        run = open_run(file)
        gang = Gang(run.job.spec.topology.threads_per_process, run.job.spec.failure_policy.stuck_seconds)
        result = work(run, gang, stop, end)
        outcome.write(left, result)
        gang.leave()
        stop.ignore()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it becomes an outcome
        end(error)
