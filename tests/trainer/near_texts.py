"""Texts of which some are nearly the same."""

import numpy as np


def families(seed: int, *, shared: int = 0, changes: int = 4) -> list[str]:
    """Texts that are others with at most so many words changed, behind `shared` words with which all begin; those of a
    family one after the other.
    """
    random = np.random.default_rng(seed)
    beginning = [f"common{number}" for number in range(shared)]
    texts = []
    for family in range(12):
        words = [f"w{family}x{number}" for number in range(random.integers(1, 120))]
        for _ in range(random.integers(1, 8)):
            copy = list(words)
            for at in random.integers(0, len(words), size=random.integers(0, changes + 1)):
                copy[at] = f"other{random.integers(1000)}"
            texts.append(" ".join([*beginning, *copy]) + "." * int(random.integers(3)))
    return texts
