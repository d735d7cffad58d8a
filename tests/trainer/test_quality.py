"""Figures equal scikit-learn's and seqeval's; intervals, calibration and gates do what they say."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score as entity_precision
from seqeval.metrics import recall_score as entity_recall
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, log_loss

from cloze_api.evaluation import Champion, Evaluation, Gate
from cloze_api.figures import by_importance
from cloze_api.finetune import FineTuneJobSpec
from cloze_api.task import Problem, Task
from cloze_api.training_status import METRICS_MAX
from cloze_trainer import preparation, tasks
from cloze_trainer.errors import InputError
from cloze_trainer.quality import calibration, gates, intervals, judgement, luck
from cloze_trainer.quality.gates import Comparison
from cloze_trainer.quality.scores import Scores, probabilities, statistics
from cloze_trainer.tasks.several_labels import Marked

TEXTS, WORDS = Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION
IOBES = ("O", *(f"{prefix}-{name}" for prefix in "BIES" for name in ("LOC", "PER")))
SENTENCES = st.lists(
    st.lists(st.tuples(st.sampled_from(IOBES), st.sampled_from(IOBES)), min_size=1, max_size=12), min_size=1, max_size=8
)


def texts(seed: int, count: int = 400, classes: int = 2, *, right: float = 0.8) -> Scores:
    """A classifier of texts that is right so often."""
    random = np.random.default_rng(seed)
    truth_N = random.integers(classes, size=count)
    shares_N = np.where(random.random(count) < right, truth_N, (truth_N + 1) % classes)
    logits_NC = random.normal(0, 0.3, (count, classes))
    logits_NC[np.arange(count), shares_N] += np.log(right / (1 - right))
    return Scores(logits_NC.astype(np.float32), truth_N, np.arange(count), count)


def words(sentences: list[list[tuple[str, str]]]) -> Scores:
    """True and predicted labels of words as scores."""
    flat = [pair for sentence in sentences for pair in sentence]
    logits_NC = np.zeros((len(flat), len(IOBES)), np.float32)
    logits_NC[np.arange(len(flat)), [IOBES.index(predicted) for _, predicted in flat]] = 1
    places = np.repeat(np.arange(len(sentences)), [len(sentence) for sentence in sentences])
    return Scores(logits_NC, np.array([IOBES.index(true) for true, _ in flat]), places, len(sentences))


@given(SENTENCES)
def test_entities_are_those_of_seqeval(sentences: list[list[tuple[str, str]]]) -> None:
    """Micro F1, precision and recall, also of labels that don't go together."""
    true = [[pair[0] for pair in sentence] for sentence in sentences]
    predicted = [[pair[1] for pair in sentence] for sentence in sentences]
    figures = judgement.judge(words(sentences), IOBES, Evaluation(calibrate=False), task=WORDS).figures
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert figures["entity_f1"] == pytest.approx(entity_f1(true, predicted))
        assert figures["entity_precision"] == pytest.approx(entity_precision(true, predicted))
        assert figures["entity_recall"] == pytest.approx(entity_recall(true, predicted))


@given(seed=st.integers(0, 99), classes=st.integers(2, 5))
def test_figures_equal_scikit_learn(seed: int, classes: int) -> None:
    """F1 over classes that occur, log loss, average precision, false positives."""
    scores = texts(seed, 60, classes)
    labels = [f"label {number}" for number in range(classes)]
    figures = judgement.judge(scores, labels, Evaluation(calibrate=False), task=TEXTS).figures
    shares_NC = probabilities(scores.logits_NC)
    assert figures["macro_f1"] == pytest.approx(f1_score(scores.truth_N, scores.predicted, average="macro"))
    assert figures["log_loss"] == pytest.approx(log_loss(scores.truth_N, shares_NC, labels=range(classes)))
    if classes == 2:
        assert figures["f1"] == pytest.approx(f1_score(scores.truth_N, scores.predicted))
        assert figures["average_precision"] == pytest.approx(average_precision_score(scores.truth_N, shares_NC[:, 1]))
        counts = confusion_matrix(scores.truth_N, scores.predicted, labels=[0, 1])
        assert figures["false_positive_rate"] == pytest.approx(counts[0, 1] / counts[0].sum())


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.booleans()), min_size=1, max_size=30))
def test_average_precision_takes_ties_together(pairs: list[tuple[float, bool]]) -> None:
    """As scikit-learn does; 0 where nothing is positive."""
    shares_N, positive_N = (np.array(column) for column in zip(*pairs, strict=True))
    if positive_N.any():
        assert calibration.average_precision(shares_N, positive_N) == pytest.approx(
            average_precision_score(positive_N, shares_N)
        )
    else:
        assert calibration.average_precision(shares_N, positive_N) == 0


