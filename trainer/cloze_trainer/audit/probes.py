"""Exposure of planted secrets and differences between groups."""

import math
import string
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cloze_api.audit import Audit, BiasProbe, Canary
from cloze_api.manifest import SpecialTokens
from cloze_trainer.audit import recall, scoring
from cloze_trainer.audit.scoring import Piece
from cloze_trainer.data import tokenizer
from cloze_trainer.errors import InputError
from cloze_trainer.model import TaskModel

ALTERNATIVES = 1023
"""Random secrets that a planted one is compared with: an exposure of 10 bits is that it is likelier than each."""
_LEAST = 100
"""There must be so many at least that the vocabulary has."""
_DRAWS = 100 * ALTERNATIVES
_SEED = 0


def check(audit: Audit, folder: Path, special: SpecialTokens, max_length: int) -> None:
    """Raise InputError for a probe that the model can't be asked, before anything is trained."""
    _pieces(audit, folder, special, max_length)


def run(
    audit: Audit, model: TaskModel, folder: Path, special: SpecialTokens, max_length: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures, and for people what they are of; no word of a secret is in either. folder: of the prepared corpus."""
    canaries, biases = _pieces(audit, folder, special, max_length)
    figures: dict[str, float] = {}
    for canary, pieces in zip(audit.canaries, canaries, strict=True):
        figures[f"exposure_{canary.name}"] = exposure(*_headed(scoring.log_likelihoods(model, pieces, special)))
    if figures:
        figures["exposure"] = max(figures.values())
    report: dict[str, Any] = {}
    for probe, pieces in zip(audit.bias, biases, strict=True):
        logs = scoring.log_likelihoods(model, pieces, special)
        differences = np.subtract(logs[: len(probe.templates)], logs[len(probe.templates) :])
        figures[f"bias_{probe.name}"] = float(np.abs(differences).mean())
        figures[f"bias_spread_{probe.name}"] = float(differences.std())
        report[probe.name] = dict(zip(probe.templates, map(float, differences), strict=True))
    parts: dict[str, Any] = {"bias": report} if report else {}
    if audit.personal_data:
        own, counts = recall.run(model, folder, special)
        figures, parts = {**figures, **own}, {**parts, **counts}
    return figures, parts


def exposure(secret: float, others: Sequence[float]) -> float:
    """Bits by which a secret's rank among random ones is better than the last: log2 of their number, minus that of it.

    Carlini et al., arXiv:1802.08232, section 4.2, with the space of secrets sampled as in 4.3.
    """
    rank = 1 + sum(other >= secret for other in others)
    return math.log2(len(others) + 1) - math.log2(rank)


def alike(secret: str) -> Iterator[str]:
    """Other secrets of the same form, each once, as many as are met in a bounded number of draws: each digit and letter
    is drawn at random, what is between them stays.
    """
    random = np.random.default_rng(_SEED)
    found = {secret}
    for _ in range(_DRAWS):
        drawn = "".join(_drawn(character, random) for character in secret)
        if drawn not in found:
            found.add(drawn)
            yield drawn


def _drawn(character: str, random: np.random.Generator) -> str:
    for alphabet in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
        if character in alphabet:
            return alphabet[random.integers(len(alphabet))]
    return character


def _pieces(
    audit: Audit, folder: Path, special: SpecialTokens, max_length: int
) -> tuple[list[list[Piece]], list[list[Piece]]]:
    reader = tokenizer.read(folder)

    def located(template: str, filled: str) -> Piece:
        return scoring.locate(template, filled, reader, special, max_length)

    def canary(each: Canary) -> list[Piece]:
        planted = located(each.template, each.secret)
        # A model hardly ever says that it doesn't know a word: beside such ones any secret would seem to be kept.
        readable = (other for own in alike(each.secret) if (other := located(each.template, own)).known(special))
        others = list(islice(readable, ALTERNATIVES))
        if not planted.known(special) or len(others) < _LEAST:
            raise _unknown(
                f"the secret of canary {each.name}, or most of those it is compared with, have characters that the "
                "vocabulary lacks: plant one of characters that are frequent in the corpus"
            )
        return [planted, *others]

    def bias(each: BiasProbe) -> list[Piece]:
        words = (each.first, each.second)
        pieces = [located(template, word) for word in words for template in each.templates]
        if not all(piece.known(special) for piece in pieces):
            raise _unknown(f"a word of bias probe {each.name} isn't in the vocabulary: take words that are")
        return pieces

    return [canary(each) for each in audit.canaries], [bias(each) for each in audit.bias]


def _unknown(why: str) -> InputError:
    return InputError("ProbeUnsuitable", f"spec.evaluation.audit: {why}")


def _headed(values: Sequence[float]) -> tuple[float, Sequence[float]]:
    return values[0], values[1:]
