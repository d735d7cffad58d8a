"""JSON lines: each row keeps its own text, to which the result is appended."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from cloze_server.batch.rows import Columns, Outcome, Row
from cloze_server.problems import ProblemError, ProblemType

_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20


class JsonLines:
    """A table of one JSON object a line. Positions are bytes. Lines of white space are no rows.

    total: bytes of the input. longest: most bytes of a line; of a longer one only its place is kept.
    """

    unit = "B"

    def __init__(self, stream: IO[bytes], total: int, columns: Columns, longest: int) -> None:
        self._stream = stream
        self.total = total
        self._columns = columns
        self._longest = longest

    def rows(self, start: int) -> Iterator[Row]:
        """The rows from a position on."""
        self._stream.seek(start)
        position = start
        while line := self._stream.readline(self._longest + 1):
            first, position = position, position + len(line)
            if len(line) > self._longest and not line.endswith(b"\n"):
                while rest := self._stream.readline(_CHUNK):
                    position += len(rest)
                    if rest.endswith(b"\n"):
                        break
                message = f"the line has more than {self._longest} bytes"
                yield self._unread(ProblemError(ProblemType.BODY_TOO_LARGE, message), None, 0, position)
            elif text := (line.removeprefix(_BOM) if first == 0 else line).strip():
                yield self._row(text, position)

    def part(self, scored: Sequence[tuple[Row, Outcome]]) -> bytes:
        """Rows and what became of them, as lines."""
        return "".join(self._line(row, outcome) for row, outcome in scored).encode()

    @staticmethod
    def join(parts: Iterable[bytes], target: IO[bytes]) -> None:
        """Write parts one after the other."""
        for part in parts:
            target.write(part)

    def _row(self, line: bytes, end: int) -> Row:
        try:
            text = line.decode()
            content: Any = json.loads(text)
        except (ValueError, RecursionError):
            problem = ProblemError(ProblemType.BODY_INVALID, "the line can't be parsed as JSON")
            return self._unread(problem, line.decode(errors="replace"), len(line), end)
        if not isinstance(content, dict):
            problem = ProblemError(ProblemType.INPUT_INVALID, "the line isn't a JSON object")
            return self._unread(problem, text, len(line), end)
        if self._columns.id is not None:
            return Row(content, {self._columns.id: content.get(self._columns.id)}, len(line), end)
        if taken := [name for name in self._columns.added if name in content]:
            message = f"the row has a field {taken[0]} already: choose --result-field and --error-field"
            return self._unread(ProblemError(ProblemType.INPUT_INVALID, message), text, len(line), end)
        return Row(content, text, len(line), end)

    def _unread(self, problem: ProblemError, text: str | None, size: int, end: int) -> Row:
        """A row that can't be kept as it is; without any of its text where only an id is wanted."""
        kept = {"raw": text} if self._columns.id is None else {self._columns.id: None}
        return Row(problem, kept, size, end)

    def _line(self, row: Row, outcome: Outcome) -> str:
        error = outcome.error()
        name = self._columns.error if error else self._columns.result
        value = _dump(error) if error else outcome.result
        # A row's own text, so that its numbers, its spaces and the order of its fields stay as they are.
        kept = row.kept if isinstance(row.kept, str) else _dump(row.kept)
        before = kept[:-1].rstrip()
        comma = "" if before == "{" else ", "
        return f"{before}{comma}{json.dumps(name, ensure_ascii=False)}: {value}}}\n"


def _dump(value: Any) -> str:
    # Escaped: half of a surrogate pair, which JSON can spell, has no other form in UTF-8.
    return json.dumps(value)
