"""Who looks at whom, and how."""

import math
from enum import StrEnum
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cloze_api.training import Arithmetic

#: Compute capability of the first GPUs that have flash attention (Ampere), and the widest heads that it takes
#: (Dao, arXiv:2307.08691, and its implementation in torch).
_FLASH_CAPABILITY = (8, 0)
_FLASH_WIDTH = 256


class Attention(StrEnum):
    """How texts that share rows are kept apart."""

    MASKED = "masked"
    """Rows with padding, and a mask that tells for each pair of tokens; on any device."""
    UNPADDED = "unpadded"
    """All texts one after the other, by kernels that know where each begins; on GPUs, in 16 bits."""


def chosen(device: str, capability: tuple[int, int] | None, arithmetic: Arithmetic, head_width: int) -> Attention:
    """What is fastest. capability: of a GPU. head_width: of each head, in numbers."""
    flash = capability is not None and capability >= _FLASH_CAPABILITY and head_width <= _FLASH_WIDTH
    halves = arithmetic in (Arithmetic.BF16, Arithmetic.FP16)
    return Attention.UNPADDED if device == "cuda" and flash and halves and head_width % 8 == 0 else Attention.MASKED


class Texts(NamedTuple):
    """Texts one after the other, each of which looks at itself alone.

    bounds: where each begins, and the end (S + 1), int32. longest: tokens of the longest. reach: how many tokens to
    each side a token looks at; all of its text where -1.
    """

    bounds: Tensor
    longest: int
    reach: int = -1


Seen = Tensor | Texts | None
"""What queries may look at: (B, 1, 1, T), (B, 1, T, T) or (T, T), texts, or everything."""


FIRST: Final = "first"
Wanted = Tensor | Literal["first"] | None
"""Whose states a layer is to give: of tokens (M), indices into the flattened (B × T) ones; of each row's first; of all.

What nobody reads of the last layer needn't be computed. Every token is looked at all the same.
"""


def picked(states_BTD: Tensor, wanted: Wanted) -> Tensor:
    """The states of the wanted tokens: (1, M, D), (B, 1, D), or all as they are."""
    if wanted is None:
        return states_BTD
    if isinstance(wanted, Tensor):
        return states_BTD.reshape(-1, states_BTD.shape[-1]).index_select(0, wanted)[None]
    return states_BTD[:, :1]


def visible(attention_mask: Tensor | Texts | None) -> Seen:
    """Where a key may be looked at, (B, 1, 1, T) or (B, 1, T, T); None where everywhere.

    attention_mask: which tokens are looked at, (B, T), or by which, (B, T, T); without it every one by all.
    Texts are in one row, and stay as they are.
    """
    if attention_mask is None or isinstance(attention_mask, Texts):
        return attention_mask
    mask = attention_mask[:, None] if attention_mask.dim() > 2 else attention_mask[:, None, None, :]
    return mask.to(torch.bool)


def attend(query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, seen: Seen, wanted: Wanted = None) -> Tensor:
    """Attended states of all heads, as `picked` has them: (B, T, D) of all tokens."""
    if isinstance(wanted, str):
        assert not isinstance(seen, Texts), "texts that share a row have each their own first token"
        query_BHTE = query_BHTE[:, :, :1]
        # A mask for each pair of tokens has a row for each that looks, others one for all.
        seen = None if seen is None else seen[..., :1, :]
        return _attended(query_BHTE, key_BHTE, value_BHTE, seen)
    return picked(_attended(query_BHTE, key_BHTE, value_BHTE, seen), wanted)


def _attended(query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, seen: Seen) -> Tensor:
    batch, heads, length, width = query_BHTE.shape
    if isinstance(seen, Texts):
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - seconds, for GPUs alone

        query_THE, key_THE, value_THE = (each[0].transpose(0, 1) for each in (query_BHTE, key_BHTE, value_BHTE))
        ends = (seen.bounds, seen.bounds, seen.longest, seen.longest)
        attended_THE = varlen_attn(query_THE, key_THE, value_THE, *ends, window_size=(seen.reach, seen.reach))
        assert isinstance(attended_THE, Tensor), "nothing else was asked for"
        return attended_THE.reshape(batch, length, heads * width)
    if torch.onnx.is_in_onnx_export():
        # The fused operator traces to a guard against rows without any key, which never occur here, and hides the
        # pattern that ONNX Runtime fuses.
        scores_BHTT = query_BHTE @ key_BHTE.transpose(-1, -2) / math.sqrt(width)
        if seen is not None:
            scores_BHTT = scores_BHTT + (1.0 - seen.to(scores_BHTT.dtype)) * torch.finfo(scores_BHTT.dtype).min
        attended_BHTE = torch.softmax(scores_BHTT, dim=-1) @ value_BHTE
    else:
        attended_BHTE = functional.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, attn_mask=seen)
    return attended_BHTE.transpose(1, 2).reshape(batch, length, heads * width)
