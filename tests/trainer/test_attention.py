"""Texts that share rows, with masks and without padding: the same logits and gradients, whichever is chosen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_texts import learnt, workload_of
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import varlen

from cloze_api.pretrain import Architecture
from cloze_api.training import Arithmetic
from cloze_trainer.data.packing import pack, texts_of
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.data.unpadded import unpadded
from cloze_trainer.encoders.attention import Attention, Texts, chosen
from cloze_trainer.encoders.config import LOCAL_REACH
from cloze_trainer.worker import initial_model

AMPERE, TURING = (8, 0), (7, 5)


@pytest.mark.parametrize(
    ("device", "capability", "arithmetic", "width", "expected"),
    [
        ("cuda", AMPERE, Arithmetic.BF16, 64, Attention.UNPADDED),
        ("cuda", (9, 0), Arithmetic.FP16, 64, Attention.UNPADDED),
        ("cuda", AMPERE, Arithmetic.FP32, 64, Attention.MASKED),
        ("cuda", TURING, Arithmetic.FP16, 64, Attention.MASKED),
        ("cuda", AMPERE, Arithmetic.BF16, 36, Attention.MASKED),
        ("cuda", AMPERE, Arithmetic.BF16, 264, Attention.MASKED),
        ("cpu", None, Arithmetic.BF16, 64, Attention.MASKED),
    ],
)
def test_kernels_without_padding_are_for_gpus_that_have_them(
    device: str, capability: tuple[int, int] | None, arithmetic: Arithmetic, width: int, expected: Attention
) -> None:
    """Flash attention: from Ampere on, in 16 bits, with heads of a width that it takes."""
    assert chosen(device, capability, arithmetic, width) is expected


@given(st.lists(st.lists(st.integers(5, 40), min_size=1, max_size=50), min_size=1, max_size=8), st.data())
def test_rows_without_padding_hold_each_text_once(documents: list[list[int]], data: st.DataObject) -> None:
    """Bounds and places are those of the rows, and what is predicted is the same token, wherever it has gone."""
    rows_BT = np.concatenate(list(pack(documents, 20, np.uint16))).astype(np.int64)
    _, places_BT = texts_of(rows_BT)
    real = np.flatnonzero(rows_BT.ravel() != SPECIAL_IDS.pad)
    positions_M = np.array(sorted(data.draw(st.sets(st.sampled_from(real.tolist()))))).astype(np.int64)
    # Whatever stands in the input: a hidden token may be drawn at random, and be one that begins texts.
    input_ids_BT = np.where(data.draw(st.booleans()), SPECIAL_IDS.cls, rows_BT)
    flat = unpadded(rows_BT, input_ids_BT, places_BT, positions_M, SPECIAL_IDS)
    pieces = np.split(rows_BT.ravel()[real], flat.bounds[1:-1])
    assert all(piece[0] == SPECIAL_IDS.cls and piece[-1] == SPECIAL_IDS.sep for piece in pieces)
    assert [token for piece in pieces for token in piece[1:-1]] == [token for ids in documents for token in ids]
    assert np.array_equal(flat.places_N, np.concatenate([np.arange(len(piece)) for piece in pieces]))
    assert flat.longest == max(map(len, pieces))
    assert np.array_equal(flat.ids_N[flat.positions_M], input_ids_BT.ravel()[positions_M])


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    _: Tensor,
    longest: int,
    __: int,
    *,
    window_size: Sequence[int],
) -> Tensor:
    """What torch's kernel computes on GPUs, text by text (T, H, E)."""
    parts = []
    for begin, end in zip(bounds.tolist()[:-1], bounds.tolist()[1:], strict=True):
        assert end - begin <= longest
        own = [each[begin:end].transpose(0, 1) for each in (query, key, value)]
        columns = torch.arange(end - begin)
        distances = (columns[:, None] - columns).abs()
        near = distances <= (window_size[0] if window_size[0] >= 0 else end)
        parts.append(functional.scaled_dot_product_attention(*own, attn_mask=near).transpose(0, 1))
    return torch.cat(parts)


# The layers of the other two are BERT's: they are left to the long suite.
@pytest.mark.parametrize(
    "architecture",
    [
        each if each in (Architecture.BERT, Architecture.MODERNBERT) else pytest.param(each, marks=pytest.mark.full)
        for each in Architecture
    ],
)
def test_texts_without_padding_are_learnt_from_as_with_masks(
    architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same predictions of the same weight; and the same rows, by which too small a memory is shared out."""
    monkeypatch.setattr(varlen, "varlen_attn", reference)
    workload = workload_of(tmp_path, architecture)
    model = initial_model(workload, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    saved = longest = texts = rows = 0
    for batch in range(workload._order.steps_per_epoch):
        masked = workload.share(batch, 0, 1, 0.0)
        workload.attention = Attention.UNPADDED
        flat = workload.share(batch, 0, 1, 0.0)
        workload.attention = Attention.MASKED
        for one, other in zip(masked, flat, strict=True):
            assert (one.weight, one.tokens, one.sequences) == (other.weight, other.tokens, other.sequences)
            assert torch.equal(one.targets, other.targets)
            assert isinstance(other.inputs[1], Texts)
            assert other.places == other.tokens
            longest = max(longest, other.inputs[1].longest)
            texts += len(other.inputs[1].bounds) - 1
            rows += one.sequences
            saved += one.places - other.places
            for found, expected in zip(learnt(workload, model, other), learnt(workload, model, one), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)
    assert saved > 0
    assert longest > 3 * LOCAL_REACH // 2
    assert texts > rows


def test_torchs_kernel_takes_what_it_is_given(tmp_path: Path) -> None:
    """Its own checks, and shapes, on a device that computes nothing: in bfloat16, with global and local layers."""
    workload = workload_of(tmp_path, Architecture.MODERNBERT)
    workload.attention = Attention.UNPADDED
    model = initial_model(workload, 1).to("meta", torch.bfloat16)
    (chunk, *_) = workload.share(0, 0, 1, 0.0)
    ids, texts, _, positions, places = chunk.inputs
    assert isinstance(texts, Texts)
    far = [each.to("meta") for each in (ids, positions, places) if isinstance(each, Tensor)]
    logits = model(far[0], texts._replace(bounds=texts.bounds.to("meta")), None, *far[1:])
    assert logits.shape == (chunk.weight, workload.config.vocab_size)
