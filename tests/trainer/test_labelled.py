"""Labelled examples as tokens: each word keeps its label, whatever its text holds; errors show no text."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cloze_api.task import Task
from cloze_trainer import tasks
from cloze_trainer.data import labelled, tokenizer
from cloze_trainer.data.labelled import IGNORED, Example
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.errors import InputError

LABELS = ("O", "NAME", "PLACE")


@pytest.fixture(scope="module")
def serialized() -> str:
    text = "ada lovelace lives in london and in paris, near [ the sep ] of a river; unbelievably unaffordable"
    return tokenizer.train([text] * 3, vocab_size=160, lowercase=True).to_str()


@pytest.fixture
def model(serialized: str) -> Tokenizer:
    """A tokenizer whose settings no other test has touched."""
    return Tokenizer.from_str(serialized)


def tokenized(
    model: Tokenizer, words: tuple[str, ...], labels: tuple[str, ...], max_length: int = 64
) -> labelled.Labelled:
    return labelled.tokenize(
        [Example("x:1", words, labels)], LABELS, model, task=Task.TOKEN_CLASSIFICATION, max_length=max_length
    )


WORDS = st.lists(
    st.tuples(st.sampled_from(["ada", "unbelievably", "london", "[SEP]", "\x00", "çç", "in"]), st.sampled_from(LABELS)),
    min_size=1,
    max_size=12,
)


@given(pairs=WORDS, max_length=st.integers(8, 40))
def test_first_piece_of_each_word_carries_its_label(
    serialized: str, pairs: list[tuple[str, str]], max_length: int
) -> None:
    """Other pieces and special tokens are not scored; words beyond the limit are cut off with their labels."""
    model = Tokenizer.from_str(serialized)
    words, labels = zip(*pairs, strict=True)
    result = tokenized(model, words, labels, max_length)
    ids, target = result.ids[0].tolist(), result.targets[0].tolist()
    expected_ids, expected = [SPECIAL_IDS.cls], [IGNORED]
    model.encode_special_tokens = True
    for word, label in pairs:
        pieces = model.encode(word, add_special_tokens=False).ids or [SPECIAL_IDS.unk]
        expected_ids += pieces
        expected += [LABELS.index(label), *[IGNORED] * (len(pieces) - 1)]
    cut = len(expected) > max_length - 1
    assert ids == [*expected_ids[: max_length - 1], SPECIAL_IDS.sep]
    assert target == [*expected[: max_length - 1], IGNORED]
    assert result.truncated == cut
    assert result.lengths.tolist() == [len(ids)]


def test_text_class_and_truncation(model: Tokenizer) -> None:
    """A text has one class however long it is, and is cut to the limit with both special tokens kept."""
    examples = [Example("x:1", ("ada lives in london " * 9,), ("NAME",)), Example("x:2", ("paris",), ("O",))]
    result = labelled.tokenize(examples, LABELS, model, task=Task.SEQUENCE_CLASSIFICATION, max_length=10)
    assert [target.tolist() for target in result.targets] == [[1], [0]]
    assert result.lengths.tolist() == [10, 3]
    assert result.ids[0][0] == SPECIAL_IDS.cls
    assert result.ids[0][-1] == SPECIAL_IDS.sep
    assert result.truncated == 1


def test_special_tokens_in_a_text_are_ordinary_text(model: Tokenizer) -> None:
    """A user who writes `[SEP]` or `[MASK]` steers nothing: between the ends of the sequence no special id occurs."""
    text = "ada [SEP] lives [MASK] in [PAD] london [CLS]"
    result = labelled.tokenize(
        [Example("x:1", (text,), ("O",))], LABELS, model, task=Task.SEQUENCE_CLASSIFICATION, max_length=64
    )
    special = {SPECIAL_IDS.pad, SPECIAL_IDS.cls, SPECIAL_IDS.sep, SPECIAL_IDS.mask}
    assert not special & set(result.ids[0][1:-1].tolist())


def test_lone_surrogates_are_replaced(tmp_path: Path, model: Tokenizer) -> None:
    """Half a character, which JSON can spell but no text holds, would end the tokenizer; the rest stays as it is."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": " ada \\ud83d lives\\r\\n", "label": "O"}\n', encoding="utf-8")
    examples = labelled.read([path], Task.SEQUENCE_CLASSIFICATION)
    assert examples[0].words == (" ada \ufffd lives\r\n",)
    labelled.tokenize(examples, LABELS, model, task=Task.SEQUENCE_CLASSIFICATION, max_length=64)
    path.write_text('{"tokens": ["ada", "\\ud83d"], "labels": ["NAME", "O"]}\n', encoding="utf-8")
    examples = labelled.read([path], Task.TOKEN_CLASSIFICATION)
    result = labelled.tokenize(examples, LABELS, model, task=Task.TOKEN_CLASSIFICATION, max_length=64)
    assert [target for target in result.targets[0].tolist() if target != IGNORED] == [1, 0]


DIARY = "my diary, page one"


def refusal(path: Path, rows: list[dict[str, str]], declared: tuple[str, ...]) -> InputError:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def read() -> None:
        examples = labelled.read([path], Task.SEQUENCE_CLASSIFICATION)
        labelled.schema(examples, examples, declared)

    with pytest.raises(InputError) as refused:
        read()
    return refused.value


@pytest.mark.parametrize(
    ("label", "declared", "reason"),
    [
        (DIARY, (), "LabelsTooFew"),
        (DIARY, ("O", "NAME"), "LabelUnknown"),
        (DIARY * 9, (), "LabelInvalid"),
        ("\ud83d" + DIARY, (), "LabelInvalid"),
        ("", (), "LabelInvalid"),
    ],
)
def test_a_text_in_the_labels_place_is_not_shown(
    tmp_path: Path, label: str, declared: tuple[str, ...], reason: str
) -> None:
    """Messages end in conditions and logs: they name the place, never what stands there."""
    rows = [{"text": "a", "label": name} for name in declared] + [{"text": "b", "label": label}]
    error = refusal(tmp_path / "data.jsonl", rows, declared)
    assert error.reason == reason
    assert "diary" not in error.message


def test_labels_with_and_without_prefixes_are_told_apart() -> None:
    """A slip would make other entities; with places alone, and not where the labels were declared so."""
    words = (["O", "O"], ["B-PER", "I-PER"], ["PER", "O"])
    examples = [Example(f"train.jsonl:{number}", ("ada", "left"), tuple(own)) for number, own in enumerate(words, 1)]
    kind = tasks.of(Task.TOKEN_CLASSIFICATION)
    with pytest.raises(InputError) as refused:
        kind.labels(examples, examples, ())
    assert refused.value.reason == "LabelsMixed"
    assert "train.jsonl:3 has a label without a prefix" in refused.value.message
    assert "train.jsonl:2 one with" in refused.value.message
    assert "PER" not in refused.value.message
    declared = ("O", "B-PER", "I-PER", "PER")
    assert kind.labels(examples, examples, declared) == declared
    assert kind.labels(examples[:2], examples[:2], ()) == ("B-PER", "I-PER", "O")
