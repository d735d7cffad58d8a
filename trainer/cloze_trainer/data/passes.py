"""Passes over many texts: block by block, in their order, by one process or several, and told of as they go."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, TypeVar

from cloze_trainer.data.crew import Crew

# Texts and characters that are worked on at once.
_DOCUMENTS: Final = 1000
_CHARACTERS: Final = 1 << 20

R = TypeVar("R")
Block = list[str]


class Pass(Protocol):
    """A way to pass over texts."""

    def __call__(self, doing: str, work: Callable[[Block], R], texts: Iterable[str], /) -> Iterator[R]:
        """What the work makes of each block, in the texts' order, whoever does it. doing: what it is, in a word."""


class Listener(Protocol):
    """Is told how far the preparation of the data is."""

    def stage(self, stage: str) -> None:
        """What begins: `data` or `tokenizer`."""

    def advance(
        self, doing: str, *, documents: int | None = None, done_bytes: int | None = None, total_bytes: int | None = None
    ) -> None:
        """How far a pass is. Bytes are of files, as they are, while these are read, and of text afterwards."""


class Unheard:
    """A listener that does nothing."""

    def stage(self, stage: str) -> None:
        """As in Listener."""

    def advance(
        self, doing: str, *, documents: int | None = None, done_bytes: int | None = None, total_bytes: int | None = None
    ) -> None:
        """As in Listener."""


def blocks(texts: Iterable[str]) -> Iterator[Block]:
    """Texts in their order, so many at once as are neither many nor long together."""
    block: Block = []
    characters = 0
    for text in texts:
        block.append(text)
        characters += len(text)
        if len(block) == _DOCUMENTS or characters >= _CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def alone(_doing: str, work: Callable[[Block], R], texts: Iterable[str]) -> Iterator[R]:
    """A pass by this process, of which nobody is told."""
    return map(work, blocks(texts))


class Passes:
    """Passes by a crew, of which a listener is told."""

    def __init__(self, crew: Crew, listener: Listener) -> None:
        self._crew, self._listener = crew, listener

    def __call__(self, doing: str, work: Callable[[Block], R], texts: Iterable[str], /) -> Iterator[R]:
        """As in Pass."""
        begun: deque[Block] = deque()
        tell = self.telling(doing, texts)

        def taken() -> Iterator[Block]:
            for block in blocks(texts):
                begun.append(block)
                yield block

        for result in self._crew.map(work, taken()):
            tell(begun.popleft())
            yield result

    def telling(self, doing: str, texts: Iterable[str]) -> Callable[[Block], None]:
        """Takes each block of the texts once it is done.

        Where the texts have a method `measured`, it says how many bytes are done, given those of the blocks, and how
        many there are.
        """
        measured: Callable[[int], tuple[int, int]] | None = getattr(texts, "measured", None)
        documents = size = 0
        self._listener.advance(doing)

        def tell(block: Block) -> None:
            nonlocal documents, size
            documents += len(block)
            done = total = None
            if measured is not None:
                # Half a character is text as well, until it is cleaned.
                size += sum(len(text.encode(errors="surrogatepass")) for text in block)
                done, total = measured(size)
            self._listener.advance(doing, documents=documents, done_bytes=done, total_bytes=total)

        return tell
