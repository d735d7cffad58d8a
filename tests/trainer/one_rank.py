"""One rank of a small fine-tuning, as torch elastic would start it: `one_rank.py FOLDER SCENARIO…`.

Trains on the examples in FOLDER and leaves there what each step gave. A scenario is a JSON object: `name`; `nan` and
`ascent`, a first batch and one after the last, of which the loss isn't finite, or which take the weights away from what
they should learn; `crash`, batches before each of which the process ends once and begins anew; `fits`, the tokens at
once that memory is enough for, by rank; `moments`, as many of them have no room beside the optimizer's state;
`shrinks`, the batch from which on it is enough for half of them; `freeze`, the rank that stops before the third batch,
or sleeps before it where `asleep`; `profile`, the steps that rank 0 profiles; `tokens`, after how many the training is
over; `after`, whose checkpoints up to the step `from` it goes on from; `optimization`, which differs; `every`, steps
between checkpoints; `teacher`, what is learnt from one, a random model of another size; `noise`, of private steps;
`scale`, the first one of the loss, and `growth`, the steps after which it is doubled; `burst`, a first batch and one
after the last, of which the gradient isn't finite, and the loss is; `unchecked`, whether arithmetic that the device
hasn't is taken all the same; `stop`, of which `rank` is sent a signal at `batches` and at `evaluations`, each of which
it goes on from; `peak`, the operations a second that a processor is said to do at most; `refused`, the step whose
checkpoint a volume doesn't take, and with which error number, whereupon the process begins anew if it has to.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cloze_api.distillation import Distillation
from cloze_api.finetune import FineTuneJobSpec
from cloze_api.privacy import Privacy
from cloze_api.training import Profile
from cloze_trainer import compiling, flops, loop, lora, memory, optimizer, scaling
from cloze_trainer.attendance import Attendance
from cloze_trainer.base import BaseModel
from cloze_trainer.checkpoint import Checkpoints, LoopState
from cloze_trainer.clock import Clock
from cloze_trainer.data.labelled import IGNORED, Labelled
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.distillation.lesson import Distilling, SoftTargets
from cloze_trainer.distillation.relation import RelationLoss
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import Suspended, TrainerError, classify
from cloze_trainer.finetune import FineTuning
from cloze_trainer.gang import Gang
from cloze_trainer.loop import Surroundings, train
from cloze_trainer.model import build
from cloze_trainer.preparation import PreparedDataset
from cloze_trainer.privacy.budget import Budget
from cloze_trainer.privacy.workload import Private
from cloze_trainer.profiling import Profiler
from cloze_trainer.progress import ProgressFile
from cloze_trainer.stopping import StopSignal
from cloze_trainer.tasks import rows
from cloze_trainer.tracking import Silent
from cloze_trainer.worker import initial_model
from cloze_trainer.workload import Chunk

CONFIG = EncoderConfig(vocab_size=60, layers=1, hidden_size=16, heads=2, intermediate_size=32, max_length=16, dropout=0)
SPEC = FineTuneJobSpec.model_validate(
    {
        "base": {"model": {"name": "x", "version": "1"}},
        "task": "token-classification",
        "dataset": {"train": "file:///a", "test": "file:///b"},
        "optimization": {"batchSequences": 4, "epochs": 2, "learningRate": 1e-3, "gradientClip": 0.5},
        "registry": {"name": "x"},
    }
)
EXAMPLES = 9  # in batches of four: an epoch's last batch holds one, and a second rank has none of it


def dataset(folder: Path) -> PreparedDataset:
    """Random words with random labels, the same for every process."""
    random = np.random.default_rng(0)
    lengths = random.integers(4, 16, size=EXAMPLES)
    part = Labelled(
        tuple(random.integers(5, 60, size=length) for length in lengths),
        tuple(random.choice([0, 1, 2, -100], size=length) for length in lengths),
        lengths,
        0,
        0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test", "validation"):
        rows.save(folder, name, part)
        (folder / f"{name}-key.json").write_text("null")
    (folder / "test-slices.json").write_text("[]")
    (folder / "dataset.json").write_text(json.dumps({"labels": ["a", "b", "c"], "max_length": 16}))
    base = BaseModel(
        folder=folder, name="x/1", digest="sha256:x", special_tokens=SPECIAL_IDS, lowercase=True, config=CONFIG
    )
    return PreparedDataset(folder, base, {})


class Recorder(ProgressFile):
    """Keeps what the loop tells. A step takes a second."""

    def __init__(self) -> None:
        super().__init__(None, lambda: self.now)
        self.now = 0.0
        self.losses: list[float | None] = []
        self.seen: list[tuple[int, int]] = []
        self.told: list[dict[str, float]] = []

    def step(self, step: int, total_steps: int, *, loss: float | None, tokens: int) -> None:
        self.now += 1
        super().step(step, total_steps, loss=loss, tokens=tokens)
        if step:
            self.losses.append(loss)
            self.seen.append((tokens, total_steps - step))

    def figures(self, values: Mapping[str, float]) -> None:
        super().figures(values)
        self.told.append(dict(values))


class Tracked(Silent):
    """Keeps what MLflow would be sent, by step."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.setdefault(step, {}).update(values)


