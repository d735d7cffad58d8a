"""What a budget buys: how much noise its steps need, and how much of it a number of steps has spent."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

from cloze_api.privacy import Privacy
from cloze_trainer.errors import InputError

# With much noise, as at the beginning of the search: what is told then is an upper bound all the same.
warnings.filterwarnings("ignore", message="Optimal order is the largest alpha")


@dataclass(frozen=True, slots=True)
class Budget:
    """A run's privacy. rate: with which each example is in a step. noise: its deviation over the largest norm."""

    asked: Privacy
    rate: float
    steps: int
    noise: float

    def spent(self, steps: int) -> float:
        """Epsilon after so many steps: what any order of Rényi's divergence proves (Mironov, arXiv:1702.07476).

        All steps are alike, so that their number is all that an accountant has to remember: the checkpoint has it.
        """
        if not steps:
            return 0.0
        accountant = _accountants().RDPAccountant()
        accountant.history = [(self.noise, self.rate, steps)]
        return float(accountant.get_epsilon(delta=self.asked.delta))


def plan(asked: Privacy, *, examples: int, batch: int, steps: int) -> Budget:
    """The least noise with which all steps fit into the budget. Raises InputError where none does."""
    if asked.delta >= 1 / examples:
        raise InputError(
            "DeltaTooLarge",
            f"spec.privacy.delta is {asked.delta:g}, and with {examples} examples {1 / examples:.2g} would let one of "
            f"them be given away whole: set it below that, such as {_round(0.1 / examples)}",
        )
    rate = min(1.0, batch / examples)
    try:
        noise = _accountants().utils.get_noise_multiplier(
            target_epsilon=asked.epsilon,
            target_delta=asked.delta,
            sample_rate=rate,
            steps=steps,
            accountant="rdp",
            epsilon_tolerance=asked.epsilon / 100,
        )
    except ValueError as error:
        raise InputError(
            "PrivacyBudgetTooSmall",
            f"no noise keeps {steps} steps within epsilon {asked.epsilon:g} at delta {asked.delta:g}: raise "
            "spec.privacy.epsilon or delta, or lower optimization.epochs",
        ) from error
    return Budget(asked, rate, steps, float(noise))


def _round(value: float) -> str:
    """One digit, downwards."""
    power = 10.0 ** math.floor(math.log10(value))
    return f"{math.floor(value / power) * power:.0e}"


def _accountants() -> Any:
    # A second, for few.
    import opacus.accountants.utils  # noqa: PLC0415

    return opacus.accountants
