"""A thin client of the Kubernetes API: objects are plain JSON, and errors keep the server's own words."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from cloze_api.names import API_VERSION, FIELD_MANAGER
from cloze_api.resources import KINDS
from cloze_operator.decide.fields import Object
from cloze_operator.decide.verdict import Target
from cloze_operator.desired.metadata import Manifest

#: Kinds that the operator touches: API version and plural.
_PATHS: Final[Mapping[str, tuple[str, str]]] = {
    "Job": ("batch/v1", "jobs"),
    "Deployment": ("apps/v1", "deployments"),
    "ControllerRevision": ("apps/v1", "controllerrevisions"),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", "httproutes"),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "horizontalpodautoscalers"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "Service": ("v1", "services"),
    "ConfigMap": ("v1", "configmaps"),
    "PersistentVolumeClaim": ("v1", "persistentvolumeclaims"),
    "Pod": ("v1", "pods"),
    "Event": ("v1", "events"),
    "Lease": ("coordination.k8s.io/v1", "leases"),
    **{kind.kind_name(): (API_VERSION, kind.plural) for kind in KINDS},
}

_TIMEOUT_SECONDS: Final = 20.0
#: For how long one request may be put off by an API server that has too much to do.
_PATIENCE_SECONDS: Final = 30.0
_NOT_FOUND, _CONFLICT = 404, 409
_NO_GATEWAY_API: Final = (
    "the cluster doesn't know HTTPRoute: install the Gateway API and a gateway, or use spec.traffic.provider "
    "ReplicaRatio"
)
#: Answers of a server that hasn't begun with the request, when they come with Retry-After.
_BUSY: Final = (429, 503)


class ClusterError(Exception):
    """The API server refused a request. `reason` is its own CamelCase word."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


