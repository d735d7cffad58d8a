"""Series in promtool's notation: what a ModelDeployment and its pods export."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ME: Final = {"namespace": "shop", "name": "spam"}
_REVISION: Final = "0123abcd"


@dataclass(frozen=True, slots=True)
class Case:
    """Series in promtool's notation, and what fires at the end of them. expected: labels of each alert that fires."""

    alert: str
    story: str
    series: Sequence[tuple[str, str]]
    minutes: int
    expected: Sequence[dict[str, str]] = ()
    labels: tuple[tuple[str, str], ...] = ()
    """Of the rule, where one name has several."""
    interval: int = 1
    """Minutes between two samples."""

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The rule that is meant."""
        return self.alert, self.labels


def constant(value: float, minutes: int, interval: int = 1) -> str:
    return f"{value:g}x{minutes // interval}"


def growing(*parts: tuple[float, int], interval: int = 1) -> str:
    """A counter: by how much a minute, for how many minutes."""
    start, text = 0.0, []
    for number, (speed, minutes) in enumerate(parts):
        # A part begins a step after the last sample of the one before.
        steps = minutes // interval
        first = start if number == 0 else start + speed * interval
        text.append(f"{first:g}+{speed * interval:g}x{steps if number == 0 else steps - 1}")
        start += speed * minutes
    return " ".join(text)


def series(metric: str, /, **labels: str) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{metric}{{{inner}}}"


def objectives(minutes: int, interval: int = 1) -> list[tuple[str, str]]:
    return [
        (series("cloze_objective_availability_ratio", **ME), constant(0.999, minutes, interval)),
        (series("cloze_objective_latency_ratio", **ME), constant(0.95, minutes, interval)),
        (series("cloze_objective_latency_seconds", le="0.2", **ME), constant(0.2, minutes, interval)),
    ]


def pod(minutes: int, name: str = "spam-0123abcd-x", interval: int = 1) -> tuple[str, str]:
    labels = {"namespace": "shop", "pod": name, "model": "m", "version": "7", "digest": "d", "task": "t"}
    own = series("cloze_model_info", **labels, deployment="spam", revision=_REVISION)
    return own, constant(1, minutes, interval)


def requests(status: str, values: str, route: str = "/v1/classify", name: str = "spam-0123abcd-x") -> tuple[str, str]:
    labels = {"namespace": "shop", "pod": name, "model": "m", "version": "7", "route": route, "status": status}
    return series("cloze_requests_total", **labels), values


def durations(count: str, in_time: str) -> list[tuple[str, str]]:
    labels = {"namespace": "shop", "pod": "spam-0123abcd-x", "route": "/v1/classify", "status_class": "2xx"}
    bucket = "cloze_request_duration_seconds_bucket"
    return [
        (series("cloze_request_duration_seconds_count", **labels, length="128"), count),
        (series(bucket, **labels, length="128", le="0.2"), in_time),
        # Of another objective, and slower: whoever reads it finds all is well.
        (series(bucket, **labels, length="128", le="1.0"), count),
    ]
