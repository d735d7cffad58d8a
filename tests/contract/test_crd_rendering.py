"""The rendered definitions: current, structural, and complete."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloze_api import crd
from cloze_api.resources import KINDS, FineTuneJob, Resource
from cloze_api.task import FINE_TUNING_TASKS, Task

ROOT = Path(__file__).resolve().parents[2]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a schema with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


def schema_of(resource: type[Resource]) -> dict[str, Any]:
    schema: dict[str, Any] = crd.definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("folder", ["crds", "charts/cloze/files/crds"])
def test_committed_definitions_are_current(folder: str) -> None:
    """What is committed is what the models render: a changed model without `make generate` fails here."""
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("*.yaml")}
    assert written == crd.files()


@pytest.mark.parametrize("resource", KINDS)
def test_schema_is_structural(resource: type[Resource]) -> None:
    """No reference, union, null or numeric exclusive bound is left, and every node has a type or is int-or-string."""
    for path, node in nodes(schema_of(resource)):
        assert not {"$ref", "anyOf", "allOf", "oneOf", "const", "title", "$defs"} & node.keys(), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert node.get("type") != "null", path
        assert not ("default" in node and node["default"] is None), path
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            assert isinstance(node.get(bound, False), bool), path


@pytest.mark.parametrize("resource", KINDS)
def test_every_list_map_and_string_of_the_spec_is_bounded(resource: type[Resource]) -> None:
    """Without bounds the API server refuses rules as too costly."""
    for path, node in nodes(schema_of(resource)["properties"]["spec"], "spec"):
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if node.get("type") == "string" and "enum" not in node:
            assert "maxLength" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


@pytest.mark.parametrize("resource", KINDS)
def test_printer_columns_point_at_fields_that_exist(resource: type[Resource]) -> None:
    """A column with a misspelt path would stay empty silently."""
    paths = {path for path, _ in nodes(schema_of(resource))}
    for column in resource.columns:
        plain = column.path.split("[?", 1)[0]
        assert plain in paths or plain.startswith(".metadata."), column


@pytest.mark.parametrize("resource", KINDS)
def test_rules_name_the_field_and_the_remedy(resource: type[Resource]) -> None:
    """Every CEL message names the field it is about, and says what to do after a colon or in a second part."""
    definition = yaml.safe_load(crd.render(resource))
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    messages = [rule["message"] for _, node in nodes(schema) for rule in node.get("x-kubernetes-validations", [])]
    assert messages
    for message in messages:
        assert message.startswith(("spec.", "metadata.")), message
        assert ": " in message, message


def test_an_objects_default_is_what_its_fields_default_to() -> None:
    """An absent object and an empty one mean the same."""
    for resource in KINDS:
        for path, node in nodes(schema_of(resource)["properties"]["spec"], "spec"):
            if "properties" in node and "default" in node:
                leaves = {name: child["default"] for name, child in node["properties"].items() if "default" in child}
                assert node["default"] == leaves, path


def test_spec_fields_of_python_and_schema_are_the_same() -> None:
    """A job parsed by `cloze-train` has exactly the fields that the API server accepts."""
    for resource in KINDS:
        spec = resource.model_fields["spec"].annotation
        assert spec is not None
        names = {field.alias for field in spec.model_fields.values()}
        assert names == set(schema_of(resource)["properties"]["spec"]["properties"])


def test_a_finetunejob_takes_only_tasks_that_can_be_trained() -> None:
    """The API server refuses the others: an encoder's task is pretrained, and nothing trains an echo model."""
    definition = schema_of(FineTuneJob)["properties"]["spec"]["properties"]["task"]
    assert definition["enum"] == list(FINE_TUNING_TASKS)
    assert Task.ECHO not in FINE_TUNING_TASKS
