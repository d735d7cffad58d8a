"""What dashboards are made of: panels, rows and variables, as Grafana's JSON has them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Json = dict[str, Any]

#: Of Grafana 11.5 and later; older ones read it too.
_SCHEMA: Final = 41
_WIDTH: Final = 24
_HEIGHT: Final = {"stat": 4, "timeseries": 8, "table": 8, "heatmap": 8}
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

#: Panels of metrics that a cluster without accelerators, or without their exporter, doesn't have.
NEEDS_ACCELERATORS: Final = "Needs NVIDIA's DCGM exporter; without accelerators there is no data."
NEEDS_KNOWN_GPUS: Final = "Needs GPUs whose peak Cloze knows; without them there is no data."
#: Panels of what servers do only where they are told to.
NEEDS_METADATA: Final = "Needs requests that carry declared metadata; without them there is no data."
NEEDS_FALLBACK: Final = "Needs a server with a fallback model; without one there is no data."
#: Descriptions that hold one of these may be of panels without data.
CONDITIONS: Final = (NEEDS_ACCELERATORS, NEEDS_KNOWN_GPUS, NEEDS_METADATA, NEEDS_FALLBACK)

Kind = Literal["stat", "timeseries", "table", "heatmap"]


@dataclass(frozen=True, slots=True)
class Query:
    """A query, and how its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. unit: Grafana's name of it. limits: values from which it is yellow, and red; falling ones for ratios
    that should be high."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: Kind = "timeseries"
    width: int = 8
    limits: tuple[float, float] | None = None
    decimals: int | None = None
    stacked: bool = False
    hidden_columns: Sequence[str] = field(default=("Time",))

    def json(self, number: int, x: int, y: int) -> Json:
        """As Grafana reads it, at a place."""
        defaults: Json = {"unit": self.unit, "color": {"mode": "thresholds" if self.limits else "palette-classic"}}
        if self.kind == "stat" and not self.limits:
            defaults["color"] = {"mode": "fixed", "fixedColor": "text"}
        if self.limits:
            defaults["thresholds"] = {"mode": "absolute", "steps": _steps(*self.limits)}
        if self.decimals is not None:
            defaults["decimals"] = self.decimals
        if self.kind == "timeseries":
            custom: Json = {"lineWidth": 1, "fillOpacity": 10 if self.stacked else 0, "showPoints": "never"}
            if self.stacked:
                custom["stacking"] = {"mode": "normal", "group": "A"}
            if self.limits:
                custom["thresholdsStyle"] = {"mode": "line"}
                defaults["color"] = {"mode": "palette-classic"}
            defaults["custom"] = custom
        made: Json = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": _SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": _HEIGHT[self.kind]},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": _OPTIONS[self.kind],
            "targets": [self._target(index, query) for index, query in enumerate(self.queries)],
        }
        if self.kind == "table":
            hidden = dict.fromkeys(self.hidden_columns, True)
            made["transformations"] = [
                {"id": "merge", "options": {}},
                {"id": "organize", "options": {"excludeByName": hidden}},
            ]
        return made

    def _target(self, index: int, query: Query) -> Json:
        target: Json = {"refId": "ABCDEFGH"[index], "datasource": _SOURCE, "expr": query.expression}
        if self.kind in ("stat", "table"):
            target |= {"instant": True, "range": False}
        if self.kind == "table":
            target["format"] = "table"
        if self.kind == "heatmap":
            target["format"] = "heatmap"
        return {**target, "legendFormat": query.legend or "__auto"}


_OPTIONS: Final[dict[str, Json]] = {
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
    "heatmap": {"calculate": False, "color": {"mode": "scheme", "scheme": "Blues"}, "yAxis": {"unit": "short"}},
}


def _steps(first: float, second: float) -> list[Json]:
    if first < second:
        return [
            {"color": "green", "value": None},
            {"color": "yellow", "value": first},
            {"color": "red", "value": second},
        ]
    return [
        {"color": "red", "value": None},
        {"color": "yellow", "value": second},
        {"color": "green", "value": first},
    ]


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a title."""

    title: str
    panels: Sequence[Panel]


DATASOURCE: Final[Json] = {
    "name": "datasource",
    "label": "Prometheus",
    "type": "datasource",
    "query": "prometheus",
    "current": {},
    "refresh": 1,
}


def choice(name: str, label: str, query: str) -> Json:
    """A variable whose values Prometheus knows; all of them unless some are chosen."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }


def entry(name: str, label: str, default: str, description: str) -> Json:
    """A variable that a person types."""
    value = {"text": default, "value": default}
    return {
        "name": name,
        "label": label,
        "type": "textbox",
        "query": default,
        "description": description,
        "current": value,
        "options": [{**value, "selected": True}],
    }


def dashboard(
    uid: str, title: str, description: str, variables: Sequence[Json], rows: Sequence[Row], *, since: str
) -> Json:
    """A whole dashboard."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["cloze"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": f"now-{since}", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [DATASOURCE, *variables]},
        "annotations": {"list": []},
        "links": [
            {
                "title": "Cloze",
                "type": "dashboards",
                "tags": ["cloze"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "panels": list(_placed(rows)),
    }


def _placed(rows: Sequence[Row]) -> Iterator[Json]:
    number, y = 1, 0
    for row in rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
            "panels": [],
        }
        number, x, y, tallest = number + 1, 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > _WIDTH:
                x, y, tallest = 0, y + tallest, 0
            yield panel.json(number, x, y)
            number, x, tallest = number + 1, x + panel.width, max(tallest, _HEIGHT[panel.kind])
        y += tallest
