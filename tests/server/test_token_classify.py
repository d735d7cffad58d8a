"""Words and entities out of tags."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cloze_api.entities import Scheme
from cloze_api.task import Task
from cloze_server.dummy import dummy_model
from cloze_server.tasks.entities import Labelled, join, labels_of, trimmed, words_of

TEXT = "Ada Lovelace saw St. James"


IOB = Scheme(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
BIOES = Scheme(["O", "B-PER", "I-PER", "E-PER", "S-PER", "S-LOC"])


def parts(*labels: str) -> list[Labelled]:
    """One label for each word of the text."""
    spans = [(0, 3), (4, 12), (13, 16), (17, 20), (21, 26)]
    return [
        Labelled(label, 0.5 if label[0] == "B" else 1.0, start, end)
        for label, (start, end) in zip(labels, spans, strict=True)
    ]


def found(*labels: str, scheme: Scheme = IOB) -> list[tuple[str, str]]:
    """Entities as (text, label)."""
    return [(TEXT[entity.start : entity.end], entity.label) for entity in join(scheme, parts(*labels))]


def test_words_join_to_entities() -> None:
    """B- begins, I- goes on, O is left out."""
    assert found("B-PER", "I-PER", "O", "B-LOC", "I-LOC") == [("Ada Lovelace", "PER"), ("St. James", "LOC")]


def test_b_separates_neighbours_of_one_kind() -> None:
    """Two names side by side stay two."""
    assert found("B-PER", "B-PER", "O", "O", "O") == [("Ada", "PER"), ("Lovelace", "PER")]


def test_an_i_without_its_beginning_starts_an_entity() -> None:
    """As conlleval counts it."""
    assert found("I-PER", "I-LOC", "O", "O", "I-LOC") == [("Ada", "PER"), ("Lovelace", "LOC"), ("James", "LOC")]


def test_an_entitys_score_is_the_mean_over_its_words() -> None:
    """0.5 and 1.0."""
    entity = join(IOB, parts("B-PER", "I-PER", "O", "O", "O"))[0]
    assert (entity.score, entity.start, entity.end) == (0.75, 0, 12)


def test_ends_and_single_words_close_an_entity() -> None:
    """BIOES and BILOU: what follows an E- or S- begins anew, whatever its prefix."""
    assert found("B-PER", "E-PER", "I-PER", "S-PER", "S-PER", scheme=BIOES) == [
        ("Ada Lovelace", "PER"),
        ("saw", "PER"),
        ("St.", "PER"),
        ("James", "PER"),
    ]
    bilou = Scheme(["O", "B-PER", "I-PER", "L-PER", "U-PER"])
    assert found("B-PER", "I-PER", "L-PER", "U-PER", "O", scheme=bilou) == [("Ada Lovelace saw", "PER"), ("St.", "PER")]


def test_names_beside_an_o_join_with_their_like() -> None:
    """As transformers' pipeline has it."""
    assert found("PER", "PER", "O", "LOC", "PER", scheme=Scheme(["O", "PER", "LOC"])) == [
        ("Ada Lovelace", "PER"),
        ("St.", "LOC"),
        ("James", "PER"),
    ]


@pytest.mark.anyio
async def test_with_other_label_schemes_every_word_has_its_tag(serving: Any) -> None:
    """As the model gives it."""
    model = dummy_model(Task.TOKEN_CLASSIFICATION)
    labels = ["NOUN", "VERB", "ADP", "PROPN", "X"]
    async with serving(lambda: replace(model, labels=labels)) as client:
        reply = (await client.post("/v1/token-classify", json={"inputs": TEXT})).json()
    tags = reply["results"][0]["tags"]
    assert "".join(tag["word"] for tag in tags) == TEXT.replace(" ", "")
    assert {tag["label"] for tag in tags} <= set(labels)


def test_the_tokens_of_a_word_belong_together() -> None:
    """A window may begin within a word."""
    assert words_of([4, 4, 5, 7, 7]) == [range(2), range(2, 3), range(3, 5)]
    assert words_of([]) == []


def test_a_words_label_is_that_of_its_sub_words_as_asked() -> None:
    """First, of the mean, or of the surest; figures by hand."""
    scores = np.array([[0.6, 0.4, 0.0], [0.0, 0.3, 0.7], [0.5, 0.5, 0.0], [0.1, 0.8, 0.1]], np.float32)
    spans = [range(3), range(3, 4)]
    assert labels_of(scores, spans, "first") == [(0, pytest.approx(0.6)), (1, pytest.approx(0.8))]
    assert labels_of(scores, spans, "average") == [(1, pytest.approx(0.4)), (1, pytest.approx(0.8))]
    assert labels_of(scores, spans, "max") == [(2, pytest.approx(0.7)), (1, pytest.approx(0.8))]


def test_white_space_at_the_edges_is_no_part_of_a_word() -> None:
    """Byte-level tokenizers count the space before a word to it; a token of nothing else stays where it is."""
    assert trimmed("in London", 2, 9) == (3, 9)
    assert trimmed("a  \n", 1, 4) == (1, 4)
