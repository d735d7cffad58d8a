"""Low-rank adaptation by peft: what is trained of an encoder are small matrices, which are merged in the end."""

from typing import Any, Final

from torch import nn

from cloze_api.finetune import FineTuneOptimization
from cloze_api.lora import Lora, LoraTargets
from cloze_api.training import Optimization

# Names of the encoders' matrices.
_ATTENTION: Final = ("query", "key", "value", "query_key_value", "output")
_FEED_FORWARD: Final = ("intermediate", "projection")


class Adapters:
    """The small matrices of a model's encoder, which has them from now on. Its own ones aren't trained; the head is."""

    def __init__(self, asked: Lora, encoder: nn.Module) -> None:
        # Seconds, for few.
        from peft import LoraConfig  # noqa: PLC0415
        from peft.tuners.lora import LoraModel  # noqa: PLC0415

        targets = _ATTENTION if asked.targets is LoraTargets.ATTENTION else (*_ATTENTION, *_FEED_FORWARD)
        config = LoraConfig(
            r=asked.rank, lora_alpha=asked.alpha, lora_dropout=asked.dropout, target_modules=list(targets)
        )
        self._tuner: Any = LoraModel(encoder, {"default": config}, "default")

    def merge(self) -> None:
        """Add the products to the encoder's own matrices; it is as it was before then, but for their values."""
        self._tuner.merge_and_unload()


def begin(optimization: Optimization, model: Any) -> Adapters | None:
    """The adapters that are asked for, in a model that is about to be trained; None where none are.

    They come from torch's global generator, as the model does.
    """
    if not isinstance(optimization, FineTuneOptimization) or optimization.lora is None:
        return None
    return Adapters(optimization.lora, model.encoder)
