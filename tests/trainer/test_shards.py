"""Prepared corpora: what is in the files is what the texts say."""

import errno
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from cloze_api.manifest import SpecialTokens
from cloze_api.pretrain import PretrainJobSpec, TokenizerAlgorithm
from cloze_trainer.data import packing, shards, tokenizer
from cloze_trainer.data.passes import Unheard
from cloze_trainer.data.source import SourceFiles, locate
from cloze_trainer.data.splitting import split
from cloze_trainer.data.spool import Digesting
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.errors import InputError


def prepared(folder: Path, text: str, **spec: Any) -> shards.Shards:
    file = folder / "text.txt"
    file.write_text(text, encoding="utf-8")
    job = PretrainJobSpec.model_validate(
        {
            "corpus": [{"uri": f"file://{file}"}],
            "tokenizer": {"vocabSize": 200},
            "model": {"maxLength": 16},
            "registry": {"name": "x"},
            **spec,
        }
    )
    source: SourceFiles = locate(job.corpus[0].uri, corpus_root=folder, downloads=folder)
    return shards.prepare(job, [source], folder / "data", Unheard())[0]


PARAGRAPHS = [f"paragraph {number} speaks of the sea and of {number} ships" for number in range(300)]


def test_files_hold_the_packed_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written block by block, the rows are those of the texts packed at once, and the counts are theirs."""
    monkeypatch.setattr(packing, "_BLOCK_ROWS", 7)
    got = prepared(tmp_path, "\n\n".join(PARAGRAPHS))
    model = tokenizer.read(got.folder)
    digesting = Digesting()
    for text in PARAGRAPHS:
        digesting.add(text)
    sides = split(np.ones(len(PARAGRAPHS), dtype=bool), digesting.all(), 0.02)
    train, held_out = ([PARAGRAPHS[at] for at in np.flatnonzero(side)] for side in sides)
    for rows_NT, texts in ((got.train_NT, train), (got.held_out_NT, held_out)):
        documents = [model.encode(text, add_special_tokens=False).ids for text in texts]
        assert np.array_equal(rows_NT, np.concatenate(list(packing.pack(documents, 16, rows_NT.dtype))))
    assert got.report["sequences"] == len(got.train_NT)
    assert got.report["tokens"] == int((got.train_NT >= 5).sum() + (got.train_NT == SPECIAL_IDS.unk).sum())


@pytest.mark.parametrize("deduplicate", ["none", "exact", "near"])
def test_held_out_texts_are_not_nearly_trained_on(tmp_path: Path, deduplicate: str) -> None:
    """Whatever of the repetitions is kept; the report counts what changed sides."""
    pages = [" ".join(f"page{number}word{at}" for at in range(40)) for number in range(30)]
    texts = pages + [f"{page} again" for page in pages[:20]]
    got = prepared(
        tmp_path, "\n\n".join(texts), cleaning={"deduplicate": deduplicate}, evaluation={"heldOutFraction": 0.3}
    )
    model = tokenizer.read(got.folder)

    def mentioned(rows_NT: Any) -> set[str]:
        words = " ".join(model.decode(row_T.tolist()) for row_T in rows_NT).replace(" ", "")
        return {page for page in pages if page.split()[7] + page.split()[8] in words}

    assert not mentioned(got.train_NT) & mentioned(got.held_out_NT)
    assert mentioned(got.held_out_NT)
    assert (got.report["held_out_near_duplicates"] > 0) == (deduplicate != "near")
    assert got.report["documents"] == (30 if deduplicate == "near" else 50)


@given(
    st.lists(st.lists(st.integers(5, 99), max_size=40), max_size=20), st.integers(4, 32), st.sampled_from([1, 2, 4096])
)
def test_packing_keeps_every_token_once_and_in_order(documents: list[list[int]], length: int, rows: int) -> None:
    """The rows spell the documents; every text is `[CLS] … [SEP]`, one document or a piece of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_BLOCK_ROWS", rows)
        blocks = list(packing.pack(documents, length, np.uint16))
    packed_NT = np.concatenate(blocks) if blocks else np.empty((0, length), dtype=np.uint16)
    texts_NT, places_NT = packing.texts_of(packed_NT)
    pieces = []
    for left, row, texts, places in zip(reversed(range(len(packed_NT))), packed_NT, texts_NT, places_NT, strict=True):
        real = row != SPECIAL_IDS.pad
        assert real[0]
        assert not real[int(real.sum()) :].any(), "padding is at the end"
        for number in range(1, int(texts.max()) + 1):
            text = row[(texts == number) & real].tolist()
            assert (text[0], text[-1]) == (SPECIAL_IDS.cls, SPECIAL_IDS.sep)
            assert places[(texts == number) & real].tolist() == list(range(len(text)))
            pieces.append(text[1:-1])
        # What is left of a row is too small for a piece of what comes next.
        assert not left or length - real.sum() < 18
    assert all(min(piece, default=0) >= 5 for piece in pieces)
    assert [token for piece in pieces for token in piece] == [token for document in documents for token in document]
    ends = set(itertools.accumulate(len(piece) for piece in pieces))
    assert ends >= set(itertools.accumulate(len(document) for document in documents)) - {0}, "none are joined"


