"""Cleaning, near-duplicates, splits and labelled examples; wrong data is told with file and line."""

import hashlib
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from near_texts import families

from cloze_api.pretrain import Cleaning, Corpus
from cloze_api.task import Problem, Task
from cloze_trainer import tasks
from cloze_trainer.data import labelled
from cloze_trainer.data.cleaning import clean, normalise
from cloze_trainer.data.documents import documents
from cloze_trainer.data.duplicates import SIMILAR, Words, jaccard, near_duplicate_groups, shingles
from cloze_trainer.data.languages import Languages
from cloze_trainer.data.splitting import part, split
from cloze_trainer.data.spool import Chosen, Digesting, Spool, first_of_each, sorted_order
from cloze_trainer.errors import InputError

LONG = "the quick brown fox jumps over the lazy dog and runs far away into the deep dark forest before night falls"


def test_cleaning_counts_what_it_drops(tmp_path: Path) -> None:
    """Short, long, repeated and nearly repeated documents go; the report adds up."""
    settings = Cleaning.model_validate({"deduplicate": "near", "minCharacters": 8, "maxCharacters": 2 * len(LONG)})
    texts = ["short", LONG, LONG, LONG + " again", LONG + LONG, LONG + LONG + "x", "another text altogether"]
    with Spool(tmp_path) as spool:
        cleaned = clean(texts, settings, spool)
        assert list(Chosen(spool, np.flatnonzero(cleaned.kept))) == [LONG, LONG + LONG, "another text altogether"]
    report = cleaned.report
    assert report.characters_out == 3 * len(LONG) + len("another text altogether")
    assert report.dropped == {"short": 1, "long": 1, "duplicate": 1, "near_duplicate": 1}
    assert report.documents_in == report.documents_out + sum(report.dropped.values())


@given(st.text(st.characters() | st.sampled_from("\r\n\t\x00\x0b\x85\ud800é\u0301e ")))
def test_normal_text_is_composed_and_without_control_characters(text: str) -> None:
    """As the definition has it, character by character."""
    composed = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    kept = (each for each in composed if each in "\n\t" or unicodedata.category(each) not in ("Cc", "Cs"))
    assert normalise(text) == "".join(kept).strip()


def test_documents_in_other_languages_are_dropped_and_counted(tmp_path: Path) -> None:
    """By language, with what can't be told; a language that nobody knows is refused."""
    texts = [
        LONG,
        "Der schnelle braune Fuchs springt über den faulen Hund und läuft weit in den tiefen dunklen Wald hinein.",
        "Le renard brun et rapide saute par-dessus le chien paresseux et court très loin dans la forêt sombre.",
        "Быстрая коричневая лиса прыгает через ленивую собаку и убегает далеко в тёмный лес до наступления ночи.",
        "0123 4567 8901 2345",
    ]
    settings = Cleaning.model_validate({"languages": ["en", "de"]})
    with Spool(tmp_path) as spool:
        report = clean(texts, settings, spool).report
        assert list(spool) == texts[:2]
    assert report.languages == {"en": 1, "de": 1, "fr": 1, "ru": 1, "und": 1}
    assert report.dropped == {"language": 3, "duplicate": 0}
    with Spool(tmp_path) as spool, pytest.raises(InputError, match="names xx,") as refusal:
        clean(texts, Cleaning.model_validate({"languages": ["en", "xx"]}), spool)
    assert refusal.value.reason == "LanguageUnknown"


def test_language_of_a_long_document_is_not_that_of_its_first_line() -> None:
    """The middle counts as much as the beginning."""
    languages = Languages(["en"], 0.5)
    german = "Die Sitzung ist eröffnet. Der Bericht wird verlesen, und niemand widerspricht ihm. " * 40
    assert languages.of(LONG + " " + german) == "de"


def test_near_duplicates_share_a_group_and_others_do_not() -> None:
    """A changed end keeps two texts together; a different text stays apart, and one without words is alone."""
    groups = near_duplicate_groups([LONG, "something else entirely, with its own words", LONG + " today", "", ""])
    assert groups.groups == [0, 1, 0, 3, 4]


