"""The reference profile of a model that was judged, from its test examples and its answers."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cloze_api.profile import Histogram, Profile
from cloze_trainer.tasks.kind import Said
from cloze_trainer.tasks.rows import Rows

_TOKENS: Final = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)
_UNKNOWN: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_CONFIDENCE: Final = tuple(round(step / 20, 2) for step in range(1, 20))


def of(inputs: Sequence[range], rows: Rows, said: Said, unknown: int | None) -> Profile:
    """What is in a profile. inputs: the rows of each input of a request. unknown: id of the token for what the
    vocabulary doesn't have; None where it has all.
    """
    firsts_I = np.array([own.start for own in inputs])
    tokens_I = np.add.reduceat(rows.lengths, firsts_I)
    missing_R = np.zeros_like(rows.lengths) if unknown is None else rows.occurrences(unknown)
    missing_I = np.add.reduceat(missing_R, firsts_I)
    return Profile(
        inputs=len(firsts_I),
        tokens=histogram(tokens_I, _TOKENS),
        unknown=histogram(missing_I / tokens_I, _UNKNOWN),
        predictions=dict(said.labels),
        confidences=histogram(said.confidences, _CONFIDENCE) if said.labels else None,
    )


def histogram(values_N: npt.NDArray[Any], bounds: tuple[float, ...]) -> Histogram:
    """How many values are in each class; one that equals a bound is below it, as Prometheus has it."""
    places_N = np.searchsorted(bounds, values_N, side="left")
    return Histogram(bounds=list(bounds), counts=np.bincount(places_N, minlength=len(bounds) + 1).tolist())
