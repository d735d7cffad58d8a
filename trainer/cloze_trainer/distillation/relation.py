"""Self-attention relations of a layer, and how far two models' are apart (MiniLMv2, arXiv:2012.15828).

Dimensions: B sequences, T tokens, H relation heads, D a model's width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze_api.distillation import Relation
from cloze_trainer.encoders.attention import Texts
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import InputError


class Heard:
    """A layer's queries, keys and values (B, T, D) of the last pass, before positions turn them."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def note(self, name: str, output: Tensor) -> None:
        """Keep one of them, or all three side by side."""
        joint = name == "query_key_value"
        self._parts |= dict(zip(_PARTS, output.chunk(3, dim=-1), strict=True)) if joint else {name: output}

    @property
    def parts(self) -> list[Tensor]:
        """The three."""
        return [self._parts[name] for name in _PARTS]


_PARTS = ("query", "key", "value")


@contextmanager
def hearing(layer: nn.Module) -> Iterator[Heard]:
    """Within it, passes through the layer are heard."""
    heard = Heard()

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: heard.note(name, output)

    joint = hasattr(layer, "query_key_value")
    handles = [
        layer.get_submodule(name).register_forward_hook(keep(name))
        for name in (("query_key_value",) if joint else _PARTS)
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def divergence(own_BTD: Tensor, theirs_BTD: Tensor, visible_BT: Tensor | None, heads: int) -> Tensor:
    """KL divergence (B,), in nats, of the student's relations from the teacher's: mean over heads and tokens.

    The states may be of different widths. Padding relates to nothing.
    """
    own, theirs = (_log_relations(states.float(), visible_BT, heads) for states in (own_BTD, theirs_BTD))
    each_BT = functional.kl_div(own, theirs, reduction="none", log_target=True).sum(-1).mean(1)
    if visible_BT is None:
        return each_BT.mean(-1)
    return (each_BT * visible_BT).sum(-1) / visible_BT.sum(-1)


def _log_relations(states_BTD: Tensor, visible_BT: Tensor | None, heads: int) -> Tensor:
    """Logarithms (B, H, T, T) of how much each token relates to each."""
    batch, length, width = states_BTD.shape
    parts_BHTE = states_BTD.reshape(batch, length, heads, width // heads).transpose(1, 2)
    scores_BHTT = parts_BHTE @ parts_BHTE.transpose(-1, -2) * (width // heads) ** -0.5
    if visible_BT is not None:
        scores_BHTT = scores_BHTT.masked_fill(~visible_BT[:, None, None, :], torch.finfo(scores_BHTT.dtype).min)
    return functional.log_softmax(scores_BHTT, dim=-1)


class RelationLoss:
    """A teacher's layer as what a student's layer learns. teacher: one of our models, for inference."""

    def __init__(self, asked: Relation, teacher: nn.Module, config: EncoderConfig, student: EncoderConfig) -> None:
        self.weight = asked.weight
        self._teacher = teacher
        self._heads = asked.heads or config.heads
        self._theirs = _layer(asked.teacher_layer, config, "teacherLayer")
        self._own = _layer(asked.student_layer, student, "studentLayer")
        if config.hidden_size % self._heads or student.hidden_size % self._heads:
            raise InputError(
                "RelationHeadsUnfit",
                f"{self._heads} relation heads divide the teacher's width {config.hidden_size} and the student's "
                f"{student.hidden_size} not both: set spec.distillation.relation.heads to a divisor of both",
            )

    def hearing(self, model: nn.Module) -> Any:
        """Within it, the student's passes are heard. model: the student, maybe within a wrapper."""
        return hearing(_layers(getattr(model, "module", model))[self._own])

    def losses(self, heard: Heard, inputs: tuple[Tensor | Texts | None, ...]) -> Tensor:
        """(B,), of each sequence of the pass that was heard: the sum of three divergences."""
        with torch.no_grad(), hearing(_layers(self._teacher)[self._theirs]) as teacher:
            self._teacher(*inputs)
        visible_BT = inputs[1]
        assert not isinstance(visible_BT, Texts), "a fine-tuning's rows have padding"
        device = heard.parts[0].device.type
        with torch.autocast(device, enabled=False):
            divergences = [
                divergence(own, theirs, visible_BT, self._heads)
                for own, theirs in zip(heard.parts, teacher.parts, strict=True)
            ]
        return torch.stack(divergences).sum(0)


def _layers(model: nn.Module) -> Any:
    layers: Any = model.get_submodule("encoder.layers")
    return layers


def _layer(asked: int | None, config: EncoderConfig, field: str) -> int:
    number = config.layers - 1 if asked is None else asked
    if number >= config.layers:
        raise InputError(
            "RelationLayerUnknown",
            f"spec.distillation.relation.{field} is {number}, and there are {config.layers} layers, counted from 0",
        )
    return number
