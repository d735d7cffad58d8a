"""Labelled examples, tokenized, with their classes."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cloze_api.manifest import SpecialTokens
from cloze_api.segments import is_key, is_value
from cloze_api.task import Task
from cloze_trainer.data.cleaning import normalise
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.data.windows import own, parts
from cloze_trainer.errors import InputError

IGNORED = -100
"""Target of a token that isn't scored: special tokens, padding and all but a word's first piece."""
LONGEST_LABEL = 128
_LARGEST_LABEL = 1 << 64
_SURROGATES = re.compile("[\ud800-\udfff]")
_TOGETHER = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """One line of the data set. words: the text alone, or the words; labels: one, or one for each word.

    slices: what the line says of itself in `metadata`, as `key=value`.
    """

    place: str
    words: tuple[str, ...]
    labels: tuple[str, ...]
    slices: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All words as one."""
        return (" ".join(self.words),)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Tokenized examples. ids and targets are ragged: one array a row, which is an example where nothing else is said.

    targets: one of a row, of one or more numbers, or one for each token. truncated: how many examples were longer than
    the limit. unknown: tokens that the vocabulary lacks. places: of each row the example, in ascending order, where its
    second text begins (0 without one), and which of that text's tokens is its first. spans: of each token that is
    scored, characters. unread: of each word that no row has, where each has a class of its own, its example, its place
    among the example's words, and its class, in ascending order.
    """

    ids: tuple[npt.NDArray[np.int64], ...]
    targets: tuple[npt.NDArray[Any], ...]
    lengths: npt.NDArray[np.int64]
    truncated: int
    unknown: int
    places: npt.NDArray[np.int64] | None = None
    spans: tuple[npt.NDArray[np.int64], ...] | None = None
    unread: npt.NDArray[np.int64] | None = None


def example(place: str, row: dict[str, Any], task: Task) -> Example:
    """What a record says: `{"text": …, "label": …}`, or of words `{"tokens": […], "labels": […]}`.

    Raises InputError that begins with the place.
    """
    if task is Task.TOKEN_CLASSIFICATION:
        return _token_example(place, row)
    text, label = text_of(place, row, "text"), label_in(row.get("label"))
    if label is None:
        raise InputError("LabelMissing", f"{place} has no field 'label' with a text")
    return Example(place, (text,), (label_of(place, label),), slices_of(place, row))


def label_in(value: Any) -> str | None:
    """A label as records have it: a text, or a whole number, which is called by its digits; None of anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        # No number of thousands of digits, which can't be spelt.
        return str(value) if abs(value) < _LARGEST_LABEL else None
    return value if isinstance(value, str) else None


def labels_in(value: Any) -> list[str] | None:
    """Labels of a list, as `label_in` has each; None where one isn't any."""
    found = [label_in(each) for each in value] if isinstance(value, list) else [None]
    named = [each for each in found if each is not None]
    return named if len(named) == len(found) else None


def text_of(place: str, row: dict[str, Any], name: str) -> str:
    """The text of a field, as a request to a server would have it. Raises InputError where there is none."""
    text = row.get(name)
    if not isinstance(text, str):
        raise InputError("TextFieldMissing", f"{place} has no field {name!r} with a text")
    return as_sent(text)


def as_sent(text: str) -> str:
    """A text as it is, but for halves of characters, which JSON can spell and no tokenizer takes.

    Nothing else is changed, since nobody changes the texts of requests. Each half is one character for another, so that
    places in the text stay.
    """
    return _SURROGATES.sub("\ufffd", text)


def slices_of(place: str, row: dict[str, Any]) -> tuple[str, ...]:
    """As `key=value`, of the field `metadata`, which has the form that requests to a server give it."""
    metadata = row.get("metadata")
    if metadata is None:
        return ()
    if not isinstance(metadata, dict) or not all(
        isinstance(key, str) and isinstance(value, str) and is_key(key) and is_value(value)
        for key, value in metadata.items()
    ):
        # Not shown: what stands in the wrong field may be a text.
        raise InputError(
            "MetadataInvalid",
            f"{place} has a field 'metadata' that isn't an object of short names and values: "
            'give it as {"language": "de"}, or leave it out',
        )
    return tuple(f"{key}={value}" for key, value in sorted(metadata.items()))


