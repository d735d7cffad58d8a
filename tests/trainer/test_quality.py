"""Figures equal scikit-learn's and seqeval's; intervals, calibration and gates do what they say."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score as entity_precision
from seqeval.metrics import recall_score as entity_recall
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, log_loss

from cloze_api.evaluation import Evaluation, Gate
from cloze_api.figures import by_importance
from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import Calibration
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


def words(sentences: list[list[tuple[str, str]]], most: int = 99) -> Scores:
    """True and predicted labels of words as scores, of a model that reads so many of each sentence at most."""
    unread = [
        (number, place, IOBES.index(true))
        for number, sentence in enumerate(sentences)
        for place, (true, _) in enumerate(sentence)
        if place >= most
    ]
    sentences = [sentence[:most] for sentence in sentences]
    flat = [pair for sentence in sentences for pair in sentence]
    logits_NC = np.zeros((len(flat), len(IOBES)), np.float32)
    logits_NC[np.arange(len(flat)), [IOBES.index(predicted) for _, predicted in flat]] = 1
    places = np.repeat(np.arange(len(sentences)), [len(sentence) for sentence in sentences])
    truth_N, unread_U3 = np.array([IOBES.index(true) for true, _ in flat]), np.array(unread, int).reshape(-1, 3)
    return Scores(logits_NC, truth_N, places, len(sentences), unread_U3=unread_U3)


@given(SENTENCES, st.sampled_from([1, 3, 12]))
def test_entities_are_those_of_seqeval(sentences: list[list[tuple[str, str]]], most: int) -> None:
    """Micro F1, precision and recall, also of labels that don't go together; words that aren't read are in none."""
    true = [[pair[0] for pair in sentence] for sentence in sentences]
    predicted = [["O" if place >= most else pair[1] for place, pair in enumerate(each)] for each in sentences]
    figures = judgement.judge(words(sentences, most), IOBES, Evaluation(calibrate=False), task=WORDS).figures
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


@pytest.mark.parametrize("truth", ["each", "one"])
@pytest.mark.parametrize("items", [3, 60])
def test_a_model_that_was_always_right_isnt_taken_for_one_that_is(items: int, truth: str) -> None:
    """It becomes as sure as so many items without a mistake show: (N + 1) / (N + 2)."""
    truth_N = np.arange(items) % 2 if truth == "each" else np.zeros(items, np.int64)
    logits_NC = 0.6 * np.eye(2, dtype=np.float32)[truth_N]
    found = calibration.temperature(logits_NC, truth_N)
    assert probabilities(logits_NC, found).max(-1) == pytest.approx((items + 1) / (items + 2), abs=1e-6)
    # Half of them show less.
    assert calibration.held_out_error(logits_NC, truth_N, np.arange(items)) >= 1 / (items / 2 + 2.5)


def answered(scores: Scores, asked: Evaluation) -> Mapping[str, float]:
    labels = [f"label {number}" for number in range(scores.logits_NC.shape[1])]
    return tasks.of(TEXTS).further(scores, labels, asked).figures


def test_what_is_answered_is_judged_by_thresholds_of_the_other_half() -> None:
    """Items that are as sure as the wrong ones aren't answered, and those that are have the precision asked for."""
    random = np.random.default_rng(4)
    sure_N = random.random(4000) < 0.5
    right_N = sure_N | (random.random(4000) < 0.5)
    truth_N = np.arange(4000) % 2
    chosen_N = np.where(right_N, truth_N, 1 - truth_N)
    logits_NC = (np.eye(2)[chosen_N] * np.where(sure_N, 4, 1)[:, None]).astype(np.float32)
    logits_NC += random.normal(0, 0.01, (4000, 2)).astype(np.float32)
    scores = Scores(logits_NC, truth_N, np.arange(4000), 4000)
    figures = answered(scores, Evaluation(abstain_below_precision=0.95))
    # A tenth of those sure ones may be joined by others that are half right.
    assert figures["answered_share"] == pytest.approx(0.5 / 0.9, abs=0.03)
    assert figures["answered_accuracy"] == pytest.approx(0.95, abs=0.01)
    assert "answered_share" not in answered(scores, Evaluation())


def test_where_nothing_is_sure_enough_nothing_is_answered() -> None:
    """The accuracy of no answer is missing, so that no gate on it passes, however sure the model is."""
    truth_N = np.zeros(100, np.int64)
    truth_N[::2] = 1
    sure_NC = np.tile(np.array([900, -900], np.float32), (100, 1))
    scores = Scores(sure_NC, np.repeat(truth_N[:50], 2), np.arange(100), 100)
    figures = answered(scores, Evaluation(abstain_below_precision=0.95, calibrate=False))
    assert figures["answered_share"] == 0
    assert "answered_accuracy" not in figures


