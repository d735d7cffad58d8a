"""Normalises documents and drops what should not be learned from."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from cloze_api.pretrain import PII, Cleaning, Deduplication
from cloze_trainer.data import pii
from cloze_trainer.data.duplicates import near_duplicate_groups
from cloze_trainer.data.languages import Languages
from cloze_trainer.data.names import NameFilter
from cloze_trainer.data.spool import Chosen, Digesting, Digests, Mask, Spool, first_of_each


@dataclass(slots=True)
class CleaningReport:
    """What cleaning did, in counts alone. languages: documents in each, where they were told; `und` is unsure."""

    documents_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)


def normalise(text: str) -> str:
    """Unicode NFC without control characters other than tab and line feed."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    return "".join(
        character for character in text if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
    ).strip()


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What is left. kept: which of the spool's texts. digests: of all of its texts."""

    kept: Mask
    digests: Digests
    report: CleaningReport


def _fitting(documents: Iterable[str], settings: Cleaning, report: CleaningReport) -> Iterator[str]:
    """Documents of the right length and language, without personal data that has a pattern."""
    languages = Languages(settings.languages, settings.min_language_probability) if settings.languages else None
    for document in documents:
        report.documents_in += 1
        text = normalise(document)
        if settings.pii is PII.REPLACE:
            text, replaced = pii.replace(text)
            report.replaced.update(replaced)
        if len(text) < max(1, settings.min_characters):
            report.dropped["short"] += 1
            continue
        if settings.max_characters is not None and len(text) > settings.max_characters:
            report.dropped["long"] += 1
            continue
        if languages is not None:
            language = languages.of(text)
            report.languages[language] += 1
            if not languages.wants(language):
                report.dropped["language"] += 1
                continue
        yield text


def clean(documents: Iterable[str], settings: Cleaning, spool: Spool, names: NameFilter | None = None) -> Cleaned:
    """Spool the documents that fit, and tell which of them are kept. names: what finds them, where they are to go.

    No more than a document and about a hundred bytes for each are in memory; near-duplicates take some kilobytes each,
    and names are searched in some documents at once.
    """
    report = CleaningReport()
    digests, keys = Digesting(), Digesting()
    texts = _fitting(documents, settings, report)
    for text in names.filtered(texts, report.replaced, report.dropped) if names else texts:
        spool.append(text)
        digests.add(text)
        if settings.deduplicate is not Deduplication.NONE:
            keys.add(" ".join(text.split()))
    kept = np.ones(len(spool), dtype=bool)
    if settings.deduplicate is not Deduplication.NONE:
        kept = first_of_each(keys.all())
        report.dropped["duplicate"] = len(kept) - int(kept.sum())
    if settings.deduplicate is Deduplication.NEAR:
        once = np.flatnonzero(kept)
        groups = near_duplicate_groups(Chosen(spool, once))
        # The first of each group is kept: a group's number is the index of its first member.
        repeated = once[[group != index for index, group in enumerate(groups)]]
        kept[repeated] = False
        report.dropped["near_duplicate"] = len(repeated)
    report.documents_out = int(kept.sum())
    report.characters_out = spool.characters(kept)
    return Cleaned(kept, digests.all(), report)
