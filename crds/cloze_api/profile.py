"""The reference profile: what a model's test examples were like and what it said of them, beside which its later
requests can be held.

It lies in the artifact, so that it is verified and signed with it, and holds counts alone, nothing of a text.
"""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PROFILE_FILE = "profile.json"

_Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Histogram(_Part):
    """How many values are in each class.

    bounds: the highest value of each class but the last, which has all that are above. counts: one more than bounds.
    """

    bounds: list[float]
    counts: list[_Count]

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError("a histogram has one count more than bounds")
        if sorted(set(self.bounds)) != self.bounds:
            raise ValueError("a histogram's bounds rise")
        return self


class Profile(_Part):
    """`profile.json`."""

    schema_version: int = 1
    inputs: Annotated[int, Field(ge=1)]
    """How many there were, each as a request has it: a text, or a question with its context."""
    tokens: Histogram
    """Of an input, special tokens included, over all its windows."""
    unknown: Histogram
    """Share of an input's tokens that the vocabulary doesn't have."""
    predictions: dict[str, _Count] = {}
    """How often each label was predicted: of texts, or of words; empty for a task without labels."""
    confidences: Histogram | None = None
    """Calibrated probability of what was predicted."""
