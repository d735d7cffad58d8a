"""What training costs, held to torch's own count of its operations."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cloze_api.pretrain import Architecture
from cloze_api.task import Task
from cloze_api.training import Arithmetic
from cloze_trainer import flops
from cloze_trainer.data.packing import attended
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.model import build


@pytest.mark.parametrize("architecture", Architecture)
def test_operations_are_those_that_torch_counts(architecture: Architecture) -> None:
    """Forward and backward, of a model whose head is applied to some tokens."""
    config = EncoderConfig(
        architecture=architecture,
        vocab_size=300,
        layers=4,
        hidden_size=64,
        heads=4,
        intermediate_size=128,
        max_length=96,
        dropout=0.0,
        embedding_size=32 if architecture is Architecture.ELECTRA else None,
    )
    model = build(Task.FILL_MASK, config)
    ids_BT, positions_M = torch.randint(5, 300, (2, 96)), torch.arange(0, 192, 8)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(ids_BT, None, None, positions_M).sum().backward()
    expected = flops.per_token(config, length=96, wanted=1 / 8, vocabulary=True) * 192
    # The first layer's input has a gradient for its embeddings only, and local attention computes what it then hides.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("architecture", Architecture)
def test_a_class_is_told_from_the_first_token_alone(architecture: Architecture) -> None:
    """What the last layer would do with the others is neither done nor counted."""
    sizes = {"vocab_size": 300, "layers": 4, "hidden_size": 64, "heads": 4, "intermediate_size": 128}
    config = EncoderConfig(architecture=architecture, max_length=96, dropout=0.0, **sizes)  # type: ignore[arg-type]
    model = build(Task.SEQUENCE_CLASSIFICATION, config, 2)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.randint(5, 300, (2, 96))).sum().backward()
    expected = flops.per_token(config, length=96, wanted=1 / 96) * 192
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_far_tokens_cost_nothing_where_attention_is_local() -> None:
    """Two layers of three."""
    sizes = {"vocab_size": 300, "layers": 6, "hidden_size": 64, "heads": 4, "intermediate_size": 128}
    config = EncoderConfig(architecture=Architecture.MODERNBERT, max_length=8192, dropout=0.0, **sizes)  # type: ignore[arg-type]
    far, near = (flops.per_token(config, length=length) for length in (8192, 8191))
    assert far - near == pytest.approx(3 * 2 * 2 * 2 * 64)


def test_what_devices_can_do() -> None:
    """By torch's names of them; no guess for others."""
    assert flops.peak("NVIDIA H100 80GB HBM3", Arithmetic.BF16) == 989.4e12
    assert flops.peak("NVIDIA H100 PCIe", Arithmetic.BF16) == 756e12
    assert flops.peak("NVIDIA A100-SXM4-80GB", Arithmetic.FP32) == 19.5e12
    assert flops.peak("NVIDIA L4", Arithmetic.BF16) == 121e12
    assert flops.peak("Tesla T4", Arithmetic.FP16) == 65e12
    assert flops.peak("Tesla V100-SXM2-16GB", Arithmetic.FP16) == 125e12
    assert flops.peak("Tesla V100-PCIE-32GB", Arithmetic.FP32) == 14e12
    assert flops.peak("NVIDIA GeForce RTX 4090", Arithmetic.BF16) is None


def test_a_token_looks_at_its_own_text_alone() -> None:
    """Of packed rows the operations are those of their texts, of which the longer ones have more tokens."""
    row = [2, *[7] * 8, 3, 2, *[7] * 3, 3, 0]
    rows_BT = np.array([row, [2, *[7] * 14, 3]], np.uint16)
    assert attended(rows_BT) == pytest.approx((10**2 + 5**2 + 16**2) / (10 + 5 + 16))
