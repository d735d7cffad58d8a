"""A classifier's answers on labelled examples, and the sums over examples that figures are made of."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cloze_api.entities import OUTSIDE, Scheme

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]

ROUNDING: Final = 1e-5
"""Of the largest number that a model gives: what numbers of equal texts may differ by. float32 has seven digits, of
which the last one or two depend on what else is in the batch, and how long it is: encoders of 2 to 12 layers were seen
to differ by 4 to 6 parts in ten million. Five digits are left, with a margin for deeper ones and other devices."""


@dataclass(frozen=True, slots=True)
class Scores:
    """N items (texts, or words) of E examples, and U words that the model didn't read.

    logits_NC: of each class. truth_N: its true class. example_N: the item's example, in order. examples: E. slices:
    of each example, as `key=value`. unread_U3: of each unread word the example, its place among all of the example's
    words, and its true class, in ascending order.

    An unread word is answered with nothing, as in a request: it is never right, and an entity in it is missed. Else a
    model would be the better the less it reads, and one that reads all worse than one that stops where it gets hard.
    How sure a model is (log loss, calibration, rates) is said of what it has answered.
    """

    logits_NC: npt.NDArray[np.float32]
    truth_N: Classes
    example_N: Classes
    examples: int
    slices: Sequence[Sequence[str]] = ()
    unread_U3: Classes = field(default_factory=lambda: np.zeros((0, 3), np.int64))

    @property
    def predicted(self) -> Classes:
        """The likeliest class of each item."""
        return np.asarray(self.logits_NC.argmax(-1), dtype=np.int64)

    def only(self, marks_N: npt.NDArray[np.bool_]) -> "Scores":
        """Of some items."""
        return replace(
            self,
            logits_NC=self.logits_NC[marks_N],
            truth_N=self.truth_N[marks_N],
            example_N=self.example_N[marks_N],
        )


def probabilities(logits_NC: npt.NDArray[Any], temperature: float = 1.0) -> Floats:
    """Softmax over classes of logits that are divided by the temperature."""
    shifted_NC = logits_NC.astype(np.float64) / temperature
    shifted_NC -= shifted_NC.max(-1, keepdims=True)
    powers_NC = np.exp(shifted_NC)
    shares_NC: Floats = powers_NC / powers_NC.sum(-1, keepdims=True)
    return shares_NC


@dataclass(frozen=True, slots=True)
class Statistic:
    """A figure as a function of sums over examples, which may be weighted anew.

    sums_EK: of each example. value: from sums (…, K) to figures (…).
    """

    sums_EK: Floats
    value: Callable[[Floats], Floats]

    @property
    def figure(self) -> float:
        """Over all examples."""
        return float(self.value(self.sums_EK.sum(0)))

    def part(self, chosen_E: npt.NDArray[np.bool_]) -> "Statistic":
        """Over some of the examples."""
        return replace(self, sums_EK=self.sums_EK[chosen_E])


def statistics(scores: Scores, labels: Sequence[str], *, per_token: bool) -> Mapping[str, Statistic]:
    """`accuracy` and `macro_f1`; `f1` with two labels, of the last; `entity_f1` where labels mark entities.

    Raises ValueError where there is no item: nothing can be said then.
    """
    if not len(scores.truth_N):
        raise ValueError("there is nothing to judge the model by")
    counts_E3C = _counts(scores, len(labels))
    found = {
        "accuracy": Statistic(counts_E3C[:, [0, 2]].sum(-1), ratio_of),
        "macro_f1": Statistic(counts_E3C.reshape(scores.examples, -1), macro_f1_of),
    }
    if len(labels) == 2:
        found["f1"] = Statistic(counts_E3C[:, :, 1], f1_of)
    if per_token and (scheme := Scheme(labels)).joins:
        found["entity_f1"] = Statistic(_entities(scores, labels, scheme), f1_of)
    return found


def mean(values_E: npt.NDArray[Any], of_E: npt.NDArray[np.bool_] | None = None) -> Statistic:
    """The mean over examples, or over some of them."""
    counted_E = np.ones(len(values_E)) if of_E is None else of_E.astype(np.float64)
    return Statistic(np.stack([values_E * counted_E, counted_E], axis=1), ratio_of)


def rank_correlation(given_E: Floats, true_E: Floats) -> Statistic:
    """Spearman's correlation, of ranks among all examples; equal values share a rank. 0 where either is constant.

    given_E: a model's, which are equal where nothing but `ROUNDING` tells them apart. Of examples that are drawn again,
    or of some of them, it is the correlation of the ranks that they have among all.
    """
    return correlation(_ranks(_levelled(given_E)), _ranks(true_E))


def correlation(one_E: Floats, other_E: Floats) -> Statistic:
    """Pearson's correlation; 0 where either is constant."""
    # Centred and scaled first, so that products of large numbers don't lose what tells them apart.
    first_E, second_E = (
        (values_E - values_E.mean()) / (np.abs(values_E - values_E.mean()).max() or 1.0)
        for values_E in (one_E, other_E)
    )
    products = [np.ones_like(first_E), first_E, second_E, first_E**2, second_E**2, first_E * second_E]
    return Statistic(np.stack(products, axis=1), _correlation)


