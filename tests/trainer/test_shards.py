"""Prepared corpora: what is in the files is what the texts say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.pretrain import PretrainJobSpec
from cloze_trainer.data import shards, tokenizer
from cloze_trainer.data.source import SourceFiles, locate
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
    return shards.prepare(job, [source], folder / "data", lambda _: None)[0]


PARAGRAPHS = [f"paragraph {number} speaks of the sea and of {number} ships" for number in range(300)]


def test_files_hold_the_packed_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written block by block, the rows are those of the texts packed at once, and the counts are theirs."""
    monkeypatch.setattr(shards, "_BLOCK_ROWS", 7)
    got = prepared(tmp_path, "\n\n".join(PARAGRAPHS))
    model = tokenizer.read(got.folder)
    train, held_out = shards.split(PARAGRAPHS, 0.02)
    for rows_NT, texts in ((got.train_NT, train), (got.held_out_NT, held_out)):
        stream = [ids for text in texts for ids in [*model.encode(text, add_special_tokens=False).ids, SPECIAL_IDS.sep]]
        width = rows_NT.shape[1] - 2
        assert rows_NT.shape == (-(-(len(stream) - 1) // width), 16)
        assert rows_NT[:, 1:-1].reshape(-1)[: len(stream) - 1].tolist() == stream[:-1]
        assert (rows_NT[:, 0] == SPECIAL_IDS.cls).all()
        assert (rows_NT[:-1, -1] == SPECIAL_IDS.sep).all()
    assert got.report["sequences"] == len(got.train_NT)
    assert got.report["tokens"] == int((got.train_NT >= 5).sum() + (got.train_NT == SPECIAL_IDS.unk).sum())


@given(st.lists(st.lists(st.integers(5, 99), max_size=40), min_size=1, max_size=20), st.integers(4, 32))
def test_packing_keeps_every_token_once_and_in_order(documents: list[list[int]], length: int) -> None:
    """Without the special tokens the rows spell the documents; every row is `[CLS] … [SEP]`."""
    blocks = list(shards.pack(documents, length, np.uint16))
    packed_NT = np.concatenate(blocks) if blocks else np.empty((0, length), dtype=np.uint16)
    flat = [token for token in packed_NT.reshape(-1).tolist() if token >= 5]
    assert flat == [token for document in documents for token in document]
    for row in packed_NT.tolist():
        assert row[0] == SPECIAL_IDS.cls
        assert [token for token in row if token != SPECIAL_IDS.pad][-1] == SPECIAL_IDS.sep
    assert not (packed_NT[:-1] == SPECIAL_IDS.pad).any()


def test_special_tokens_in_the_corpus_are_ordinary_text(tmp_path: Path) -> None:
    """A document that spells `[MASK]` or `[PAD]` puts no such id among the tokens."""
    texts = [f"{number} the [MASK] token and [PAD] and [CLS] are spelt here" for number in range(50)]
    got = prepared(tmp_path, "\n\n".join(texts))
    assert not np.isin(got.train_NT[:, 1:], [SPECIAL_IDS.mask, SPECIAL_IDS.cls]).any()
    assert not (got.train_NT[:-1] == SPECIAL_IDS.pad).any()


def test_text_without_any_token_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    """Documents of which the tokenizer leaves nothing are told before anything is trained."""
    with pytest.raises(InputError) as refusal:
        prepared(tmp_path, "\n\n".join(chr(0x200B) * 8 + chr(0x200C) * (number + 1) for number in range(9)))
    assert refusal.value.reason == "CorpusTooSmall"
    assert list((tmp_path / "data").iterdir()) == []
