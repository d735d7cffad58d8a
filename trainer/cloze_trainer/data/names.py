"""Replaces the names of people that a model finds, or drops their documents; what was found is counted, never kept."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from cloze_api.people import Found, Names
from cloze_trainer.console import log
from cloze_trainer.data.windows import windows
from cloze_trainer.errors import InputError

Span = tuple[int, int]
Probabilities = npt.NDArray[np.float32]
Tag = Callable[[Sequence[Sequence[int]]], list[Probabilities]]
"""How probably each token of some windows, without their special tokens, belongs to a person's name."""

KIND: Final = "NAME"
PLACEHOLDER: Final = f"[{KIND}]"
"""Stands in a name's place."""
DROPPED: Final = "name"
_PEOPLE: Final = ("per", "person")
# Documents and characters that are searched at once.
_DOCUMENTS: Final = 256
_CHARACTERS: Final = 1 << 20
# Tokens, with padding, that go through the model at once.
_TOKENS: Final = 8192
#: Windows share an eighth of their tokens, so that each token has others on both sides in one of them.
SHARED: Final = 8
# Between the words of one name.
_JOINT = re.compile(r"[ \t.'’-]{0,2}")
_LOG_EVERY_SECONDS: Final = 30.0


class NameModel(Protocol):
    """A model that was found, and is loaded where a corpus isn't cleaned yet."""

    @property
    def digest(self) -> str:
        """Of its files."""

    def load(self) -> "NameFilter":
        """Raises InputError where it can't find people."""


def people(labels: Sequence[str], asked: Sequence[str], where: str) -> list[int]:
    """The classes that are people's. labels: of a model, by class. Raises InputError where there are none."""
    kinds = [re.sub(r"^[A-Za-z][-_]", "", label) for label in labels]
    known = sorted({kind for kind in kinds if kind.upper() != "O"})
    if missing := [label for label in asked if label not in kinds]:
        raise InputError(
            "NamesLabelUnknown",
            f"cleaning.names.labels has {missing[0]!r}, and {where} knows {', '.join(known)}: name some of these",
        )
    wanted = {*asked} or {kind for kind in kinds if kind.lower() in _PEOPLE}
    if not wanted:
        raise InputError(
            "NamesModelUnsuitable",
            f"{where} has no label for people, but {', '.join(known)}: say in cleaning.names.labels which of them are "
            "people's, or name another model",
        )
    return [number for number, kind in enumerate(kinds) if kind in wanted]


def spans(text: str, offsets: Sequence[Span], words: Sequence[int | None], named: npt.NDArray[np.bool_]) -> list[Span]:
    """Where names stand: all tokens of each word of which one is a name's, and the words of a name together."""
    of_words = {word for word, hit in zip(words, named, strict=True) if hit and word is not None}
    found: list[Span] = []
    for (start, end), word, hit in zip(offsets, words, named, strict=True):
        if not hit and word not in of_words:
            continue
        while start < end and text[start].isspace():
            start += 1  # noqa: PLW2901 - some tokens begin with a blank
        if start == end:
            continue
        if found and (start <= found[-1][1] or _JOINT.fullmatch(text, found[-1][1], start)):
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


class NameFilter:
    """Searches documents, some of them together, in their order. No more than these are in memory."""

    def __init__(self, asked: Names, tokenizer: Tokenizer, tag: Tag, width: int) -> None:
        """width: tokens of a window, without special ones."""
        self._asked, self._tokenizer, self._tag, self._width = asked, tokenizer, tag, width

    def filtered(self, texts: Iterable[str], replaced: Counter[str], dropped: Counter[str]) -> Iterator[str]:
        """The texts that are kept, without names. replaced, dropped: count what is done."""
        batch: list[str] = []
        characters = done = 0
        told = time.monotonic()
        for text in texts:
            batch.append(text)
            characters += len(text)
            if len(batch) < _DOCUMENTS and characters < _CHARACTERS:
                continue
            yield from self._searched(batch, replaced, dropped)
            done += len(batch)
            batch, characters = [], 0
            if time.monotonic() - told > _LOG_EVERY_SECONDS:
                told = time.monotonic()
                log("names searched", documents=done, replaced=replaced[KIND], dropped=dropped[DROPPED])
        yield from self._searched(batch, replaced, dropped)

    def _searched(self, texts: Sequence[str], replaced: Counter[str], dropped: Counter[str]) -> Iterator[str]:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for text, encoding, named in zip(texts, encodings, self._named(encodings), strict=True):
            found = spans(text, encoding.offsets, encoding.word_ids, named)
            if not found:
                yield text
                continue
            if self._asked.found is Found.DROP:
                dropped[DROPPED] += 1
                continue
            replaced[KIND] += len(found)
            parts, done = [], 0
            for start, end in found:
                parts += [text[done:start], PLACEHOLDER]
                done = end
            yield "".join([*parts, text[done:]])

    def _named(self, encodings: Sequence[Encoding]) -> list[npt.NDArray[np.bool_]]:
        """Which tokens belong to names, as any of the windows that they are in has it."""
        named = [np.zeros(len(encoding.ids), dtype=bool) for encoding in encodings]
        todo = [
            (number, part.start, part.stop)
            for number, own in enumerate(named)
            if len(own)
            for part in windows(len(own), self._width, shared=SHARED)
        ]
        # Windows of like lengths together, the longest first.
        todo.sort(key=lambda window: window[1] - window[2])
        ids: list[Any] = [encoding.ids for encoding in encodings]
        while todo:
            count = max(1, _TOKENS // (todo[0][2] - todo[0][1]))
            now, todo = todo[:count], todo[count:]
            found = self._tag([ids[number][start:end] for number, start, end in now])
            for (number, start, end), probabilities in zip(now, found, strict=True):
                named[number][start:end] |= probabilities >= self._asked.min_probability
        return named
