"""Segments: what requests say of themselves in `metadata`, of keys and values that were declared.

A request counts under each of its segments by itself, not under their combination: so there are as many series as there
are declared values, whatever clients send.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from cloze_api import metrics
from cloze_api.metrics import Metric
from cloze_api.segments import KEYS_MAX, VALUES_MAX, is_bounded, is_distinct, is_key, is_value
from cloze_server.problems import ProblemError, ProblemType

Segment = tuple[str, str]
"""A key and its value."""


def _texts(metadata: Any) -> Any:
    """What is wrong is told without the keys, which a client may have put text in."""
    if metadata is None or (
        isinstance(metadata, dict) and all(isinstance(part, str) for entry in metadata.items() for part in entry)
    ):
        return metadata
    raise PydanticCustomError("metadata", "give an object whose values are texts")


Metadata = Annotated[dict[str, str], BeforeValidator(_texts)]
"""Names and values, as a request has them; which there may be, `Segments` knows."""


def declared(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The values of each key, from texts as `language=de,en`. Raises ValueError that says what is wrong."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, _, listed = text.partition("=")
        values = tuple(listed.split(","))
        if not is_key(key) or not all(map(is_value, values)):
            raise ValueError(f"{text!r}: give KEY=VALUE,VALUE as language=de,en")
        if key in found or not is_distinct(values):
            raise ValueError(f"{text!r}: a key or a value is declared twice")
        found[key] = values
    if not is_bounded(found):
        raise ValueError(f"declare at most {KEYS_MAX} keys and {VALUES_MAX} values: each value has metrics of its own")
    return found


class Segments:
    """The keys and values that a server knows."""

    def __init__(self, known: Mapping[str, Sequence[str]]) -> None:
        """known: the values of each key."""
        self._known = known

    def of(self, metadata: Mapping[str, str] | None) -> tuple[Segment, ...]:
        """A request's segments. Raises ProblemError for one that wasn't declared, which isn't repeated."""
        if not metadata:
            return ()
        if all(value in self._known.get(key, ()) for key, value in metadata.items()):
            return tuple(sorted(metadata.items()))
        if not self._known:
            message = "this server knows no metadata: leave it out, or declare it with --metadata"
        else:
            listed = "; ".join(f"{key}: {', '.join(values)}" for key, values in self._known.items())
            message = f"metadata has a key or a value that isn't known here; known are {listed}"
        allowed = {key: list(values) for key, values in self._known.items()}
        raise ProblemError(ProblemType.INPUT_INVALID, message, members={"metadata": allowed})


class SegmentInstruments:
    """The metrics by segment of all models of a process."""

    def __init__(self, make: Callable[[Metric], Any]) -> None:
        """make: the Prometheus object of a metric."""
        self.requests = make(metrics.SEGMENT_REQUESTS)
        self.duration = make(metrics.SEGMENT_DURATION)
        self.predictions = make(metrics.SEGMENT_PREDICTIONS)
        self.confidence = make(metrics.SEGMENT_CONFIDENCE)
        self.abstained = make(metrics.SEGMENT_ABSTAINED)


class SegmentCounter:
    """Counts one model's requests and predictions by segment. Label children are kept: looking one up costs more."""

    def __init__(self, instruments: SegmentInstruments, model: str, version: str) -> None:
        self._instruments = instruments
        self._model = (model, version)
        self._children: dict[tuple[str, ...], Any] = {}

    def finished(self, segments: Iterable[Segment], status: int, seconds: float) -> None:
        """One request was answered."""
        for segment in segments:
            self._child("requests", segment, f"{status // 100}xx").inc()
            if status < 300:
                self._child("duration", segment).observe(seconds)

    def predicted(
        self, segments: Iterable[Segment], labels: Mapping[str, int], confidences: Sequence[float], abstained: int
    ) -> None:
        """One request's predictions: how many of each label, the probability of each, how many were abstained."""
        for segment in segments:
            self._child("abstained", segment).inc(abstained)
            for label, count in labels.items():
                self._child("predictions", segment, label).inc(count)
            histogram = self._child("confidence", segment)
            for confidence in confidences:
                histogram.observe(confidence)

    def _child(self, name: str, segment: Segment, *further: str) -> Any:
        key = (name, *segment, *further)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = getattr(self._instruments, name).labels(*self._model, *segment, *further)
        return child
