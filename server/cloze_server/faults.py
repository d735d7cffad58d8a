"""What an echo model does wrong on purpose. Pure: the request's number comes in as an argument."""

import hashlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Faults(BaseModel):
    """`echo.json`. Unknown fields are refused: a misspelt fault would prove nothing."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    error_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the requests that get a 500."""
    delay_seconds: Annotated[float, Field(ge=0, le=600)] = 0.0
    """Wait of every request, beside the others and not one after the other."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

    def fails(self, number: int) -> bool:
        """Whether request `number`, counted from 0, fails: a function of seed and number that looks random."""
        drawn = hashlib.sha256(f"{self.seed}/{number}".encode()).digest()
        # 53 bits are what a float holds exactly, so that the result stays below 1.
        return (int.from_bytes(drawn[:8], "big") >> 11) / (1 << 53) < self.error_ratio
