"""Training examples that are kept for choosing a step: by their content alone, and never nearly the same as others."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cloze_trainer.data import likeness
from cloze_trainer.data.cleaning import normalise
from cloze_trainer.errors import InputError

T = TypeVar("T", bound=likeness.Example)


@dataclass(frozen=True, slots=True)
class Split(Generic[T]):
    """Examples that are trained on and those that are kept, each in their order."""

    train: list[T]
    kept: list[T]


def split(examples: Sequence[T], labels: Callable[[T], Collection[str]], fraction: float) -> Split[T]:
    """Keep a fraction of the examples, at most.

    labels: of an example; one of each label is trained on. What is nearly the same stays together, as `likeness` has
    it, and groups are taken in the order of their smallest digest as long as they fit in: which ones doesn't depend on
    the order of the examples. Raises InputError when nothing can be kept.
    """
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(likeness.groups(examples)):
        groups[group].append(number)
    digests = [hashlib.sha256("\0".join(map(normalise, example.texts)).encode()).digest() for example in examples]
    most = max(1, round(fraction * len(examples)))
    needed = [set(labels(example)) for example in examples]
    left = Counter(label for own in needed for label in own)
    kept: set[int] = set()
    for alike in sorted(groups.values(), key=lambda numbers: min(digests[number] for number in numbers)):
        gone = Counter(label for number in alike for label in needed[number])
        if len(kept) + len(alike) <= most and all(left[label] > count for label, count in gone.items()):
            kept.update(alike)
            left.subtract(gone)
    if not kept or len(kept) == len(examples):
        raise InputError(
            "ValidationEmpty",
            f"of {len(examples)} training examples at most {most} are kept by spec.dataset.validationFraction, and "
            "there are none that no others are nearly the same as and whose labels others have, too: raise it, add "
            "examples, or name spec.dataset.validation",
        )
    return Split(
        [example for number, example in enumerate(examples) if number not in kept],
        [example for number, example in enumerate(examples) if number in kept],
    )


def refuse_same(train: str, test: str, validation: str | None) -> None:
    """Raise InputError where the examples to choose by are those of the training or the test, by their digests."""
    if validation in (train, test):
        raise InputError(
            "ValidationSame",
            f"spec.dataset.validation holds the same as spec.dataset.{'train' if validation == train else 'test'}: a "
            "step is chosen by examples that are neither trained nor tested on, so name others, or set "
            "spec.dataset.validationFraction",
        )
