"""Names of people that a model finds give way to their kind, or take their documents with them."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from small_runs import run_of
from tokenizers import Tokenizer

from cloze_api.people import Names
from cloze_api.pretrain import TokenizerAlgorithm
from cloze_api.task import Task
from cloze_trainer import tagging
from cloze_trainer.data import names, shards, tokenizer
from cloze_trainer.data.names import SHARED, NameFilter, Probabilities, people, spans
from cloze_trainer.data.windows import windows
from cloze_trainer.errors import InputError
from cloze_trainer.pretrain import prepare
from cloze_trainer.progress import ProgressFile

TEXTS = [f"{'it' if number % 3 else 'Max'} was number {number} of {number % 7} on board." for number in range(60)]


@given(st.integers(0, 500), st.integers(2, 60))
def test_windows_hold_every_token_with_others_around_it(count: int, width: int) -> None:
    """None is longer than the model reads, and neighbours share an eighth."""
    found = [(part.start, part.stop) for part in windows(count, width, shared=SHARED)]
    assert [token for start, end in found for token in range(start, end)] or not count
    assert {token for start, end in found for token in range(start, end)} == set(range(count))
    assert all(end - start <= width for start, end in found)
    assert all(one[1] - other[0] >= width // 8 for one, other in itertools.pairwise(found))
    assert len(found) == max(1, -(-(count - width // 8) // (width - width // 8)))


@pytest.mark.parametrize(
    ("labels", "asked", "classes"),
    [
        (["O", "B-PER", "I-PER", "B-LOC"], [], [1, 2]),
        (["O", "B-person", "I-person"], [], [1, 2]),
        (["O", "PERSON", "ORG"], [], [1]),
        (["O", "B_PER", "NAME"], ["NAME"], [2]),
    ],
)
def test_peoples_labels_are_told_by_their_names(labels: list[str], asked: list[str], classes: list[int]) -> None:
    """As corpora of names have them, or as the job says."""
    assert people(labels, asked, "it") == classes


@pytest.mark.parametrize(
    ("asked", "reason", "message"),
    [
        ([], "NamesModelUnsuitable", "it has no label for people, but LOC, ORG: say in cleaning.names.labels"),
        (["PER"], "NamesLabelUnknown", "cleaning.names.labels has 'PER', and it knows LOC, ORG"),
    ],
)
def test_a_model_without_people_is_refused(asked: list[str], reason: str, message: str) -> None:
    """With the labels that it has."""
    with pytest.raises(InputError, match=message) as refusal:
        people(["O", "B-LOC", "I-LOC", "ORG"], asked, "it")
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("text", "named", "expected"),
    [
        ("so Ada Lovelace wrote", ["Ada", "Lovelace"], ["Ada Lovelace"]),
        ("J. R. Smith, Ada", ["J", "R", "Smith", "Ada"], ["J. R. Smith", "Ada"]),
        ("Ada\nBob", ["Ada", "Bob"], ["Ada", "Bob"]),
        ("met O'Neil again", ["O", "Neil"], ["O'Neil"]),
        ("nobody", [], []),
    ],
)
def test_words_of_a_name_are_one(text: str, named: list[str], expected: list[str]) -> None:
    """Initials and signs between them too; a comma or a line's end parts two."""
    words = [(at, at + len(word)) for word in named for at in [text.index(word)]]
    # Tokens of two letters, of which the first alone was told.
    tokens = [
        (number, (at, min(at + 2, end))) for number, (start, end) in enumerate(words) for at in range(start, end, 2)
    ]
    told = np.array([number != before for before, (number, _) in zip([None, *(n for n, _ in tokens)], tokens)])  # noqa: B905
    found = spans(text, [span for _, span in tokens], [number for number, _ in tokens], told.astype(bool))
    assert [text[start:end] for start, end in found] == expected


def filter_of(tiny: Any, asked: Names) -> NameFilter:
    """Every word with an x is a name, to a model that reads ten letters at once."""
    tokenizer = tiny.wordpiece().backend_tokenizer
    letters = {number for token, number in tokenizer.get_vocab().items() if token in ("x", "##x")}

    def tag(given: Sequence[Sequence[int]]) -> list[Probabilities]:
        assert max(map(len, given)) <= 10
        return [np.array([0.9 * (number in letters) for number in window], dtype=np.float32) for window in given]

    return NameFilter(asked, tokenizer, tag, 10)


def names_of(**asked: Any) -> Names:
    return Names.model_validate({"uri": "file:///model", **asked})


def searched(tiny: Any, texts: Sequence[str], **asked: Any) -> tuple[list[str], Counter[str], Counter[str]]:
    replaced: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    return list(filter_of(tiny, names_of(**asked)).filtered(texts, replaced, dropped)), replaced, dropped


