"""One run: load the model, read rows, answer, keep parts, put them together."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import IO, Any, Protocol

from cloze_api.precision import Precision
from cloze_server import logs
from cloze_server.batch.journal import Journal, Progress
from cloze_server.batch.jsonl import JsonLines
from cloze_server.batch.options import Options
from cloze_server.batch.report import Bar, Lines, Report
from cloze_server.batch.rows import Outcome, Requests, Row, outcome
from cloze_server.batch.scoring import scored
from cloze_server.batch.store import Store
from cloze_server.exits import ExitCode, FatalError
from cloze_server.lifecycle import Lifecycle
from cloze_server.loading import load_model
from cloze_server.model import LoadedModel
from cloze_server.paths import TASK_PATHS
from cloze_server.problems import ProblemError, ProblemType
from cloze_server.service import Service
from cloze_server.tasks import HANDLERS
from cloze_server.telemetry import Telemetry

_log = logging.getLogger(__name__)

# A part is written when it has so many bytes or rows, or is as old as the options say.
_PART_BYTES = 8 << 20
_PART_ROWS = 10_000


class Table(Protocol):
    """The input in its format, which is also the output's. total: position at its end, in units of `unit`."""

    total: int
    unit: str

    def rows(self, start: int) -> Iterator[Row]:
        """The rows from a position on."""
        ...

    def part(self, scored: Sequence[tuple[Row, Outcome]]) -> bytes:
        """Rows and what became of them."""
        ...

    def join(self, parts: Iterable[bytes], target: IO[bytes]) -> None:
        """Write parts as one table."""
        ...


def run(options: Options) -> None:
    """Carry out a run, or what is left of one. Raises FatalError."""
    source, output = Store(options.input), Store(options.output)
    try:
        state = source.state()
        model = load_model(0, options.settings, threading.Event(), Lifecycle())
        journal = Journal(output, _identity(options, model, state))
        with journal.lock.alone():
            if journal.begin(overwrite=options.overwrite):
                _carry_out(options, model, source, journal)
                if source.state() != state:
                    message = f"{source.uri} changed while it was read: start again with --overwrite"
                    raise FatalError(ExitCode.CONFIGURATION, "InputChanged", message)
                with source.open() as stream, output.writing() as target:
                    _table(options, model, stream).join(journal.parts(), target)
                journal.finish()
    except OSError as error:
        message = f"{source.uri} can't be read or {output.uri} can't be written: {error}"
        raise FatalError(ExitCode.STORAGE, "StoreFailed", message) from error
    done = journal.progress
    _log.info("complete", extra=logs.fields(output=output.uri, rows=done.rows, errors=done.errors, tokens=done.tokens))


def _carry_out(options: Options, model: LoadedModel, source: Store, journal: Journal) -> None:
    """Score the rows that are left."""
    telemetry = Telemetry()
    service = Service(model, options.settings, telemetry)
    telemetry.bind(model.name, model.version, answers=service.handler.answers())
    requests = Requests(service.handler, options.columns, options.parameters)
    with source.open() as stream:
        table = _table(options, model, stream)
        first = journal.progress
        bar = sys.stderr.isatty()
        report: Report = Bar(first, table.total, table.unit) if bar else Lines(first, table.total)
        with contextlib.closing(report):
            asyncio.run(_score(table, _Answers(service, requests), journal, report, options))
    service.close()


class _Answers:
    """Answers rows as the server answers requests."""

    def __init__(self, service: Service, requests: Requests) -> None:
        self.service = service
        self._requests = requests
        self._surprised = False

    async def __call__(self, row: Row) -> Outcome:
        """What becomes of a row."""
        try:
            return outcome(await self.service.answer(self._requests.make(row)))
        except ProblemError as problem:
            return Outcome(problem=problem)
        except Exception:  # noqa: BLE001 - its row gets a problem, the others go on
            if not self._surprised:
                # Once: it may be so for each of a million rows.
                self._surprised = True
                _log.exception("a row failed")
            return Outcome(problem=ProblemError(ProblemType.INTERNAL, "an unexpected error: see the log"))


async def _score(table: Table, answers: _Answers, journal: Journal, report: Report, options: Options) -> None:
    """Answer row after row and keep parts. Raises FatalError when too many failed, and when a signal ended it."""
    stop, max_errors = asyncio.Event(), options.max_errors
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    now = journal.progress
    # From here on the log tells of a signal.
    _log.info("run begins", extra=logs.fields(rows=now.rows, position=now.position, total=table.total))
    await answers.service.warm_up()
    size, began = 0, time.monotonic()
    part: list[tuple[Row, Outcome]] = []
    async with contextlib.aclosing(scored(table.rows(now.position), answers)) as rows:
        async for row, found in rows:
            part.append((row, found))
            size += row.size + len(found.result or "")
            now = replace(
                now,
                rows=now.rows + 1,
                position=row.end,
                errors=now.errors + bool(found.problem),
                tokens=now.tokens + found.tokens,
            )
            report.update(now)
            ends = stop.is_set() or (max_errors is not None and now.errors > max_errors)
            old = time.monotonic() - began >= options.save_seconds
            if ends or old or size >= _PART_BYTES or len(part) >= _PART_ROWS:
                await asyncio.to_thread(_keep, journal, table, part, now)
                part, size, began = [], 0, time.monotonic()
            if ends:
                break
    if part:
        await asyncio.to_thread(_keep, journal, table, part, now)
    if max_errors is not None and now.errors > max_errors:
        message = f"{now.errors} of {now.rows} rows failed, at most {max_errors} may: see the field with their errors"
        raise FatalError(ExitCode.ROWS_FAILED, "TooManyErrors", message)
    if stop.is_set() and now.position < table.total:
        message = f"a signal ended the run after {now.rows} rows: the same command goes on from there"
        raise FatalError(ExitCode.INTERRUPTED, "Interrupted", message)


def _keep(journal: Journal, table: Table, part: Sequence[tuple[Row, Outcome]], now: Progress) -> None:
    journal.commit(table.part(part), now)


def _table(options: Options, model: LoadedModel, stream: IO[bytes]) -> Table:
    """The input. Raises FatalError (CONFIGURATION)."""
    if options.format == "jsonl":
        return JsonLines(stream, stream.seek(0, os.SEEK_END), options.columns, options.settings.max_body_bytes)
    try:
        from cloze_server.batch.parquet import Parquet  # noqa: PLC0415 - needs a library that few installations have
    except ImportError as error:
        message = "Parquet needs pyarrow, which is not installed here: install cloze-mlops[serve,parquet]"
        raise FatalError(ExitCode.CONFIGURATION, "ParquetUnavailable", message) from error
    try:
        return Parquet(stream, options.columns, HANDLERS[TASK_PATHS[model.task]])
    except ValueError as error:
        message = f"{options.input} isn't Parquet: {error}"
        raise FatalError(ExitCode.CONFIGURATION, "InputInvalid", message) from error


def _identity(options: Options, model: LoadedModel, state: dict[str, Any]) -> dict[str, Any]:
    """What rows and answers depend on, with names that messages may use."""
    columns = options.columns
    return {
        "input": {"uri": options.input, **state},
        "model digest": model.digest,
        # Left out for fp32, which runs of an older server were all of.
        **({} if model.precision is Precision.FP32 else {"precision": model.precision}),
        "parameters": options.parameters,
        "fields": [columns.text, columns.question, columns.context, columns.id, *columns.added],
        "max characters": options.settings.max_characters,
    }
