"""Asks Prometheus which alerts a ModelDeployment has set off."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

#: The rule that a rollback sets off; where it isn't loaded, there are no alerts of ours.
ROLLED_BACK = "ClozeRolloutRolledBack"
#: Rules are evaluated every so often, and what they look at is scraped before that.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that is firing. since: seconds since the epoch."""

    name: str
    since: float


def firing(alerts: Iterable[dict[str, Any]], namespace: str, name: str) -> list[Alert]:
    """The alerts of one ModelDeployment that somebody is to be told of, of those that Prometheus lists."""
    found: dict[str, Alert] = {}
    for alert in alerts:
        labels = alert["labels"]
        ours = (labels.get("namespace"), labels.get("name")) == (namespace, name)
        if ours and alert["state"] == "firing" and labels.get("severity") != "none":
            since = datetime.fromisoformat(alert["activeAt"]).timestamp()
            title = labels["alertname"]
            found[title] = Alert(title, min(since, found[title].since) if title in found else since)
    return sorted(found.values(), key=lambda alert: alert.name)


def tell(alerts: Iterable[Alert], began: float) -> str:
    """Names of the alerts; those that had fired before this time are said to go on."""
    return ", ".join(alert.name + (" (goes on)" if alert.since < began else "") for alert in alerts)


class Prometheus:
    """Prometheus' interface, at an address that this machine reaches."""

    def __init__(self, address: str) -> None:
        self._client = httpx.Client(base_url=address, timeout=10)

    def has_rules(self) -> bool:
        """Whether the rule for rollbacks is loaded."""
        groups = self._ask("/api/v1/rules", type="alert")["groups"]
        return any(rule["name"] == ROLLED_BACK for group in groups for rule in group["rules"])

    def firing(self, namespace: str, name: str) -> list[Alert]:
        """What fires now."""
        return firing(self._ask("/api/v1/alerts")["alerts"], namespace, name)

    def await_firing(self, namespace: str, name: str, wanted: str) -> list[Alert]:
        """What fires once the wanted alert does, or when patience is at its end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = self.firing(namespace, name)
            if any(alert.name == wanted for alert in found) or time.monotonic() > deadline:
                return found
            time.sleep(1)

    def _ask(self, path: str, **parameters: str) -> Any:
        try:
            response = self._client.get(path, params=parameters)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise RuntimeError(f"Prometheus at {self._client.base_url} doesn't answer: {error}") from error
        return response.json()["data"]