def test_special_tokens_in_the_corpus_are_ordinary_text(tmp_path: Path) -> None:
    """A document that spells `[MASK]` or `[PAD]` puts no such id among the tokens."""
    texts = [f"{number} the [MASK] token and [PAD] and [CLS] are spelt here" for number in range(50)]
    got = prepared(tmp_path, "\n\n".join(texts))
    assert not (got.train_NT == SPECIAL_IDS.mask).any()
    # One at the beginning of each text, and none within.
    before = np.roll(got.train_NT, 1, axis=1)
    begins = got.train_NT == SPECIAL_IDS.cls
    assert np.isin(before[begins], [SPECIAL_IDS.sep, SPECIAL_IDS.pad]).all()


@pytest.mark.parametrize(("unknown", "expected"), [(1, [5, 1, 5, 1, 1]), (None, [5, 5])])
def test_special_tokens_that_a_tokenizer_has_as_words_are_unknown_to_it(
    tmp_path: Path, unknown: int | None, expected: list[int]
) -> None:
    """Or left out, where there is no token for that: a WordPiece that splits at blanks alone finds them in texts."""
    special = SpecialTokens(pad=0, unk=unknown, cls=2, sep=3, mask=4)
    model = Tokenizer(models.WordPiece({word: number for number, word in enumerate([*tokenizer.SPECIAL, "a"])}))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    packing.write_rows(tmp_path / "rows.npy", model, ["a [CLS] a [PAD] [MASK]"], 8, special)
    (row_T,) = np.load(tmp_path / "rows.npy")
    assert row_T.tolist() == [2, *expected, 3, *([0] * (6 - len(expected)))]


def test_text_without_any_token_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    """Documents of which the tokenizer leaves nothing are told before anything is trained."""
    with pytest.raises(InputError) as refusal:
        prepared(tmp_path, "\n\n".join(chr(0x200B) * 8 + chr(0x200C) * (number + 1) for number in range(9)))
    assert refusal.value.reason == "CorpusTooSmall"
    assert list((tmp_path / "data").iterdir()) == []


def damage(path: Path) -> None:
    """Turn over one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["train.npy", "held-out.npy", "tokenizer.json", "report.json"])
def test_damaged_data_are_told_and_prepared_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """One bit of any file; what is prepared then is the same to the last byte."""
    text = "\n\n".join(PARAGRAPHS)
    folder = prepared(tmp_path, text).folder
    before = content(folder)
    capsys.readouterr()
    assert prepared(tmp_path, text).folder == folder
    assert [line["event"] for line in events(capsys)] == ["prepared data verified"]
    damage(folder / name)
    again = prepared(tmp_path, text)
    assert again.folder == folder
    assert content(folder) == before
    (told,) = events(capsys)
    assert told["event"] == "prepared data damaged"
    assert told["why"] == f"{name} is damaged: the data are removed and prepared again"


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_disk_that_does_not_give_data_back_is_told_from_a_volume_that_can_not_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What can't be read any more is prepared again; what may not be read ends the run with what the system says."""
    text = "\n\n".join(PARAGRAPHS)
    folder = prepared(tmp_path, text).folder
    before = content(folder)

    def refuse(*_: object) -> str:
        raise OSError(number, os.strerror(number), "train.npy")

    with monkeypatch.context() as patch:
        patch.setattr("cloze_trainer.data.verification.check", refuse)
        if number == errno.EIO:
            assert content(prepared(tmp_path, text).folder) == before
        else:
            with pytest.raises(PermissionError):
                prepared(tmp_path, text)
    assert content(folder) == before


