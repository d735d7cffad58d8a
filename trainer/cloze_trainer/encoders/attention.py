"""Who looks at whom, and how."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def visible(attention_mask: Tensor | None) -> Tensor | None:
    """Where a key may be looked at, (B, 1, 1, T) or (B, 1, T, T); None where everywhere.

    attention_mask: which tokens are looked at, (B, T), or by which, (B, T, T); without it every one by all.
    """
    if attention_mask is None:
        return None
    mask = attention_mask[:, None] if attention_mask.dim() > 2 else attention_mask[:, None, None, :]
    return mask.to(torch.bool)


def attend(query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, seen: Tensor | None) -> Tensor:
    """Attended states (B, T, D) of all heads. seen: as `visible` gives it, or (T, T)."""
    batch, heads, length, width = query_BHTE.shape
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
