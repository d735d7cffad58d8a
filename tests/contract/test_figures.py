"""What is told of a model where there isn't room for all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.evaluation import Gate
from cloze_api.figures import by_importance
from cloze_api.training_status import METRICS_MAX

BEGINNINGS = (
    "",
    "f1_",
    "seed_7_",
    "seed_deviation_",
    "lower_",
    "worst_slice_",
    "champion_",
    "data_",
    "validation_",
    "exposure_",
)
NAMES = st.builds(str.__add__, st.sampled_from(BEGINNINGS), st.text("abcdefgh", min_size=1, max_size=6))


@given(st.dictionaries(NAMES, st.floats(0, 1), min_size=70, max_size=200), st.randoms(use_true_random=False))
def test_a_gates_figure_is_always_told(figures: dict[str, float], random: object) -> None:
    """Whatever it is called; others fill the room that is there, the same ones in whatever order they came."""
    shuffle, sample = random.shuffle, random.sample  # type: ignore[attr-defined] # Hypothesis' own has no type
    gates = [Gate(figure=name, minimum=0) for name in sample([*figures, "missing"], 32)]
    told = by_importance(figures, gates, most=METRICS_MAX)
    assert len(told) == METRICS_MAX
    assert told.items() <= figures.items()
    asked = {gate.figure for gate in gates} & figures.keys()
    assert set(list(told)[: len(asked)]) == asked
    items = list(figures.items())
    shuffle(items)
    assert list(by_importance(dict(items), gates, most=METRICS_MAX).items()) == list(told.items())
    assert list(by_importance(figures, gates).items())[:METRICS_MAX] == list(told.items())


@pytest.mark.parametrize("most", [0, 3, 64])
@given(figures=st.dictionaries(NAMES, st.floats(0, 1), max_size=20))
def test_there_are_never_more_than_asked_for(figures: dict[str, float], most: int) -> None:
    """All of them where there is room."""
    told = by_importance(figures, (), most=most)
    assert len(told) == min(most, len(figures))


def test_what_says_most_of_a_model_comes_first() -> None:
    """A gate's figure, the task's own and its calibration, the luck of the seed, the champion's and the worst slice's,
    intervals, and only then what there is of each seed and of each label.
    """
    order = [
        *("f1_z", "accuracy", "calibration_error", "macro_f1"),
        *("seed_deviation_accuracy", "seed_least_accuracy", "champion_accuracy", "worst_slice_accuracy"),
        "lower_accuracy",
        *("validation_accuracy", "data_examples", "seed_10_accuracy", "seed_9_accuracy", "f1_a", "f1_y"),
    ]
    assert list(by_importance(dict.fromkeys(sorted(order), 0.5), [Gate(figure="f1_z", minimum=0)])) == order
