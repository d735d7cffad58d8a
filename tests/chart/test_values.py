"""The values, their comments and their schema say the same, key by key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "cloze"
VALUES = (CHART / "values.yaml").read_text(encoding="utf-8")
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
# Helm gives it to every chart; what a container's resources are is Kubernetes' own, and so are policies' peers.
NOT_OURS = {"global"}


def settings(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and schema of every property that has a default in the values, groups of settings too."""
    for key, child in node.get("properties", {}).items():
        here = f"{path}.{key}".lstrip(".")
        if here in NOT_OURS or (path.endswith("resources") and key in ("requests", "limits")):
            continue
        yield here, child
        yield from settings(child, here)


def keys(node: yaml.MappingNode, path: str = "") -> Iterator[tuple[str, int, bool]]:
    """Path and line of every key of the values, and whether more keys are below it."""
    for key, child in node.value:
        here = f"{path}.{key.value}".lstrip(".")
        below = isinstance(child, yaml.MappingNode) and not child.flow_style and key.value != "resources"
        yield here, key.start_mark.line, below
        if below:
            yield from keys(child, here)


def value_keys() -> list[tuple[str, int, bool]]:
    root = yaml.compose(VALUES)
    assert isinstance(root, yaml.MappingNode)
    return list(keys(root))


def test_values_and_schema_have_the_same_keys() -> None:
    """A setting that the schema doesn't know would be refused; one without a default would be found by nobody."""
    assert {path for path, _, _ in value_keys()} == {path for path, _ in settings(SCHEMA)}


@pytest.mark.parametrize(("path", "node"), list(settings(SCHEMA)))
def test_every_setting_is_described(path: str, node: dict[str, Any]) -> None:
    """The schema says what it is and what it may be, in a sentence."""
    assert node.get("description", "").endswith(".")
    assert "type" in node or "enum" in node
    if node.get("type") == "object" and node.get("properties"):
        assert node["additionalProperties"] is False


@pytest.mark.parametrize(("path", "line"), [(path, line) for path, line, below in value_keys() if not below])
def test_every_setting_has_a_comment(path: str, line: int) -> None:
    """Right above it in the values, where a person reads them."""
    assert VALUES.splitlines()[line - 1].lstrip().startswith("#")


def test_defaults_are_valid() -> None:
    """Each default is of a type that its schema names."""
    types: dict[str, type | tuple[type, ...]] = {
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "array": list,
        "object": dict,
    }
    for path, node in settings(SCHEMA):
        value: Any = yaml.safe_load(VALUES)
        for key in path.split("."):
            value = value[key]
        if "enum" in node:
            assert value in node["enum"], path
        else:
            assert isinstance(value, types[node["type"]]), path
