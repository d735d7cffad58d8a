"""A model is trained on the tokens that a server will make of the same texts."""

import asyncio
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from families import FAMILIES

from cloze_api.manifest import TOKENIZER_FILE, SpecialTokens
from cloze_api.task import Problem, Task
from cloze_server.tokenization import Inputs, TokenizerPool
from cloze_trainer import tasks
from cloze_trainer.data import labelled, tokenizer
from cloze_trainer.data.likeness import groups
from cloze_trainer.data.tokenizer import PretrainedTokenizer
from cloze_trainer.tasks.kind import Reader

WORDS = ("the", "is", "thing")
#: Composed otherwise than NFC, with the line end of mails, a control character and blanks around.
TEXT = unicodedata.normalize("NFD", " caf\u00e9 is\r\nthe\x07 th\u00efng ")
SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3)


def served(folder: Path, inputs: Inputs) -> list[list[int]]:
    """What a server makes of a request's texts, or of its words."""
    pool = TokenizerPool((folder / TOKENIZER_FILE).read_text(encoding="utf-8"), in_text=(), threads=1)
    try:
        return asyncio.run(pool.encode(inputs, offsets=False, then=lambda found: [each.ids for each in found]))
    finally:
        pool.close()


def for_words(tiny: Any, folder: Path, family: str, change: Any = None) -> Path:
    """The tokenizer of a family, maybe changed, as a job for words leaves it."""
    given, made = folder / "given", folder / "made"
    made.mkdir()
    tiny.FAMILIES[family].tokenizer().save_pretrained(given)
    if change is not None:
        path = given / TOKENIZER_FILE
        path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    if family == "roberta":
        # As it is published; this class puts the blank by its own setting, whatever the other file says.
        path = given / tokenizer.SETTINGS_FILE
        settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False}
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")
    base = PretrainedTokenizer(folder=given, name="given", digest="", special_tokens=SPECIAL, lowercase=False)
    base.copy(made, max_length=32, words=True)
    return made


def within(document: dict[str, Any]) -> dict[str, Any]:
    """The same pre-tokenizer as one of several."""
    return document | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [document["pre_tokenizer"]]}}


def without_a_mark(document: dict[str, Any]) -> dict[str, Any]:
    """Pieces of SentencePiece that don't take a text to begin with a blank."""
    mark = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": True}
    return document | {"pre_tokenizer": mark, "normalizer": None}


@pytest.mark.parametrize(
    ("family", "change"),
    [*((family, None) for family in FAMILIES), ("roberta", within), ("xlm-roberta", without_a_mark)],
)
def test_words_are_trained_on_as_they_are_served_within_a_text(
    tmp_path: Path, tiny: Any, family: str, change: Any
) -> None:
    """Given one by one, as training and some requests have them, or in a text; and transformers reads them so, too."""
    folder = for_words(tiny, tmp_path, family, change)
    example = labelled.Example("x:1", WORDS, ("O",) * len(WORDS))
    found = labelled.tokenize(
        *([example], ("O",), tokenizer.read(folder)), task=Task.TOKEN_CLASSIFICATION, max_length=64, special=SPECIAL
    )
    trained = found.ids[0][1:-1].tolist()
    assert trained == served(folder, [" ".join(WORDS)])[0]
    assert trained == served(folder, [list(WORDS)])[0]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs(" ".join(WORDS), add_special_tokens=False)["input_ids"] == trained


LINES: Sequence[tuple[Task, Problem, dict[str, Any], Inputs]] = [
    (Task.SEQUENCE_CLASSIFICATION, Problem.SINGLE_LABEL, {"text": TEXT, "label": "a"}, [TEXT]),
    (Task.SEQUENCE_CLASSIFICATION, Problem.MULTI_LABEL, {"text": TEXT, "labels": ["a"]}, [TEXT]),
    (Task.SEQUENCE_CLASSIFICATION, Problem.REGRESSION, {"text": TEXT, "score": 1.0}, [TEXT]),
    (Task.TOKEN_CLASSIFICATION, Problem.SINGLE_LABEL, {"tokens": [TEXT, "is"], "labels": ["a", "a"]}, [[TEXT, "is"]]),
    (Task.EMBEDDING, Problem.SINGLE_LABEL, {"text": TEXT, "positive": "is"}, [TEXT]),
]


@pytest.mark.parametrize(("task", "problem", "line", "sent"), LINES)
def test_characters_are_trained_on_as_they_are_sent(
    tmp_path: Path, tiny: Any, task: Task, problem: Problem, line: dict[str, Any], sent: Inputs
) -> None:
    """A tokenizer may make something else of them, and it does so in training and serving alike."""
    folder, file = for_words(tiny, tmp_path, "roberta"), tmp_path / "lines.jsonl"
    file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    kind: Any = tasks.of(task, problem)
    reader = Reader(tokenizer.read(folder), SPECIAL, 128)
    found = kind.tokenize(kind.read([file]), ("a",), reader)
    assert found.ids[0][1:-1].tolist() == served(folder, sent)[0]


def test_how_characters_are_composed_makes_no_example_another() -> None:
    """Nor line ends and control characters do, where examples are compared."""
    texts = (TEXT, unicodedata.normalize("NFC", TEXT).replace("\x07", "").strip(), "something else")
    assert groups([labelled.Example(f"x:{number}", (text,), ("a",)) for number, text in enumerate(texts)]) == [0, 0, 2]
