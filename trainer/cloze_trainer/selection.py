"""Which step's weights are taken: those that do best on validation examples; and when to go on is of no use. Pure."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from cloze_api.early_stopping import EarlyStopping
from cloze_trainer.errors import InputError

PREFIX: Final = "validation_"
"""Of figures on the validation examples."""
_LESS_IS_BETTER: Final = ("log_loss", "rmse", "calibration_error", "false_positive_rate")


@dataclass(frozen=True, slots=True)
class Choice:
    """The best step so far. figure, value: what it was chosen by. waited: evaluations since without a better one."""

    figure: str
    step: int
    value: float
    waited: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """How a step is chosen. main: the task's own figures, of which the first counts that the examples give."""

    asked: EarlyStopping
    main: Sequence[str]

    def after(self, choice: Choice | None, step: int, figures: Mapping[str, float]) -> Choice:
        """What is chosen once a step has been evaluated. Raises InputError where the examples don't give the figure."""
        name = self.asked.figure or next(name for name in self.main if PREFIX + name in figures)
        value = figures.get(PREFIX + name)
        if value is None:
            raise InputError(
                "ValidationFigureMissing",
                f"spec.optimization.earlyStopping.figure is {name!r}, which the validation examples don't give: "
                "choose another one, or add examples that it is about",
            )

        def worth(value: float) -> float:
            return -math.inf if not math.isfinite(value) else -value if name in _LESS_IS_BETTER else value

        if choice is None or worth(value) > worth(choice.value) + self.asked.min_delta:
            return Choice(name, step, value)
        return replace(choice, waited=choice.waited + 1)

    def over(self, choice: Choice | None) -> bool:
        """Whether there was nothing better for too long."""
        return choice is not None and choice.waited >= self.asked.patience


def told(choice: Choice, last: int, total: int) -> tuple[dict[str, Any], dict[str, float]]:
    """For a judgement: what was chosen, and why the training ended with its last step of so many; and figures."""
    sentence = f"step {choice.step} is taken, of the best validation {choice.figure} ({choice.value:.4f})"
    if last < total:
        sentence += (
            f": the {choice.waited} evaluations since weren't better, and the training ended at step {last} of {total}"
        )
    else:
        sentence += f" in all {total} steps"
    figures = {"best_step": choice.step, "last_step": last, PREFIX + choice.figure: choice.value}
    return {**asdict(choice), "last": last, "of": total, "told": sentence}, figures


def check(asked: EarlyStopping, names: Sequence[str]) -> None:
    """Raise InputError for a figure that no evaluation gives. names: of all figures."""
    if asked.figure is not None and asked.figure not in names:
        near = difflib.get_close_matches(asked.figure, names, n=3) or names[:8]
        raise InputError(
            "EarlyStoppingFigureUnknown",
            f"spec.optimization.earlyStopping.figure is {asked.figure!r}, which the evaluation doesn't give: there are "
            f"{', '.join(near)} and others, see the reference",
        )
