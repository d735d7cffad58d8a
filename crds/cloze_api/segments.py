"""Which metadata requests may carry, so that servers keep metrics for each value: few keys, few values."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

KEYS_MAX: Final = 8
VALUES_MAX: Final = 50
"""Values that may be declared, over all keys: each has metrics of its own."""

KEY_PATTERN: Final = r"^[a-z][a-z0-9_]{0,31}$"
VALUE_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$"
TEXT_MAX: Final = 32
"""Characters of a key or of a value."""


def is_key(text: str) -> bool:
    """Whether metrics can have it as a key."""
    return re.fullmatch(KEY_PATTERN, text) is not None


def is_value(text: str) -> bool:
    """Whether metrics can have it as a value."""
    return re.fullmatch(VALUE_PATTERN, text) is not None


def is_bounded(known: Mapping[str, Sequence[str]]) -> bool:
    """Whether so many keys and values may be declared."""
    return len(known) <= KEYS_MAX and sum(map(len, known.values())) <= VALUES_MAX


def is_distinct(values: Sequence[str]) -> bool:
    """Whether each value is declared once."""
    return len(set(values)) == len(values)