def test_every_figure_is_announced() -> None:
    """A gate is refused before the training when its figure will be missing: the names must be those that come."""
    cases = [
        (texts(0), ["ham", "spam"], TEXTS),
        (texts(0, classes=3), ["a", "b", "c"], TEXTS),
        (words([[("O", "O"), ("B-PER", "B-PER")]]), IOBES, WORDS),
        (texts(0, classes=3), ["O", "PER", "LOC"], WORDS),
        (texts(0, classes=3), ["NOUN", "VERB", "ADJ"], WORDS),
    ]
    for scores, labels, task in cases:
        for sliced in (False, True):
            slices = [["kind=all"]] * scores.examples if sliced else ()
            told = judgement.judge(
                replace(scores, slices=slices), labels, Evaluation(min_slice_examples=1), task=task
            ).figures
            assert set(told) == set(judgement.figure_names(task, labels, sliced=sliced))


@pytest.mark.parametrize("name", ["accuracy", "f1"])
def test_intervals_hold_the_truth_as_often_as_they_say(name: str) -> None:
    """Of tests from one population: with 95 % between 90 and 99 of a hundred."""
    truth = statistics(texts(0, 200_000), ["ham", "spam"], per_token=False)[name].figure
    held = 0
    for seed in range(1, 101):
        low, high = intervals.interval(statistics(texts(seed, 300), ["ham", "spam"], per_token=False)[name], 0.95)
        held += low <= truth <= high
    assert 90 <= held <= 99


def test_labels_may_be_called_anything() -> None:
    """Also as the ends of an interval are, or by several words: each has its F1, and gates may name it."""
    scores, labels = texts(9), ["high", "low"]
    figures = judgement.judge(scores, labels, Evaluation(), task=TEXTS).figures
    assert figures["f1_low"] == figures["f1"] == pytest.approx(f1_score(scores.truth_N, scores.predicted))
    assert figures["lower_f1"] < figures["f1"] < figures["upper_f1"]
    spoken = Evaluation(gates=[Gate(figure="f1_not spam", minimum=0.1)])
    assert not judgement.judge(scores, ["not spam", "spam"], spoken, task=TEXTS).refusal


def test_the_same_answers_lose_nothing() -> None:
    """Draws are paired: noise of the test set that both share is no difference."""
    scores = texts(1, 50)
    found = judgement.compare(scores, scores, ["ham", "spam"], task=TEXTS, against="spam/1", confidence=0.95)
    assert (found.difference, found.least) == (0, 0)


def test_temperature_undoes_a_scale() -> None:
    """Of logits that are three times what would be honest; the answers stay."""
    random = np.random.default_rng(2)
    honest_NC = random.normal(0, 2, (8000, 3)).astype(np.float32)
    truth_N = (probabilities(honest_NC).cumsum(-1) < random.random((8000, 1))).sum(-1)
    loud = Scores(3 * honest_NC, truth_N, np.arange(8000), 8000)
    found = calibration.temperature(loud.logits_NC, truth_N)
    assert found == pytest.approx(3, rel=0.05)
    losses = [calibration.log_loss(loud.logits_NC, truth_N, found * factor) for factor in (0.98, 1, 1.02)]
    assert losses[1] == min(losses)
    assert calibration.calibration_error(probabilities(loud.logits_NC), truth_N) > 0.1
    assert calibration.held_out_error(loud.logits_NC, truth_N, loud.example_N) < 0.02
    assert np.array_equal(loud.cooled(found).predicted, loud.predicted)


def test_a_model_that_is_always_right_has_a_temperature() -> None:
    """The best would be 0, which no probability survives."""
    logits_NC = np.eye(3, dtype=np.float32) * 5
    assert calibration.temperature(logits_NC, np.arange(3)) == pytest.approx(0.05, rel=1e-6)


@given(seed=st.integers(0, 200), precision=st.floats(0.5, 0.99))
def test_predictions_above_a_threshold_are_as_precise_as_asked(seed: int, precision: float) -> None:
    """And no lower bound would do, of those between two probabilities."""
    scores = texts(seed, 60, 3)
    shares_NC = probabilities(scores.logits_NC)
    bounds = calibration.thresholds(shares_NC, scores.truth_N, "abc", precision)
    sure_N = shares_NC.max(-1)
    for number, label in enumerate("abc"):
        own_N = scores.predicted == number
        right_N = scores.truth_N == number

        def precise(least: float, own_N=own_N, right_N=right_N) -> bool:  # type: ignore[no-untyped-def]
            kept_N = own_N & (sure_N >= least)
            return bool(kept_N.any()) and right_N[kept_N].mean() >= precision

        assert precise(bounds[label]) or bounds[label] == 1
        lower = sure_N[own_N & (sure_N < bounds[label])]
        assert not any(precise(candidate) for candidate in lower)


