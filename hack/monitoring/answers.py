"""Does a Prometheus have data for what the panels and variables of dashboards ask?"""

import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from monitoring.panels import CONDITIONS

_TIMEOUT_SECONDS: Final = 30
_POINTS: Final = 240
_VALUES: Final = re.compile(r"label_values\((?P<series>.+), (?P<label>\w+)\)")


@dataclass(frozen=True, slots=True)
class Question:
    """A query of a panel, or the series behind a variable."""

    where: str
    query: str
    exempt: bool = False
    """Whether there is no data for it where there are no accelerators, or where nobody uses what it is of."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question without an answer."""

    question: Question
    reason: str

    def __str__(self) -> str:
        return f"{self.question.where}: {self.reason}: {self.question.query}"


def questions(dashboards: Mapping[str, Mapping[str, Any]]) -> list[Question]:
    """Everything that dashboards ask. dashboards: Grafana's JSON by name."""
    return [question for name, dashboard in dashboards.items() for question in _of(name, dashboard)]


def _of(name: str, dashboard: Mapping[str, Any]) -> Iterator[Question]:
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = _VALUES.fullmatch(variable["definition"])
            assert found, variable["definition"]
            yield Question(f"{name}, variable {variable['name']}", f"count by ({found['label']}) ({found['series']})")
    for panel in dashboard["panels"]:
        exempt = any(condition in panel.get("description", "") for condition in CONDITIONS)
        for target in panel.get("targets", ()):
            yield Question(f"{name}, {panel['title']}", target["expr"], exempt)


def filled(query: str, minutes: float, rate_interval: str) -> str:
    """A query with Grafana's variables filled in: everything is chosen."""
    values = {
        "__rate_interval": rate_interval,
        "__range": f"{round(minutes * 60)}s",
        "cpu_price": "0.04",
        **dict.fromkeys(("namespace", "deployment", "version", "run"), ".+"),
    }
    return re.sub(r"\$(\w+)", lambda match: values[match[1]] if match[1] in values else match[0], query)


def unanswered(url: str, asked: Iterable[Question], *, minutes: float, rate_interval: str) -> list[Problem]:
    """Questions that Prometheus refuses, or that gave no number at any moment of the last minutes."""
    problems = []
    now = time.time()
    for question in asked:
        query = filled(question.query, minutes, rate_interval)
        step = max(minutes * 60 / _POINTS, 1)
        form = {"query": query, "start": f"{now - minutes * 60:.3f}", "end": f"{now:.3f}", "step": f"{step:.3f}"}
        reason = _reason(url, form)
        if reason and not (question.exempt and reason == _NOTHING):
            problems.append(Problem(question, reason))
    return problems


_NOTHING: Final = "no data"


def _reason(url: str, form: Mapping[str, str]) -> str:
    """Why there is no answer; empty when there is one."""
    address = f"{url.rstrip('/')}/api/v1/query_range"
    request = urllib.request.Request(address, urllib.parse.urlencode(form).encode())  # noqa: S310 - the caller's own
    try:
        # Prometheus at this address, past any proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as reply:
            series = json.load(reply)["data"]["result"]
    except urllib.error.HTTPError as error:
        return f"refused, {error.read().decode(errors='replace')[:300]}"
    except OSError as error:
        return f"no answer, {error}"
    values = (float(value) for one in series for _, value in one["values"])
    return "" if any(map(math.isfinite, values)) else _NOTHING
