"""MinHash signatures (Broder 1997) and their bands, by which examples are found that may be nearly the same."""

from typing import Final

import numpy as np

from cloze_trainer.data.duplicates import Hashes

PERMUTATIONS: Final = 128

_LARGEST = np.uint64((1 << 32) - 1)
_HALF = np.uint64(32)


def signature(hashes: Hashes, multipliers: Hashes, offsets: Hashes) -> Hashes:
    """The smallest value of each permutation over the hashes; shape (P,).

    A permutation is a·h + b mod 2^64, high 32 bits: strongly universal for 32-bit h (Dietzfelbinger 1996).
    """
    smallest = np.full(len(multipliers), _LARGEST, dtype=np.uint64)
    # In slices, so that a long document doesn't need P × shingles numbers at once.
    for start in range(0, len(hashes), 1024):
        block = hashes[start : start + 1024, None]
        smallest = np.minimum(smallest, ((block * multipliers + offsets) >> _HALF).min(axis=0))
    return smallest


def permutations(seed: int = 0) -> tuple[Hashes, Hashes]:
    """Multipliers and offsets of a signature's permutations."""
    generator = np.random.Generator(np.random.PCG64(seed))
    multipliers = generator.integers(1, 1 << 63, size=PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return multipliers, generator.integers(0, 1 << 63, size=PERMUTATIONS, dtype=np.uint64)


def bands(values: Hashes, rows: int) -> list[int]:
    """A hash for each band of a signature, in which its rows and the band's number go; a rest is left out."""
    count = len(values) // rows
    rows_BR = values[: count * rows].reshape(count, rows)
    keys = np.arange(1, count + 1, dtype=np.uint64)
    for row in range(rows):
        keys = (keys ^ rows_BR[:, row]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    found: list[int] = keys.tolist()
    return found
