"""Normalises documents and drops what should not be learned from."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from cloze_api.pretrain import PII, Cleaning, Deduplication
from cloze_trainer.data import pii
from cloze_trainer.data.duplicates import near_duplicate_groups


@dataclass(slots=True)
class CleaningReport:
    """What cleaning did, in counts alone."""

    documents_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)


def normalise(text: str) -> str:
    """Unicode NFC without control characters other than tab and line feed."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    return "".join(
        character for character in text if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
    ).strip()


def clean(documents: Iterable[str], settings: Cleaning) -> tuple[list[str], CleaningReport]:
    """The documents that are kept, in their order, and the counts of the rest."""
    report = CleaningReport()
    kept: list[str] = []
    seen: set[bytes] = set()
    for document in documents:
        report.documents_in += 1
        text = normalise(document)
        if settings.pii is PII.REPLACE:
            text, replaced = pii.replace(text)
            report.replaced.update(replaced)
        if len(text) < max(1, settings.min_characters):
            report.dropped["short"] += 1
            continue
        if settings.deduplicate is not Deduplication.NONE:
            key = hashlib.sha256(" ".join(text.split()).encode()).digest()
            if key in seen:
                report.dropped["duplicate"] += 1
                continue
            seen.add(key)
        kept.append(text)
    if settings.deduplicate is Deduplication.NEAR:
        groups = near_duplicate_groups(kept)
        # The first of each group is kept: a group's number is the index of its first member.
        unique = [text for index, text in enumerate(kept) if groups[index] == index]
        report.dropped["near_duplicate"] = len(kept) - len(unique)
        kept = unique
    report.documents_out = len(kept)
    report.characters_out = sum(map(len, kept))
    return kept, report