def root_mean_square(values_E: Floats) -> Statistic:
    """The root of the mean of squares."""
    return Statistic(np.stack([values_E**2, np.ones_like(values_E)], axis=1), lambda sums: np.sqrt(ratio_of(sums)))


def _levelled(values_E: Floats) -> Floats:
    """Each value, or the least one that it differs from by rounding alone.

    Digits that are cut off would part what lies on either side of a cut; here a level begins at a value, and nothing
    that is equal to it is parted from it.
    """
    values = np.unique(values_E).tolist()
    reach = ROUNDING * max(map(abs, values))
    levels, place = [], 0
    while place < len(values):
        levels.append(values[place])
        place = bisect_right(values, values[place] + reach, lo=place + 1)
    return np.asarray(levels)[np.searchsorted(levels, values_E, side="right") - 1]


def _ranks(values_E: Floats) -> Floats:
    """From -1/2 to 1/2."""
    _, place_E, counts = np.unique(values_E, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - counts / 2)[place_E] / len(values_E) - 0.5)


def _correlation(sums: Floats) -> Floats:
    """Pearson's, of sums of ones, both values, their squares and their products."""
    count = np.maximum(sums[..., 0], 1.0)
    first, second, first_2, second_2, both = (sums[..., place] / count for place in range(1, 6))
    spread = (first_2 - first**2) * (second_2 - second**2)
    return np.asarray(np.where(spread > 1e-18, (both - first * second) / np.sqrt(np.maximum(spread, 1e-18)), 0.0))


def confusion(truth_N: Classes, predicted_N: Classes, classes: int) -> Classes:
    """Items by true class (row) and predicted class (column)."""
    flat = np.bincount(truth_N * classes + predicted_N, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def class_f1(scores: Scores, labels: Sequence[str]) -> dict[str, float]:
    """`f1_<label>` of each label; 0 where a class is neither predicted nor present."""
    figures_C = f1_of(_counts(scores, len(labels)).sum(0).T)
    return {f"f1_{label}": float(figure) for label, figure in zip(labels, figures_C, strict=True)}


def _counts(scores: Scores, classes: int) -> Floats:
    """How many items of each example and class are right, predicted, and there, (E, 3, C)."""

    def by_class(example_N: Classes, class_N: Classes) -> Floats:
        flat = np.bincount(example_N * classes + class_N, minlength=scores.examples * classes)
        return flat.reshape(scores.examples, classes).astype(np.float64)

    hits_N = scores.predicted == scores.truth_N
    example_U, _, truth_U = scores.unread_U3.T
    return np.stack(
        [
            by_class(scores.example_N[hits_N], scores.truth_N[hits_N]),
            by_class(scores.example_N, scores.predicted),
            by_class(scores.example_N, scores.truth_N) + by_class(example_U, truth_U),
        ],
        axis=1,
    )


def _entities(scores: Scores, labels: Sequence[str], scheme: Scheme) -> Floats:
    """Entities of each example that are right, predicted, and there. Nothing is predicted in words that aren't read."""
    counts_E3 = np.zeros((scores.examples, 3))
    every_E = np.arange(scores.examples + 1)
    bounds, gaps = (np.searchsorted(each, every_E) for each in (scores.example_N, scores.unread_U3[:, 0]))
    predicted_N = scores.predicted
    for example in range(scores.examples):
        own = slice(bounds[example], bounds[example + 1])
        predicted, true = ([labels[number] for number in part[own]] for part in (predicted_N, scores.truth_N))
        for _, place, missed in scores.unread_U3[gaps[example] : gaps[example + 1]]:
            predicted.insert(place, OUTSIDE)
            true.insert(place, labels[missed])
        counts_E3[example] = scheme.compare(predicted, true)
    return counts_E3


def ratio_of(sums: Floats) -> Floats:
    """Of sums of values, and of how many there are; 0 where there are none."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1.0))


def f1_of(sums: Floats) -> Floats:
    """Of sums of hits, predicted and true ones; 0 where there is neither."""
    total = sums[..., 1] + sums[..., 2]
    return np.asarray(np.where(total > 0, 2 * sums[..., 0] / np.maximum(total, 1.0), 0.0))


def macro_f1_of(sums: Floats) -> Floats:
    """Mean over the classes that occur."""
    counts = sums.reshape(*sums.shape[:-1], 3, -1)
    total = counts[..., 1, :] + counts[..., 2, :]
    scores = np.where(total > 0, 2 * counts[..., 0, :] / np.maximum(total, 1.0), 0.0)
    return np.asarray(scores.sum(-1) / np.maximum((total > 0).sum(-1), 1))
