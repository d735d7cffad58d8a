"""Words and entities out of tags."""

from dataclasses import replace
from typing import Any

import pytest

from cloze_api.task import Task
from cloze_server.dummy import dummy_model
from cloze_server.tasks.token_classify import Tag, first_subwords, join_entities, joinable
from cloze_server.tokenization import Encoded

TEXT = "Ada Lovelace saw St. James"


def tags(*labels: str) -> list[Tag]:
    """One tag for each word of the text."""
    spans = [(0, 3), (4, 12), (13, 16), (17, 20), (21, 26)]
    return [
        Tag(word=TEXT[start:end], label=label, score=0.5 if label[0] == "B" else 1.0, start=start, end=end)
        for label, (start, end) in zip(labels, spans, strict=True)
    ]


def found(*labels: str) -> list[tuple[str, str | None]]:
    """Entities as (text, label)."""
    return [(entity.word, entity.label) for entity in join_entities(tags(*labels), TEXT)]


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
    entity = join_entities(tags("B-PER", "I-PER", "O", "O", "O"), TEXT)[0]
    assert (entity.score, entity.start, entity.end) == (0.75, 0, 12)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["O", "B-PER", "I-PER"], True),
        (["B-PER", "I-PER"], True),
        (["O", "B-PER", "I-PER", "E-PER", "S-PER"], False),
        (["O", "B-PER", "I-PER", "L-PER", "U-PER"], False),
        (["NOUN", "VERB"], False),
        (["O", "PER", "LOC"], False),
        (["O", "B-PER", "MISC"], False),
        (["O"], False),
    ],
)
def test_words_are_joined_only_with_labels_that_joining_knows(labels: list[str], expected: bool) -> None:
    """An S- or E- that joining doesn't know would vanish from the reply."""
    assert joinable(labels) is expected


@pytest.mark.anyio
async def test_with_other_label_schemes_every_word_has_its_tag(serving: Any) -> None:
    """As the model gives it."""
    model = dummy_model(Task.TOKEN_CLASSIFICATION)
    labels = ["O", "B-PER", "E-PER", "S-PER", "S-LOC"]
    async with serving(lambda: replace(model, labels=labels)) as client:
        reply = (await client.post("/v1/token-classify", json={"inputs": TEXT})).json()
    tags = reply["results"][0]["tags"]
    assert "".join(tag["word"] for tag in tags) == TEXT.replace(" ", "")
    assert {tag["label"] for tag in tags} <= set(labels)


def test_a_words_label_is_that_of_its_first_sub_word() -> None:
    """Special tokens belong to no word."""
    assert first_subwords([None, 0, 0, 1, 3, 3, None]) == [1, 3, 4]


def test_a_cut_keeps_the_final_separator() -> None:
    """And the lists stay aligned."""
    encoded = Encoded([2, 10, 11, 12, 3], [(0, 0), (0, 1), (1, 2), (2, 3), (0, 0)], [None, 0, 1, 2, None], 5)
    cut = encoded.cut(4)
    assert (cut.ids, cut.words, cut.truncated) == ([2, 10, 11, 3], [None, 0, 1, None], True)
    assert cut.offsets == [(0, 0), (0, 1), (1, 2), (0, 0)]
    assert encoded.cut(5) is encoded
