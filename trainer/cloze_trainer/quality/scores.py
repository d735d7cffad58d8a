"""A classifier's answers on labelled examples, and the sums over examples that figures are made of."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cloze_api.entities import Scheme

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]

ROUNDING: Final = 1e-5
"""Of the largest number that a model gives: what numbers of equal texts may differ by. float32 has seven digits, of
which the last one or two depend on what else is in the batch, and how long it is: encoders of 2 to 12 layers were seen
to differ by 4 to 6 parts in ten million. Five digits are left, with a margin for deeper ones and other devices."""


@dataclass(frozen=True, slots=True)
class Scores:
    """N items (texts, or words) of E examples.

    logits_NC: of each class. truth_N: its true class. example_N: the item's example, in order. examples: E. slices:
    of each example, as `key=value`.
    """

    logits_NC: npt.NDArray[np.float32]
    truth_N: Classes
    example_N: Classes
    examples: int
    slices: Sequence[Sequence[str]] = ()

    @property
    def predicted(self) -> Classes:
        """The likeliest class of each item."""
        return np.asarray(self.logits_NC.argmax(-1), dtype=np.int64)

    def cooled(self, temperature: float) -> "Scores":
        """With logits divided by the temperature."""
        return replace(self, logits_NC=self.logits_NC / np.float32(temperature))


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
    classes = len(labels)
    hits_N = scores.predicted == scores.truth_N
    found = {"accuracy": Statistic(_by_example(scores, np.stack([hits_N, np.ones_like(hits_N)], 1)), ratio_of)}
    everything_N = np.ones_like(hits_N)
    counts_E3C = np.stack(
        [
            _classes(scores, scores.truth_N, hits_N, classes),
            _classes(scores, scores.predicted, everything_N, classes),
            _classes(scores, scores.truth_N, everything_N, classes),
        ],
        axis=1,
    )
    found["macro_f1"] = Statistic(counts_E3C.reshape(scores.examples, 3 * classes), macro_f1_of)
    if classes == 2:
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


def class_f1(counts_CC: Classes, labels: Sequence[str]) -> dict[str, float]:
    """`f1_<label>` of each label; 0 where a class is neither predicted nor present."""
    sums_C3 = np.stack([np.diag(counts_CC), counts_CC.sum(0), counts_CC.sum(1)], axis=-1)
    return {f"f1_{label}": float(score) for label, score in zip(labels, f1_of(sums_C3), strict=True)}


def _classes(scores: Scores, classes_N: Classes, counted_N: npt.NDArray[np.bool_], classes: int) -> Floats:
    """How many items of each example are of each class, (E, C)."""
    flat = (scores.example_N * classes + classes_N)[counted_N]
    return np.bincount(flat, minlength=scores.examples * classes).reshape(scores.examples, classes).astype(np.float64)


def _by_example(scores: Scores, values_NK: npt.NDArray[Any]) -> Floats:
    sums_EK = np.zeros((scores.examples, values_NK.shape[1]))
    np.add.at(sums_EK, scores.example_N, values_NK)
    return sums_EK


def _entities(scores: Scores, labels: Sequence[str], scheme: Scheme) -> Floats:
    """Entities of each example that are right, predicted, and there."""
    counts_E3 = np.zeros((scores.examples, 3))
    bounds = np.searchsorted(scores.example_N, np.arange(scores.examples + 1))
    predicted_N = scores.predicted
    for example in range(scores.examples):
        own = slice(bounds[example], bounds[example + 1])
        predicted, true = (
            set(scheme.spans([labels[number] for number in part[own]])) for part in (predicted_N, scores.truth_N)
        )
        counts_E3[example] = len(predicted & true), len(predicted), len(true)
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
