"""`cloze-server`: read the settings, listen, load, serve, drain."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import uvicorn

from cloze_api.names import TERMINATION_LOG
from cloze_server import heap, keys, logs, verification
from cloze_server.app import create_app
from cloze_server.connections import Bounds, Crowd
from cloze_server.drain import DrainingServer
from cloze_server.exits import ExitCode, FatalError, write_termination_message
from cloze_server.flags import ENV_TERMINATION_LOG
from cloze_server.lifecycle import Lifecycle
from cloze_server.listener import connections_within, listen
from cloze_server.loading import current_digest, load_model
from cloze_server.protocol import BoundedProtocol
from cloze_server.reload import Origin, Reloading
from cloze_server.settings import Settings, read
from cloze_server.telemetry import Instruments

_log = logging.getLogger(__name__)

# Longer than gateways and load balancers keep an idle connection to a backend (up to 600 s): whoever closes it first
# can lose no request, the other side can.
KEEP_ALIVE_SECONDS = 620


def serve(settings: Settings) -> None:
    """Serve until a signal. Raises FatalError."""
    lifecycle = Lifecycle()
    stop = threading.Event()
    loaders = [partial(load_model, place, settings, stop, lifecycle) for place in range(len(settings.model))]
    most = connections_within(settings.max_connections)
    if most < settings.max_connections:
        _log.warning(
            "fewer connections than asked for: the process may have no more open files",
            extra=logs.fields(connections=most),
        )
        settings = replace(settings, max_connections=most)
    # What reloading does is told by itself; the process is ready meanwhile.
    origins = [
        Origin(partial(current_digest, reference, settings), partial(load_model, place, settings, stop, Lifecycle()))
        for place, reference in enumerate(settings.model)
    ]
    reloading = Reloading(origins)
    at_terminal = os.isatty(0)

    def hang_up(*_: object) -> None:
        # A terminal that is closed sends the same signal, and nobody waits for the server then.
        if at_terminal and not os.isatty(0):
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            reloading.asked.put(True)

    signal.signal(signal.SIGHUP, hang_up)
    instruments = Instruments()
    app = create_app(settings, loaders, lifecycle, reloading, instruments)
    bounds = Bounds(connections=most, patience_seconds=settings.timeout_seconds)
    crowd = Crowd(bounds, instruments.connection_ended)
    instruments.connections.set_function(lambda: crowd.open)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(BoundedProtocol, crowd=crowd),  # type: ignore[arg-type] # uvicorn calls it as it calls a class
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nobody here asks for a client's address.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    listener = listen(settings.host, settings.port)
    server = DrainingServer(
        config,
        lifecycle,
        lame_duck_seconds=settings.lame_duck_seconds,
        drain_seconds=settings.drain_seconds,
    )
    _log.info("listening", extra=logs.fields(host=settings.host, port=listener.getsockname()[1]))
    try:
        server.run(sockets=[listener])
    finally:
        stop.set()
    if lifecycle.failure is not None:
        raise lifecycle.failure
    if lifecycle.abandoned:
        message = (
            f"{lifecycle.abandoned} accepted requests were not answered within the time for draining: "
            f"raise drainSeconds, which is {settings.drain_seconds:g}"
        )
        raise FatalError(ExitCode.REQUESTS_ABANDONED, "RequestsAbandoned", message)


def batch(arguments: Sequence[str]) -> None:
    """Score a file: `cloze-server batch`. Raises FatalError."""
    from cloze_server.batch import options, run  # noqa: PLC0415 - a tenth of a second that a server does without

    for number in (signal.SIGTERM, signal.SIGINT):
        # While the model is loaded there is nothing to save; and a run that did nothing is no success.
        signal.signal(number, lambda *_: os._exit(ExitCode.INTERRUPTED))
    chosen = options.read(arguments)
    logs.configure(chosen.settings.log_level)
    run.run(chosen)


def main() -> None:
    """Run the server; the exit code is an `ExitCode`."""
    # The first process of a container has no default handler. Until the server has its own, nothing is lost by ending.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(ExitCode.SUCCESS))
    heap.keep_large_blocks_apart()
    # Each tokenizer thread tokenizes alone; the library's own threads would compete with the model's.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logs.configure("info")
    # Also for settings that can't be read.
    termination_log = Path(os.environ.get(ENV_TERMINATION_LOG) or TERMINATION_LOG)
    try:
        if sys.argv[1:2] == ["key"]:
            sys.stdout.write(keys.command(sys.argv[2:]))
            return
        if sys.argv[1:2] == ["verify"]:
            sys.stdout.write(verification.command(sys.argv[2:]))
            return
        if sys.argv[1:2] == ["batch"]:
            batch(sys.argv[2:])
            return
        settings = read(sys.argv[1:])
        termination_log = settings.termination_log
        logs.configure(settings.log_level)
        serve(settings)
    except FatalError as error:
        _log.critical("ends", extra=logs.fields(reason=error.reason, message=str(error), exit_code=int(error.code)))
        write_termination_message(termination_log, error)
        # The exit code goes last, past threads that may still be loading.
        logging.shutdown()
        os._exit(error.code)
    logging.shutdown()
    os._exit(ExitCode.SUCCESS)


if __name__ == "__main__":
    main()
