"""The closing tables: quality, requests, rollouts, time."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from traffic import Traffic
from trials import RATE, Story
from watch import Resource

_FAREWELL = """The cluster stays up. To look around:
  eval "$(python3 hack/cluster env)"
  kubectl -n {namespace} get cloze
  kubectl -n {namespace} describe modeldeployment spam
  kubectl -n cloze-system port-forward service/cloze-mlflow 5000    then http://localhost:5000
  kubectl -n {namespace} port-forward service/spam 8080:80           then
  curl -s localhost:8080/v1/classify --json '{{"inputs": "You won a free prize, click here"}}'
`make demo-clean` deletes the demo's objects, `make cluster-down` stops the cluster."""


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """right: the columns of figures."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def quality(jobs: Mapping[str, Resource], baselines: Mapping[str, float], console: Console) -> None:
    """How good each model is. jobs: status of each training job by name."""
    figures = ("Cloze", "baseline", "difference")
    table = _table("Quality on held-out text", "model", "measure", *figures, "what the baseline is", right=figures)

    def version(name: str) -> str:
        model = jobs[name]["model"]
        return f"{model['name']} v{model['version']}"

    accuracy = jobs["encoder"]["metrics"]["masked_accuracy"]
    table.add_row(version("encoder"), "masked-token accuracy", f"{accuracy:.4f}", "", "", "")
    for name, baseline, metric, measure, what in (
        ("spam", "spam", "f1", "F1 of spam", "TF-IDF, logistic regression"),
        ("spam-better", "spam", "f1", "F1 of spam", "TF-IDF, logistic regression"),
        ("part-of-speech", "part-of-speech", "accuracy", "accuracy over words", "most frequent tag"),
    ):
        if name in jobs:
            value, other = jobs[name]["metrics"][metric], baselines[baseline]
            table.add_row(version(name), measure, f"{value:.4f}", f"{other:.4f}", f"{value - other:+.4f}", what)
    if "spam-student" in jobs:
        figures_of = jobs["spam-student"]["metrics"]
        # An int8 that loses too much isn't there, and fp32 serves.
        precision = "int8" if "accuracy_int8" in figures_of else "fp32"
        value = figures_of.get("accuracy_int8", figures_of["accuracy"])
        taught, slower = figures_of["teacher_accuracy"], _speedup(figures_of)
        what = f"its teacher in fp32, which takes {slower:.1f} × as long"
        difference = f"{value - taught:+.4f}"
        table.add_row(
            version("spam-student"), f"accuracy in {precision}", f"{value:.4f}", f"{taught:.4f}", difference, what
        )
    console.print(table)


def tasks(jobs: Mapping[str, Resource], console: Console) -> None:
    """Each model's figures that have an interval, which are its main ones. jobs: status of each job by name."""
    table = _table("The further tasks, on held-out text", "model", "figure", "value", "95 %", right=("value",))
    for status in jobs.values():
        model, figures = status["model"], status["metrics"]
        named = [name.removeprefix("lower_") for name in figures if name.startswith("lower_")]
        for number, name in enumerate(sorted(named)):
            first = "" if number else f"{model['name']} v{model['version']}"
            interval = f"{figures[f'lower_{name}']:.4f} to {figures[f'upper_{name}']:.4f}"
            table.add_row(first, name, f"{figures[name]:.4f}", interval)
    console.print(table)


def _speedup(figures: Mapping[str, float]) -> float:
    """How much longer one text takes a teacher in fp32 than its student in int8, where it has that."""
    return figures["teacher_latency_ms"] / figures.get("latency_ms_int8", figures["latency_ms"])


def requests(answers: Mapping[str, Traffic], console: Console) -> None:
    """What came back from each service."""
    figures = ("sent", "failed", "right", "p50", "p95")
    table = _table("Requests", "service", *figures, right=figures)
    for service, seen in answers.items():
        right = f"{seen.right / max(1, seen.judged):.4f}"
        p50, p95 = (_milliseconds(seen.quantile(share)) for share in (0.5, 0.95))
        table.add_row(service, str(seen.sent), str(seen.failed), right, p50, p95)
    console.print(table)


def rollouts(story: Story, console: Console) -> None:
    """How each canary ended, and what became of the requests meanwhile."""
    figures = ("requests", "failed", "right", "p95", "s")
    table = _table("Rollouts", "spam", "what it is", "result", "steps", *figures, "alerts", right=figures)
    for one in story.rollouts:
        decision, canary = one.course.decision, one.canary
        table.add_row(
            f"v{one.version}",
            one.what,
            "promoted" if decision.promoted else f"rolled back: {decision.reason}",
            " → ".join(f"{weight} %" for weight in one.course.steps),
            str(canary.requests),
            str(canary.failed),
            f"{canary.right / max(1, len(canary.seconds)):.4f}",
            f"{_milliseconds(canary.quantile(0.95))} (stable {_milliseconds(one.stable.quantile(0.95))})",
            f"{one.course.seconds:.0f}",
            one.alerts,
        )
    console.print(table)
    for one in story.rollouts:
        if one.course.decision.message:
            console.print(f"v{one.version}: {one.course.decision.message}", markup=False, highlight=False)
    console.print(
        f"Figures are of the canary's requests until the decision, s is from the proposal to it. Of all {story.sent:,} "
        f"requests at {RATE:.0f} a second {story.lost} got lost (no reply, or the gateway's own 502 to 504), "
        f"{story.mixed_up} got another's answer, and {story.own_failures} were failed by a harmful version.",
        markup=False,
        highlight=False,
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def times(stages: Mapping[str, float], console: Console) -> None:
    """How long each stage took, in seconds."""
    table = _table("Time", "stage", "seconds", right=("seconds",))
    for stage, seconds in stages.items():
        table.add_row(stage, f"{seconds:.0f}")
    table.add_row("together", f"{sum(stages.values()):.0f}")
    console.print(table)


def farewell(namespace: str, console: Console) -> None:
    """What to look at now."""
    console.print(_FAREWELL.format(namespace=namespace), highlight=False, markup=False, soft_wrap=True)