def label_of(place: str, label: str) -> str:
    """A label as it is; one that can't be a class' name is refused, without being shown: it may be a text."""
    if not 1 <= len(label) <= LONGEST_LABEL or normalise(label) != label:
        raise InputError(
            "LabelInvalid",
            f"{place} has a label that can't be a name: give 1 to {LONGEST_LABEL} characters, without control "
            "characters and without blanks around them",
        )
    return label


def _token_example(place: str, row: dict[str, Any]) -> Example:
    words, labels = row.get("tokens"), labels_in(row.get("labels"))
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError("TokensInvalid", f"{place} has no field 'tokens' with a list of texts")
    if labels is None:
        raise InputError("TokensInvalid", f"{place} has no field 'labels' with a list of texts")
    if len(words) != len(labels):
        raise InputError("LabelCountMismatch", f"{place} has {len(words)} tokens and {len(labels)} labels")
    if not words:
        raise InputError("TokensInvalid", f"{place} has no token")
    return Example(
        place,
        tuple(map(as_sent, words)),
        tuple(label_of(place, label) for label in labels),
        slices_of(place, row),
    )


def check(examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Whether each label is one of a model's. Raises InputError."""
    for example in examples:
        if not set(labels).issuperset(example.labels):
            # Not shown: what stands in the wrong field may be a text.
            raise InputError("LabelUnknown", f"{example.place} has a label that the model doesn't have: correct it")


def schema(train: Sequence[Example], test: Sequence[Example], declared: Sequence[str]) -> tuple[str, ...]:
    """The labels in order of their class: the declared ones, or the training examples' sorted ones.

    Raises InputError for an undeclared label, one without training examples, or one in the test alone.
    """
    present = Counter(label for example in train for label in example.labels)
    if declared:
        if repeated := [label for label, count in Counter(declared).items() if count > 1]:
            raise InputError("LabelRepeated", f"spec.labels names {repeated[0]!r} twice")
        labels = tuple(declared)
        if empty := [label for label in labels if label not in present]:
            raise InputError(
                "LabelWithoutExamples",
                f"spec.labels names {empty[0]!r}, which no training example has: add examples or remove the label",
            )
    else:
        labels = tuple(sorted(present))
        if len(labels) < 2:
            raise InputError("LabelsTooFew", "the training examples have a single label: at least two are needed")
    known = set(labels)
    for examples, where in (
        (train, "spec.labels"),
        (test, "spec.labels" if declared else "those of the training examples"),
    ):
        for example in examples:
            if not known.issuperset(example.labels):
                # Not shown: what stands in the wrong field may be a text.
                raise InputError("LabelUnknown", f"{example.place} has a label that isn't among {where}: correct one")
    return labels


def tokenize(
    examples: Sequence[Example],
    labels: Sequence[str],
    tokenizer: Tokenizer,
    *,
    task: Task,
    max_length: int,
    special: SpecialTokens = SPECIAL_IDS,
    whole: bool = False,
) -> Labelled:
    """Ids of at most `max_length` tokens and the classes. `[SEP]` and the like within a text are ordinary text.

    A word that the tokenizer leaves no piece of (a lone control character, say) becomes `[UNK]`, so that it keeps its
    place and its label. whole: whether a longer text has a row for each of its windows, each of the text's class; of
    words each has those whose first piece is its own.
    """
    tokenizer.encode_special_tokens = True
    index = {label: number for number, label in enumerate(labels)}
    encoded = _pieces(examples, tokenizer, special.unk)
    if task is not Task.TOKEN_CLASSIFICATION:
        classes = [np.array([index[example.labels[0]]], dtype=np.int64) for example in examples]
        return _framed((text for (text,) in encoded), classes, max_length=max_length, special=special, whole=whole)
    texts: list[list[int]] = []
    classes = []
    unread = []
    for number, (example, words) in enumerate(zip(examples, encoded, strict=True)):
        texts.append([piece for word in words for piece in word])
        classes.append(np.full(len(texts[-1]), IGNORED, dtype=np.int64))
        limit = parts(len(texts[-1]), max_length - 2, whole=whole)[-1].stop
        firsts = np.cumsum([0, *map(len, words)])
        for place, (first, pieces, label) in enumerate(zip(firsts, words, example.labels, strict=False)):
            if pieces:
                classes[-1][first] = index[label]
            if not pieces or first >= limit:
                unread.append((number, place, index[label]))
    found = _framed(texts, classes, max_length=max_length, special=special, whole=whole, per_token=True)
    return replace(found, unread=np.array(unread, dtype=np.int64).reshape(-1, 3))


def tokenize_texts(
    texts: Sequence[str],
    targets: Sequence[npt.NDArray[Any]],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    special: SpecialTokens,
    whole: bool = False,
) -> Labelled:
    """A row for each text, of at most `max_length` tokens, with the target that is given for it.

    whole: as of `tokenize`.
    """
    tokenizer.encode_special_tokens = True
    pieces = (encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))
    return _framed(pieces, targets, max_length=max_length, special=special, whole=whole)


