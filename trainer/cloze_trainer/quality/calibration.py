"""Probabilities that say how often they are right."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cloze_api.evaluation import Evaluation
from cloze_api.manifest import Calibration
from cloze_trainer.quality.scores import Classes, Floats, Scores, probabilities

Marks = npt.NDArray[np.bool_]

BINS = 15
_LOWEST, _HIGHEST = 0.05, 20.0
_HALVINGS = 50


def log_loss(logits_NC: npt.NDArray[Any], truth_N: Classes, temperature: float = 1.0) -> float:
    """Mean of -log of the true class' probability, in nats."""
    scaled_NC = logits_NC.astype(np.float64) / temperature
    highest_N = scaled_NC.max(-1)
    totals_N = highest_N + np.log(np.exp(scaled_NC - highest_N[:, None]).sum(-1))
    return float((totals_N - scaled_NC[np.arange(len(truth_N)), truth_N]).mean())


def temperature(logits_NC: npt.NDArray[Any], truth_N: Classes) -> float:
    """The one with the lowest `log_loss` (Guo et al., arXiv:1706.04599), between 0.05 and 20.

    As though one item more had been right and one more wrong, its likeliest other class being the true one: where all
    are right, any lower temperature would be better, and N items don't show that one is right always. (Targets of
    (N + 1) / (N + 2), Platt 1999, doi:10.7551/mitpress/1113.003.0008.)

    The loss is convex in 1/T, and its derivative, the mean of what is expected of the logit minus the target's one,
    rises with it.
    """
    exact_NC = logits_NC.astype(np.float64)
    everyone_N, share = np.arange(len(truth_N)), (len(truth_N) + 1) / (len(truth_N) + 2)
    others_NC = exact_NC.copy()
    others_NC[everyone_N, truth_N] = -np.inf
    target_N = share * exact_NC[everyone_N, truth_N] + (1 - share) * others_NC.max(-1)

    def slope(candidate: float) -> float:
        return float(((probabilities(exact_NC, candidate) * exact_NC).sum(-1) - target_N).mean())

    low, high = np.log(_LOWEST), np.log(_HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # Too sure of itself: a higher temperature is needed.
        low, high = (middle, high) if slope(float(np.exp(middle))) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def reliability(shares_NC: Floats, truth_N: Classes) -> list[tuple[int, float, float]]:
    """Of items by the likeliest class' probability, in 15 bins of equal width: how many, how sure, how often right."""
    sure_N = shares_NC.max(-1)
    right_N = shares_NC.argmax(-1) == truth_N
    bin_N = np.minimum((sure_N * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bin_N, minlength=BINS)
    many = np.maximum(counts, 1)
    sure = np.bincount(bin_N, weights=sure_N, minlength=BINS) / many
    right = np.bincount(bin_N, weights=right_N, minlength=BINS) / many
    return [(int(count), float(mean), float(share)) for count, mean, share in zip(counts, sure, right, strict=True)]


def calibration_error(shares_NC: Floats, truth_N: Classes) -> float:
    """Expected calibration error: how far probabilities are from how often they are right, on average over items."""
    bins = reliability(shares_NC, truth_N)
    return sum(count * abs(sure - right) for count, sure, right in bins) / max(1, len(truth_N))


def halves(example_N: Classes) -> Iterator[tuple[Marks, Marks]]:
    """Items by examples: one half and the other, either way. What is found on one is judged on the other.

    On the items that it was found on it would look better than it is. Where there is no other half, each is both. Which
    half it is says nothing of the example: files often alternate between labels.
    """
    half_E = np.random.default_rng(0).permutation(int(example_N.max()) + 1) % 2
    half_N = half_E[example_N]
    for half in (0, 1):
        own_N, other_N = half_N == half, half_N != half
        if own_N.any():
            yield own_N, other_N if other_N.any() else own_N


def decided(
    example_N: Classes,
    choose: Callable[[Marks], Calibration | None],
    decide: Callable[[Marks, Calibration], Marks],
) -> Marks:
    """What is decided of each half of the examples by the calibration that is chosen on the other half."""
    parts = [(own_N, decide(own_N, choose(other_N) or Calibration())) for own_N, other_N in halves(example_N)]
    whole = np.zeros((len(example_N), *parts[0][1].shape[1:]), bool)
    for own_N, part in parts:
        whole[own_N] = part
    return whole


def held_out_error(logits_NC: npt.NDArray[Any], truth_N: Classes, example_N: Classes) -> float:
    """`calibration_error` after scaling, of each half of the examples with the temperature of the other half."""
    shares_NC = np.empty(logits_NC.shape)
    for own_N, other_N in halves(example_N):
        shares_NC[own_N] = probabilities(logits_NC[own_N], temperature(logits_NC[other_N], truth_N[other_N]))
    return calibration_error(shares_NC, truth_N)


def certainty(scores: Scores, temperature: float, *, held_out: bool) -> dict[str, float]:
    """Figures of how sure a model is. held_out: whether the temperature was found on these items."""
    logits_NC, truth_N = scores.logits_NC, scores.truth_N
    error = (
        held_out_error(logits_NC, truth_N, scores.example_N)
        if held_out
        else calibration_error(probabilities(logits_NC, temperature), truth_N)
    )
    return {"log_loss": log_loss(logits_NC, truth_N, temperature), "calibration_error": error}


def diagrams(scores: Scores, temperature: float, *, scaled: bool) -> dict[str, Any]:
    """`reliability` for the report, and without the temperature where it was scaled."""
    before, after = (reliability(probabilities(scores.logits_NC, each), scores.truth_N) for each in (1.0, temperature))
    return {"reliability": after, "reliability_before": before if scaled else None}


def chosen_thresholds(
    shares_NC: Floats, truth_N: Classes, labels: Sequence[str], asked: Evaluation
) -> dict[str, float]:
    """By precision or by recall, whichever is asked for; none where neither is."""
    if asked.abstain_below_precision is not None:
        return thresholds(shares_NC, truth_N, labels, asked.abstain_below_precision)
    if asked.abstain_keeping_recall is not None:
        return recall_thresholds(shares_NC, truth_N, labels, asked.abstain_keeping_recall)
    return {}


def thresholds(shares_NC: Floats, truth_N: Classes, labels: Sequence[str], precision: float) -> dict[str, float]:
    """For each label the lowest probability from which on so many of its predictions are right; 1 where there is none.

    Halfway to the next lower probability, so that the last digit decides nothing.
    """
    found = {}
    sure_N, predicted_N = shares_NC.max(-1), shares_NC.argmax(-1)
    for number, label in enumerate(labels):
        own_N = predicted_N == number
        order = np.argsort(-sure_N[own_N], kind="stable")
        sure, right = sure_N[own_N][order], (truth_N[own_N] == number)[order]
        precise = np.cumsum(right) / np.arange(1, len(right) + 1) >= precision
        # Of items that are equally sure all or none are above a bound.
        last = np.append(sure[1:] < sure[:-1], True) if len(sure) else np.zeros(0, bool)
        places = np.flatnonzero(precise & last)
        if not len(places):
            found[label] = 1.0
            continue
        place = int(places[-1])
        below = float(sure[place + 1]) if place + 1 < len(sure) else 0.0
        found[label] = 0.0 if place + 1 == len(sure) else (float(sure[place]) + below) / 2
    return found


def recall_thresholds(shares_NC: Floats, truth_N: Classes, labels: Sequence[str], recall: float) -> dict[str, float]:
    """For each label the highest probability from which on so many of its items are predicted so.

    0 where even all such predictions are too few; none for a label without items. Halfway to the next lower
    probability of its predictions, as `thresholds`.
    """
    found = {}
    sure_N, predicted_N = shares_NC.max(-1), shares_NC.argmax(-1)
    for number, label in enumerate(labels):
        own_N, true_N = predicted_N == number, truth_N == number
        if not true_N.any():
            continue
        hits = -np.sort(-sure_N[own_N & true_N])
        enough = np.flatnonzero(np.arange(1, len(hits) + 1) / true_N.sum() >= recall)
        if not len(enough):
            found[label] = 0.0
            continue
        bound = float(hits[enough[0]])
        found[label] = (bound + float(sure_N[own_N & (sure_N < bound)].max(initial=0.0))) / 2
    return found


def average_precision(shares_N: Floats, positive_N: Marks) -> float:
    """Area under the precision-recall curve, as the mean of precisions weighted by what recall gains at each.

    0 without a positive one.
    """
    total = int(positive_N.sum())
    if not total:
        return 0.0
    order = np.argsort(-shares_N, kind="stable")
    ordered_N, hits_N = shares_N[order], np.cumsum(positive_N[order])
    last_N = np.append(ordered_N[1:] < ordered_N[:-1], True)
    hits, ranks = hits_N[last_N], np.flatnonzero(last_N) + 1
    gained = np.diff(hits, prepend=0) / total
    return float((gained * hits / ranks).sum())
