"""The files in the chart that this code writes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from monitoring import alerts, debug, executive, on_call, recording, training

ROOT: Final = Path(__file__).resolve().parents[2]
CHART_FILES: Final = ROOT / "charts" / "cloze" / "files"
_NOTE: Final = "# Written by hack/monitoring: change it there, then `make generate`.\n"


class _Dumper(yaml.SafeDumper):
    """Writes queries of several lines as people read them."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def rules() -> dict[str, list[dict[str, Any]]]:
    """Groups of rules by file name."""
    return {
        "recording.yaml": recording.groups(),
        "gateway-traefik.yaml": recording.gateway_groups(),
        "alerts.yaml": alerts.groups(),
    }


def dashboards() -> dict[str, dict[str, Any]]:
    """Dashboards by file name."""
    return {
        "executive.json": executive.dashboard(),
        "on-call.json": on_call.dashboard(),
        "debug.json": debug.dashboard(),
        "training.json": training.dashboard(),
    }


def _contents() -> Iterator[tuple[Path, str]]:
    for name, groups in rules().items():
        text = yaml.dump({"groups": groups}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        yield CHART_FILES / "rules" / name, _NOTE + text
    for name, dashboard in dashboards().items():
        yield CHART_FILES / "dashboards" / name, json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def write() -> None:
    """Write all files, and delete those that nobody writes any more."""
    wanted = dict(_contents())
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in _present() - wanted.keys():
        path.unlink()


def stale() -> list[str]:
    """Files that are missing, different or too many, relative to the repository."""
    wanted = dict(_contents())
    different = {path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text}
    return sorted(str(path.relative_to(ROOT)) for path in different | (_present() - wanted.keys()))


def _present() -> set[Path]:
    return {path for folder in ("rules", "dashboards") for path in (CHART_FILES / folder).glob("*")}
