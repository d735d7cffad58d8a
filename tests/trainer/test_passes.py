"""Passes over texts give the same whoever does them, and say how far they are."""

import gzip
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze_api.pretrain import Cleaning, PretrainJobSpec, TokenizerAlgorithm
from cloze_trainer.data import crew, passes, shards, tokenizer
from cloze_trainer.data.cleaning import clean
from cloze_trainer.data.crew import Crew
from cloze_trainer.data.passes import Pass, Passes, Unheard, alone, blocks
from cloze_trainer.data.source import locate
from cloze_trainer.data.splitting import part, split
from cloze_trainer.data.spool import Chosen, Spool
from cloze_trainer.errors import InputError

WORDS = ("sea", "ship", "ships", "sail", "Wind", "Größe", "naïve", "天气", "a@b.example.org", "+49 30 1234567", "\x07")


def made(texts: list[str], cleaning: Cleaning, algorithm: TokenizerAlgorithm, over: Pass) -> Any:
    """All that passes give: what is kept, the report, the sides, the tokenizer."""
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder)) as spool:
        cleaned = clean(texts, cleaning, spool, over=over)
        try:
            chosen = split(cleaned.kept, cleaned.digests, 0.3)
            sides = part(spool, *chosen, over=over)
        except InputError as refusal:
            return list(spool), cleaned.report, refusal.reason
        train = Chosen(spool, np.flatnonzero(sides.train))
        model = tokenizer.train(train, vocab_size=600, lowercase=True, algorithm=algorithm, over=over)
        return (
            *(list(spool), cleaned.report, cleaned.kept.tolist(), cleaned.digests.tolist()),
            *(sides.train.tolist(), sides.held_out.tolist(), sides.partly_compared, model.to_str()),
        )


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), max_size=20),
    st.sampled_from(["none", "exact", "near"]),
    st.sampled_from(["replace", "drop", "keep"]),
    st.sampled_from(TokenizerAlgorithm),
)
def test_whoever_does_it_gets_the_same(
    crews: list[Crew], texts: list[str], deduplicate: str, pii: str, algorithm: TokenizerAlgorithm
) -> None:
    """One process, two helpers or three: the same texts in the same order, counts, sides and tokenizer."""
    cleaning = Cleaning.model_validate({"deduplicate": deduplicate, "pii": pii, "minCharacters": 3})
    expected = made(texts, cleaning, algorithm, alone)
    for each in crews:
        assert made(texts, cleaning, algorithm, Passes(each, Unheard())) == expected


def test_prepared_data_are_the_same_bytes_whatever_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of them."""
    monkeypatch.setattr(crew, "_ALONE", 0)
    monkeypatch.setattr(passes, "_DOCUMENTS", 7)
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"paragraph {n} of {n % 40} ships: {WORDS[n % 9]}" * 3 for n in range(400)))
    job = spec_of(file, cleaning={"deduplicate": "near"})
    source = locate(job.corpus[0].uri, corpus_root=tmp_path, downloads=tmp_path)
    contents = []
    for processes in (1, 2, 5):
        folder = shards.prepare(job, [source], tmp_path / str(processes), Unheard(), processes=processes)[0].folder
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]["train.npy"]) > 1000


def spec_of(file: Path, **spec: Any) -> PretrainJobSpec:
    return PretrainJobSpec.model_validate(
        {
            "corpus": [{"uri": f"file://{file}", **spec.pop("corpus", {})}],
            "tokenizer": {"vocabSize": 300},
            "model": {"maxLength": 16},
            "registry": {"name": "x"},
            **spec,
        }
    )


@given(st.lists(st.integers(0, 40), max_size=30))
def test_blocks_are_all_texts_in_their_order_and_bounded(lengths: list[int]) -> None:
    """Neither many nor long together, but for a text that is long by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_DOCUMENTS", 4)
        patch.setattr(passes, "_CHARACTERS", 30)
        texts = [str(number % 10) * length for number, length in enumerate(lengths)]
        found = list(blocks(texts))
    assert [text for block in found for text in block] == texts
    assert all(block for block in found)
    assert all(len(block) <= 4 and sum(map(len, block[:-1])) < 30 for block in found)


class Heard(Unheard):
    """What a listener is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.told: list[tuple[str, int | None, int | None, int | None]] = []

    def stage(self, stage: str) -> None:
        self.stages.append(stage)

    def advance(
        self, doing: str, *, documents: int | None = None, done_bytes: int | None = None, total_bytes: int | None = None
    ) -> None:
        self.told.append((doing, documents, done_bytes, total_bytes))


@pytest.mark.parametrize(("form", "end"), [("lines", ""), ("lines", ".gz"), ("lines", ".zst"), ("jsonl", "")])
def test_it_is_told_how_far_the_preparation_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, end: str
) -> None:
    """Documents and bytes of each pass, to its end: of the files, packed as they are, and then of the text."""
    monkeypatch.setattr(passes, "_DOCUMENTS", 5)
    lines = [f"the ship number {number} sails on the naïve sea" for number in range(60)]
    data = "\n".join(lines if form == "lines" else [f'{{"text": "{line}"}}' for line in lines]).encode()
    if end == ".gz":
        data = gzip.compress(data)
    elif end == ".zst":
        data = pa.compress(data, "zstd", asbytes=True)
    file = tmp_path / f"a.txt{end}"
    file.write_bytes(data)
    job = spec_of(file, corpus={"format": form}, evaluation={"heldOutFraction": 0.3})
    source = locate(job.corpus[0].uri, corpus_root=tmp_path, downloads=tmp_path)
    heard = Heard()
    got, _ = shards.prepare(job, [source], tmp_path / "data", heard)
    assert heard.stages == ["data", "tokenizer", "data"]
    passed = [doing for doing, documents, *_ in heard.told if documents is None]
    assert passed == ["reading", "comparing", "comparing", "counting", "tokenizing", "tokenizing"]
    reading = [each for each in heard.told if each[0] == "reading"]
    assert [documents for _, documents, *_ in reading] == [None, *range(5, 65, 5)]
    assert reading[-1] == ("reading", 60, len(data), len(data))
    text = sum(len(line.encode()) for line in lines)
    ends = [each for each, after in zip(heard.told, [*heard.told[1:], (None,) * 4], strict=True) if after[1] is None]
    parted = [each[1:] for each in ends if each[0] == "tokenizing"]
    assert [sum(values) for values in zip(*parted, strict=True)] == [60, text, text]
    assert all(done == total for _, _, done, total in ends)

    again = Heard()
    assert shards.prepare(job, [source], tmp_path / "data", again)[1]
    size = sum(path.stat().st_size for path in got.folder.iterdir() if path.name != "COMPLETE")
    assert {(doing, total) for doing, _, _, total in again.told} == {("verifying", size)}
    assert again.told[-1][2] == size
