"""The prepared corpus: tokenizer and packed sequences in a folder named after their content."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from cloze_api.manifest import SpecialTokens
from cloze_api.people import Found
from cloze_api.pretrain import PretrainJobSpec
from cloze_trainer.data import cleaning, personal, tokenizer
from cloze_trainer.data.crew import Crew
from cloze_trainer.data.documents import documents
from cloze_trainer.data.lines import BrokenLines, Meter
from cloze_trainer.data.names import PLACEHOLDER, NameModel
from cloze_trainer.data.packing import Seen, Tokens, write_rows
from cloze_trainer.data.passes import Listener, Pass, Passes
from cloze_trainer.data.sharing import turn
from cloze_trainer.data.source import SourceFiles
from cloze_trainer.data.splitting import part, split
from cloze_trainer.data.spool import Chosen, Spool
from cloze_trainer.data.tokenizer import PretrainedTokenizer
from cloze_trainer.data.verification import discard, intact
from cloze_trainer.errors import InputError
from cloze_trainer.files import publish, write_json

# Part of each folder's key: raise it when the same input would give other shards.
EDITION = 9
# Of a corpus: what is told by the sources' digests. How many lines may be broken is a part of the key, as data may be
# another job's that allows more.
_UNDECIDING = {"uri", "revision", "credentials"}
TRAIN_FILE = "train.npy"
HELD_OUT_FILE = "held-out.npy"
REPORT_FILE = "report.json"
# An entry of the vocabulary that occurs less often in the training text is hardly learned.
_RARE = 10


@dataclass(frozen=True, slots=True)
class Shards:
    """A prepared corpus, memory-mapped.

    train_NT, held_out_NT: token ids, one packed sequence a row, some of them with padding (0) at the end.
    """

    folder: Path
    train_NT: Tokens
    held_out_NT: Tokens
    vocab_size: int
    report: dict[str, Any]


def content_key(
    sources: Sequence[SourceFiles],
    spec: PretrainJobSpec,
    max_length: int,
    reused: PretrainedTokenizer | None,
    names: NameModel | None = None,
) -> str:
    """Name of the folder: a digest of everything that decides its content."""
    parts: dict[str, Any] = {
        "edition": EDITION,
        "sources": [source.digest for source in sources],
        "corpus": [corpus.model_dump(mode="json", exclude=_UNDECIDING) for corpus in spec.corpus],
        "cleaning": spec.cleaning.model_dump(mode="json", exclude={"names"}),
        "tokenizer": reused.content if reused else spec.tokenizer.model_dump(mode="json"),
        "max_length": max_length,
        "held_out_fraction": spec.evaluation.held_out_fraction,
    }
    if spec.cleaning.names and names:
        parts["names"] = [names.digest, spec.cleaning.names.model_dump(mode="json", exclude=_UNDECIDING)]
    if probe := spec.evaluation.audit.personal_data:
        parts["personal_data"] = probe.sample
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def _vocabulary_figures(model: Tokenizer, seen_V: Seen, special: SpecialTokens) -> dict[str, float]:
    """How well the vocabulary fits the text. Nothing is unknown to bytes: there the share of single ones says it."""
    ordinary = seen_V[tokenizer.ordinary(len(seen_V), special)]
    figures = {"rare_token_share": float((ordinary < _RARE).mean())}
    if tokenizer.is_byte_level(model):
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())
        single = [number for piece, number in model.get_vocab().items() if piece in alphabet]
        figures["single_byte_share"] = float(seen_V[single].sum() / max(1, ordinary.sum()))
    return figures


def _told(dropped: Mapping[str, int]) -> str:
    """In a sentence, why documents were dropped."""
    found = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()) if count)
    return f" (dropped: {found})" if found else ""


def _tokenizer(texts: Sequence[str], spec: PretrainJobSpec, folder: Path, max_length: int, over: Pass) -> Tokenizer:
    """Trained on the texts; its files are in the folder then."""
    wanted, people = spec.tokenizer, spec.cleaning.names
    replacing = people is not None and people.found is Found.REPLACE
    model = tokenizer.train(
        texts,
        vocab_size=wanted.vocab_size,
        lowercase=wanted.lowercase,
        algorithm=wanted.algorithm,
        placeholders=(*tokenizer.PLACEHOLDERS, PLACEHOLDER) if replacing else tokenizer.PLACEHOLDERS,
        over=over,
    )
    tokenizer.write(model, folder, max_length=max_length, lowercase=wanted.lowercase)
    return model


class _Reading:
    """The documents of all sources, and how far they are read."""

    def __init__(self, spec: PretrainJobSpec, sources: Sequence[SourceFiles], broken: Sequence[BrokenLines]) -> None:
        self._parts = list(zip(spec.corpus, sources, broken, strict=True))
        self._meter = Meter()
        self._total = sum(size for source in sources for size, _ in source.stamps)

    def __iter__(self) -> Iterator[str]:
        for corpus, source, broken in self._parts:
            yield from documents(corpus, source.paths, broken, self._meter)

    def measured(self, _done: int) -> tuple[int, int]:
        """Bytes of the files that are read, and of all."""
        return self._meter.done, self._total


def prepare(
    spec: PretrainJobSpec,
    sources: Sequence[SourceFiles],
    root: Path,
    listener: Listener,
    *,
    max_length: int | None = None,
    reused: PretrainedTokenizer | None = None,
    names: NameModel | None = None,
    need: Callable[[Sequence[SourceFiles]], Sequence[SourceFiles]] = lambda sources: sources,
    processes: int = 1,
    scratch: Path | None = None,
) -> tuple[Shards, bool]:
    """Clean, train the tokenizer, pack and publish under `root`, unless that was done before and no byte has changed.

    max_length: tokens of a row; the spec's when absent. reused: the tokenizer, where none is trained. names: the model
    that finds people's, where they are to go. need: gives the same sources with their files where data are prepared, as
    files of those given may be gone. processes: how many share the work, which gives the same whatever their number.
    scratch: this run's own folder, where `root` is shared with others. Returns the shards and whether they were there
    already.
    """
    length = max_length or spec.model.max_length
    folder = root / content_key(sources, spec, length, reused, names)

    def there() -> bool:
        return intact(folder, lambda done, total: listener.advance("verifying", done_bytes=done, total_bytes=total))

    if there():
        return read(folder), True
    with turn(folder, lambda: listener.advance("waiting")) if scratch else nullcontext():
        # Another run may have prepared them meanwhile.
        if scratch and there():
            return read(folder), True
        # What can't be prepared again isn't removed.
        sources = need(sources)
        discard(folder)
        with Spool(scratch or root) as spool, Crew(processes) as crew, publish(folder, digests=True) as staging:
            over = Passes(crew, listener)
            _fill(staging, spec, sources, spool, over, listener=listener, length=length, reused=reused, names=names)
    return read(folder), False


def _fill(
    staging: Path,
    spec: PretrainJobSpec,
    sources: Sequence[SourceFiles],
    spool: Spool,
    over: Passes,
    *,
    listener: Listener,
    length: int,
    reused: PretrainedTokenizer | None,
    names: NameModel | None,
) -> None:
    """Put into an empty folder what `prepare` publishes."""
    special: SpecialTokens = reused.special_tokens if reused else tokenizer.SPECIAL_IDS
    listener.stage("data")
    broken = [BrokenLines(corpus.max_broken_lines) for corpus in spec.corpus]
    reading = _Reading(spec, sources, broken)
    cleaned = cleaning.clean(reading, spec.cleaning, spool, names.load() if names else None, over=over)
    report = cleaned.report
    for source in sources:
        source.check_unchanged()
    if not report.documents_out:
        raise InputError(
            "CorpusEmpty",
            f"no document is left of {report.documents_in} read{_told(report.dropped)}: check corpus.format and "
            "spec.cleaning",
        )
    chosen = split(cleaned.kept, cleaned.digests, spec.evaluation.held_out_fraction)
    sides = part(spool, *chosen, over=over)
    train_texts, held_out_texts = (Chosen(spool, np.flatnonzero(side)) for side in (sides.train, sides.held_out))
    if reused:
        reused.copy(staging, max_length=length)
        model = tokenizer.read(staging)
    else:
        listener.stage("tokenizer")
        model = _tokenizer(train_texts, spec, staging, length, over)
    vocab_size = tokenizer.size(model)
    listener.stage("data")

    parts = {
        name: write_rows(staging / name, model, texts, length, special, tell=over.telling("tokenizing", texts))
        for name, texts in ((TRAIN_FILE, train_texts), (HELD_OUT_FILE, held_out_texts))
    }
    if probe := spec.evaluation.audit.personal_data:
        texts = train_texts, held_out_texts
        personal.write(staging, model, *texts, most=probe.sample, special=special, max_length=length)
    train, held_out = parts[TRAIN_FILE], parts[HELD_OUT_FILE]
    for name, counts in (("training", train), ("held-out", held_out)):
        if not counts.rows:
            raise InputError("CorpusTooSmall", f"the {name} documents hold no token: add text to the corpus")
    tokens = train.tokens + train.unknown
    figures: dict[str, Any] = {
        "documents_in": report.documents_in,
        "lines_broken": sum(item.counts.total() for item in broken),
        "broken": dict(sum((item.counts for item in broken), Counter())),
        "broken_first": [place for item in broken for place in item.places],
        "documents": report.documents_out,
        "documents_held_out": len(held_out_texts),
        # Chosen at first, but nearly a training text.
        "held_out_near_duplicates": int(chosen[1].sum()) - len(held_out_texts),
        # Much of them is in many others, of which they were compared with the first.
        "documents_partly_compared": report.partly_compared,
        "held_out_partly_compared": sides.partly_compared,
        "dropped": dict(report.dropped),
        "replaced": dict(report.replaced),
        **({"names_model": names.digest} if names else {}),
        "languages": dict(report.languages),
        "characters": report.characters_out,
        "tokens": tokens,
        "tokens_held_out": held_out.tokens,
        "sequences": train.rows,
        "sequences_held_out": held_out.rows,
        "vocab_size": vocab_size,
        # Special tokens are none.
        "padding_share": 1 - train.filled / (train.rows * length),
        "unknown_share": train.unknown / max(1, tokens),
        "tokens_per_character": tokens / max(1, spool.characters(sides.train)),
        **_vocabulary_figures(model, train.seen_V, special),
    }
    write_json(staging / REPORT_FILE, figures)


def read(folder: Path) -> Shards:
    """Map a published corpus into memory."""
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    return Shards(
        folder,
        np.load(folder / TRAIN_FILE, mmap_mode="r"),
        np.load(folder / HELD_OUT_FILE, mmap_mode="r"),
        int(report["vocab_size"]),
        report,
    )
