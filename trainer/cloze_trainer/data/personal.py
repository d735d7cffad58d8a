"""Places of personal data in the prepared texts, for the audit to ask the model about: as token ids, as the rows are.

What the training text and the held-out text both hold is left out of the latter, so that the model has read the one
side and not the other.
"""

import hashlib
import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from cloze_api.manifest import SpecialTokens
from cloze_trainer.data import pii
from cloze_trainer.errors import InputError
from cloze_trainer.files import write_json

PLACES_FILE: Final = "personal-data.json"
LEAST: Final = 10
"""Distinct data on either side, of which a share says anything."""
_WINDOW = 128
_LETTERS = 8
_BETWEEN = re.compile(r"[\s.-]")


@dataclass(frozen=True, slots=True)
class Datum:
    """A datum within its surroundings. ids: framed tokens. places: all of the datum's. asked: those of them that hold
    a letter or a digit, and not just the form.
    """

    kind: str
    ids: list[int]
    places: list[int]
    asked: list[int]


@dataclass(frozen=True, slots=True)
class Found:
    """Where a datum is. text: the number of its text."""

    kind: str
    text: int
    span: pii.Span


def sample(
    texts: Sequence[str], most: int, watched: Container[bytes] = frozenset()
) -> tuple[dict[bytes, Found], set[bytes]]:
    """At most so many distinct data by their digests, which choose them, so that neither order nor frequency does.

    Also which of the watched digests occur in the texts.
    """
    chosen: dict[bytes, Found] = {}
    met: set[bytes] = set()
    for number, text in enumerate(texts):
        for kind, span in pii.spans(text):
            bare = _BETWEEN.sub("", pii.plain(text[slice(*span)])).casefold()
            digest = hashlib.blake2b(bare.encode(), digest_size=16).digest()
            if digest in watched:
                met.add(digest)
            chosen.setdefault(digest, Found(kind, number, span))
        if len(chosen) > 2 * most:
            chosen = _first(chosen, most)
    return _first(chosen, most), met


def _first(chosen: Mapping[bytes, Found], most: int) -> dict[bytes, Found]:
    return {digest: chosen[digest] for digest in sorted(chosen)[:most]}


def locate(text: str, found: Found, reader: Tokenizer, special: SpecialTokens, max_length: int) -> Datum | None:
    """The datum in a window of tokens; None where the model can't read it, or it is longer than the window."""
    room = min(max_length, _WINDOW) - 2
    start, end = found.span
    begin = max(0, start - _LETTERS * room)
    part = text[begin : end + _LETTERS * room]
    encoding = reader.encode(part, add_special_tokens=False)
    spans = [(max(low, start - begin), min(high, end - begin)) for low, high in encoding.offsets]
    places = [number for number, (low, high) in enumerate(spans) if low < high]
    asked = [
        number
        for number in places
        if any(map(str.isalnum, part[slice(*spans[number])])) and encoding.ids[number] != special.unk
    ]
    if not asked or len(places) > room:
        return None
    first = max(0, min(places[0] - (room - len(places)) // 2, len(encoding.ids) - room))
    ids = [special.cls, *encoding.ids[first : first + room], special.sep]
    return Datum(found.kind, ids, [place - first + 1 for place in places], [place - first + 1 for place in asked])


def write(
    folder: Path,
    reader: Tokenizer,
    train: Sequence[str],
    held_out: Sequence[str],
    *,
    most: int,
    special: SpecialTokens,
    max_length: int,
) -> None:
    """Choose data of both sides. Raises InputError where there are too few to ask about."""
    reader.encode_special_tokens = True
    unseen, _ = sample(held_out, most)
    seen, met = sample(train, most, unseen.keys())
    sides = {"training": (train, seen), "held-out": (held_out, {key: unseen[key] for key in unseen if key not in met})}
    placed: dict[str, list[Datum]] = {}
    for name, (texts, chosen) in sides.items():
        data = (locate(texts[each.text], each, reader, special, max_length) for each in chosen.values())
        placed[name] = [datum for datum in data if datum]
        if len(placed[name]) < LEAST:
            raise InputError(
                "ProbeUnsuitable",
                f"the {name} documents hold {len(placed[name])} distinct personal data of their own, and "
                f"spec.evaluation.audit.personalData needs {LEAST}: remove it, or raise evaluation.heldOutFraction",
            )
    write_json(folder / PLACES_FILE, {name: [asdict(datum) for datum in data] for name, data in placed.items()})


def read(folder: Path) -> dict[str, list[Datum]]:
    """What was chosen, by side."""
    document = json.loads((folder / PLACES_FILE).read_text(encoding="utf-8"))
    return {name: [Datum(**datum) for datum in data] for name, data in document.items()}
