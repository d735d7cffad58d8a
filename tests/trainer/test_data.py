"""Cleaning, near-duplicates, packing and labelled examples; wrong data is told with file and line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.pretrain import Cleaning, Corpus
from cloze_api.task import Task
from cloze_trainer.data import labelled, pii, source
from cloze_trainer.data.cleaning import clean
from cloze_trainer.data.duplicates import near_duplicate_groups
from cloze_trainer.data.shards import pack, split
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.errors import InputError

LONG = "the quick brown fox jumps over the lazy dog and runs far away into the deep dark forest before night falls"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ada.lovelace@example.org today", "EMAIL"),
        ("the card 4111 1111 1111 1111 was charged", "CARD"),
        ("account DE89 3704 0044 0532 0130 00 is closed", "IBAN"),
        ("host 192.168.17.4 is down", "IP"),
        ("host 2001:db8::17 is down", "IP"),
        ("call +49 30 1234567 now", "PHONE"),
        ("call (555) 123-4567 now", "PHONE"),
    ],
)
def test_personal_data_is_replaced_by_its_kind(text: str, kind: str) -> None:
    """The datum is gone, its kind stands in its place, and only a count is kept."""
    replaced, counts = pii.replace(text)
    assert f"[{kind}]" in replaced
    assert counts == {kind: 1}
    assert not any(character.isdigit() for character in replaced)


@pytest.mark.parametrize(
    "text", ["version 1.2.3 of 2024-11-24", "4111 1111 1111 1112 fails Luhn's test", "at 10:45:30"]
)
def test_other_numbers_stay(text: str) -> None:
    """Dates, versions, times and numbers without a valid check digit are no personal data."""
    assert pii.replace(text) == (text, {})


def test_cleaning_counts_what_it_drops() -> None:
    """Short, repeated and nearly repeated documents go; the report adds up."""
    settings = Cleaning.model_validate({"deduplicate": "near", "minCharacters": 8})
    kept, report = clean(["short", LONG, LONG, LONG + " again", "another text altogether"], settings)
    assert kept == [LONG, "another text altogether"]
    assert report.dropped == {"short": 1, "duplicate": 1, "near_duplicate": 1}
    assert report.documents_in == report.documents_out + sum(report.dropped.values())


def test_near_duplicates_share_a_group_and_others_do_not() -> None:
    """A changed end keeps two texts together; a different text stays apart, and one without words is alone."""
    groups = near_duplicate_groups([LONG, "something else entirely, with its own words", LONG + " today", "", ""])
    assert groups == [0, 1, 0, 3, 4]


@given(st.lists(st.lists(st.integers(5, 99), max_size=40), min_size=1, max_size=20), st.integers(4, 32))
def test_packing_keeps_every_token_once_and_in_order(documents: list[list[int]], length: int) -> None:
    """Without the special tokens the rows spell the documents; every row is `[CLS] … [SEP]`."""
    packed_NT = pack(documents, length, np.uint16)
    flat = [token for token in packed_NT.reshape(-1).tolist() if token >= 5]
    assert flat == [token for document in documents for token in document]
    for row in packed_NT.tolist():
        assert row[0] == SPECIAL_IDS.cls
        assert [token for token in row if token != SPECIAL_IDS.pad][-1] == SPECIAL_IDS.sep
    assert not (packed_NT[:-1] == SPECIAL_IDS.pad).any()


@given(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=50), st.floats(0.01, 0.5))
def test_equal_texts_are_on_one_side(texts: list[str], fraction: float) -> None:
    """No text is both trained on and evaluated on, and neither side is empty."""
    if len(set(texts)) < 2:
        with pytest.raises(InputError):
            split(texts, fraction)
        return
    train, held_out = split(texts, fraction)
    assert sorted(train + held_out) == sorted(texts)
    assert train
    assert held_out
    assert not set(train) & set(held_out)


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "reason", "place"),
    [
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', "LabelMissing", ":2"),
        ('{"text": "a", "label": "x"}\n\n{"label": "x"}\n', "TextFieldMissing", ":3"),
        ('{"text": "a", "label": "x"}\n{"text": \n', "SourceNotJSON", ":2"),
        ("[1]\n", "SourceNotJSON", ":1"),
        (b"\xff\xfe\n", "SourceNotUTF8", ":1"),
        (b"a\x00b\n", "SourceBinary", ":1"),
        ("", "DatasetEmpty", ""),
    ],
)
def test_wrong_example_is_told_with_its_line(tmp_path: Path, content: str | bytes, reason: str, place: str) -> None:
    """The first wrong line ends the reading, with a reason and the place."""
    path = write(tmp_path, content)
    with pytest.raises(InputError) as refusal:
        labelled.read([path], Task.SEQUENCE_CLASSIFICATION)
    assert refusal.value.reason == reason
    assert f"{path}{place}" in str(refusal.value)


def test_words_and_labels_must_pair(tmp_path: Path) -> None:
    """A line with more words than labels is refused with both counts."""
    path = write(tmp_path, '{"tokens": ["The", "dog"], "labels": ["DET"]}\n')
    with pytest.raises(InputError, match="2 tokens and 1 labels"):
        labelled.read([path], Task.TOKEN_CLASSIFICATION)


def example(label: str) -> labelled.Example:
    return labelled.Example("data.jsonl:7", ("text",), (label,))


@pytest.mark.parametrize(
    ("train", "test", "declared", "reason"),
    [
        (["a", "b"], ["c"], [], "LabelUnknown"),
        (["a", "b", "c"], ["a"], ["a", "b"], "LabelUnknown"),
        (["a"], ["a"], ["a", "b"], "LabelWithoutExamples"),
        (["a", "a"], ["a"], [], "LabelsTooFew"),
        (["a", "b"], ["a"], ["a", "b", "a"], "LabelRepeated"),
    ],
)
def test_label_schema_is_checked(train: list[str], test: list[str], declared: list[str], reason: str) -> None:
    """Labels that can't be learned or scored are refused before anything is trained."""
    with pytest.raises(InputError) as refusal:
        labelled.schema([example(label) for label in train], [example(label) for label in test], declared)
    assert refusal.value.reason == reason


def test_missing_text_field_names_the_setting(tmp_path: Path) -> None:
    """A corpus with another field's name says which setting to change."""
    path = write(tmp_path, '{"body": "text"}\n')
    corpus = Corpus.model_validate({"uri": "file:///x", "format": "jsonl"})
    with pytest.raises(InputError, match=r"corpus\.textField"):
        list(source.documents(corpus, [path]))


def test_paragraphs_are_separated_by_blank_lines(tmp_path: Path) -> None:
    """Plain text: each paragraph is a document."""
    path = write(tmp_path, "one\ntwo\n\n\nthree\n")
    corpus = Corpus.model_validate({"uri": "file:///x"})
    assert list(source.documents(corpus, [path])) == ["one\ntwo", "three"]
