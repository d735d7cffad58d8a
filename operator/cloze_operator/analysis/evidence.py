"""Is a canary worse than the stable version? A sequential test on counts, with its false alarms bounded.

In each interval both arms see requests (trials) and count some of them (events: errors, slow replies, unknown tokens).
If the canary is no worse, then given all events of an interval each is the canary's with probability `w`, its share of
the trials, whatever the events' rate was: an outage that hits both arms says nothing against the canary. If its events
are `lift` times as frequent as the stable arm's, that probability is `lift·w / (lift·w + 1 - w)`. The likelihood ratio
of the two, averaged over a prior on lifts, is a mixture sequential probability ratio test (Robbins, "Statistical
methods related to the law of the iterated logarithm", 1970), and a supermartingale if the canary is no worse. By
Ville's inequality it ever reaches 1/alpha with probability alpha at most, however often and whenever one looks: the
bound holds for the whole rollout, over all of its steps and changes of weight.

Real errors come in clusters (one client retries, one replica restarts), which a test for independent events would take
for proof. Two measures, which can only lower the evidence, and so keep the bound: no interval adds more than a share of
the evidence needed, so that a burst in one of them proves nothing, and the evidence is divided by the dispersion of the
events between the arms (Pearson's statistic over its expectation, at the likeliest lift): 1 for independent events,
about a cluster's size for clustered ones, and untouched by whatever hits both arms alike. A canary that fails every
time beside a stable arm that never does is beyond any lift, and would look like one large cluster; but its events come
evenly over time, as those of clusters don't, so that their dispersion among its own requests is taken where it is less.

A canary may turn bad in the middle, as when a step gives it more requests than it can answer. Beside its good time
before that looks like one large cluster, too. So with each interval the same test starts once more, as if nothing had
been seen: a likelihood ratio that starts later is a supermartingale as well, and so is a weighted mean of them all,
which reaches 1/alpha where one of them reaches the inverse of alpha times its weight. Most of it is the first one's. As
a few clusters weigh more in a short time, an interval adds less to a later test's evidence, and how much errors come in
clusters is known by then: it is divided by the first one's dispersion before it, at least.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloze_operator.analysis.counts import Counts, Interval, total

#: Lifts of the prior, evenly spaced in their logarithm: from a fifth more to thirty times as many events.
_LIFTS: Final = tuple(1.2 * 25 ** (step / 23) for step in range(24))

#: How unevenly events fall is measured at the likeliest lift, and a canary may have fewer than the stable arm.
_BETTER: Final = (0.05, 0.15, 0.4, 0.7)

#: No interval adds more than this share of the evidence needed: a proof takes three intervals at least.
_LARGEST_SHARE: Final = 0.45

#: Weight of all tests that start later than the rollout, each of which goes on for so many intervals, or until what it
#: says is this unlikely.
_LATER_STARTS: Final = 0.1
_LARGEST_LATER_SHARE: Final = 0.35
_LATER_INTERVALS: Final = 16
_GIVEN_UP: Final = math.log(0.5)

#: A variance below it is none: one request of a hundred million that differs from all others has a larger one.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The state of one comparison.

    evidence: the largest natural logarithm of the martingale so far; `needed` of it proves that the canary is worse.
    canary, stable: all that was counted, or what proves it where that began later; evidence and needed likewise.
    dispersion: what the evidence was divided by. detectable: the canary's ratio that this many requests would prove on
    average, at the stable arm's present ratio; None when no ratio would.
    """

    worse: bool
    evidence: float
    needed: float
    canary: Counts
    stable: Counts
    dispersion: float
    detectable: float | None