class Refused(Checkpoints):
    """Can't write the checkpoint of a step, once."""

    refused: tuple[int, int] | None = None

    def write(self, state: LoopState, tensors: dict[str, Any], give_up: threading.Event | None = None) -> None:
        if self.refused is not None and self.refused[0] == state.step:
            (_, number), self.refused = self.refused, None
            raise OSError(number, os.strerror(number))
        super().write(state, tensors, give_up)


class Crash(Exception):
    """The process ends here."""


class Failing(FineTuning):
    """Goes wrong as the scenario says."""

    def prepare(self, scenario: dict[str, Any], rank: int) -> None:
        self.fits = scenario.get("fits", {}).get(str(rank), 9999)
        self.moments, self.shrinks = scenario.get("moments", 0), scenario.get("shrinks", 9999)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.sizes: list[int] = []
        self.tokens = scenario.get("tokens", 0)
        self.frozen, self.asleep = scenario.get("freeze"), scenario.get("asleep", False)
        self.nan, self.ascent, self.empty, self.burst = (
            range(*scenario.get(name, (0, 0))) for name in ("nan", "ascent", "empty", "burst")
        )
        self.crashes = list(scenario.get("crash", ()))
        self.taken: list[int] = []
        self.places: list[tuple[int, int]] = []
        self.waits: list[float] = []
        self.evaluations: list[dict[str, float]] = []
        self.broken_off = 0
        asked = scenario.get("stop", {})
        stopped = asked.get("rank") == rank
        self.stops = {name: list(asked[name]) if stopped else [] for name in ("batches", "evaluations") if asked}

    @property
    def clock(self) -> Clock:
        """Of the job, or of the scenario."""
        return Clock(self.tokens, self.tokens // 4, in_tokens=True) if self.tokens else super().clock

    def share(self, batch: int, rank: int, world: int, done: float) -> Any:
        if self.crashes and batch == self.crashes[0]:
            del self.crashes[0]
            raise Crash
        if batch == 2 and rank == self.frozen:
            if self.asleep:
                time.sleep(3600)
            os.kill(os.getpid(), signal.SIGSTOP)
        self.here = batch
        self.taken.append(batch)
        began = time.monotonic()
        chunks = super().share(batch, rank, world, done)
        self.waits.append(time.monotonic() - began)
        # A stand-in has no word of the data's.
        words = sum(int((chunk.inputs[0] != SPECIAL_IDS.pad).sum()) for chunk in chunks if chunk.weight)
        self.places.append((words, sum(chunk.inputs[0].numel() for chunk in chunks)))
        if batch not in self.empty:
            return chunks
        return [replace(chunk, targets=torch.full_like(chunk.targets, IGNORED), weight=0) for chunk in chunks]

    def stop(self, where: str, number: int) -> None:
        if number in self.stops.get(where, ()):
            self.stops[where].remove(number)
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluate(self, model: nn.Module, gang: Gang, stopped: Any = lambda: False) -> Any:
        self.stop("evaluations", len(self.evaluations))
        found = super().evaluate(model, gang, stopped)
        if found is None:
            self.broken_off += 1
        else:
            self.evaluations.append(found)
        return found

    def loss_sum(self, model: nn.Module, chunk: Chunk) -> Tensor:
        self.stop("batches", self.here)
        loss = super().loss_sum(model, chunk)
        self.sizes.append(chunk.places)
        fits = self.fits // 2 if self.here >= self.shrinks else self.fits
        if self.moments and self.optimizers[-1].state:
            fits -= self.moments
        if chunk.places > fits:
            # The last gradient of all, when the others have been added up.
            deepest: Any = getattr(model, "module", model).get_submodule("encoder.embeddings.words").weight
            handle = deepest.register_hook(lambda _: (handle.remove(), _run_out()))
        if self.here in self.nan:
            return loss * float("nan")
        if self.here in self.burst:
            return loss + (0 * loss).sqrt()
        # Of the same value, and of a gradient that points the other way.
        return loss - 20 * (loss - loss.detach()) if self.here in self.ascent else loss


class FailingInPrivate(Private):
    """As the inner one fails."""

    def share(self, batch: int, rank: int, world: int, done: float) -> Any:
        self.inner.share(batch, rank, world, done)
        return super().share(batch, rank, world, done)


def watched(workload: Failing, *given: Any) -> torch.optim.Optimizer:
    """The optimizer, which the workload knows."""
    workload.optimizers.append(optimizer.build(*given))
    return workload.optimizers[-1]


def _run_out() -> None:
    raise torch.OutOfMemoryError("as a GPU says it")


def end(left: Path, error: TrainerError) -> None:
    left.write_text(json.dumps({"reason": error.reason, "message": error.message, "code": error.exit_code}))
    os._exit(error.exit_code)


def peak_memory() -> int:
    """Most bytes that this process has had, as the system tells it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def whole(tensor: Any) -> Tensor:
    """All of a tensor of which each rank may have a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(folder: Path, scenarios: list[dict[str, Any]]) -> None:
    gang = Gang(1, 60)
    # As `inductor` finds the programs, which are then run as they are: machine code would need a compiler.
    vars(compiling)["BACKEND"] = "eager"
    stop = StopSignal()
    name = f"{gang.world}-{gang.rank}"
    prepared = dataset(folder / f"data-{name}-{scenarios[0]['name']}" / "examples")
    scaled = {"START": scaling.START, "GROWTH_STEPS": scaling.GROWTH_STEPS}
    peaks = dict(vars(flops)["_PEAKS"])
    for scenario in scenarios:
        changed = {**SPEC.optimization.model_dump(by_alias=True), **scenario.get("optimization", {})}
        spec = SPEC.model_copy(update={"optimization": type(SPEC.optimization).model_validate(changed)})
        workload = Failing(spec, prepared, gang.device)
        workload.prepare(scenario, gang.rank)
        Gang.survives_out_of_memory = property(lambda _, these=scenario: "fits" in these)  # type: ignore[assignment, misc]
        changed = {"START": scenario.get("scale"), "GROWTH_STEPS": scenario.get("growth")}
        vars(scaling).update({key: changed[key] or usual for key, usual in scaled.items()})
        vars(loop)["build"] = partial(watched, workload)
        own = {"cpu": (0.0, scenario["peak"])} if "peak" in scenario else {}
        vars(flops)["_PEAKS"] = peaks | own
        gradients: list[Tensor] = []
        clip = torch.nn.utils.clip_grad_norm_

        def record(parameters: Any, bound: float, clip: Any = clip, gradients: list[Tensor] = gradients) -> Any:
            parameters = list(parameters)
            present = [parameter.grad for parameter in parameters if parameter.grad is not None]
            gradients.append(torch.cat([whole(gradient).flatten() for gradient in present]))
            return clip(parameters, bound)

        torch.nn.utils.clip_grad_norm_ = record
        progress, tracked = Recorder(), Tracked()
        checkpoints = Refused(folder / f"checkpoints-{gang.world}-{scenario['name']}", 6, workload.origin)
        checkpoints.refused = scenario.get("refused")
        if gang.leads and "after" in scenario:
            shutil.copytree(folder / f"checkpoints-{scenario['after']}", checkpoints.folder)
            for path in checkpoints.folder.glob("step-*"):
                if int(path.name[5:]) > scenario["from"]:
                    shutil.rmtree(path)
        gang.from_leader()
        error, choice, scale, suspended, ended = "", None, None, [], []
        began, memory_before = time.monotonic(), peak_memory()
        while True:
            model = initial_model_of(workload)
            adapters = lora.begin(spec.optimization, model)
            attendance = Attendance(gang, 1.0 if "freeze" in scenario else 60.0, partial(end, folder / f"{name}.json"))
            asked = Profile.model_validate(scenario["profile"]) if gang.leads and "profile" in scenario else None
            traces = folder / f"profile-{name}-{scenario['name']}"
            profiler = Profiler(asked, traces, Silent())
            around = Surroundings(
                *(gang, checkpoints, progress, tracked, stop, attendance, profiler), selection=workload.selection
            )
            around = replace(around, chunk_tokens=memory.recall(folder))
            try:
                if "unchecked" not in scenario:
                    gang.arithmetic(spec.optimization.arithmetic)
                model.encoder.recompute = spec.optimization.activation_checkpointing
                lesson = taught(workload, scenario["teacher"], gang) if "teacher" in scenario else workload
                optimization = spec.optimization
                if "noise" in scenario:
                    asked = Privacy(epsilon=9, delta=0.01, max_grad_norm=0.1)
                    budget = Budget(asked, 4 / EXAMPLES, workload.total_steps, scenario["noise"])
                    lesson = FailingInPrivate(workload, budget, bytes(range(16)))
                    around = replace(around, gradients=lesson.gradient)
                    optimization = lesson.careful(optimization)
                model, state = train(model, lesson, optimization, scenario.get("every", 1), around)
                if adapters is not None:
                    adapters.merge()
                choice = asdict(state.choice) if state.choice else None
                scale = state.scale.value
            except Crash:
                continue
            except Suspended as failure:
                suspended.append(str(failure))
                stop.requested = False
                continue
            except (TrainerError, OSError) as failure:
                if "refused" in scenario:
                    ended.append((classify(failure).reason, workload.taken[-1]))
                    continue
                if isinstance(failure, OSError):
                    raise
                error = failure.reason
                if isinstance(failure, memory.ChunkTooLarge):
                    memory.keep(folder, failure)
                    end(folder / f"{name}.json", failure)
            break
        seconds, memory_after = time.monotonic() - began, peak_memory()
        measured = workload.evaluate(model, gang) if not error else {}
        torch.nn.utils.clip_grad_norm_ = clip
        weights = torch.cat([whole(parameter.detach()).flatten() for parameter in model.parameters()])
        result = {
            "name": scenario["name"],
            "error": error,
            "trace": next(map(str, traces.glob("*.gz")), None),
            "losses": progress.losses,
            "gradients": torch.stack(gradients) if gradients else None,
            "weights": weights,
            "choice": choice,
            "suspended": suspended,
            "evaluations": workload.evaluations,
            "broken_off": workload.broken_off,
            "measured": measured,
            "taken": workload.taken,
            "sizes": workload.sizes,
            "seen": progress.seen,
            "told": progress.told,
            "tracked": tracked.rows,
            "places": workload.places,
            "waits": workload.waits,
            "seconds": seconds,
            "memory": (memory_before, memory_after),
            "flops_per_token": workload.flops_per_token,
            "ended": ended,
            "chunk_tokens": workload.chunk_tokens,
            "scale": scale,
            "checkpoints": sorted(path.parent.name for path in checkpoints.folder.glob("*/COMPLETE")),
        }
        torch.save(result, folder / f"{name}-{scenario['name']}.pt")
    gang.leave()
    # As the worker does: the interpreter's end isn't sound with what threads of torch may still be doing.
    sys.stderr.flush()
    os._exit(0)


def taught(workload: FineTuning, asked: dict[str, Any], gang: Gang) -> Distilling:
    """The workload with a teacher whose logits are beside the examples."""
    asked_for = Distillation.model_validate({"teacher": {"model": {"name": "large", "version": "1"}}, **asked})
    torch.manual_seed(5)
    config = replace(CONFIG, hidden_size=24, heads=2, layers=2)
    teacher = build(workload.task, config, 3).eval().requires_grad_(requires_grad=False)
    # Each rank has a folder of its own here.
    folder = workload.base.folder / "teacher"
    folder.mkdir(exist_ok=True)
    np.save(folder / "train.npy", 9 * workload.outputs(teacher, workload.train, gang))
    relation = RelationLoss(asked_for.relation, teacher, config, CONFIG) if asked_for.relation else None
    nobody: Any = None
    return Distilling(workload, asked_for, nobody, SoftTargets(folder / "train.npy", workload.train), relation=relation)


def initial_model_of(workload: FineTuning) -> Any:
    """The model without a base's weights."""
    from cloze_trainer import worker  # noqa: PLC0415

    worker._load_base = lambda *_: None  # type: ignore[assignment]
    return initial_model(workload, SPEC.optimization.seed)


if __name__ == "__main__":
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    main(Path(sys.argv[1]), [json.loads(text) for text in sys.argv[2:]])
