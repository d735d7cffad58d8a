"""How far a model's figures depend on the seed that it was trained from. Pure."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import stdev
from typing import Final

from cloze_api.evaluation import Gate

_SPREADS: Final[Mapping[str, Callable[[list[float]], float]]] = {
    "seed_deviation_": stdev,
    "seed_range_": lambda values: max(values) - min(values),
    "seed_least_": min,
}


def figure_names(names: Iterable[str]) -> list[str]:
    """What may have gates, of figures with these names."""
    return [f"{prefix}{name}" for name in names for prefix in _SPREADS]


def watched(main: str, gates: Iterable[Gate], names: Collection[str]) -> list[str]:
    """The figures whose luck is told: the one that stands for the task, and those that gates are about."""
    asked = {gate.figure for gate in gates}
    return [name for name in sorted(names) if name == main or {name, *figure_names([name])} & asked]


def figures(by_seed: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """Each seed's figures of these names, as `seed_3_accuracy`, and their spread over all seeds, of which there are two
    at least: the sample's standard deviation, the range, and the least.

    A figure that the examples of a seed don't give has no spread.
    """
    found = {f"seed_{seed}_{name}": own[name] for seed, own in by_seed.items() for name in names if name in own}
    for name in names:
        values = [own[name] for own in by_seed.values() if name in own]
        if len(values) == len(by_seed):
            found |= {f"{prefix}{name}": float(spread(values)) for prefix, spread in _SPREADS.items()}
    return found