def compare(
    intervals: Sequence[Interval],
    *,
    alpha: float,
    tolerance: float = 1.0,
    least_difference: float = 0.0,
    later_starts: bool = True,
) -> Comparison:
    """Weigh what was seen since the rollout began.

    intervals: in order of time, over all steps so far. alpha: probability of calling an equal canary worse, ever.
    tolerance: a canary whose events are up to so many times as frequent is still called equal (1 or more).
    least_difference: the ratios must also differ by so much, since a proven difference may still be a harmless one.
    later_starts: also look whether the canary turned worse in the middle.
    Raises ValueError for an impossible setting.
    """
    if not 0 < alpha < 1 or tolerance < 1 or not 0 <= least_difference < 1:
        raise ValueError("alpha and least_difference are probabilities, tolerance is at least 1")
    share = 1 - _LATER_STARTS if later_starts else 1.0
    lifts = [lift * tolerance for lift in (1.0, *_LIFTS, *_BETTER)]
    first = _Test(-math.log(alpha * share), least_difference, _LARGEST_SHARE)
    later: list[_Test] = []
    proof: _Test | None = None
    for number, interval in enumerate(intervals):
        if number and later_starts:
            # These weights add up to one: 1/2, 1/6, 1/12…
            weight = _LATER_STARTS / (number * (number + 1))
            needed = -math.log(alpha * weight)
            later.append(_Test(needed, least_difference, _LARGEST_LATER_SHARE, first.spread))
        look = _Look.at(interval, lifts)
        for test in (first, *later):
            test.see(look)
        # To give a test up is as fair as to go on; what has become unlikely is left to those that start after it.
        later = [test for test in later[1 - _LATER_INTERVALS :] if test.now > _GIVEN_UP]
        proof = proof or next((test for test in (first, *later) if test.worse), None)
    telling = proof or first
    return Comparison(
        worse=telling.worse,
        evidence=telling.evidence,
        needed=telling.needed,
        canary=telling.canary,
        stable=telling.stable,
        dispersion=telling.spread,
        detectable=_detectable(first.canary.trials, first.stable, first.needed * first.spread, tolerance),
    )


def canary_share(lift: float, share: float) -> float:
    """Probability that an event is the canary's when its events are `lift` times as frequent."""
    return lift * share / (lift * share + 1 - share)


@dataclass(frozen=True, slots=True)
class _Said:
    """What an interval says about one lift.

    gain: logarithm of the likelihood ratio of this lift to the one that is still called equal. squares: of what the
    canary's events differ from what they should be, with their expectation and variance.
    """

    gain: float
    squares: float
    expected: float
    variance: float


@dataclass(frozen=True, slots=True)
class _Look:
    """An interval, as all tests see it. compared: of the canary, beside requests of the same kind of the stable arm.

    said: about each lift, that which is still called equal first; empty when no event says whose the events are.
    """

    canary: Counts
    stable: Counts
    compared: Counts
    said: list[_Said]

    @staticmethod
    def at(interval: Interval, lifts: Sequence[float]) -> "_Look":
        both = [pair for pair in interval if pair.canary.trials and pair.stable.trials]
        pairs = [
            (pair.canary.events, pair.stable.events, pair.canary.trials / (pair.canary.trials + pair.stable.trials))
            for pair in both
            if pair.canary.events or pair.stable.events
        ]
        return _Look(
            total([pair.canary for pair in interval]),
            total([pair.stable for pair in interval]),
            total([pair.canary for pair in both]),
            [_said(pairs, lift, against=lifts[0]) for lift in lifts] if pairs else [],
        )


def _said(pairs: Sequence[tuple[float, float, float]], lift: float, *, against: float) -> _Said:
    """pairs: for each kind of requests the canary's events, the stable arm's, the canary's share of the trials."""
    gain = squares = expected = deviation = 0.0
    for canary_events, stable_events, share in pairs:
        equal, lifted = canary_share(against, share), canary_share(lift, share)
        gain += canary_events * math.log(lifted / equal) + stable_events * math.log((1 - lifted) / (1 - equal))
        events, variance = canary_events + stable_events, lifted * (1 - lifted)
        squares += (canary_events - events * lifted) ** 2
        expected += events * variance
        # The variance of a squared deviation of a binomial count.
        deviation += events * variance * ((1 - 2 * lifted) ** 2 + 2 * max(0.0, events - 1) * variance)
    return _Said(gain, squares, expected, deviation)


