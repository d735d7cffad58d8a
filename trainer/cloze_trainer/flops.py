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


def per_token(config: EncoderConfig, *, length: float, wanted: float = 1.0, vocabulary: bool = False) -> float:
    """Floating-point operations of training on a token: forward once, and backward twice as much.

    A multiplication and an addition for each weight of the layers and for each pair of tokens that look at each other
    (Chowdhery et al., arXiv:2204.02311, appendix B), but for what the last layer does with tokens that nobody reads.
    Embeddings are looked up for nothing. length: of what attends to each other, in tokens. wanted: share of the tokens
    whose states are read of the last layer. vocabulary: whether they go through the vocabulary's head.
    """
    width, modern = config.hidden_size, config.architecture is Architecture.MODERNBERT
    # What comes after the attention is for those alone that are read.
    after = width**2 + (3 if modern else 2) * width * config.intermediate_size
    weights = config.layers * (3 * width**2 + after) - (1 - wanted) * after
    weights += width * (config.embedding_size or 0)
    nearby = min(length, 2 * LOCAL_REACH + 1)
    reaches = [nearby if modern and number % GLOBAL_EVERY else length for number in range(config.layers)]
    # Hidden tokens are picked after the attention, a first token before it.
    seen = sum(reaches) - (0.0 if vocabulary else (1 - wanted) * reaches[-1])
    head = wanted * config.embedding_width * (width + config.vocab_size) if vocabulary else 0.0
    return 3 * 2 * (weights + 2 * seen * width + head)


def peak(device: str, arithmetic: Arithmetic) -> float | None:
    """Operations a second that a device can do at most; None for one that isn't known. device: torch's name of it."""
    words = device.replace("-", " ").split()
    for name, (half, whole) in _PEAKS.items():
        if set(name.split()) <= set(words):
            return whole if arithmetic is Arithmetic.FP32 else half
    return None
