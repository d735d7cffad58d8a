"""Test examples that are training examples, or nearly: what is scored on them is memory, not skill."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloze_trainer.data.duplicates import near_duplicate_groups
from cloze_trainer.errors import InputError

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Seen:
    """Test examples that were seen. of: how many there are. first: places of the first, `test:4 as train:7`."""

    count: int
    of: int
    first: Sequence[str]

    @property
    def share(self) -> float:
        """Among all test examples."""
        return self.count / max(1, self.of)

    def told(self) -> str:
        """A sentence without a word of the texts."""
        more = "" if self.count <= len(self.first) else f", and {self.count - len(self.first)} more"
        what = f"{self.count} of {self.of} test examples are training examples, or nearly"
        return f"{what}: {', '.join(self.first)}{more}"


def find(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> Seen:
    """Compare examples, each a place and a text: nearly the same is as `near_duplicate_groups` has it."""
    groups = near_duplicate_groups([text for _, text in (*train, *test)])
    # A group is named by its first text: where one was trained on, by that.
    found = [
        f"{place} as {train[group][0]}"
        for (place, _), group in zip(test, groups[len(train) :], strict=True)
        if group < len(train)
    ]
    return Seen(len(found), len(test), found[:_SHOWN])


def refuse(seen: Seen, most: float | None) -> None:
    """Raise InputError where more was seen than the share that may be; None is any."""
    if most is not None and seen.share > most:
        raise InputError(
            "TestExamplesSeen",
            f"{seen.told()}. That is {seen.share:.2%}, and spec.evaluation.maxSeenShare allows {most:.2%}: take them "
            "out of spec.dataset.train or spec.dataset.test",
        )
