"""What pods tell over HTTP: a trainer its progress, a server what it has loaded.

A pod that doesn't answer says nothing.
"""

import asyncio
import logging
import re
from collections.abc import Iterable
from typing import Any, Final, Protocol

import httpx
from pydantic import ValidationError

from cloze_api.deployment import VERSION_MAX
from cloze_api.names import PROGRESS_PORT, SERVER_PORT
from cloze_api.progress import Progress
from cloze_api.training_status import STAGE_MAX
from cloze_operator.decide.answers import HeldUp, Loaded
from cloze_operator.decide.fields import Object, dig
from cloze_operator.decide.pods import is_ready, name_of, phase

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS: Final = 2.0

#: What a condition's reason may look like, and how much of a pod's sentence is shown.
_REASON: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,99}")
_SENTENCE_MAX: Final = 1024

#: Pods that are asked at the same time, over all resources.
_AT_ONCE: Final = 16


class Reach(Protocol):
    """A way to a pod's HTTP port."""

    async def fetch(self, pod: Object, port: int, path: str) -> Any:
        """JSON from a pod, whatever the status; None when it doesn't answer with any."""


class Direct:
    """By the pod's address."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False)

    async def fetch(self, pod: Object, port: int, path: str) -> Any:
        """JSON from a pod, whatever the status; None when it doesn't answer with any."""
        address = dig(pod, "status", "podIP")
        if not address:
            return None
        host = f"[{address}]" if ":" in address else address
        try:
            response = await self._client.get(f"http://{host}:{port}{path}")
            return response.json()
        except (httpx.HTTPError, ValueError) as error:
            logger.debug("pod %s doesn't answer %s: %s", name_of(pod), path, error)
            return None


class Reports:
    """The pods' answers, in the contract's terms."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def progress(self, pods: Iterable[Object]) -> Progress | None:
        """Progress as rank 0 has it; the other pods answer 404."""
        running = [pod for pod in pods if phase(pod) == "Running"]
        for answer in await self._ask(running, PROGRESS_PORT, "/progress"):
            try:
                progress = Progress.model_validate(answer)
            except ValidationError:
                continue
            doing = progress.doing and progress.doing[:STAGE_MAX]
            return progress.model_copy(update={"stage": progress.stage[:STAGE_MAX], "doing": doing})
        return None

    async def servers(self, pods: Iterable[Object]) -> tuple[dict[str, Loaded], dict[str, HeldUp]]:
        """By pod name: what ready pods have loaded first, and what keeps the others from it.

        At the probe's path, which needs no key.
        """
        running = [pod for pod in pods if phase(pod) == "Running"]
        answers = await self._ask(running, SERVER_PORT, "/readyz")
        loaded, held_up = {}, {}
        for pod, answer in zip(running, answers, strict=True):
            models, reason = dig(answer, "models"), dig(answer, "reason")
            if not is_ready(pod):
                if isinstance(reason, str) and _REASON.fullmatch(reason):
                    held_up[name_of(pod)] = HeldUp(reason, str(dig(answer, "message") or "")[:_SENTENCE_MAX])
            elif isinstance(models, list) and models:
                version = str(dig(models[0], "version"))[:VERSION_MAX]
                loaded[name_of(pod)] = Loaded(version, str(dig(models[0], "digest")))
        return loaded, held_up

    async def _ask(self, pods: list[Object], port: int, path: str) -> list[Any]:
        async def ask(pod: Object) -> Any:
            async with self._slots:
                return await self._reach.fetch(pod, port, path)

        return await asyncio.gather(*(ask(pod) for pod in pods))