def test_names_give_way_wherever_they_stand(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In texts longer than the model reads, some in one batch, in their order; the rest of a text stays as it is."""
    monkeypatch.setattr(names, "_DOCUMENTS", 3)
    texts = ["Ax of Y", "", "a long line without any of them " * 5, "Rex, Max and Ann", "the end is X", "Max " * 20]
    found, replaced, dropped = searched(tiny, texts)
    assert found == ["[NAME] of Y", "", texts[2], "[NAME], [NAME] and Ann", "the end is [NAME]", "[NAME] "]
    assert replaced == {"NAME": 5}
    assert not dropped
    assert searched(tiny, texts, minProbability=0.95)[0] == texts


def test_documents_with_names_are_dropped_where_the_job_says_so(tiny: Any) -> None:
    """And counted."""
    found, replaced, dropped = searched(tiny, ["Max is here", "nobody is", "Rex"], found="drop")
    assert found == ["nobody is"]
    assert dropped == {"name": 2}
    assert not replaced


@pytest.mark.parametrize(("text", "most"), [("a", 256), ("a" * (1 << 18), 4)])
def test_no_more_than_a_batch_is_in_memory(tiny: Any, text: str, most: int) -> None:
    """Of documents, or of characters, whatever the corpus' size is."""
    read = 0

    def corpus() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield text

    next(filter_of(tiny, names_of()).filtered(corpus(), Counter(), Counter()))
    assert read == most


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_told_as_transformers_tells_them(family: str, tiny: Any, tmp_path: Path) -> None:
    """Many texts at once, with padding, as each by itself."""
    model, tokenizer = tiny.save(tmp_path / "model", family, Task.TOKEN_CLASSIFICATION)
    run, _ = run_of(tmp_path, TEXTS)
    asked = Names.model_validate({"uri": f"file://{tmp_path}/model"})
    found = tagging.find(run, asked).load()
    texts = ["is it so", "it is", "a text that is longer"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    for ids, probabilities in zip(rows, found._tag([ids[1:-1] for ids in rows]), strict=True):
        with torch.no_grad():
            expected_TC = model(torch.tensor([ids])).logits[0, 1:-1].softmax(-1)
        np.testing.assert_allclose(probabilities, expected_TC[:, 1:].sum(-1), atol=1e-5)
    with pytest.raises(InputError, match="knows PER") as refusal:
        tagging.find(run, asked.model_copy(update={"labels": ["LOC"]})).load()
    assert refusal.value.reason == "NamesLabelUnknown"


def test_a_model_of_another_task_is_refused(tiny: Any, tmp_path: Path) -> None:
    """Before a document is read."""
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    run, spec = run_of(tmp_path, TEXTS, cleaning={"names": {"uri": f"file://{tmp_path}/model"}})
    with pytest.raises(InputError, match="without a head for token-classification") as refusal:
        prepare(run, spec, ProgressFile(None))
    assert refusal.value.reason == "HeadMissing"


def test_a_corpus_is_searched_once_for_each_model(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is counted; another model, or another way with names, gives other data."""
    tiny.save(tmp_path / "model", "bert", Task.TOKEN_CLASSIFICATION)
    loaded = []

    def load(_: Path, asked: Names, where: str) -> NameFilter:
        loaded.append(where)
        return filter_of(tiny, asked)

    monkeypatch.setattr(tagging, "_load", load)

    def data(**asked: Any) -> tuple[Path, dict[str, Any]]:
        wanted = {"names": {"uri": f"file://{tmp_path}/model", **asked}} if asked else {}
        run, spec = run_of(tmp_path, TEXTS, tokenizer={"vocabSize": 200}, model={"maxLength": 16}, cleaning=wanted)
        folder = prepare(run, spec, ProgressFile(None)).folder
        return folder, json.loads((folder / "report.json").read_text())

    plain, _ = data()
    folder, report = data(found="replace")
    assert (report["replaced"], report["documents"]) == ({"NAME": 20}, 60)
    assert report["names_model"]
    dropping, less = data(found="drop")
    assert (less["dropped"]["name"], less["documents"]) == (20, 40)
    assert data(found="replace")[0] == folder
    assert len(loaded) == 2
    (tmp_path / "model/config.json").write_text((tmp_path / "model/config.json").read_text() + " ")
    changed, _ = data(found="replace")
    assert len({plain, folder, dropping, changed}) == 4


@pytest.mark.parametrize("algorithm", list(TokenizerAlgorithm))
def test_a_name_that_gave_way_is_one_token(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: TokenizerAlgorithm
) -> None:
    """As other personal data are, an ordinary one; a vocabulary that no name gave way in has no place for it."""
    tiny.save(tmp_path / "model", "bert", Task.TOKEN_CLASSIFICATION)
    monkeypatch.setattr(tagging, "_load", lambda _folder, asked, _where: filter_of(tiny, asked))

    def trained(**asked: Any) -> Tokenizer:
        wanted = {"names": {"uri": f"file://{tmp_path}/model", **asked}} if asked else {}
        sizes = {"vocabSize": 600, "algorithm": algorithm}
        run, spec = run_of(tmp_path, TEXTS, tokenizer=sizes, model={"maxLength": 16}, cleaning=wanted)
        prepared = prepare(run, spec, ProgressFile(None))
        rows_NT = shards.read(prepared.folder).train_NT
        model = tokenizer.read(prepared.folder)
        named = model.token_to_id("[NAME]")
        assert (named is not None and named in rows_NT) == (asked == {"found": "replace"})
        return model

    replacing = trained(found="replace")
    replacing.encode_special_tokens = True
    assert replacing.encode("it was [NAME], on board").ids.count(replacing.token_to_id("[NAME]")) == 1
    assert not tokenizer.continuing(replacing)[replacing.token_to_id("[NAME]")]
    assert trained().token_to_id("[NAME]") is None
    assert trained(found="drop").token_to_id("[NAME]") is None
