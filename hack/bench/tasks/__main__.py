"""Fine-tuned models beside the peer's, teachers, fp32 and private ones: python hack/bench/tasks COMMAND --help"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "train"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "serve"))

from artifacts import encoder
from budget import BATCH, LEARNING_RATE, TASKS, Task, files, job, true_labels
from measure import Spread, table
from peer import call, peer_python
from servers import CACHE

HERE = Path(__file__).parent


class Bench:
    """A task's examples, and how it is fine-tuned."""

    def __init__(self, task: Task, epochs: int, threads: int, examples: int | None, tests: int) -> None:
        self.task, self.epochs, self.threads = task, epochs, threads
        self.train, self.test = files(task, examples, tests)
        self.steps = epochs * -(-sum(1 for _ in self.train.open(encoding="utf-8")) // BATCH)

    def ours(
        self, name: str, seed: int, *, teacher: Path | None = None, budget: dict[str, Any] | None = None, **spec: Any
    ) -> tuple[dict[str, Any], Path]:
        """Fine-tune anew, for the budget where one is given; what came of it, and its artifact."""
        folder = CACHE / "tasks" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        usual = {"epochs": self.epochs, "seed": seed, "threads": self.threads}
        document = job(self.task, encoder(), self.train, self.test, **usual | (budget or {}), **spec)
        (folder / "job.json").write_text(json.dumps(document), encoding="utf-8")
        plan = {"folder": str(folder), "teacher": str(teacher)}
        return call(sys.executable, HERE / "ours.py", plan, self.threads), folder / "workspace" / "artifact"

    def peer(self, seed: int) -> tuple[float, float]:
        """Its figure, and its seconds."""
        truth = true_labels(self.task, self.test)
        labels = sorted({label for own in true_labels(self.task, self.train) for label in own})
        plan = {
            "encoder": str(encoder()),
            "train": str(self.train),
            "test": str(self.test),
            "labels": labels,
            "words": self.task.kind == "token-classification",
            "length": self.task.length,
            "epochs": self.epochs,
            "batch": BATCH,
            "learning_rate": LEARNING_RATE,
            "warmup": self.steps // 10,
            "seed": seed,
            "threads": self.threads,
        }
        found = call(peer_python(), HERE / "peers" / "transformers_tasks.py", plan, self.threads)
        # Words beyond the limit count for neither.
        pairs = [
            pair for own, said in zip(truth, found["answers"], strict=True) for pair in zip(own, said, strict=False)
        ]
        right, said = zip(*pairs, strict=True)
        return _judged(self.task, right, said, labels), float(found["seconds"])

    def milliseconds(self, graphs: list[Path]) -> list[float]:
        """What each graph takes for a text."""
        plan = {"graphs": [str(graph) for graph in graphs], "test": str(self.test), "threads": self.threads}
        found: list[float] = call(sys.executable, HERE / "ours.py", plan, self.threads)["milliseconds"]
        return found


def _judged(task: Task, right: Sequence[str], said: Sequence[str], labels: list[str]) -> float:
    """The task's figure of merit, by scikit-learn, which jobs' own evaluation agrees with."""
    from sklearn.metrics import accuracy_score, f1_score  # noqa: PLC0415 - the command line does without

    if task.figure == "accuracy":
        return float(accuracy_score(right, said))
    return float(f1_score(right, said, pos_label=labels[-1]))


def quality(bench: Bench, rounds: int) -> None:
    """figure and seconds of ours and of transformers' Trainer, from one encoder at one budget"""
    task = bench.task
    ours, theirs = [], []
    for seed in range(1, rounds + 1):
        found, _ = bench.ours(f"{task.name}-ours", seed)
        ours.append((found["figures"][task.figure], found["seconds"]))
        theirs.append(bench.peer(seed))
        print(f"round {seed}: ours {ours[-1]}, theirs {theirs[-1]}", file=sys.stderr, flush=True)
    (mine, my_seconds), (other, other_seconds) = (tuple(zip(*each, strict=True)) for each in (ours, theirs))
    points = Spread(tuple(100 * (one - two) for one, two in zip(mine, other, strict=True)))
    ratio = Spread(tuple(one / two for one, two in zip(my_seconds, other_seconds, strict=True)))
    table(
        (
            "task",
            "steps",
            f"{task.figure}, ours",
            "transformers' Trainer",
            "points",
            "seconds, ours",
            "the peer's",
            "ratio",
        ),
        [
            (
                task.name,
                bench.steps,
                *(_exact(each) for each in (mine, other)),
                points,
                *(Spread(each) for each in (my_seconds, other_seconds)),
                ratio,
            )
        ],
    )


def distil(bench: Bench, rounds: int, layers: list[int]) -> None:
    """a student of some of the teacher's layers: share of its quality, times its speed, beside one without a teacher"""
    task, rows = bench.task, []
    for seed in range(1, rounds + 1):
        _, teacher = bench.ours(f"{task.name}-teacher", seed)
        taught = {"teacher": {"model": {"name": "teacher", "version": "1"}}, "layers": layers}
        for name, asked in (
            ("soft targets", {**taught, "weight": 0.9}),
            ("and relations", {**taught, "weight": 0.9, "relation": {}}),
            ("labels alone", {**taught, "weight": 1e-9}),
        ):
            found, _ = bench.ours(f"{task.name}-student", seed, teacher=teacher, distillation=asked)
            figures = found["figures"]
            rows.append(
                (
                    name,
                    seed,
                    f"{figures[f'teacher_{task.figure}']:.4f}",
                    f"{figures[task.figure]:.4f}",
                    f"{figures[task.figure] / max(figures[f'teacher_{task.figure}'], 1e-9):.3f}",
                    f"{figures['teacher_latency_ms']:.1f}",
                    f"{figures['latency_ms']:.1f}",
                    f"{figures['teacher_speedup']:.2f}",
                )
            )
    named = (
        "student of",
        "seed",
        f"teacher's {task.figure}",
        "student's",
        "share",
        "teacher, ms",
        "student, ms",
        "times as fast",
    )
    table(named, rows)


def precision(bench: Bench, rounds: int) -> None:
    """int8 over fp32: speed of the graphs, and points lost"""
    task, rows = bench.task, []
    for seed in range(1, rounds + 1):
        found, artifact = bench.ours(f"{task.name}-ours", seed)
        name = next(name for name in ("accuracy", "entity_f1", "macro_f1") if f"{name}_int8" in found["figures"])
        fp32, int8 = (found["figures"][key] for key in (name, f"{name}_int8"))
        full, small = bench.milliseconds([artifact / "model.onnx", artifact / "model_int8.onnx"])
        rows.append(
            (
                task.name,
                seed,
                f"{fp32:.4f}",
                f"{int8:.4f}",
                f"{100 * (int8 - fp32):+.2f}",
                f"{full:.1f}",
                f"{small:.1f}",
                f"{full / small:.2f}",
            )
        )
    table(("task", "seed", "fp32", "int8", "points", "fp32, ms", "int8, ms", "times as fast"), rows)


def private(bench: Bench, rounds: int, epsilons: list[float], **budget: Any) -> None:
    """what differential privacy costs: the figure within each budget, and without one"""
    task, rows = bench.task, []
    examples = sum(1 for _ in bench.train.open(encoding="utf-8"))
    for seed in range(1, rounds + 1):
        found, _ = bench.ours(f"{task.name}-ours", seed)
        rows.append(("none", seed, f"{found['figures'][task.figure]:.4f}", "", f"{found['seconds']:.0f}"))
        for epsilon in epsilons:
            bounds = {"epsilon": epsilon, "delta": 0.1 / examples}
            found, _ = bench.ours(f"{task.name}-private", seed, privacy=bounds, budget=budget)
            figures = found["figures"]
            told = (f"{figures[task.figure]:.4f}", f"{figures['noise_multiplier']:.2f}", f"{found['seconds']:.0f}")
            rows.append((f"{figures['epsilon_spent']:.2f}", seed, *told))
    table(("epsilon", "seed", task.figure, "noise", "seconds"), rows)


def _exact(values: tuple[float, ...]) -> str:
    """Four digits: a figure of merit says little in three."""
    ends = f" ({min(values):.4f}–{max(values):.4f})" if len(values) > 1 else ""
    return f"{Spread(values).median:.4f}{ends}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python hack/bench/tasks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for function in (quality, distil, precision, private):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(run=function)
        command.add_argument("task", choices=TASKS)
        command.add_argument("--epochs", type=int, default=1)
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--rounds", type=int, default=1, help="each with another seed")
        command.add_argument("--examples", type=int, help="to train on; 0 for all (spam: all, pos: 10,000)")
        command.add_argument("--tests", type=int, default=0, help="to judge by; 0 for all")
        command.add_argument("--length", type=int, help="of texts, in tokens (spam: 128, pos: 64)")
        if function is distil:
            command.add_argument("--layers", type=int, nargs="+", default=[0, 5], help="of the teacher's six (0 5)")
        if function is private:
            command.add_argument("--epsilons", type=float, nargs="+", default=[8.0, 3.0], help="budgets (8 3)")
            command.add_argument("--batch", type=int, default=256, help="examples in a step, on average (256)")
            command.add_argument("--private-epochs", type=int, default=3, help="within a budget (3)")
            command.add_argument("--rate", type=float, default=5e-3, help="learning rate within a budget (0.005)")
            command.add_argument("--lora", type=int, default=8, help="rank of small matrices; 0: all weights (8)")
    given = vars(parser.parse_args())
    run, rounds = given.pop("run"), given.pop("rounds")
    own = {name: name for name in ("layers", "epsilons", "batch", "rate", "lora")} | {"private_epochs": "epochs"}
    more = {own[name]: given.pop(name) for name in own if name in given}
    task, length = TASKS[given.pop("task")], given.pop("length")
    run(Bench(replace(task, length=length or task.length), **given), rounds, **more)


if __name__ == "__main__":
    main()
