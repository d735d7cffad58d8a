"""Replies of a server that has loaded an artifact, without its sockets."""

import asyncio
import json
from pathlib import Path
from typing import Any

from cloze_api.manifest import verify
from cloze_api.task import Task
from cloze_server.model import load_artifact
from cloze_server.paths import TASK_PATHS
from cloze_server.service import Service
from cloze_server.settings import Settings
from cloze_server.tasks import HANDLERS
from cloze_server.telemetry import Telemetry


def ask(folder: Path, task: Task, **body: Any) -> Any:
    """The reply to a request of a task."""
    loaded = load_artifact(folder, verify(folder), version="1", digest="", name="tiny", threads=1)
    telemetry = Telemetry()
    service = Service(loaded, Settings(model=("tiny",)), telemetry)
    telemetry.bind("tiny", "1", answers=service.handler.answers())
    handler = HANDLERS[TASK_PATHS[task]]
    try:
        return json.loads(asyncio.run(service.answer(handler.request.model_validate(body))))
    finally:
        service.close()
