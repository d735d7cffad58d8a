"""The HTTPRoute of a ModelDeployment: one rule, whose weights divide the requests between revisions."""

from collections.abc import Mapping
from typing import Any, Final

from cloze_api.rollout import Route
from cloze_operator.desired.metadata import Manifest, child_metadata, sealed
from cloze_operator.desired.revision import child_name
from cloze_operator.desired.serving import SERVICE_PORT

API_VERSION: Final = "gateway.networking.k8s.io/v1"


def http_route(owner: Mapping[str, Any], route: Route, weights: Mapping[str, int]) -> Manifest:
    """The whole route. weights: per cent of the requests by revision."""
    name = owner["metadata"]["name"]
    filters = list(route.filters)
    if route.path != "/":
        # The server knows nothing of the prefix.
        prefix = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}
        filters.insert(0, {"type": "URLRewrite", "urlRewrite": {"path": prefix}})
    rule: dict[str, Any] = {
        "matches": [{"path": {"type": "PathPrefix", "value": route.path}}],
        "backendRefs": [
            {"group": "", "kind": "Service", "name": child_name(name, revision), "port": SERVICE_PORT, "weight": weight}
            for revision, weight in sorted(weights.items())
        ],
    }
    if filters:
        rule["filters"] = filters
    if route.timeout_seconds:
        rule["timeouts"] = {"request": f"{route.timeout_seconds}s"}
    spec: dict[str, Any] = {
        "parentRefs": [reference.model_dump(by_alias=True, exclude_none=True) for reference in route.parent_refs],
        "rules": [rule],
    }
    if route.hostnames:
        spec["hostnames"] = list(route.hostnames)
    return sealed(
        {"apiVersion": API_VERSION, "kind": "HTTPRoute", "metadata": child_metadata(owner, name), "spec": spec}
    )
