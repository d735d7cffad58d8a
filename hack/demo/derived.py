"""Examples of the tasks that the demo leaves out, from the same text: a search in mails, and what a sentence holds."""

import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import text

# Part of the folder's name: raise it when a file's content would change.
EDITION = 1

Row = dict[str, Any]

_ANSWERED = re.compile(r"^((re|fwd?)(\[\d+\])?: *)+", re.IGNORECASE)
_TITLED = re.compile(r"\b(Mr\.|Mrs\.|Miss) ([A-Z][a-z]+)")
_LONGEST = 1000
# Every so many sentences, or groups of sentences: a small encoder on two processors trains for minutes, not hours.
_EVERY = 8


def pairs(mails: Iterable[Row]) -> Iterator[Row]:
    """A subject, and the mail that it is of; once for each subject, as answers share theirs."""
    seen: set[str] = set()
    for mail in mails:
        subject, _, body = mail["text"].partition("\n")
        subject = _ANSWERED.sub("", subject).strip()
        if len(subject) < 10 or len(body) < 80 or subject.casefold() in seen:
            continue
        seen.add(subject.casefold())
        yield {"text": subject, "positive": body[:_LONGEST]}


def _sentences(tagged: Iterable[Row]) -> Iterator[Row]:
    return (row for row in itertools.islice(tagged, 0, None, _EVERY) if len(row["tokens"]) >= 5)


def contents(tagged: Iterable[Row]) -> Iterator[Row]:
    """Whether a sentence holds a number, a quotation, or is a question: several of it, or nothing."""
    for row in _sentences(tagged):
        held = {
            "number": "NUM" in row["labels"],
            "question": row["tokens"][-1] == "?",
            "quotation": "``" in row["tokens"],
        }
        yield {"text": text.detokenize(row["tokens"]), "labels": [label for label, has in held.items() if has]}


def nouns(tagged: Iterable[Row]) -> Iterator[Row]:
    """Which share of a sentence's words are nouns."""
    for row in _sentences(tagged):
        words = [tag for tag in row["labels"] if tag != "."]
        if words:
            share = sum(tag == "NOUN" for tag in words) / len(words)
            yield {"text": text.detokenize(row["tokens"]), "score": round(share, 4)}


def questions(tagged: Iterable[Row]) -> Iterator[Row]:
    """Who has a title in three sentences; in as many of the others, nobody."""
    owed = 0
    rows = iter(tagged)
    while group := list(itertools.islice(rows, 3)):
        context = " ".join(text.detokenize(row["tokens"]) for row in group)
        found = list(_TITLED.finditer(context))
        if len({match[0] for match in found}) == 1:
            match = found[0]
            owed += 1
            answers = {"text": [match[2]], "answer_start": [match.start(2)]}
            yield {"question": f"Who is called {match[1]}?", "context": context, "answers": answers}
        elif not found and owed:
            owed -= 1
            title = ("Mr.", "Mrs.", "Miss")[owed % 3]
            yield {
                "question": f"Who is called {title}?",
                "context": context,
                "answers": {"text": [], "answer_start": []},
            }


_TASKS: dict[str, tuple[str, Callable[[Iterable[Row]], Iterator[Row]]]] = {
    "search": ("spam", pairs),
    "contents": ("pos", contents),
    "nouns": ("pos", nouns),
    "questions": ("pos", questions),
}
FILES = tuple(f"{name}-{side}.jsonl" for name in _TASKS for side in ("train", "test"))


def prepare(demo: Path) -> Path:
    """Write the files once, beside the demo's folder, from which they are made: its tests stay tests."""
    target = demo.with_name(f"{demo.name}-tasks-{EDITION}")
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=demo.parent) as scratch:
        staging = Path(scratch) / "files"
        staging.mkdir()
        for name, (source, make) in _TASKS.items():
            for side in ("train", "test"):
                with (demo / f"{source}-{side}.jsonl").open(encoding="utf-8") as lines:
                    rows = make(map(json.loads, lines))
                    made = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                    (staging / f"{name}-{side}.jsonl").write_text("".join(made), encoding="utf-8")
        staging.rename(target)
    return target
