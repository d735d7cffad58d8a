"""Kubernetes quantities, such as `500m`, `2Gi` or `4`."""

import re
from decimal import Decimal
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

_SUFFIXES: Final = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}

PATTERN: Final = r"^([0-9]+|[0-9]*\.[0-9]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"


def quantity(text: object) -> Decimal | None:
    """The number that a quantity stands for; None for anything else.

    The API server respells quantities: 1000m comes back as 1, 10000 as 10k.
    """
    match = re.fullmatch(PATTERN, text) if isinstance(text, str) else None
    return Decimal(match[1]) * _SUFFIXES[match[2] or ""] if match else None


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    BeforeValidator(_as_text),
    Field(pattern=PATTERN, max_length=32),
    # The minimum is for numbers, the pattern for texts.
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": PATTERN, "maxLength": 32, "minimum": 0}),
]
"""A quantity that isn't negative."""