@given(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=50), st.floats(0.01, 0.5))
def test_equal_texts_are_on_one_side(texts: list[str], fraction: float) -> None:
    """No text is both trained on and evaluated on, and neither side is empty."""
    digesting = Digesting()
    for text in texts:
        digesting.add(text)
    kept = np.ones(len(texts), dtype=bool)
    if len(set(texts)) < 2:
        with pytest.raises(InputError):
            split(kept, digesting.all(), fraction)
        return
    train, held_out = ([texts[at] for at in np.flatnonzero(side)] for side in split(kept, digesting.all(), fraction))
    assert sorted(train + held_out) == sorted(texts)
    assert train
    assert held_out
    assert not set(train) & set(held_out)


def sides(texts: list[str], fraction: float) -> tuple[list[int], list[int], int]:
    """Numbers of the texts on either side, and how many were held out at first."""
    digesting = Digesting()
    for text in texts:
        digesting.add(text)
    chosen = split(np.ones(len(texts), dtype=bool), digesting.all(), fraction)
    found = part(texts, *chosen)
    return np.flatnonzero(found.train).tolist(), np.flatnonzero(found.held_out).tolist(), int(chosen[1].sum())


@given(st.integers(0, 10_000), st.floats(0.1, 0.5))
def test_no_held_out_text_is_nearly_a_training_text(seed: int, fraction: float) -> None:
    """As a comparison of all pairs would have it, in families of texts that differ by some of their words."""
    texts = families(seed, changes=2)
    try:
        train, held_out, before = sides(texts, fraction)
    except InputError:
        # Every one that was chosen is nearly another one.
        return
    hashes = [shingles(text, Words()) for text in texts]
    near = [(a, b) for a in held_out for b in train if jaccard(hashes[a], hashes[b]) >= SIMILAR]
    assert near == []
    assert sorted(train + held_out) == list(range(len(texts)))
    assert before >= len(held_out) > 0
    assert sides(texts, fraction) == (train, held_out, before)


def test_what_is_nearly_like_nothing_stays_held_out() -> None:
    """A text that shares a phrase with others isn't moved, and the longest texts are compared as well."""
    phrase = "all rights are reserved by the owners of this text and of its parts"
    texts = [f"{phrase} {' '.join(f'a{number}b{at}' for at in range(40))}" for number in range(60)]
    train, held_out, before = sides(texts, 0.2)
    assert len(held_out) == before == 12
    longer = [f"{texts[number]} once more" for number in held_out[:5]]
    chosen = np.array([number in train or number >= len(texts) for number in range(len(texts) + 5)])
    found = part(texts + longer, chosen, ~chosen)
    assert np.flatnonzero(found.held_out).tolist() == held_out[5:]
    assert found.train[held_out[:5]].all()


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40))
def test_digests_are_ordered_as_hashes_and_the_first_of_equals_is_found(texts: list[str]) -> None:
    """As Python would do it with sets and sorting."""
    digesting = Digesting()
    for text in texts:
        digesting.add(text)
    hashes = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
    order = sorted_order(digesting.all()).tolist()
    assert order == sorted(range(len(texts)), key=lambda at: (hashes[at], at))
    assert first_of_each(digesting.all()).tolist() == [text not in texts[:at] for at, text in enumerate(texts)]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=20))
def test_a_spool_gives_texts_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """In any order, also while others are added."""
    with Spool(tmp_path_factory.mktemp("spool")) as spool:
        for number, text in enumerate(texts):
            spool.append(text)
            assert spool[number] == text
            assert spool[number // 2] == texts[number // 2]
        assert list(spool) == texts
        assert spool[1:] == texts[1:]
        assert spool.characters(np.ones(len(texts), dtype=bool)) == sum(map(len, texts))


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
        tasks.of(Task.SEQUENCE_CLASSIFICATION, Problem.SINGLE_LABEL).read([path])
    assert refusal.value.reason == reason
    assert f"{path}{place}" in str(refusal.value)


def test_words_and_labels_must_pair(tmp_path: Path) -> None:
    """A line with more words than labels is refused with both counts."""
    path = write(tmp_path, '{"tokens": ["The", "dog"], "labels": ["DET"]}\n')
    with pytest.raises(InputError, match="2 tokens and 1 labels"):
        tasks.of(Task.TOKEN_CLASSIFICATION, Problem.SINGLE_LABEL).read([path])


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
        list(documents(corpus, [path]))


def test_paragraphs_are_separated_by_blank_lines(tmp_path: Path) -> None:
    """Plain text: each paragraph is a document."""
    path = write(tmp_path, "one\ntwo\n\n\nthree\n")
    corpus = Corpus.model_validate({"uri": "file:///x"})
    assert list(documents(corpus, [path])) == ["one\ntwo", "three"]
