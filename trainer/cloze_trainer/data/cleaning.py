"""Normalises documents and drops what should not be learned from."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from cloze_api.pretrain import PII, Cleaning, Deduplication
from cloze_trainer.data import pii
from cloze_trainer.data.duplicates import near_duplicate_groups
from cloze_trainer.data.languages import Languages
from cloze_trainer.data.names import NameFilter
from cloze_trainer.data.passes import Pass, alone
from cloze_trainer.data.spool import Chosen, Digesting, Digests, Mask, Spool, first_of_each


@dataclass(slots=True)
class CleaningReport:
    """What cleaning did, in counts alone.

    languages: documents in each, where they were told; `und` is unsure. partly_compared: documents that are left and
    weren't compared with all that they may nearly be.
    """

    documents_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    partly_compared: int = 0

    def add(self, other: "CleaningReport") -> None:
        """Count what another part of the documents came to, before it is told what is left of all."""
        self.documents_in += other.documents_in
        self.dropped.update(other.dropped)
        self.replaced.update(other.replaced)
        self.languages.update(other.languages)


# Of categories Cc and Cs, but for tab and line feed.
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff]+")


def normalise(text: str) -> str:
    """Unicode NFC without control characters other than tab and line feed."""
    return _CONTROL.sub("", unicodedata.normalize("NFC", text.replace("\r\n", "\n"))).strip()


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What is left. kept: which of the spool's texts. digests: of all of its texts."""

    kept: Mask
    digests: Digests
    report: CleaningReport


@dataclass(frozen=True, slots=True)
class Fitted:
    """Documents that fit, in their order. digests, keys: of each, joined; keys are those of its words alone."""

    texts: list[str]
    report: CleaningReport
    digests: bytes
    keys: bytes


@dataclass(frozen=True, slots=True)
class Fitting:
    """Tells which documents fit, and makes them so. digesting: whether they are digested, too."""

    settings: Cleaning
    digesting: bool

    def __call__(self, documents: list[str]) -> Fitted:
        """What is left of some documents."""
        report, digests, keys = CleaningReport(), Digesting(), Digesting()
        texts = list(_fitting(documents, self.settings, report))
        if self.digesting:
            for text in texts:
                _digest(text, self.settings, digests, keys)
        return Fitted(texts, report, bytes(digests), bytes(keys))


def _digest(text: str, settings: Cleaning, digests: Digesting, keys: Digesting) -> None:
    digests.add(text)
    if settings.deduplicate is not Deduplication.NONE:
        keys.add(" ".join(text.split()))


@cache
def _languages(wanted: tuple[str, ...], min_probability: float) -> Languages:
    return Languages(wanted, min_probability)


def _fitting(documents: Iterable[str], settings: Cleaning, report: CleaningReport) -> Iterator[str]:
    """Documents of the right length and language, without personal data that has a pattern."""
    wanted = tuple(settings.languages)
    languages = _languages(wanted, settings.min_language_probability) if wanted else None
    for document in documents:
        report.documents_in += 1
        text = normalise(document)
        if settings.pii is PII.REPLACE:
            text, replaced = pii.replace(text)
            report.replaced.update(replaced)
        if settings.pii is PII.DROP and pii.spans(text):
            report.dropped["pii"] += 1
            continue
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


def clean(
    documents: Iterable[str],
    settings: Cleaning,
    spool: Spool,
    names: NameFilter | None = None,
    *,
    over: Pass = alone,
) -> Cleaned:
    """Spool the documents that fit, and tell which of them are kept.

    names: what finds them, where they are to go. over: how to pass over the documents, and over what is left of them.
    No more than a few blocks of documents and about a hundred bytes for each are in memory; near-duplicates take a
    kilobyte or two each, and names are searched in some documents at once.
    """
    report = CleaningReport()
    digests, keys = Digesting(), Digesting()
    fitted = over("reading", Fitting(settings, digesting=names is None), documents)
    if names is None:
        for part in fitted:
            report.add(part.report)
            for text in part.texts:
                spool.append(text)
            digests.extend(part.digests)
            keys.extend(part.keys)
    else:
        for text in names.filtered(_counted(fitted, report), report.replaced, report.dropped):
            spool.append(text)
            _digest(text, settings, digests, keys)
    kept = np.ones(len(spool), dtype=bool)
    if settings.deduplicate is not Deduplication.NONE:
        kept = first_of_each(keys.all())
        report.dropped["duplicate"] = len(kept) - int(kept.sum())
    if settings.deduplicate is Deduplication.NEAR:
        once = np.flatnonzero(kept)
        grouped = near_duplicate_groups(Chosen(spool, once), over=over)
        # The first of each group is kept: a group's number is the index of its first member.
        first = np.array(grouped.groups, dtype=np.int64) == np.arange(len(once))
        kept[once[~first]] = False
        report.dropped["near_duplicate"] = len(once) - int(first.sum())
        report.partly_compared = int((first & ~grouped.whole).sum())
    report.documents_out = int(kept.sum())
    report.characters_out = spool.characters(kept)
    return Cleaned(kept, digests.all(), report)


def _counted(parts: Iterable[Fitted], report: CleaningReport) -> Iterator[str]:
    for part in parts:
        report.add(part.report)
        yield from part.texts
