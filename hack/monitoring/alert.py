"""One alert, as Prometheus reads it."""

from typing import Any, Final

Rule = dict[str, Any]
Group = dict[str, Any]

#: The chart puts its own values in the place of these.
TEAM: Final = "cloze"
RUNBOOKS: Final = "docs/runbooks"

PAGE, TICKET = "page", "ticket"

#: What a planned rollout explains, and Alertmanager keeps quiet meanwhile by this label.
QUIET: Final = "quiet_during_rollout"

#: A ModelDeployment, in an alert's words.
WHO: Final = "{{ $labels.namespace }}/{{ $labels.name }}"


def alert(
    name: str,
    expression: str,
    *,
    severity: str,
    runbook: str,
    summary: str,
    description: str,
    wait: str = "",
    quiet: bool = False,
    labels: dict[str, str] | None = None,
) -> Rule:
    """An alerting rule. wait: how long it has to be so. runbook: the page's name. quiet: if a rollout explains it."""
    return {
        "alert": name,
        "expr": expression,
        **({"for": wait} if wait else {}),
        "labels": {
            "severity": severity,
            "team": TEAM,
            **({QUIET: "true"} if quiet else {}),
            **(labels or {}),
        },
        "annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": f"{RUNBOOKS}/{runbook}.md",
        },
    }