class _Test:
    """The test from one interval on. now: its evidence at present. spread: what that was divided by."""

    def __init__(self, needed: float, least_difference: float, most: float, floor: float = 1.0) -> None:
        """most: share of the evidence needed that an interval adds at most. floor: what is divided by at least."""
        self.needed = needed
        self.now, self.evidence, self.spread, self.worse = 0.0, 0.0, 1.0, False
        self.canary, self.stable = Counts(0, 0), Counts(0, 0)
        self._least_difference = least_difference
        self._floor, self._most = floor, most * needed
        self._lifts = [_Lift() for _ in (1.0, *_LIFTS, *_BETTER)]
        self._evenness = _Evenness()

    def see(self, look: _Look) -> None:
        """Add an interval."""
        self.canary = total([self.canary, look.canary])
        self.stable = total([self.stable, look.stable])
        self._evenness.see(look.compared)
        if not look.said:
            return
        for lift, said in zip(self._lifts, look.said, strict=True):
            lift.see(said, self._most)
        likeliest = max(self._lifts, key=lambda lift: lift.likelihood)
        self.spread = max(self._floor, min(likeliest.dispersion, self._evenness.dispersion))
        worse = self._lifts[1 : 1 + len(_LIFTS)]
        self.now = _mixture([lift.score for lift in worse]) / self.spread
        self.evidence = max(self.evidence, self.now)
        differ = self.canary.ratio - self.stable.ratio >= self._least_difference
        self.worse = self.worse or (self.now >= self.needed and differ)


class _Lift:
    """What the intervals so far say about one lift. score: its likelihood, with what each interval adds limited."""

    __slots__ = ("_expected", "_squares", "_variance", "likelihood", "score")

    def __init__(self) -> None:
        self.likelihood = self.score = self._squares = self._expected = self._variance = 0.0

    def see(self, said: _Said, most: float) -> None:
        """Add an interval."""
        self.likelihood += said.gain
        self.score += min(most, said.gain)
        self._squares += said.squares
        self._expected += said.expected
        self._variance += said.variance

    @property
    def dispersion(self) -> float:
        """Squared deviations over their expectation, less one standard error: chance alone isn't taken for clusters."""
        if not self._expected:
            return 1.0
        return max(1.0, (self._squares - math.sqrt(self._variance)) / self._expected)


class _Evenness:
    """How evenly the canary's events fall on its own requests over time."""

    def __init__(self) -> None:
        self._intervals = 0
        self._whole = Counts(0, 0)
        self._squares = 0.0

    def see(self, counts: Counts) -> None:
        """Add an interval."""
        if counts.trials:
            self._intervals += 1
            self._whole = total([self._whole, counts])
            self._squares += counts.events**2 / counts.trials

    @property
    def dispersion(self) -> float:
        """Pearson's statistic over its degrees of freedom, and one standard error more: few intervals say little."""
        freedom = self._intervals - 1
        if freedom < 2:
            return math.inf
        ratio = self._whole.ratio
        variance = ratio * (1 - ratio)
        if variance < _ROUNDING:
            return 1.0
        statistic = (self._squares - self._whole.events * ratio) / variance
        return max(1.0, statistic / freedom * (1 + math.sqrt(2 / freedom)))


def _mixture(scores: Sequence[float]) -> float:
    """Logarithm of the mean of the exponentials."""
    top = max(scores)
    return top + math.log(sum(math.exp(score - top) for score in scores) / len(scores))


def _detectable(trials: float, stable: Counts, needed: float, tolerance: float) -> float | None:
    """The smallest canary ratio whose expected events would give the evidence needed, found by bisection."""
    if not trials or not stable.trials:
        return None

    def proves(ratio: float) -> bool:
        pairs = [(ratio * trials, stable.events, trials / (trials + stable.trials))]
        gains = [_said(pairs, lift * tolerance, against=tolerance).gain for lift in _LIFTS]
        return _mixture(gains) >= needed

    low, high = stable.ratio, 1.0
    if not proves(high):
        return None
    while high - low > 1e-6 and high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return high
