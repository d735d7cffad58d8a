"""`cloze-server verify`: whether an artifact could be served, without serving it."""

import json
import os
import threading
from collections.abc import Mapping, Sequence

from cloze_server.flags import FLAGS
from cloze_server.lifecycle import Lifecycle
from cloze_server.loading import load_model
from cloze_server.settings import Parser, add_flags, from_flags

_SETTINGS = frozenset({"digest", "verify_key", "mlflow_uri", "cache", "threads", "provider", "termination_log"})
_FLAGS = tuple(flag for flag in FLAGS if flag.field in _SETTINGS)


def command(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    """Verify and load an artifact; a line of JSON that says what it is. Raises FatalError as the server does."""
    parser = Parser(
        prog="cloze-server verify",
        description="Fetch an artifact, check its manifest, files, tokenizer and signature, load it, and run its "
        "shortest and its longest sequence. Nothing is served. Exit codes are the server's.",
    )
    parser.add_argument("model", metavar="REFERENCE", help="as --model of the server")
    add_flags(parser, _FLAGS)
    given = vars(parser.parse_args(arguments))
    settings = from_flags(given, _FLAGS, environment, model=(given["model"],))
    model = load_model(0, settings, threading.Event(), Lifecycle())
    found = {"name": model.name, "version": model.version, "digest": model.digest, "task": model.task}
    return json.dumps({**found, "signed": bool(settings.verify_key)}) + "\n"
