"""The part of Prometheus' HTTP API that canary analysis needs: range queries."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from cloze_operator.analysis.counters import Series
from cloze_operator.decide.answers import Unavailable
from cloze_operator.telemetry import PROMETHEUS_ERRORS

#: A rollout of hundreds of pods stays below it; more than that would cost the operator its memory.
_MOST_BYTES: Final = 64 * 1024 * 1024


class _PrometheusError(Exception):
    """Prometheus refused or didn't answer; the message says so in a sentence."""


class Prometheus:
    """Questions that always get an answer."""

    def __init__(
        self,
        url: str,
        token_file: str = "",
        timeout_seconds: float = 10.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """url: with a path where there is one, and with `user:password@` for basic authentication.

        token_file: holds a bearer token; it is read for each question, since such tokens are renewed.
        """
        address = httpx.URL(url)
        self._named = str(address.copy_with(userinfo=b""))
        self._token_file = token_file
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            base_url=address, timeout=timeout_seconds, headers=dict(headers or {}), transport=transport
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def range(
        self, query: str, start: float, end: float, step_seconds: float
    ) -> tuple[Series, ...] | Unavailable:
        """The series of a query at `start`, `start + step_seconds` and so on up to `end` (seconds since the epoch)."""
        form = {
            "query": query,
            "start": f"{start:.3f}",
            "end": f"{end:.3f}",
            "step": f"{step_seconds:g}",
            "timeout": f"{self._timeout_seconds:g}s",
            # Thanos' way of saying: half an answer is none. Others don't know it, and don't mind.
            "partial_response": "false",
        }
        try:
            # The timeouts of the client are for each read; this one is for the whole answer.
            async with asyncio.timeout(self._timeout_seconds):
                status, body = await self._post("/api/v1/query_range", form)
            # Megabytes, where there are many pods.
            return await asyncio.to_thread(self._series, status, body)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            message = f"Prometheus at {self._named} doesn't answer: {type(error).__name__} {error}".rstrip()
        except (_PrometheusError, OSError) as error:
            message = str(error)
        PROMETHEUS_ERRORS.inc()
        return Unavailable(message)

    async def _post(self, path: str, form: Mapping[str, str]) -> tuple[int, bytes]:
        headers = {}
        if self._token_file:
            token = await asyncio.to_thread(Path(self._token_file).read_text, encoding="utf-8")
            headers["Authorization"] = f"Bearer {token.strip()}"
        body = bytearray()
        async with self._client.stream("POST", path, data=dict(form), headers=headers) as response:
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _MOST_BYTES:
                    raise _PrometheusError(
                        f"Prometheus at {self._named} answers with more than {_MOST_BYTES >> 20} MiB: "
                        "judge by fewer checks, or raise spec.rollout.analysis.intervalSeconds"
                    )
            return response.status_code, bytes(body)

    def _series(self, status: int, body: bytes) -> tuple[Series, ...]:
        """Raises _PrometheusError."""
        try:
            said = json.loads(body)
        except ValueError:
            said = None
        if not isinstance(said, dict) or said.get("status") != "success":
            reason = said.get("error") if isinstance(said, dict) else None
            text = str(reason or body[:200].decode("utf-8", "replace")).strip()
            raise _PrometheusError(f"Prometheus at {self._named} refused the query with HTTP {status}: {text}")
        # Notes on the query itself begin with its name; all others tell that something wasn't asked.
        partial = [str(note) for note in said.get("warnings") or () if not str(note).startswith("PromQL")]
        if partial:
            raise _PrometheusError(f"Prometheus at {self._named} knows only a part of the answer: {partial[0]}")
        try:
            return tuple(map(_one, said["data"]["result"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _PrometheusError(f"the answer of Prometheus at {self._named} isn't understood: {error!r}") from error


def _one(entry: Mapping[str, Any]) -> Series:
    return Series(dict(entry["metric"]), tuple((float(at), float(value)) for at, value in entry.get("values", ())))
