"""How much one request may ask for, and how much of an input the model reads. Pure."""

from dataclasses import dataclass, replace

from cloze_server import windows
from cloze_server.problems import ProblemError, ProblemType
from cloze_server.tasks.handler import Item
from cloze_server.tokenization import Inputs
from cloze_server.windows import Truncation

# Of the longest sequence, for windows of a context beside its question.
_ROOM_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one request.

    inputs: most inputs. characters: most in one text. tokens: most over all inputs, with what windows share. length:
    longest sequence of the model.
    """

    inputs: int
    characters: int
    tokens: int
    length: int

    def check_size(self, texts: Inputs, texts_per_input: int) -> None:
        """Bounds that cost nothing to check, before any token is made. Raises ProblemError."""
        if (count := len(texts) // texts_per_input) > self.inputs:
            message = f"{count} inputs: send at most {self.inputs} in one request"
            raise ProblemError(ProblemType.TOO_MANY_INPUTS, message, members={"limit": self.inputs})
        for number, text in enumerate(texts):
            index = number // texts_per_input
            try:
                # JSON can spell half of a surrogate pair, which is no text; the tokenizer would fail on it.
                (text if isinstance(text, str) else "".join(text)).encode()
            except UnicodeEncodeError as error:
                message = f"input {index} has a lone surrogate at character {error.start}: send whole characters"
                raise ProblemError(ProblemType.INPUT_INVALID, message, members={"input": index}) from error
            characters = len(text) if isinstance(text, str) else sum(map(len, text))
            if characters > self.characters:
                message = f"input {index} has {characters} characters: send at most {self.characters}"
                members = {"input": index, "limit": self.characters}
                raise ProblemError(ProblemType.INPUT_TOO_LONG, message, members=members)
        # A word of control characters has no token, and yet its tag in the reply.
        words = sum(len(text) for text in texts if not isinstance(text, str))
        if words > self.tokens:
            message = f"{words} words: a request may have at most {self.tokens}"
            raise ProblemError(ProblemType.REQUEST_TOO_LARGE, message, members={"limit": self.tokens})

    def check_tokens(self, tokens: int) -> None:
        """Raises ProblemError for more tokens than a request may have."""
        if tokens > self.tokens:
            message = f"{tokens} tokens: a request may have at most {self.tokens}"
            raise ProblemError(ProblemType.REQUEST_TOO_LARGE, message, members={"limit": self.tokens})

    def cut(self, item: Item, truncation: Truncation, stride: int | None) -> Item:
        """The input with the windows that the model reads of it. Raises ProblemError."""
        around = len(item.lead) + len(item.tail)
        length, room = len(item.encoded.ids), self.length - around
        if stride is None:
            stride = windows.default_stride(room)
        if length > room:
            self._check_room(item, truncation, room)
            if truncation == "window":
                most = windows.largest_stride(room)
                if stride > most:
                    message = (
                        f"stride is {stride}: windows of input {item.index} take {room} tokens, share at most {most}"
                    )
                    raise ProblemError(ProblemType.INPUT_INVALID, message, members={"input": item.index, "limit": most})
                # Before there is an object for each.
                count = windows.count(length, room, stride)
                self.check_tokens(length + (count - 1) * stride + count * around)
        planned = windows.plan(length, room, truncation, stride)
        return replace(item, windows=planned, covered=windows.covered(planned))

    def _check_room(self, item: Item, truncation: Truncation, room: int) -> None:
        """Whether a text that doesn't fit may be cut, and leaves room for parts that mean something."""
        if truncation == "error":
            tokens = len(item.encoded.ids) + self.length - room
            raise ProblemError(
                ProblemType.INPUT_TOO_LONG,
                f"input {item.index} has {tokens} tokens, the model takes {self.length}: shorten it, or send "
                '"truncate": "window" to have it read in parts, or "left" or "right" to drop one end',
                members={"input": item.index, "tokens": tokens, "limit": self.length},
            )
        if item.paired and room < self.length // _ROOM_SHARE:
            most = self.length - self.length // _ROOM_SHARE - len(item.tail)
            raise ProblemError(
                ProblemType.INPUT_TOO_LONG,
                f"the question of input {item.index} takes {len(item.lead)} tokens, at most {most} leave room for "
                "parts of its context: shorten it",
                members={"input": item.index, "tokens": len(item.lead), "limit": most},
            )
