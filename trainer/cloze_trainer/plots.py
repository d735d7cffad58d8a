"""Plots of a run for people who look at it in MLflow: how the training went, and what the evaluation says.

PNG, which has the same size however long the run was. Nothing here knows pyplot, whose state is the whole process's.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]
"""A figure by step, in the order in which it was measured."""

_LOSSES = {"loss": "training", "masked_loss": "held out"}
_QUALITY = {
    "masked_accuracy": "masked accuracy",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "entity_f1": "entity F1",
    "validation_accuracy": "accuracy, validation",
    "validation_macro_f1": "macro F1, validation",
    "validation_entity_f1": "entity F1, validation",
}
CURVES = (*_LOSSES, *_QUALITY, "learning_rate")
"""What `training` draws, where it was measured."""

_MOST_NUMBERED, _MOST_NAMED, _MOST_SLICES, _LONGEST_NAME = 20, 60, 40, 32
_INK, _FAINT, _STRONG = "#333333", "#a9c4de", "#2166ac"


def training(curves: Mapping[str, Curve]) -> bytes | None:
    """Losses, quality and learning rate by step, one above the other; None where nothing was measured."""
    parts = [
        ("loss (nats)", {name: label for name, label in _LOSSES.items() if curves.get(name)}),
        ("on held-out data", {name: label for name, label in _QUALITY.items() if curves.get(name)}),
        ("learning rate", {"learning_rate": ""} if curves.get("learning_rate") else {}),
    ]
    parts = [(title, names) for title, names in parts if names]
    if not parts:
        return None
    figure = Figure(figsize=(8, 2.6 * len(parts)), layout="constrained")
    rows = figure.subplots(len(parts), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, names) in zip(rows, parts, strict=True):
        for name, label in names.items():
            steps, values = zip(*curves[name], strict=True)
            # A line of few points would show none of them.
            axes.plot(steps, values, label=label, linewidth=1.2, marker="o" if len(steps) < 50 else "", markersize=3)
        axes.set_ylabel(title)
        axes.grid(alpha=0.25)
        if len(names) > 1 or title == "on held-out data":
            axes.legend(frameon=False)
    rows[-1].set_xlabel("step")
    return _png(figure)


def evaluation(report: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Name and image of each plot of a classifier's `evaluation.json`."""
    if "confusion" in report:
        yield "confusion", confusion(report["confusion"], report["labels"])
    if "reliability" in report:
        yield "reliability", reliability(report["reliability"], report.get("reliability_before"))
    if report.get("slices"):
        yield "slices", slices(report["slices"])


def confusion(counts_CC: Sequence[Sequence[int]], labels: Sequence[str]) -> bytes:
    """True classes in rows, predicted ones in columns; a field's shade is its share of the row."""
    counts = np.asarray(counts_CC)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(14.0, 3.5 + 0.45 * len(labels))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if len(labels) <= _MOST_NAMED:
        axes.set_xticks(range(len(labels)), _short(labels), rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(labels)), _short(labels), parse_math=False)
    if len(labels) <= _MOST_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else _INK
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return _png(figure)


def reliability(
    after: Sequence[tuple[int, float, float]], before: Sequence[tuple[int, float, float]] | None = None
) -> bytes:
    """How often the model is right against how sure it is, by bins as `calibration.reliability` gives them.

    before: without the calibration, where there is one.
    """
    figure = Figure(figsize=(5.5, 6.5), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":", label="as sure as right")
    drawn = [(before, "before calibration", _FAINT)] if before is not None else []
    for bins, label, colour in [*drawn, (after, "after calibration" if before is not None else "model", _STRONG)]:
        filled = [(sure, right) for count, sure, right in bins if count]
        if filled:
            axes.plot(*zip(*filled, strict=True), marker="o", markersize=4, linewidth=1.4, color=colour, label=label)
    axes.set_ylabel("share that is right")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
    width = 1 / len(after)
    below.bar(
        [(number + 0.5) * width for number in range(len(after))],
        [count for count, *_ in after],
        0.9 * width,
        color=_STRONG,
    )
    below.set_xlabel("probability of the predicted class")
    below.set_ylabel("items")
    return _png(figure)


def slices(found: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The task's figure of each slice, the worst first; faint where there are too few examples to count."""
    worst = sorted(found.items(), key=lambda item: item[1]["figure"])[:_MOST_SLICES]
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(worst)), layout="constrained")
    axes = figure.subplots()
    places = range(len(worst))
    colours = [_STRONG if each["counts"] else _FAINT for _, each in worst]
    axes.barh(places, [each["figure"] for _, each in worst], color=colours, height=0.7)
    for place, (_, each) in zip(places, worst, strict=True):
        text = f"{each['figure']:.3f}   {each['examples']} examples"
        axes.text(0.01, place, text, va="center", fontsize=8, bbox={"color": "white", "alpha": 0.75, "pad": 1})
    _name_rows(axes, [name for name, _ in worst])
    axes.set_xlim(min(0.0, *(each["figure"] for _, each in worst)), 1)
    more = f", the worst {len(worst)} of {len(found)}" if len(worst) < len(found) else ""
    axes.set_xlabel(f"figure of the task{more}; faint: too few examples to count")
    return _png(figure)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    # A `$` in a name begins no formula.
    axes.set_yticks(range(len(names)), _short(names), parse_math=False)
    axes.invert_yaxis()


def _short(names: Sequence[str]) -> list[str]:
    return [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # It names letters that the font lacks, which are a label's.
        warnings.simplefilter("ignore")
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
