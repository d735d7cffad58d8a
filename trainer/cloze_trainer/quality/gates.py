"""Whether a model is good enough: bounds on its figures, and the version that it must not be worse than. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloze_api.evaluation import Gate

_CHAMPION: Final = "champion"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one gate. message: a sentence with the numbers, either way. figures: what only this gate knows."""

    gate: str
    passed: bool
    message: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A version beside the one that it is to replace, on the same examples.

    against: the other's name. difference: the figure of the new one minus that of the old. least: what it is at least,
    with the confidence.
    """

    against: str
    figure: str
    new: float
    old: float
    difference: float
    least: float


def bound(gate: Gate, figures: Mapping[str, float]) -> Verdict:
    """One bound. A figure that is missing passes none: the examples didn't give it."""
    wanted = " and ".join(
        f"at {side} {limit:g}" for side, limit in (("least", gate.minimum), ("most", gate.maximum)) if limit is not None
    )
    value = figures.get(gate.figure)
    if value is None:
        return Verdict(gate.figure, False, f"{gate.figure} must be {wanted}, and the test examples don't give it")
    passed = (gate.minimum is None or value >= gate.minimum) and (gate.maximum is None or value <= gate.maximum)
    return Verdict(gate.figure, passed, f"{gate.figure} is {value:.4f}, and must be {wanted}")


def no_worse(comparison: Comparison, max_loss: float, confidence: float) -> Verdict:
    """Whether the new version loses no more than allowed, with this confidence."""
    passed = comparison.least >= -max_loss
    sure = f"{100 * confidence:g} % sure"
    message = (
        f"{comparison.figure} is {comparison.new:.4f}, that of {comparison.against} {comparison.old:.4f} on the same "
        f"examples: it is {sure} to lose at most {max(0.0, -comparison.least):.4f}, and {max_loss:g} may be lost"
    )
    figures = {"": comparison.old, "difference_": comparison.difference, "least_difference_": comparison.least}
    named = {f"{_CHAMPION}_{what}{comparison.figure}": value for what, value in figures.items()}
    return Verdict(_CHAMPION, passed, message, named)


def incomparable(why: str) -> Verdict:
    """That there is a version which the new one can't be compared with: it isn't known to be no worse."""
    return Verdict(_CHAMPION, False, why)


def refusal(verdicts: Sequence[Verdict]) -> str:
    """Why the model isn't good enough; empty when it is."""
    return "; ".join(verdict.message for verdict in verdicts if not verdict.passed)


def unknown(gates: Sequence[Gate], figures: Sequence[str]) -> list[str]:
    """The gates' figures that no evaluation will give."""
    return [gate.figure for gate in gates if gate.figure not in figures]