def test_several_labels_are_calibrated_and_judged_as_they_are_served() -> None:
    """Of logits that are twice what would be honest. Thresholds for a precision give fewer, and so precise ones."""
    random = np.random.default_rng(5)
    honest_EC = random.normal(-1, 2, (6000, 3)).astype(np.float32)
    marked = Marked(2 * honest_EC, random.random((6000, 3)) < 1 / (1 + np.exp(-honest_EC)))
    kind, labels = tasks.of(TEXTS, Problem.MULTI_LABEL), ["a", "b", "c"]
    found = kind.further(marked, labels, Evaluation(abstain_below_precision=0.9))
    assert found.calibration is not None
    assert found.calibration.temperature == pytest.approx(2, rel=0.05)
    assert found.figures["calibration_error"] < 0.02
    plain = kind.further(marked, labels, Evaluation(calibrate=False))
    assert plain.figures["calibration_error"] > 0.05
    assert plain.figures["log_loss"] > found.figures["log_loss"]
    assert plain.calibration is None
    assert found.figures["applied_precision"] == pytest.approx(0.9, abs=0.015)
    assert found.figures["applied_recall"] < kind.statistics(marked, labels)["micro_f1"].figure
    assert {"applied_micro_f1", "applied_precision", "applied_recall"} <= found.figures.keys() - plain.figures.keys()


def test_a_threshold_of_zero_is_reached_by_all_and_one_of_one_by_none() -> None:
    """As servers say which labels apply; not a half, which labels without a threshold have."""
    marked = Marked(np.array([[-9, -9, 99], [9, 9, 99]], np.float32), np.ones((2, 3), bool))
    chosen = Calibration(thresholds={"all": 0.0, "none": 1.0})
    said = tasks.of(TEXTS, Problem.MULTI_LABEL).said(marked, ["all", "half", "none"], chosen)
    assert said.labels == {"all": 2, "half": 1, "none": 0}


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
    for label, shares_E, true_E in zip("ab", marked.probabilities(found.temperature).T, marked.truth_EC.T, strict=True):
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


def test_lost_entities_are_no_gain_in_classes() -> None:
    """Of words with entities their F1 decides, in the comparison and in slices: a model that never begins one gets more
    words right than one that finds each of them and takes some words for more, and is worse.
    """
    true, person = ["O"] * 10 + ["B-PER", "I-PER"], ["B-PER", "I-PER"]
    found = words([list(zip(true, ["O"] * 7 + ["S-LOC"] * 3 + person, strict=True))] * 20)
    lost = words([list(zip(true, ["O"] * 12, strict=True))] * 20)
    accuracies = [statistics(scores, IOBES, per_token=True)["accuracy"].figure for scores in (found, lost)]
    assert accuracies[0] < accuracies[1]
    comparison = judgement.compare(lost, found, IOBES, task=WORDS, against="spam/1", confidence=0.95)
    assert (comparison.figure, comparison.new) == ("entity_f1", 0)
    assert not gates.no_worse(comparison, max_loss=0.1, confidence=0.95).passed
    sliced = replace(lost, slices=[["kind=all"]] * lost.examples)
    figures = judgement.judge(sliced, IOBES, Evaluation(min_slice_examples=1), task=WORDS).figures
    assert figures["worst_slice_entity_f1"] == 0


def test_the_comparison_is_one_of_the_gates() -> None:
    """A version that is worse than the champion is refused by name; how much worse is among the figures."""
    worse = Comparison("spam/1", "accuracy", new=0.8, old=0.9, difference=-0.1, least=-0.12)
    verdict = gates.no_worse(worse, max_loss=0.01, confidence=0.95)
    judged = judgement.judge(texts(8), ["ham", "spam"], Evaluation(), task=TEXTS, champion=verdict)
    assert "that of spam/1 0.9000" in judged.refusal
    beside = {name: value for name, value in judged.figures.items() if name.startswith("champion_")}
    assert beside == {
        "champion_accuracy": 0.9,
        "champion_difference_accuracy": -0.1,
        "champion_least_difference_accuracy": -0.12,
    }
    assert judged.report["figures"].items() >= beside.items()


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
        preparation._check_gates(spec, meta, slices, {})
        return
    with pytest.raises(InputError, match=words):
        preparation._check_gates(spec, meta, slices, {})


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