@given(seed=st.integers(0, 200), recall=st.floats(0.01, 0.99), right=st.sampled_from([0.5, 0.8, 0.99]))
def test_predictions_above_a_threshold_keep_the_recall_asked(seed: int, recall: float, right: float) -> None:
    """And no higher bound would do, of the probabilities that the label is predicted with; of equal ones all or none
    are above it. A label whose predictions are too few abstains on nothing.
    """
    scores = texts(seed, 60, 3, right=right)
    shares_NC = probabilities(scores.logits_NC).round(2)
    bounds = calibration.recall_thresholds(shares_NC, scores.truth_N, "abc", recall)
    sure_N, predicted_N = shares_NC.max(-1), shares_NC.argmax(-1)
    for number, label in enumerate("abc"):
        own_N, true_N = predicted_N == number, scores.truth_N == number

        def kept(least: float, own_N=own_N, true_N=true_N) -> bool:  # type: ignore[no-untyped-def]
            return bool((own_N & true_N & (sure_N >= least)).sum() / true_N.sum() >= recall)

        assert kept(bounds[label]) == kept(0)
        assert kept(0) or bounds[label] == 0
        higher = sure_N[own_N & (sure_N > bounds[label])]
        assert not kept(np.nextafter(min(higher, default=1.0), 2))


def test_thresholds_for_recall_are_of_calibrated_probabilities() -> None:
    """As servers compare them with; words have none."""
    scores = texts(5)
    asked = Evaluation(abstain_keeping_recall=0.5)
    found = judgement.judge(scores, ["ham", "spam"], asked, task=TEXTS).calibration
    assert found is not None
    shares_NC = probabilities(scores.logits_NC, found.temperature)
    assert found.thresholds == calibration.recall_thresholds(shares_NC, scores.truth_N, ["ham", "spam"], 0.5)
    of_words = judgement.judge(scores, ["ham", "spam"], asked, task=WORDS).calibration
    assert of_words is not None
    assert of_words.thresholds == {}


def test_labels_without_examples_have_no_threshold_for_recall() -> None:
    """Nothing is known of them: they are answered as without one."""
    shares_NC = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    assert calibration.recall_thresholds(shares_NC, np.zeros(3, np.int64), "ab", 0.3) == {"a": pytest.approx(0.8)}


@given(seed=st.integers(0, 100), recall=st.floats(0.01, 0.99))
def test_each_of_several_labels_keeps_the_recall_asked(seed: int, recall: float) -> None:
    """Of the texts that have it so many reach the threshold, from which on it applies, and fewer a higher one."""
    random = np.random.default_rng(seed)
    marked = Marked(random.normal(size=(40, 2)).astype(np.float32), random.random((40, 2)) < 0.3)
    kind = tasks.of(TEXTS, Problem.MULTI_LABEL)
    found = kind.further(marked, ["a", "b"], Evaluation(abstain_keeping_recall=recall)).calibration
    assert found is not None
    assert isinstance(found.thresholds, dict)
    for label, shares_E, true_E in zip("ab", marked.probabilities.T, marked.truth_EC.T, strict=True):
        bound = found.thresholds[label]
        assert (shares_E[true_E] >= bound).mean() >= recall
        assert (shares_E[true_E] > shares_E[shares_E >= bound].min()).mean() < recall


def test_the_worst_slice_has_enough_examples() -> None:
    """A slice of few is shown, and doesn't count."""
    scores = texts(3, 100)
    good_N = scores.predicted == scores.truth_N
    slices = [["kind=easy"] if good else ["kind=hard"] for good in good_N]
    slices[int(np.flatnonzero(~good_N)[0])] = ["kind=rare"]
    judged = judgement.judge(
        Scores(scores.logits_NC, scores.truth_N, scores.example_N, 100, slices),
        ["ham", "spam"],
        Evaluation(min_slice_examples=2),
        task=TEXTS,
    )
    assert judged.figures["worst_slice_accuracy"] == 0
    assert judged.report["slices"]["kind=rare"] == {"examples": 1, "figure": 0.0, "counts": False}
    assert judged.report["slices"]["kind=easy"]["figure"] == 1


