"""Labelled examples as tokens: each word keeps its label, whatever its text holds; errors show no text."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from cloze_api.task import Problem, Task
from cloze_server.tokenization import TokenizerPool
from cloze_trainer import tasks
from cloze_trainer.data import examples, labelled, leakage, tokenizer
from cloze_trainer.data.labelled import IGNORED, Example
from cloze_trainer.data.tokenizer import SPECIAL, SPECIAL_IDS
from cloze_trainer.errors import InputError
from cloze_trainer.tasks.kind import Reader

LABELS = ("O", "NAME", "PLACE")
#: The special tokens and the bytes.
ALPHABET = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()))
NO_ANSWER: dict[str, list[Any]] = {"text": [], "answer_start": []}


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


def test_halves_of_characters_are_replaced(tmp_path: Path, model: Tokenizer) -> None:
    """Half a character, which JSON can spell but no text holds, becomes the sign for what is none, in its place."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "ada \\ud83d lives", "label": "O"}\n', encoding="utf-8")
    examples = tasks.of(Task.SEQUENCE_CLASSIFICATION, Problem.SINGLE_LABEL).read([path])
    assert examples[0].words == ("ada \ufffd lives",)
    labelled.tokenize(examples, LABELS, model, task=Task.SEQUENCE_CLASSIFICATION, max_length=64)
    path.write_text('{"tokens": ["ada", "\\ud83d"], "labels": ["NAME", "O"]}\n', encoding="utf-8")
    examples = tasks.of(Task.TOKEN_CLASSIFICATION, Problem.SINGLE_LABEL).read([path])
    result = labelled.tokenize(examples, LABELS, model, task=Task.TOKEN_CLASSIFICATION, max_length=64)
    assert [target for target in result.targets[0].tolist() if target != IGNORED] == [1, 0]


RAW = " cafe\u0301 one\r\ntwo\x07 three\ufffe "
TEXT_TASKS = [
    (Task.SEQUENCE_CLASSIFICATION, Problem.SINGLE_LABEL, {"text": RAW, "label": "O"}),
    (Task.SEQUENCE_CLASSIFICATION, Problem.MULTI_LABEL, {"text": RAW, "labels": ["O"]}),
    (Task.SEQUENCE_CLASSIFICATION, Problem.REGRESSION, {"text": RAW, "score": 1.0}),
    (Task.TOKEN_CLASSIFICATION, Problem.SINGLE_LABEL, {"tokens": [RAW], "labels": ["O"]}),
    (Task.EMBEDDING, Problem.SINGLE_LABEL, {"text": RAW, "positive": RAW}),
    (Task.QUESTION_ANSWERING, Problem.SINGLE_LABEL, {"question": "who?", "context": RAW, "answers": NO_ANSWER}),
]


@pytest.mark.parametrize(("task", "problem", "row"), TEXT_TASKS)
def test_a_text_is_trained_on_as_a_request_has_it(
    tmp_path: Path, task: Task, problem: Problem, row: dict[str, Any]
) -> None:
    """Decomposed accents, line ends, control characters and blanks at the edges: what the tokenizer makes of them in
    a request is what the examples of the training and of an import hold.
    """
    model = Tokenizer(models.BPE({letter: number for number, letter in enumerate(ALPHABET)}, [], unk_token=ALPHABET[1]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    pool = TokenizerPool(model.to_str(), in_text=(), threads=1)
    words = [[RAW]] if task is Task.TOKEN_CLASSIFICATION else [RAW]
    (asked,) = asyncio.run(pool.encode(words, offsets=False, then=lambda found: [each.ids for each in found]))
    pool.close()
    kind = tasks.of(task, problem)
    found = kind.tokenize(kind.read([path]), LABELS, Reader(model, SPECIAL_IDS, 64))
    assert found.ids[-1].tolist()[-len(asked) - 1 : -1] == asked
    if "text" in row:
        (imported,) = examples.read(path, task, problem, model, special=SPECIAL_IDS, labels=LABELS, max_length=64)
        assert [number for number in imported.ids.tolist() if number > SPECIAL_IDS.mask] == asked


@pytest.mark.parametrize(("task", "problem", "row"), TEXT_TASKS)
def test_texts_that_differ_in_their_spelling_alone_are_alike(
    tmp_path: Path, task: Task, problem: Problem, row: dict[str, Any]
) -> None:
    """What is compared is normalised: a test example in composed characters is seen in training all the same."""
    other = json.loads(json.dumps(row).replace("e\\u0301", "\u00e9").replace("\\r", "").replace("\\u0007", ""))
    assert other != row
    kind, parts = tasks.of(task, problem), []
    for number, line in enumerate((row, other)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(line) + "\n", encoding="utf-8")
        parts.append(kind.read([path]))
    assert leakage.find("test", *parts).count == 1


def test_texts_that_differ_in_their_spelling_alone_are_one_text_to_embeddings(tmp_path: Path, model: Tokenizer) -> None:
    """None of them is a wrong answer where another is the right one."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"text": "caf\u00e9", "positive": "a"}, {"text": "cafe\u0301", "positive": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kind = tasks.of(Task.EMBEDDING)
    found = kind.tokenize(kind.read([path]), (), Reader(model, SPECIAL_IDS, 64))
    numbers = [int(target[0]) for target in found.targets]
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == 3


DIARY = "my diary, page one"


def refusal(path: Path, rows: list[dict[str, str]], declared: tuple[str, ...]) -> InputError:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def read() -> None:
        examples = tasks.of(Task.SEQUENCE_CLASSIFICATION, Problem.SINGLE_LABEL).read([path])
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
