"""In which number format matrices are multiplied: what devices offer, and what a run takes of it."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch

from cloze_api.training import Arithmetic
from cloze_trainer.errors import InputError

_TYPES: Final = {Arithmetic.BF16: torch.bfloat16, Arithmetic.FP16: torch.float16}
_WHERE: Final = {
    Arithmetic.BF16: "GPUs from Ampere on and processors with AVX512_BF16, AMX or Arm's BF16",
    Arithmetic.FP16: "GPUs",
}


def offered(device: torch.device) -> frozenset[Arithmetic]:
    """What a device is faster in than in fp32, and doesn't merely emulate; and fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return frozenset({Arithmetic.FP32, Arithmetic.FP16} | ({Arithmetic.BF16} if has_bf16 else set()))
    known = torch.cpu.get_capabilities()
    has_bf16 = any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return frozenset({Arithmetic.FP32} | ({Arithmetic.BF16} if has_bf16 else set()))


def chosen(
    asked: Arithmetic, offers: Sequence[Iterable[Arithmetic]], *, gpus: bool, scalable: bool = True
) -> Arithmetic:
    """What all ranks multiply in.

    offers: of each rank's device. gpus: whether they are. scalable: whether the loss may be scaled, as fp16 needs it.
    Raises InputError where a device has not what is asked for.
    """
    common = frozenset.intersection(*map(frozenset, offers))
    if asked is Arithmetic.AUTO:
        # On processors fp32, whose results differ least from one to the next.
        fast = (Arithmetic.BF16, *([Arithmetic.FP16] if scalable else [])) if gpus else ()
        return next((each for each in fast if each in common), Arithmetic.FP32)
    if asked not in common:
        lacking = next(rank for rank, offer in enumerate(offers) if asked not in offer)
        raise InputError(
            "ArithmeticUnsupported",
            f"optimization.arithmetic is {asked}, which {_WHERE[asked]} have, and the {'GPU' if gpus else 'processor'} "
            f"of rank {lacking} has not: use auto, or {', '.join(sorted(common))}, or topology.nodeSelector for "
            "machines that have it",
        )
    return asked


def multiplying(device: torch.device, arithmetic: Arithmetic) -> AbstractContextManager[Any]:
    """Within it, matrix products are of this kind."""
    half = _TYPES.get(arithmetic)
    return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)
