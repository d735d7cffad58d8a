"""The scale of a loss, and the arithmetic that a run takes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.training import Arithmetic
from cloze_trainer import scaling
from cloze_trainer.arithmetic import chosen
from cloze_trainer.errors import InputError
from cloze_trainer.scaling import LossScale, overflowed

FP32, BF16, FP16, AUTO = Arithmetic.FP32, Arithmetic.BF16, Arithmetic.FP16, Arithmetic.AUTO
AMPERE, TURING, PROCESSOR = {FP32, FP16, BF16}, {FP32, FP16}, {FP32, BF16}


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4))
def test_a_scale_moves_as_torchs_does(updates: list[bool], growth: int) -> None:
    """GradScaler's, given the same overflows, as long as it stays within the bounds."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight])
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=growth)
    own = LossScale(2.0**8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "GROWTH_STEPS", growth)
        for fine in updates:
            theirs.scale((weight * (1.0 if fine else math.inf)).sum()).backward()
            theirs.step(optimizer)
            theirs.update()
            optimizer.zero_grad()
            own = own.updated() if fine else own.fallen()
            if not 2 < theirs.get_scale() < 2**24:
                break
            assert own.value == theirs.get_scale()


@given(st.lists(st.booleans(), max_size=200))
def test_a_scale_stays_between_its_bounds(updates: list[bool]) -> None:
    """Else there would be no end to halving it, or the loss itself would overflow."""
    scale = LossScale.first(FP16)
    for fine in updates:
        scale = scale.updated() if fine else scale.fallen()
        assert 2 <= scale.value <= 2**24
    assert scale.may_fall == (scale.value > 2)


def test_a_loss_that_is_not_scaled_stays_so() -> None:
    """In other arithmetic a gradient that isn't finite is trouble at once."""
    scale = LossScale.first(FP32)
    for _ in range(3 * scaling.GROWTH_STEPS):
        scale = scale.updated()
    assert scale.value == 1
    assert not overflowed(scale, math.inf, 1.0)


@pytest.mark.parametrize(
    ("norm", "loss", "again"),
    [(1.0, 1.0, False), (math.inf, 1.0, True), (math.nan, 1.0, True), (math.nan, math.nan, False)],
)
def test_a_batch_is_tried_again_where_a_smaller_scale_may_help(norm: float, loss: float, again: bool) -> None:
    """Its gradient overflowed, and its loss did not."""
    assert overflowed(LossScale.first(FP16), norm, loss) == again
    assert not overflowed(LossScale(2.0), norm, loss)


@pytest.mark.parametrize(
    ("offers", "gpus", "scalable", "taken"),
    [
        ([AMPERE, AMPERE], True, True, BF16),
        ([AMPERE, TURING], True, True, FP16),
        ([TURING], True, False, FP32),
        ([AMPERE], True, False, BF16),
        ([PROCESSOR, PROCESSOR], False, True, FP32),
    ],
)
def test_auto_takes_what_all_ranks_have(
    offers: list[set[Arithmetic]], gpus: bool, scalable: bool, taken: Arithmetic
) -> None:
    """bfloat16 needs no scale; fp16 is for GPUs without it; processors stay with what differs least among them."""
    assert chosen(AUTO, offers, gpus=gpus, scalable=scalable) is taken


@pytest.mark.parametrize(
    ("asked", "offers", "gpus", "message"),
    [
        (BF16, [AMPERE, TURING], True, r"the GPU of rank 1 has not: use auto, or fp16, fp32"),
        (FP16, [PROCESSOR], False, r"which GPUs have, and the processor of rank 0 has not: use auto, or bf16, fp32"),
        (BF16, [{FP32}], False, r"AVX512_BF16.*topology\.nodeSelector"),
    ],
)
def test_what_a_device_lacks_is_refused(
    asked: Arithmetic, offers: list[set[Arithmetic]], gpus: bool, message: str
) -> None:
    """With what there is instead."""
    with pytest.raises(InputError, match=message) as refusal:
        chosen(asked, offers, gpus=gpus)
    assert refusal.value.reason == "ArithmeticUnsupported"
    assert all(chosen(each, [AMPERE], gpus=True) is each for each in (FP32, BF16, FP16))
