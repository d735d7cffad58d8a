"""Scored examples that are training examples, or nearly: what a model shows on them is memory, not skill."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cloze_trainer.data.likeness import Example, Index
from cloze_trainer.errors import InputError

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Seen:
    """Scored examples that were seen.

    part: which they are, `test` or `validation`. of: how many there are. first: places of the first, as
    `test:4 as train:7`.
    """

    part: str
    count: int
    of: int
    first: Sequence[str]

    @property
    def share(self) -> float:
        """Among all of the part."""
        return self.count / max(1, self.of)

    def told(self) -> str:
        """A sentence without a word of the texts."""
        more = "" if self.count <= len(self.first) else f", and {self.count - len(self.first)} more"
        what = f"{self.count} of {self.of} {self.part} examples are training examples, or nearly"
        return f"{what}: {', '.join(self.first)}{more}"


def find(part: str, train: Iterable[Example], scored: Iterable[Example]) -> Seen:
    """Compare examples: nearly the same is as `likeness` has it."""
    index, places = Index(), []
    for example in train:
        index.add(example)
        places.append(example.place)
    alike = [(example.place, next(index.alike(example), None)) for example in scored]
    found = [f"{place} as {places[number]}" for place, number in alike if number is not None]
    return Seen(part, len(found), len(alike), found[:_SHOWN])


def refuse(seen: Seen, most: float | None) -> None:
    """Raise InputError where more was seen than the share that may be; None is any."""
    if most is not None and seen.share > most:
        raise InputError(
            "TestExamplesSeen",
            f"{seen.told()}. That is {seen.share:.2%}, and spec.evaluation.maxSeenShare allows {most:.2%}: take them "
            "out of spec.dataset.train or spec.dataset.test",
        )
