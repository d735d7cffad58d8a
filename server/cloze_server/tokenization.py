"""Text to token ids, off the event loop.

`encode_batch` and `encode_batch_fast` release the GIL, `encode` doesn't. A tokenizer must not be shared between threads
that could change its settings, so each thread has its own, with truncation and padding off for good.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TypeVar

from tokenizers import Encoding, Tokenizer

Result = TypeVar("Result")

Inputs = Sequence[str] | Sequence[Sequence[str]]
"""Texts, or texts already split into words."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One input as tokens.

    ids: token ids with special tokens.
    offsets: (start, end) in characters of the input for each token; None where nobody asked.
    words: index of the word of each token, None for special tokens; None where nobody asked.
    full_length: tokens before truncation.
    """

    ids: list[int]
    offsets: list[tuple[int, int]] | None
    words: list[int | None] | None
    full_length: int

    @property
    def truncated(self) -> bool:
        """Whether tokens are missing at the end."""
        return self.full_length > len(self.ids)

    def cut(self, limit: int) -> "Encoded":
        """At most `limit` tokens: the beginning, and the final separator."""
        if len(self.ids) <= limit:
            return self
        return replace(
            self,
            ids=[*self.ids[: limit - 1], self.ids[-1]],
            offsets=self.offsets and [*self.offsets[: limit - 1], self.offsets[-1]],
            words=self.words and [*self.words[: limit - 1], self.words[-1]],
        )


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
    """Threads with a tokenizer each; also runs other short work that must not block the event loop.

    pending_characters: characters of texts that wait for a thread or are being tokenized.
    """

    def __init__(self, serialized: str, *, in_text: Collection[int], threads: int) -> None:
        """`in_text` is as in `build_tokenizer`. Raises ValueError for a tokenizer that can't be read."""
        self.pending_characters = 0
        # All of them now: building one takes longer than a request, and the first requests must not wait for that.
        self._spare: SimpleQueue[Tokenizer] = SimpleQueue()
        for _ in range(threads):
            self._spare.put(build_tokenizer(serialized, in_text))
        self._local = threading.local()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize", initializer=self._prepare)

    def _prepare(self) -> None:
        self._local.tokenizer = self._spare.get_nowait()

    async def encode(self, inputs: Inputs, *, offsets: bool, then: Callable[[list[Encoded]], Result]) -> Result:
        """Tokenize texts, or texts split into words, and go on with `then` in the same thread.

        `offsets` also gives offsets and word indexes, at some cost.
        """
        characters = sum(len(text) if isinstance(text, str) else sum(map(len, text)) for text in inputs)
        self.pending_characters += characters
        try:
            return await self.run(lambda: then(self._encode(inputs, offsets)))
        finally:
            self.pending_characters -= characters

    def _encode(self, inputs: Inputs, offsets: bool) -> list[Encoded]:
        tokenizer: Tokenizer = self._local.tokenizer
        split = bool(inputs) and not isinstance(inputs[0], str)
        encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
        encodings: list[Encoding] = encode(list(inputs), is_pretokenized=split)
        return [
            Encoded(
                encoding.ids,
                encoding.offsets if offsets else None,
                encoding.word_ids if offsets else None,
                len(encoding.ids),
            )
            for encoding in encodings
        ]

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run short work in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)
