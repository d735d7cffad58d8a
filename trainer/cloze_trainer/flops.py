"""What a training step costs, and how much of what a device can do that is."""

from typing import Final

from cloze_api.pretrain import Architecture
from cloze_api.training import Arithmetic
from cloze_trainer.encoders.config import GLOBAL_EVERY, LOCAL_REACH, EncoderConfig

#: Dense matrix products a second in 16 bits and in float32, by what torch calls the device; NVIDIA's data sheets.
_PEAKS: Final = {
    "H200": (989.4e12, 66.9e12),
    "H100 PCIe": (756e12, 51.2e12),
    "H100": (989.4e12, 66.9e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
    "V100 PCIE": (112e12, 14e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}


def per_token(config: EncoderConfig, *, length: float, predicted: float) -> float:
    """Floating-point operations of training on a token: forward once, and backward twice as much.

    A multiplication and an addition for each weight of the layers and for each pair of tokens that look at each other
    (Chowdhery et al., arXiv:2204.02311, appendix B), and for the head where something is predicted. Embeddings are
    looked up for nothing. length: of what attends to each other, in tokens. predicted: share of the tokens that the
    vocabulary's head is applied to.
    """
    width, modern = config.hidden_size, config.architecture is Architecture.MODERNBERT
    weights = config.layers * (4 * width**2 + (3 if modern else 2) * width * config.intermediate_size)
    weights += width * (config.embedding_size or 0)
    seen = config.layers * length
    if modern:
        wide = -(-config.layers // GLOBAL_EVERY)
        seen = wide * length + (config.layers - wide) * min(length, 2 * LOCAL_REACH + 1)
    head = predicted * config.embedding_width * (width + config.vocab_size)
    return 3 * 2 * (weights + 2 * seen * width + head)


def peak(device: str, arithmetic: Arithmetic) -> float | None:
    """Operations a second that a device can do at most; None for one that isn't known. device: torch's name of it."""
    words = device.replace("-", " ").split()
    for name, (half, whole) in _PEAKS.items():
        if set(name.split()) <= set(words):
            return whole if arithmetic is Arithmetic.FP32 else half
    return None
