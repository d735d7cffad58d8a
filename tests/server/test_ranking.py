"""The likeliest classes and their probabilities."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze_server.tasks.handler import rank

LOGITS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=150)


@settings(deadline=None)
@given(LOGITS, st.integers(1, 200))
def test_the_best_come_first_with_their_share_of_all(logits: list[float], count: int) -> None:
    """However many classes there are: as by the definition of softmax, where the lower index wins a tie."""
    found = rank(np.array(logits, np.float32), count)
    order = sorted(range(len(logits)), key=lambda index: (-logits[index], index))
    highest = max(logits)
    total = math.fsum(math.exp(logit - highest) for logit in logits)
    expected = [math.exp(logits[index] - highest) / total for index in order]
    assert found.scores == pytest.approx(expected[: len(found.scores)], rel=2e-5, abs=1e-30)
    assert found.classes == order[:count]


@pytest.mark.parametrize("classes", [2, 200])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_no_number_is_refused(classes: int, value: float) -> None:
    """It would make every probability one that isn't."""
    logits = np.zeros(classes, np.float32)
    logits[-1] = value
    with pytest.raises(FloatingPointError):
        rank(logits, 1)