@pytest.mark.parametrize(
    ("gate", "passes"),
    [
        (Gate(figure="accuracy", minimum=0.7), True),
        (Gate(figure="accuracy", minimum=0.95), False),
        (Gate(figure="calibration_error", maximum=0.2), True),
        (Gate(figure="false_positive_rate", maximum=0.01), False),
        (Gate(figure="worst_slice_accuracy", minimum=0.1), False),
        (Gate(figure="data_test_seen_share", maximum=0.05), False),
    ],
)
def test_gates_hold_figures_to_bounds(gate: Gate, passes: bool) -> None:
    """Also figures of the data; one that isn't there passes nothing. What isn't passed is the reason."""
    judged = judgement.judge(
        texts(4), ["ham", "spam"], Evaluation(gates=[gate]), task=TEXTS, others={"data_test_seen_share": 0.3}
    )
    assert [verdict.passed for verdict in judged.verdicts] == [passes]
    assert bool(judged.refusal) != passes
    assert passes or gate.figure in judged.refusal


def test_no_rate_is_told_of_classes_that_the_test_lacks() -> None:
    """Without an example of the first label nothing can be taken for the second: that is no proof of a low rate."""
    scores = texts(4)
    spam = Scores(scores.logits_NC, np.ones_like(scores.truth_N), scores.example_N, scores.examples)
    asked = Evaluation(gates=[Gate(figure="false_positive_rate", maximum=0.01)])
    judged = judgement.judge(spam, ["ham", "spam"], asked, task=TEXTS)
    assert "the test examples don't give it" in judged.refusal


@pytest.mark.parametrize(("lost", "count", "passes"), [(0.0, 4000, True), (0.0, 40, False), (0.06, 4000, False)])
def test_a_new_version_must_surely_be_no_worse(lost: float, count: int, passes: bool) -> None:
    """Equally good passes where there are enough examples to be sure of it; worse doesn't, nor too few examples."""
    old = texts(5, count, right=0.9)
    hits_N = np.random.default_rng(7).random(count) < 0.9 - lost
    logits_NC = np.eye(2, dtype=np.float32)[np.where(hits_N, old.truth_N, 1 - old.truth_N)]
    new = Scores(logits_NC, old.truth_N, old.example_N, count)
    comparison = judgement.compare(new, old, ["ham", "spam"], task=TEXTS, against="spam/1", confidence=0.95)
    verdict = gates.no_worse(comparison, max_loss=0.03, confidence=0.95)
    assert verdict.passed is passes
    assert "spam/1" in verdict.message


def test_the_comparison_is_one_of_the_gates() -> None:
    """A version that is worse than the champion is refused by name."""
    worse = Comparison("spam/1", "accuracy", new=0.8, old=0.9, difference=-0.1, least=-0.12)
    judged = judgement.judge(texts(8), ["ham", "spam"], Evaluation(champion=Champion()), task=TEXTS, comparison=worse)
    assert "that of spam/1 0.9000" in judged.refusal


@pytest.mark.parametrize(
    ("figure", "slices", "words"),
    [
        ("acuracy", [["a=b"]], "there are accuracy"),
        ("worst_slice_accuracy", [[]], "doesn't give"),
        ("worst_slice_accuracy", [["a=b"]], ""),
        ("data_test_seen_share", [[]], ""),
    ],
)
def test_a_gate_without_its_figure_is_refused_before_the_training(
    figure: str, slices: list[list[str]], words: str
) -> None:
    """With figures that there are; so is one on slices where no example says what it is of."""
    spec = FineTuneJobSpec.model_validate(
        {
            "base": {"model": {"name": "small", "version": "1"}},
            "task": "sequence-classification",
            "dataset": {"train": "file:///a", "test": "file:///b"},
            "registry": {"name": "filter"},
            "evaluation": {"gates": [{"figure": figure, "minimum": 0}], "minSliceExamples": 1},
        }
    )
    meta = {"labels": ["ham", "spam"], "test_seen_share": 0.5}
    if not words:
        preparation._check_gates(spec, meta, slices)
        return
    with pytest.raises(InputError, match=words):
        preparation._check_gates(spec, meta, slices)


@pytest.mark.parametrize("problem", Problem)
@pytest.mark.parametrize("task", [task for task in Task if tasks.find(task)])
def test_a_status_has_what_stands_for_a_task(task: Task, problem: Problem) -> None:
    """However many labels there are."""
    kind = tasks.find(task, problem) or tasks.of(task)
    labels = [f"B-{number}" for number in range(1000)]
    told, others = kind.figure_names(labels)
    figures = dict.fromkeys([*told, *others], 0.5) | luck.figures({1: {kind.main[0]: 1.0}, 2: {}}, kind.main)
    kept = by_importance(figures, (), most=METRICS_MAX)
    assert kept.keys() >= {*told, *(name for name in others if not name.startswith("f1_"))}