def _framed(
    texts: Iterable[Sequence[int]],
    targets: Sequence[npt.NDArray[Any]],
    *,
    max_length: int,
    special: SpecialTokens,
    whole: bool,
    per_token: bool = False,
) -> Labelled:
    """Rows of texts' tokens between special ones. per_token: whether a target is of each token, and not of the text."""
    ids: list[npt.NDArray[np.int64]] = []
    answers: list[npt.NDArray[Any]] = []
    places: list[tuple[int, int, int]] = []
    truncated = unknown = 0
    for number, (pieces, target) in enumerate(zip(texts, targets, strict=True)):
        read = parts(len(pieces), max_length - 2, whole=whole)
        truncated += read[-1].stop < len(pieces)
        for part, answered in zip(read, own(read), strict=True):
            seen = pieces[part.start : part.stop]
            ids.append(np.array([special.cls, *seen, special.sep], dtype=np.int64))
            places.append((number, 0, part.start))
            answers.append(_of_part(target, part, answered) if per_token else target)
            unknown += sum(piece == special.unk for piece in seen)
    return Labelled(
        tuple(ids),
        tuple(answers),
        np.array([len(row) for row in ids], dtype=np.int64),
        truncated,
        unknown,
        places=np.array(places, dtype=np.int64) if whole else None,
    )


def _of_part(target_T: npt.NDArray[Any], part: range, answered: range) -> npt.NDArray[Any]:
    """What a window's tokens are to say, the special ones around them included: those that aren't its own, nothing."""
    row = np.full(len(part) + 2, IGNORED, dtype=np.int64)
    first = answered.start - part.start + 1
    row[first : first + len(answered)] = target_T[answered.start : answered.stop]
    return row


def _pieces(examples: Sequence[Example], tokenizer: Tokenizer, unknown: int | None) -> Iterator[list[list[int]]]:
    """For each example, for each word, its ids: at least one, where the tokenizer has one for what it doesn't know."""
    instead = [] if unknown is None else [unknown]
    for start in range(0, len(examples), _TOGETHER):
        chunk = examples[start : start + _TOGETHER]
        # Words are encoded one by one, so that none joins its neighbour and each is found again.
        words = [word for example in chunk for word in example.words]
        flat = iter(tokenizer.encode_batch_fast(words, add_special_tokens=False))
        yield from ([next(flat).ids or instead for _ in example.words] for example in chunk)


def pad(rows: Sequence[npt.NDArray[np.int64]], filler: int) -> npt.NDArray[np.int64]:
    """Rows of a batch as one matrix (B, T), T the longest row's length."""
    matrix = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for number, row in enumerate(rows):
        matrix[number, : len(row)] = row
    return matrix
