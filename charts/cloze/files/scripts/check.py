"""What `helm test` runs in the operator's image: check.py OPERATOR_ADDRESS RULES_FILE.

Looks at the platform with the operator's settings and rights, and prints one line for each part: `ok` or `FAILED`, and
why. The exit code is 1 when a part failed.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from cloze_operator.settings import Settings, read

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RESOURCES = {"pretrainjobs", "finetunejobs", "modeldeployments"}
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases/{}"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

# After an upgrade or a lost leader the lease may be the former one's until it has run out.
ELECTION_SECONDS = 45.0


class CheckError(Exception):
    """Something isn't as it should be; the message says what."""


def operator(client: httpx.Client, address: str) -> str:
    """An operator answers and is ready."""
    return f"ready, {answer(client, f'{address}/readyz').text.strip()}"


def lease(api: httpx.Client, settings: Settings, now: datetime) -> str:
    """One operator acts."""
    spec = answer(api, LEASES.format(settings.lease_namespace, settings.lease_name)).json()["spec"]
    if not spec.get("holderIdentity"):
        raise CheckError("no operator holds it")
    age = (now - datetime.fromisoformat(spec["renewTime"])).total_seconds()
    if age > spec["leaseDurationSeconds"]:
        raise CheckError(f"{spec['holderIdentity']} last renewed it {age:.0f} s ago")
    return f"held by {spec['holderIdentity']}"


def patiently(check: Callable[[], str], seconds: float) -> str:
    """The same, looked at again for so long before it counts as failed."""
    latest = time.monotonic() + seconds
    while True:
        try:
            return check()
        except CheckError:
            if time.monotonic() >= latest:
                raise
        time.sleep(1)


def definitions(api: httpx.Client) -> str:
    """The API server serves the three resources."""
    served = {entry["name"] for entry in answer(api, "/apis/cloze.dev/v1alpha1").json()["resources"]}
    if missing := RESOURCES - served:
        raise CheckError(f"not served: {', '.join(sorted(missing))}; see crds.install")
    return ", ".join(sorted(RESOURCES))


def wanted_rights(rules: list[dict[str, Any]], namespaces: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """One question for each verb of each resource in each namespace; no namespace asks for all of them."""
    for namespace in namespaces or ("",):
        for rule in rules:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        name, _, part = resource.partition("/")
                        yield {
                            "namespace": namespace,
                            "group": group,
                            "resource": name,
                            "subresource": part,
                            "verb": verb,
                        }


def rights(api: httpx.Client, rules: list[dict[str, Any]], namespaces: tuple[str, ...]) -> str:
    """The operator may do all that the chart gave it."""
    refused = []
    questions = list(wanted_rights(rules, namespaces))
    for question in questions:
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": question},
        }
        if not checked(api.post(REVIEWS, json=body)).json()["status"]["allowed"]:
            part = f"/{question['subresource']}" if question["subresource"] else ""
            where = f" in {question['namespace']}" if question["namespace"] else ""
            refused.append(f"{question['verb']} {question['resource']}{part}{where}")
    if refused:
        raise CheckError(f"the operator may not: {', '.join(refused)}")
    return f"all {len(questions)} of the operator's are granted"


def mlflow(client: httpx.Client, settings: Settings) -> str:
    """The registry answers."""
    answer(client, f"{settings.platform.tracking_uri}/health")
    return settings.platform.tracking_uri


def prometheus(client: httpx.Client, settings: Settings) -> str:
    """What judges canaries answers a query, if there is one."""
    if not settings.prometheus_url:
        return "none (prometheus.url is empty): canaries with steps wait for a person"
    headers = dict(settings.prometheus_headers)
    if settings.prometheus_token_file:
        headers["Authorization"] = f"Bearer {Path(settings.prometheus_token_file).read_text('utf-8').strip()}"
    reply = answer(client, f"{settings.prometheus_url}/api/v1/query?query=vector(1)", headers).json()
    if reply.get("status") != "success":
        raise CheckError(f"{settings.prometheus_url} doesn't answer queries")
    return settings.prometheus_url


def answer(client: httpx.Client, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """A good answer to a GET."""
    return checked(client.get(url, headers=headers))


def checked(response: httpx.Response) -> httpx.Response:
    """The response. Raises CheckError unless it is a good one."""
    if not response.is_success:
        raise CheckError(f"{response.url} answers {response.status_code}: {response.text.strip()[:200]}")
    return response


def report(checks: Mapping[str, Callable[[], str]]) -> int:
    """Run all, print a line for each; the exit code."""
    failed = []
    for name, check in checks.items():
        try:
            print(f"ok      {name}: {check()}", flush=True)
        except (CheckError, httpx.HTTPError, OSError, KeyError, ValueError) as error:
            failed.append(name)
            where = f"{error.request.url}: " if isinstance(error, httpx.RequestError) else ""
            print(f"FAILED  {name}: {where}{error or type(error).__name__}", flush=True)
    print(f"{len(failed)} of {len(checks)} failed: {', '.join(failed)}" if failed else "all is well", flush=True)
    return 1 if failed else 0


def main(address: str, rules_file: str) -> int:
    """The exit code."""
    settings = read()
    rules = json.loads(Path(rules_file).read_text("utf-8"))
    host = f"{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    bearer = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text('utf-8').strip()}"}
    with (
        httpx.Client(timeout=10) as client,
        httpx.Client(timeout=10, base_url=f"https://{host}", headers=bearer, verify=str(ACCOUNT / "ca.crt")) as api,
    ):
        return report({
            "operator": lambda: operator(client, address),
            "lease": lambda: patiently(lambda: lease(api, settings, datetime.now(UTC)), ELECTION_SECONDS),
            "definitions": lambda: definitions(api),
            "rights": lambda: rights(api, rules, settings.namespaces),
            "mlflow": lambda: mlflow(client, settings),
            "prometheus": lambda: prometheus(client, settings),
        })  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
