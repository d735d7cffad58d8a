"""Text to token ids, off the event loop.

`encode_batch` and `encode_batch_fast` release the GIL, `encode` doesn't. A tokenizer must not be shared between threads
that could change its settings, so each thread has its own, with truncation and padding off for good.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from tokenizers import Encoding, Tokenizer

Result = TypeVar("Result")

Inputs = Sequence[str] | Sequence[Sequence[str]]
"""Texts, or texts already split into words."""

_SHORT_CHARACTERS = 512
_SHORT_INPUTS = 8


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as tokens, without special tokens around it.

    ids: token ids.
    offsets: (start, end) in characters of the text for each token; None where nobody asked.
    words: index of the word of each token; None where nobody asked.
    """

    ids: list[int]
    offsets: list[tuple[int, int]] | None = None
    words: list[int | None] | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens that a model expects around a text, and between the two texts of a pair.

    between: None for a tokenizer that puts others around a pair than around a text.
    """

    before: list[int]
    after: list[int]
    between: list[int] | None


def frame_of(tokenizer: Tokenizer) -> Frame:
    """The frame that a tokenizer puts around texts. Raises ValueError for one that doesn't keep them whole."""
    text = tokenizer.encode("a", add_special_tokens=False).ids
    single, pair = tokenizer.encode("a").ids, tokenizer.encode("a", "a").ids
    places = [at for at in range(len(single)) if single[at : at + len(text)] == text]
    if not text or not places:
        raise ValueError("the tokenizer changes a text when it puts special tokens around it")
    at = places[0]
    before, after = single[:at], single[at + len(text) :]
    inner = pair[len(before) + len(text) : len(pair) - len(after) - len(text)]
    fits = pair == [*before, *text, *inner, *text, *after]
    return Frame(before, after, inner if fits else None)


def build_tokenizer(serialized: str, in_text: Collection[int] = ()) -> Tokenizer:
    """A tokenizer with truncation and padding off. Raises ValueError for text that isn't one.

    in_text: ids of the special tokens that a text may hold. Any other that is spelt in a text is ordinary text: who
    writes `[SEP]` in a mail must not be able to end the sequence.
    """
    try:
        document = json.loads(serialized)
        for token in document["added_tokens"]:
            # "Special" means to the library that the next setting turns it into text.
            token["special"] = token["special"] and token["id"] not in in_text
        tokenizer = Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"not a tokenizer: {error}") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class TokenizerPool:
    """Threads with a tokenizer each, and one for the event loop's; also runs other short work off the event loop.

    pending_characters: characters of texts that wait for a thread or are being tokenized.
    """

    def __init__(self, serialized: str, *, in_text: Collection[int], threads: int) -> None:
        """`in_text` is as in `build_tokenizer`. Raises ValueError for a tokenizer that can't be read."""
        self.pending_characters = 0
        # All of them now: building one takes longer than a request, and the first requests must not wait for that.
        self._spare: SimpleQueue[Tokenizer] = SimpleQueue()
        for _ in range(threads):
            self._spare.put(build_tokenizer(serialized, in_text))
        self._own = build_tokenizer(serialized, in_text)
        self._local = threading.local()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize", initializer=self._prepare)

    def _prepare(self) -> None:
        self._local.tokenizer = self._spare.get_nowait()

    async def encode(self, inputs: Inputs, *, offsets: bool, then: Callable[[list[Encoded]], Result]) -> Result:
        """Tokenize texts, or texts split into words, and go on with `then` in the same thread.

        `offsets` also gives offsets and word indexes, at some cost.
        """
        if is_short(inputs):
            return then(_encode_at_once(self._own, inputs, offsets))
        characters = sum(map(_length, inputs))
        self.pending_characters += characters
        try:
            return await self.run(lambda: then(_encode(self._local.tokenizer, inputs, offsets)))
        finally:
            self.pending_characters -= characters

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run short work in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def is_short(inputs: Inputs) -> bool:
    """Whether work on the texts takes no longer than handing it to a thread: about a tenth of a millisecond."""
    return len(inputs) <= _SHORT_INPUTS and sum(map(_length, inputs)) <= _SHORT_CHARACTERS


def _length(text: str | Sequence[str]) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


def _encode(tokenizer: Tokenizer, inputs: Inputs, offsets: bool) -> list[Encoded]:
    split = bool(inputs) and not isinstance(inputs[0], str)
    encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
    # Special tokens are put around each window of a text, once it is known where it is cut.
    encodings: list[Encoding] = encode(list(inputs), is_pretokenized=split, add_special_tokens=False)
    return _encoded(encodings, offsets)


def _encode_at_once(tokenizer: Tokenizer, inputs: Inputs, offsets: bool) -> list[Encoded]:
    """The same without letting go of the GIL, since to get it back may take longer than this."""
    split = bool(inputs) and not isinstance(inputs[0], str)
    encodings = [tokenizer.encode(text, is_pretokenized=split, add_special_tokens=False) for text in inputs]
    return _encoded(encodings, offsets)


def _encoded(encodings: list[Encoding], offsets: bool) -> list[Encoded]:
    if not offsets:
        return [Encoded(encoding.ids) for encoding in encodings]
    return [Encoded(encoding.ids, encoding.offsets, encoding.word_ids) for encoding in encodings]
