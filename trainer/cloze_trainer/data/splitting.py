"""Which documents are trained on and which are held out: by their content alone, and never nearly the same on both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from cloze_trainer.data.duplicates import SIMILAR, Shingled, Sketch, Sketched, jaccard, sketches
from cloze_trainer.data.passes import Pass, alone
from cloze_trainer.data.spool import Chosen, Digests, Mask, at_most, first_of_each, sorted_order
from cloze_trainer.errors import InputError


def split(kept: Mask, digests: Digests, held_out_fraction: float) -> tuple[Mask, Mask]:
    """Which of the kept texts are trained on and which are held out.

    digests: of all texts. A text's side depends on its content alone, so equal texts share it. Raises InputError when
    the texts are too few for two sides.
    """
    those = digests[kept]
    distinct = those[first_of_each(those)]
    if len(distinct) < 2:
        raise InputError(
            "CorpusTooSmall",
            f"{len(distinct)} distinct documents remain after cleaning: at least two are needed, one to train on and "
            "one to evaluate on; check corpus.format and spec.cleaning",
        )
    bound = distinct[sorted_order(distinct)][max(1, round(len(distinct) * held_out_fraction)) - 1]
    held_out = kept & at_most(digests, bound)
    return kept & ~held_out, held_out


@dataclass(frozen=True, slots=True)
class Sides:
    """Which texts are trained on and which are held out.

    partly_compared: how many of those that are held out weren't compared with all that they may nearly be.
    """

    train: Mask
    held_out: Mask
    partly_compared: int


def part(texts: Sequence[str], train: Mask, held_out: Mask, *, over: Pass = alone) -> Sides:
    """The sides, with every held-out text that is nearly a training text among those: what is scored is unseen.

    over: how to pass over the texts. In memory are sketches of the held-out texts and some texts. Raises InputError
    when nothing would be held out.
    """

    def sketching(side: Mask) -> Iterator[Sketch]:
        return chain.from_iterable(over("comparing", sketches, Chosen(texts, np.flatnonzero(side))))

    numbers = np.flatnonzero(held_out).tolist()
    sketched = Sketched(sketching(held_out))
    shingled = Shingled(texts)
    seen = np.zeros(len(numbers), dtype=bool)

    def near(number: int, sketch: Sketch) -> list[int]:
        return [
            place
            for place in sketched.candidates(sketch)
            if jaccard(shingled[number], shingled[numbers[place]]) >= SIMILAR
        ]

    def met(number: int, sketch: Sketch) -> list[int]:
        """Held-out texts, by their places among those, that are nearly this one and weren't met before."""
        found: list[int] = []
        # Those that are found make room for others.
        while places := near(number, sketch):
            for place in places:
                sketched.forget(place)
            found += places
        seen[found] = True
        return found

    waiting: list[int] = []
    for number, sketch in zip(np.flatnonzero(train).tolist(), sketching(train), strict=True):
        waiting += met(number, sketch)
    # One that is trained on now may be nearly another one that is held out.
    while waiting:
        place = waiting.pop()
        waiting += met(numbers[place], sketched[place])
    moved = np.array(numbers, dtype=np.int64)[seen]
    if seen.all():
        raise InputError(
            "HeldOutSeen",
            f"all {len(numbers)} held-out documents are nearly training documents: set cleaning.deduplicate to near, "
            "or raise evaluation.heldOutFraction",
        )
    train, held_out = train.copy(), held_out.copy()
    train[moved], held_out[moved] = True, False
    return Sides(train, held_out, int((~seen & ~sketched.whole).sum()))
