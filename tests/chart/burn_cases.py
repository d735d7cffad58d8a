"""Series in which an error budget burns too fast, and series close by in which it doesn't."""

from dataclasses import dataclass
from typing import Final

from rule_series import ME, Case, durations, growing, objectives, pod, requests


@dataclass(frozen=True, slots=True)
class _Window:
    severity: str
    long: str
    short: str
    minutes: int
    recent: int
    factor: float
    interval: int


_WINDOWS: Final = (
    _Window("page", "1h", "5m", 60, 5, 14.4, 1),
    _Window("page", "6h", "30m", 360, 30, 6, 5),
    _Window("ticket", "1d", "2h", 1440, 120, 3, 30),
    _Window("ticket", "3d", "6h", 4320, 360, 1, 60),
)


def _burns(window: _Window) -> list[Case]:
    minutes, recent, step = window.minutes, window.recent, window.interval
    labels = (("long", window.long), ("severity", window.severity))
    quiet = {} if window.long == "1h" else {"quiet_during_rollout": "true"}
    fired = [{**ME, "severity": window.severity, "long": window.long, "short": window.short, **quiet}]

    def errors(story: str, *parts: tuple[float, int], fires: bool = False, volume: float = 1000) -> Case:
        """parts: ratio of the requests that fail, for how many minutes."""
        total = sum(length for _, length in parts)
        bad = growing(*((ratio * volume, length) for ratio, length in parts), interval=step)
        good = growing(*(((1 - ratio) * volume, length) for ratio, length in parts), interval=step)
        given = [*objectives(total, step), pod(total, interval=step), requests("200", good), requests("503", bad)]
        return Case("ClozeErrorBudgetBurn", story, given, total, fired if fires else (), labels, step)

    def late(story: str, *parts: tuple[float, int], fires: bool = False) -> Case:
        total = sum(length for _, length in parts)
        every = growing((1000, total), interval=step)
        fast = growing(*(((1 - ratio) * 1000, length) for ratio, length in parts), interval=step)
        given = [*objectives(total, step), pod(total, interval=step), *durations(every, fast)]
        return Case("ClozeLatencyBudgetBurn", story, given, total, fired if fires else (), labels, step)

    allowed, slow = 0.001 * window.factor, 0.05 * window.factor
    return [
        errors("both windows burn faster", (1.1 * allowed, minutes), fires=True),
        errors("just below the rate", (0.9 * allowed, minutes)),
        errors("a spike that the long window absorbs", (0, minutes - step), (5 * allowed, step)),
        errors("it is over, as the short window says", (3 * allowed, minutes - recent), (0, recent + step)),
        errors("a handful of errors among few requests", (2 * allowed, minutes), volume=9 / (2 * allowed * minutes)),
        late("both windows burn faster", (min(1.1 * slow, 1), minutes), fires=True),
        late("just below the rate", (0.9 * slow, minutes)),
        late("it is over, as the short window says", (min(1.3 * slow, 1), minutes - recent), (0, recent + step)),
    ]


CASES: Final = tuple(case for window in _WINDOWS for case in _burns(window))
