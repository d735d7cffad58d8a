"""Shares of predicted labels, compared both ways: a label that the canary answers more often, or less often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloze_operator.analysis.counts import Counts, Pair, joined
from cloze_operator.analysis.evidence import Comparison, compare


@dataclass(frozen=True, slots=True)
class Shift:
    """A label that one arm answers more often: the canary when `upwards`, the stable one otherwise.

    seen: the comparison; of a shift downwards its arms are exchanged.
    """

    label: str
    upwards: bool
    seen: Comparison

    @property
    def canary(self) -> Counts:
        """The canary's predictions of this label."""
        return self.seen.canary if self.upwards else self.seen.stable

    @property
    def stable(self) -> Counts:
        """The stable arm's predictions of this label."""
        return self.seen.stable if self.upwards else self.seen.canary


def largest_shift(predictions: Mapping[str, Sequence[Pair]], *, alpha: float, least_difference: float) -> Shift:
    """The shift with the strongest evidence, a proven one first.

    predictions: of each label, its predictions among all of its arm; at least one label. alpha: probability of calling
    equal arms different, over all labels and both ways.
    """
    turned = {
        (label, upwards): pairs if upwards else [Pair(pair.stable, pair.canary) for pair in pairs]
        for label, pairs in predictions.items()
        for upwards in (True, False)
    }
    differences = {key: _differences(pairs) for key, pairs in turned.items()}
    # What never differed by as much can't be a proof, so it isn't weighed; a hundred labels would take their time. That
    # holds for all predictions so far, which are what is compared: what a model answers isn't a matter of its load.
    weighed = [key for key, found in differences.items() if max(found) >= least_difference]
    if not weighed:
        weighed = [max(differences, key=lambda key: differences[key][-1])]
    shifts = [
        Shift(
            *key,
            compare(
                joined(turned[key]), alpha=alpha / len(turned), least_difference=least_difference, later_starts=False
            ),
        )
        for key in weighed
    ]
    return max(shifts, key=lambda shift: (shift.seen.worse, shift.seen.evidence))


def _differences(pairs: Sequence[Pair]) -> list[float]:
    """How much larger the first arm's ratio was after each interval."""
    found = [0.0]
    events = trials = stable_events = stable_trials = 0.0
    for pair in pairs:
        events, trials = events + pair.canary.events, trials + pair.canary.trials
        stable_events, stable_trials = stable_events + pair.stable.events, stable_trials + pair.stable.trials
        found.append(Counts(events, trials).ratio - Counts(stable_events, stable_trials).ratio)
    return found
