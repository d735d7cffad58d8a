"""The part of MLflow's REST API that the operator needs: look a version up, read and set an alias."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx

from cloze_api.names import (
    TAG_DIGEST,
    TAG_JOB_UID,
    TAG_LABELS,
    TAG_PRECISIONS,
    TAG_QUARANTINED,
    TAG_SCHEMA,
    TAG_TASK,
    TAG_TOKENIZER,
)
from cloze_operator.cluster import unfenced
from cloze_operator.decide.answers import NotFound, Unavailable, Version
from cloze_operator.decide.verdict import AliasMove, TagChange
from cloze_operator.desired.facts import Facts
from cloze_operator.telemetry import REGISTRY_ERRORS

_API: Final = "/api/2.0/mlflow"
_TIMEOUT_SECONDS: Final = 10.0
_GET_ALIAS: Final = "get-alias"


class AliasMovedError(Exception):
    """The alias isn't where it was when the move was decided: decide again."""


class RegistryError(Exception):
    """The registry refused or didn't answer."""


class _NoSuchThingError(RegistryError):
    """The registry answered that what it was asked for doesn't exist."""


class Registry:
    """Questions that always get an answer, and one write."""

    def __init__(
        self, uri: str, transport: httpx.AsyncBaseTransport | None = None, *, fence: Callable[[], None] = unfenced
    ) -> None:
        self._uri = uri
        self._fence = fence
        self._client = httpx.AsyncClient(base_url=uri, timeout=_TIMEOUT_SECONDS, transport=transport)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def version(self, name: str, version: str) -> Version | NotFound | Unavailable:
        """A model version by number."""
        missing = NotFound(f"the registry has no version {version} of model {name}")
        return await self._ask("get-version", "model-versions/get", {"name": name, "version": version}, missing)

    async def behind(self, name: str, alias: str) -> Version | NotFound | Unavailable:
        """The version that an alias points to."""
        missing = NotFound(f"the registry has no alias {alias} of model {name}")
        return await self._ask(_GET_ALIAS, "registered-models/alias", {"name": name, "alias": alias}, missing)

    async def of_job(self, name: str, uid: str) -> Version | NotFound | Unavailable:
        """The newest version of a model that carries a job's uid."""
        query = {"filter": f"name = '{name}' AND tags.`{TAG_JOB_UID}` = '{uid}'", "max_results": "100"}
        try:
            found = await self._get("search-versions", "model-versions/search", query)
        except RegistryError as error:
            return Unavailable(str(error))
        versions = [_version(entry) for entry in (found or {}).get("model_versions", [])]
        if not versions:
            return NotFound(f"the registry has no version of model {name} from this job")
        return max(versions, key=lambda version: version.number)

    async def move(self, move: AliasMove) -> None:
        """Point an alias to a version. Raises AliasMovedError when it isn't where it was expected, RegistryError.

        MLflow has no conditional write, so the alias is read again right before: the operator alone moves aliases, and
        a person's hand gets in between for the length of one request only.
        """
        current = await self.behind(move.model, move.alias)
        if isinstance(current, Unavailable):
            raise RegistryError(current.message)
        actual = current.version if isinstance(current, Version) else None
        if actual != move.expected:
            seen, was = actual or "nothing", move.expected or "nothing"
            raise AliasMovedError(f"alias {move.alias} of {move.model} points to {seen}, not to {was}")
        body = {"name": move.model, "alias": move.alias, "version": move.version}
        await self._send("set-alias", "POST", "registered-models/alias", json=body)

    async def tag(self, change: TagChange) -> None:
        """Set a tag of a model version. Raises RegistryError."""
        body = {"name": change.model, "version": change.version, "key": change.key, "value": change.value}
        await self._send("set-tag", "POST", "model-versions/set-tag", json=body)

    async def _ask(
        self, operation: str, path: str, query: Mapping[str, str], missing: NotFound
    ) -> Version | NotFound | Unavailable:
        try:
            found = await self._get(operation, path, query)
        except RegistryError as error:
            return Unavailable(str(error))
        return _version(found["model_version"]) if found else missing

    async def _get(self, operation: str, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
        """The reply; None when the registry says that there is no such thing."""
        try:
            return await self._send(operation, "GET", path, params=query)
        except _NoSuchThingError:
            return None

    async def _send(self, operation: str, method: str, path: str, **content: Any) -> dict[str, Any]:
        """The reply. Raises RegistryError."""
        if method != "GET":
            self._fence()
        # Made before it is needed: a rate over a series that appears with its first error doesn't see that error.
        errors = REGISTRY_ERRORS.labels(operation)
        try:
            response = await self._client.request(method, f"{_API}/{path}", **content)
            if response.is_success:
                return dict(response.json())
            said = response.json() if "json" in response.headers.get("content-type", "") else {}
        except (httpx.HTTPError, ValueError) as error:
            errors.inc()
            text = f"the registry at {self._uri} doesn't answer: {type(error).__name__} {error}".rstrip()
            raise RegistryError(text) from error
        said = said if isinstance(said, dict) else {}
        message, code = str(said.get("message", "")), said.get("error_code")
        text = (
            f"the registry at {self._uri} refused {operation} with HTTP {response.status_code}: "
            f"{message or response.text[:200]}"
        )
        # MLflow's own word, not just any 404 on the way to it. An alias that isn't set is an invalid parameter to it.
        unset = operation == _GET_ALIAS and code == "INVALID_PARAMETER_VALUE" and "not found" in message
        if method == "GET" and (unset or code == "RESOURCE_DOES_NOT_EXIST"):
            raise _NoSuchThingError(text)
        errors.inc()
        raise RegistryError(text)


def _version(entry: Mapping[str, Any]) -> Version:
    tags = {tag["key"]: tag.get("value", "") for tag in entry.get("tags", [])}
    return Version(
        entry["name"],
        str(entry["version"]),
        tags.get(TAG_DIGEST, ""),
        entry.get("run_id") or "",
        tags.get(TAG_QUARANTINED, ""),
        Facts(
            task=tags.get(TAG_TASK, ""),
            schema=tags.get(TAG_SCHEMA, ""),
            tokenizer=tags.get(TAG_TOKENIZER, ""),
            labels=tags.get(TAG_LABELS, ""),
            precisions=tags.get(TAG_PRECISIONS, ""),
        ),
    )
