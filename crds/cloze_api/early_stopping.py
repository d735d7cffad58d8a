"""Which step's weights a fine-tuning takes, and when it ends before its last one."""

from typing import Annotated

from pydantic import Field

from cloze_api.evaluation import FIGURE_PATTERN
from cloze_api.schema import Schema


class EarlyStopping(Schema):
    """The step that does best on the validation examples is taken, and the training ends once none does better."""

    figure: Annotated[str, Field(pattern=FIGURE_PATTERN, max_length=160)] | None = None
    """What a step is chosen by, as the evaluation names it: `macro_f1`, `f1_<label>`, `log_loss`… The task's own figure
    when absent. Of `log_loss`, `rmse`, `calibration_error` and `false_positive_rate` less is better."""
    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """After so many evaluations in a row without a better figure the training ends."""
    min_delta: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """By more than this a figure has to be better."""
    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Steps between evaluations; an epoch's when absent. The last step is evaluated, too."""
