"""Questions of files: SQuAD's own nested documents, versions 1.1 and 2.0, and JSON lines with a question each.

A document holds articles (`data`), these paragraphs, and these a context and its questions (`qas`), each with a list of
answers; in 2.0 `is_impossible` says of a question that there is none (https://rajpurkar.github.io/SQuAD-explorer/).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloze_trainer.data.lines import LONGEST, BrokenLines, objects, opened
from cloze_trainer.errors import InputError

# How a document begins whose first line isn't all of it, or longer than a line may be.
_BEGINS = re.compile(r'\s*\{\s*("(data|version)"\s*:|$)')


def questions(path: Path, broken: BrokenLines) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each question as a line has it, and its place. Raises InputError with the place; of lines, as `broken` does.

    Which of the two forms a file has is found out from its first line.
    """
    if _is_document(path):
        yield from _questions(path)
    else:
        yield from ((f"{path}:{number}", row) for number, row in objects(path, broken))


def _is_document(path: Path) -> bool:
    with opened(path) as stream:
        lines = iter(lambda: stream.readline(LONGEST), b"")
        first = next((line for line in lines if line.strip()), b"").decode("utf-8-sig", errors="replace")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return bool(_BEGINS.match(first))
    return isinstance(value, dict) and "data" in value and "context" not in value


def _questions(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for article_place, article in _parts(str(path), _document(path), "data", ":"):
        for paragraph_place, paragraph in _parts(article_place, article, "paragraphs"):
            for place, question in _parts(paragraph_place, paragraph, "qas"):
                yield place, _row(place, paragraph.get("context"), question)


def _document(path: Path) -> dict[str, Any]:
    with opened(path) as stream:
        raw = stream.read()
    try:
        document = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError("SourceNotUTF8", f"{path} isn't UTF-8 at byte {error.start + 1}: convert the file") from error
    except json.JSONDecodeError as error:
        raise InputError(
            "SourceNotJSON",
            f"{path}:{error.lineno} isn't JSON at column {error.colno}: a document as SQuAD has it is expected, or an "
            "object a line",
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise InputError("SourceNotJSON", f"{path} is JSON that can't be read: make it again") from error
    if not isinstance(document, dict):
        raise InputError("SquadInvalid", f"{path} isn't a JSON object with the field 'data'")
    return document


def _parts(place: str, parent: dict[str, Any], name: str, joined: str = ".") -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list in a field, each with its place."""
    found = parent.get(name)
    if not isinstance(found, list):
        raise InputError("SquadInvalid", f"{place} has no field {name!r} with a list, as SQuAD's files have")
    for number, part in enumerate(found):
        own = f"{place}{joined}{name}[{number}]"
        if not isinstance(part, dict):
            raise InputError("SquadInvalid", f"{own} isn't a JSON object")
        yield own, part


def _row(place: str, context: Any, question: dict[str, Any]) -> dict[str, Any]:
    texts, starts = [], []
    for own, answer in _parts(place, question, "answers"):
        text, start = answer.get("text"), answer.get("answer_start")
        if not isinstance(text, str) or not text.strip() or isinstance(start, bool) or not isinstance(start, int):
            raise InputError(
                "AnswersInvalid",
                f'{own} isn\'t an answer: give it as {{"text": "London", "answer_start": 21}}, and none where there is '
                "no answer",
            )
        texts.append(text)
        starts.append(start)
    impossible = question.get("is_impossible", not texts)
    if impossible is not (not texts):
        raise InputError(
            "AnswersInvalid",
            f"{place} has {len(texts)} answers, which 'is_impossible' contradicts: give true for a question without an "
            "answer, and false for one with answers",
        )
    answers = {"text": texts, "answer_start": starts}
    return {"question": question.get("question"), "context": context, "answers": answers} | {
        name: question[name] for name in ("metadata",) if name in question
    }
