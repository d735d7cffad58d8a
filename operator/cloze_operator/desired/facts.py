"""What the registry tells of an artifact before anybody has loaded it."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Facts:
    """What a version's tags tell of its artifact; empty where they don't.

    task: its task. schema: of its manifest. tokenizer: the fingerprint. labels: digest of its label schema.
    precisions: of its graphs, as in `fp32, int8`.
    """

    task: str = ""
    schema: str = ""
    tokenizer: str = ""
    labels: str = ""
    precisions: str = ""


UNKNOWN: Final = Facts()
