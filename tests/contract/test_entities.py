"""Labels mark the same entities for those who answer and those who evaluate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from cloze_api.entities import Scheme
from cloze_server.tasks.entities import Labelled, join
from cloze_trainer.quality.scores import Scores, statistics

SETS = [
    ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    ["O", "PER", "LOC"],
    ["B-PER", "I-PER"],
    ["O", "B-PER", "I-PER", "E-PER", "S-PER", "S-LOC"],
    ["O", "B-PER", "I-PER", "PER", "E-mail"],
    ["O", "I-", "B-", "I-O"],
    ["NOUN", "VERB", "B-side"],
]


@pytest.mark.parametrize(
    ("labels", "joins", "names"),
    [
        (["O", "B-PER", "I-PER"], True, ["PER"]),
        (["B-PER", "I-PER"], True, ["PER"]),
        (["O", "B-PER", "I-PER", "E-PER", "S-PER"], True, ["PER"]),
        (["O", "B-PER", "I-PER", "L-PER", "U-PER"], True, ["PER"]),
        (["NOUN", "VERB"], False, []),
        (["O", "PER", "LOC"], True, ["PER", "LOC"]),
        (["O", "B-PER", "MISC"], True, ["PER", "MISC"]),
        (["O", "B-PER", "I-PER", "E-mail"], True, ["PER", "mail"]),
        (["O", "B-PER", "I-PER", "E-mail", "street"], True, ["PER", "E-mail", "street"]),
        (["O", "E-mail", "S-Bahn"], True, ["E-mail", "S-Bahn"]),
        (["B-side", "A-side"], False, []),
        (["O"], False, []),
        (["O", "N", "V", "^", ","], False, []),
        (["O", "B-PER", "L-PER", "U-LOC"], True, ["PER", "LOC"]),
    ],
)
def test_labels_tell_how_they_mark_entities(labels: list[str], joins: bool, names: list[str]) -> None:
    """Without an O or prefixes on all they mark none: two nouns side by side are two, where transformers' pipeline
    makes them one; an O beside a label for punctuation is a part of speech, as in tweets (Gimpel et al., 2011)."""
    scheme = Scheme(labels)
    assert (scheme.joins, scheme.names) == (joins, names)


@given(st.data())
def test_what_is_answered_is_what_is_evaluated(data: st.DataObject) -> None:
    """Counts of the right, predicted and true entities are those of the server's, whatever the labels."""
    labels = data.draw(st.sampled_from(SETS))
    true, predicted = zip(
        *data.draw(st.lists(st.tuples(st.sampled_from(labels), st.sampled_from(labels)), min_size=1, max_size=12)),
        strict=True,
    )
    scheme = Scheme(labels)
    logits = np.eye(len(labels), dtype=np.float32)[[labels.index(label) for label in predicted]]
    truth = np.array([labels.index(label) for label in true])
    found = statistics(Scores(logits, truth, np.zeros(len(true), int), 1), labels, per_token=True)
    assert ("entity_f1" in found) == scheme.joins
    if scheme.joins:
        served, meant = (
            set(join(scheme, [Labelled(label, 1.0, place, place + 1) for place, label in enumerate(each)]))
            for each in (predicted, true)
        )
        assert found["entity_f1"].sums_EK[0].tolist() == [len(served & meant), len(served), len(meant)]


@given(st.lists(st.sampled_from(["O", "PER", "LOC"]), max_size=12))
def test_names_alone_are_entities_as_with_i_before_them(labels: list[str]) -> None:
    """Neighbours of one name are one, as seqeval reads them where each has the prefix I-."""
    expected = get_entities([label if label == "O" else f"I-{label}" for label in labels])
    assert Scheme(["O", "PER", "LOC"]).spans(labels) == expected


def test_last_and_unit_labels_end_entities() -> None:
    """BILOU says L and U where IOBES says E and S."""
    labels = ["B-PER", "L-PER", "U-PER", "I-LOC", "O"]
    assert Scheme(labels).spans(labels) == [("PER", 0, 1), ("PER", 2, 2), ("LOC", 3, 3)]