def test_data_that_lack_a_file_or_their_digests_are_prepared_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is gone, a marker without content; but what isn't finished says nothing of damage."""
    text = "\n\n".join(PARAGRAPHS)
    folder = prepared(tmp_path, text).folder
    before = content(folder)
    (folder / "train.npy").unlink()
    prepared(tmp_path, text)
    assert content(folder) == before
    (folder / "COMPLETE").write_bytes(b"")
    prepared(tmp_path, text)
    assert content(folder) == before
    reasons = [line["why"].partition(":")[0] for line in events(capsys) if line["event"] == "prepared data damaged"]
    assert reasons == ["train.npy is missing", "its marker can't be read"]
    (folder / "COMPLETE").unlink()
    prepared(tmp_path, text)
    assert content(folder) == before
    assert "prepared data damaged" not in {line["event"] for line in events(capsys)}


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was logged since the last look."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]


def test_what_the_tokenizer_made_of_the_text_is_told(tmp_path: Path) -> None:
    """The share of unknown tokens and the tokens for each character are those of the training texts, counted anew."""
    # More characters than a small vocabulary has room for.
    texts = [f"ship {number} carries {chr(0x4E00 + 7 * number)} and {chr(0x5E00 + number)}" for number in range(200)]
    got = prepared(tmp_path, "\n\n".join(texts), tokenizer={"vocabSize": 128}, evaluation={"heldOutFraction": 0.2})
    model = tokenizer.read(got.folder)
    digesting = Digesting()
    for text in texts:
        digesting.add(text)
    train, _ = split(np.ones(len(texts), dtype=bool), digesting.all(), 0.2)
    trained = [texts[at] for at in np.flatnonzero(train)]
    assert len(trained) == got.report["documents"] - got.report["documents_held_out"]
    tokens = [token for text in trained for token in model.encode(text, add_special_tokens=False).ids]
    unknown = tokens.count(SPECIAL_IDS.unk)
    assert unknown > 100
    assert got.report["unknown_share"] == pytest.approx(unknown / len(tokens))
    assert got.report["tokens_per_character"] == pytest.approx(len(tokens) / sum(map(len, trained)))


@pytest.mark.parametrize("algorithm", list(TokenizerAlgorithm))
def test_single_bytes_are_a_figure_of_what_knows_bytes(tmp_path: Path, algorithm: TokenizerAlgorithm) -> None:
    """Characters that are spelt as bytes are in no other tokenizer, though ASCII's letters look the same."""
    got = prepared(tmp_path, "\n\n".join(PARAGRAPHS), tokenizer={"vocabSize": 600, "algorithm": algorithm})
    assert ("single_byte_share" in got.report) == (algorithm is TokenizerAlgorithm.BYTE_LEVEL_BPE)


PREPARE = """
import resource, sys
from pathlib import Path
from cloze_api.pretrain import PretrainJobSpec
from cloze_trainer.data import shards
from cloze_trainer.data.passes import Unheard
from cloze_trainer.data.source import locate

file = Path(sys.argv[1])
job = PretrainJobSpec.model_validate({
    "corpus": [{"uri": f"file://{file}", "format": "lines"}],
    "tokenizer": {"vocabSize": 4000},
    "registry": {"name": "x"},
})
source = locate(job.corpus[0].uri, corpus_root=file.parent, downloads=file.parent)
got, _ = shards.prepare(job, [source], file.parent / "data", Unheard(), processes=int(sys.argv[2]))
assert got.report["documents"] > 0
print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) >> 10)
"""


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2])
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, processes: int) -> None:
    """Ten times the text takes hardly more: some bytes for each document, in this process; and none in a helper."""
    words = [f"{stem}{end}" for stem in ("sail", "harbour", "wind", "cargo", "mast") for end in range(1000)]
    chosen = random.Random(1)  # noqa: S311 - no secret
    peaks = {}
    for megabytes in (8, 80):
        folder = tmp_path / str(megabytes)
        folder.mkdir()
        with (folder / "text.txt").open("w") as file:
            while file.tell() < megabytes << 20:
                file.write(" ".join(chosen.choices(words, k=300)) + "\n")
        command = [sys.executable, "-c", PREPARE, str(folder / "text.txt"), str(processes)]
        peaks[megabytes] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peaks[80] - peaks[8] < 24, peaks
