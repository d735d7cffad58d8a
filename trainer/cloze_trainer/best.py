"""Keeps the weights of the best step so far.

They are part of each checkpoint, as what was decided is: a run that goes on takes the same ones.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cloze_trainer.checkpoint import Checkpoints, LoopState
from cloze_trainer.console import log
from cloze_trainer.gang import Gang
from cloze_trainer.selection import Choice, Selection


class Best:
    """On rank 0, in host memory; nothing where nothing is selected."""

    def __init__(self, selection: Selection | None, gang: Gang) -> None:
        self.selection, self._gang = selection, gang
        # A new dictionary for each choice: a checkpoint of the former one may still be on its way.
        self.weights: dict[str, Tensor] = {}

    def over(self, choice: Choice | None) -> bool:
        """Whether the training ends here."""
        return self.selection is not None and self.selection.over(choice)

    def after(self, choice: Choice | None, step: int, figures: Mapping[str, float], model: nn.Module) -> Choice | None:
        """What is chosen once a whole model has been evaluated, the same on all ranks, which all call it."""
        if self.selection is None:
            return None
        chosen: Choice = self._gang.from_leader(self.selection.after(choice, step, figures))
        if chosen.step == step and self._gang.leads:
            log("best step so far", step=step, value=chosen.value)
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        return chosen

    def load(self, checkpoints: Checkpoints, state: LoopState) -> None:
        """Take the ones that the checkpoint of this state has."""
        self.weights = checkpoints.best(state) if self._gang.leads else {}

    def put_into(self, model: nn.Module, choice: Choice | None) -> None:
        """Give a whole model the best weights. All ranks call it."""
        if choice is None:
            return
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if self._gang.leads:
                    tensor.copy_(self.weights[name])
                self._gang.spread(tensor)