def _path(kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
    version, plural = _PATHS[kind]
    parts = ["/apis" if "/" in version else "/api", version]
    if namespace:
        parts += ["namespaces", namespace]
    return "/".join(part for part in (*parts, plural, name, subresource) if part)


def unfenced() -> None:
    """The fence of an operator that is alone: it may always write."""


class Cluster:
    """Reads and writes of the operator. Every method raises ClusterError for a refusal.

    fence: called before each write; it doesn't return where this process may not write any more.
    patience: seconds for which a request is put off when the API server asks for that with Retry-After; with 0 it is
        told as any refusal, and the next request is made when the caller likes.
    """

    def __init__(
        self, client: ApiClient, *, fence: Callable[[], None] = unfenced, patience: float = _PATIENCE_SECONDS
    ) -> None:
        self._client = client
        self._fence = fence
        self._patience = patience
        self._quiet_until = 0.0

    @classmethod
    async def connect(cls, *, fence: Callable[[], None] = unfenced, patience: float = _PATIENCE_SECONDS) -> "Cluster":
        """A client for the cluster that KUBECONFIG names, else for the one that this pod runs in."""
        configuration = Configuration()
        kubeconfig = os.environ.get("KUBECONFIG")
        if kubeconfig or (Path.home() / ".kube" / "config").exists():
            await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        else:
            config.load_incluster_config()
            configuration = Configuration.get_default_copy()
        return cls(ApiClient(configuration=configuration), fence=fence, patience=patience)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object; None when there is none."""
        try:
            found: Object = await self._request("GET", _path(kind, namespace, name))
        except ClusterError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return found

    async def list(self, kind: str, namespace: str, selector: Mapping[str, str] | None = None) -> tuple[Object, ...]:
        """Objects of one kind with all these labels; of the whole cluster when the namespace is empty."""
        labels = ",".join(f"{key}={value}" for key, value in (selector or {}).items())
        query = {"labelSelector": labels} if labels else {}
        found = await self._request("GET", _path(kind, namespace), query=query)
        version, _ = _PATHS[kind]
        # Members of a list don't say what they are.
        return tuple({"apiVersion": version, "kind": kind, **item} for item in found["items"])

    async def apply(
        self, manifest: Manifest, subresource: str = "", *, manager: str = FIELD_MANAGER, dry_run: bool = False
    ) -> None:
        """Server-side apply. With a uid or resourceVersion in its metadata, only to that object, or as it was then.

        dry_run: the API server checks everything and changes nothing.
        """
        metadata = manifest["metadata"]
        path = _path(manifest["kind"], metadata["namespace"], metadata["name"], subresource)
        query = {"fieldManager": manager, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        try:
            await self._request("PATCH", path, manifest, query=query, content_type="application/apply-patch+yaml")
        except ClusterError as error:
            if error.status == _NOT_FOUND and manifest["kind"] == "HTTPRoute":
                raise ClusterError(_NOT_FOUND, "GatewayAPIMissing", _NO_GATEWAY_API) from error
            raise

    async def change(self, namespace: str, target: Target, spec: Mapping[str, Any]) -> None:
        """Set fields of the spec of exactly this object; None removes one."""
        body = {"metadata": {"uid": target.uid}, "spec": dict(spec)}
        query = {"fieldManager": FIELD_MANAGER}
        path = _path(target.kind, namespace, target.name)
        await self._request("PATCH", path, body, query=query, content_type="application/merge-patch+json")

    async def annotate(self, resource: Object, key: str, value: str | None) -> None:
        """Set an annotation of exactly this object, as it was observed; None removes it."""
        metadata = resource["metadata"]
        known = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        body = {"metadata": {**known, "annotations": {key: value}}}
        path, query = _path(resource["kind"], metadata["namespace"], metadata["name"]), {"fieldManager": FIELD_MANAGER}
        await self._request("PATCH", path, body, query=query, content_type="application/merge-patch+json")

    async def delete(self, kind: str, namespace: str, name: str, uid: str, *, with_pods: bool = False) -> None:
        """Delete exactly this object, and what it owns after it, or with_pods before it. One that is gone is fine."""
        body = {"propagationPolicy": "Foreground" if with_pods else "Background", "preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", _path(kind, namespace, name), body)
        except ClusterError as error:
            if error.status not in (_NOT_FOUND, _CONFLICT):
                raise

    async def put(self, manifest: Manifest) -> Object:
        """Create an object, or replace it as it was when it was read: by the resourceVersion in its metadata."""
        metadata = manifest["metadata"]
        old = metadata["name"] if "resourceVersion" in metadata else ""
        path = _path(manifest["kind"], metadata["namespace"], old)
        stored: Object = await self._request("PUT" if old else "POST", path, manifest)
        return stored

    async def record(self, event: Manifest) -> None:
        """Create an event; if there is one of the same name, it has happened once more."""
        namespace, name = event["metadata"]["namespace"], event["metadata"]["name"]
        try:
            await self._request("POST", _path("Event", namespace), event)
        except ClusterError as error:
            if error.status != _CONFLICT:
                raise
            old = await self.get("Event", namespace, name) or {}
            again = {"count": int(old.get("count") or 1) + 1, "lastTimestamp": event["lastTimestamp"]}
            path, kind = _path("Event", namespace, name), "application/merge-patch+json"
            await self._request("PATCH", path, again, content_type=kind)

    async def has_definitions(self) -> bool:
        """Whether the API server knows our resources."""
        try:
            found = await self._request("GET", f"/apis/{API_VERSION}")
        except ClusterError as error:
            if error.status == _NOT_FOUND:
                return False
            raise
        return {kind.plural for kind in KINDS} <= {resource["name"] for resource in found["resources"]}

    async def _request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        target = f"{path}?{urlencode(query)}" if query else path
        request = f"{method} {path}"
        headers = {"Accept": "application/json", "Content-Type": content_type}
        latest = time.monotonic() + self._patience
        while True:
            await self._keep_quiet(latest, request)
            call = await self._client.param_serialize(
                method, target, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            if method != "GET":
                self._fence()
            try:
                response = await self._client.call_api(
                    *call, _request_timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
                )
                text = await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                raise ClusterError(0, "Unreachable", f"{request}: {type(error).__name__} {error}".rstrip()) from error
            wait = _retry_after(response.status, response.headers)
            if wait is None:
                break
            if not self._patience:
                break
            self._quiet_until = max(self._quiet_until, time.monotonic() + wait)
        if response.status >= 400:
            raise _refusal(response.status, text, request)
        return json.loads(text) if text else {}

    async def _keep_quiet(self, latest: float, request: str) -> None:
        """Wait for as long as the API server has asked for, whoever was told: it counts the client, not the object."""
        if self._quiet_until > latest:
            left = self._quiet_until - time.monotonic()
            raise ClusterError(_BUSY[0], "TooManyRequests", f"{request}: the API server asks for {left:.0f} s of quiet")
        await asyncio.sleep(max(0.0, self._quiet_until - time.monotonic()))


def _retry_after(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds after which the server wants to be asked again; None when it has answered."""
    try:
        return max(0.0, float(headers["Retry-After"])) if status in _BUSY else None
    except (KeyError, ValueError):
        return None


def _refusal(status: int, text: bytes, request: str) -> ClusterError:
    try:
        said = json.loads(text)
        return ClusterError(status, str(said.get("reason") or f"Http{status}"), f"{request}: {said['message']}")
    except (ValueError, KeyError, AttributeError):
        return ClusterError(status, f"Http{status}", f"{request}: {text[:256].decode(errors='replace')}")
