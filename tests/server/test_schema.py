"""The OpenAPI document: valid, complete, and true to what is sent."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from cloze_api.task import Task
from cloze_server import paths
from cloze_server.app import create_app
from cloze_server.dummy import dummy_model
from cloze_server.problems import TABLE, ProblemType
from cloze_server.schema import problems_of
from cloze_server.settings import Settings

HTTP = (Path(__file__).parents[2] / "docs/http.md").read_text()

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """As the server gives it."""
    found = create_app(Settings(model=("dummy:",)), [lambda: dummy_model(Task.ECHO)]).openapi()
    whole: dict[str, Any] = json.loads(json.dumps(found))
    return whole


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, each) for path, all_ in document["paths"].items() for method, each in all_.items()]


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    """By a validator of OpenAPI 3.1, and each reference in it leads somewhere."""
    validate(document)
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))):
        found = document
        for part in reference.split("/"):
            found = found[part]


def test_every_problem_is_described_where_it_may_be(document: dict[str, Any]) -> None:
    """By type, with an example and its headers; and there is none that nobody describes."""
    seen = set()
    for path, method, operation in operations(document):
        for kind in problems_of(path, method):
            seen.add(kind)
            response = operation["responses"][str(TABLE[kind].status)]
            assert f"`{kind}`" in response["description"]
            assert "x-request-id" in response["headers"]
            assert ("retry-after" in response["headers"]) is (TABLE[kind].status in (429, 503))
            if not paths.of_protocol(path):
                example = response["content"]["application/problem+json"]["examples"][kind]["value"]
                assert example["type"].endswith(f"/{kind}")
    # No described path is unknown, or takes another method.
    assert seen == set(ProblemType) - {ProblemType.NOT_FOUND, ProblemType.METHOD_NOT_ALLOWED}


def test_every_reply_has_a_form(document: dict[str, Any]) -> None:
    """Also those that the framework doesn't make."""
    for path, _, operation in operations(document):
        reply = next(value for status, value in operation["responses"].items() if status[0] == "2")
        assert reply["content"]["application/json"]["schema"], path
        assert operation["description"], path


def test_keys_and_deadlines_are_described_where_they_count(document: dict[str, Any]) -> None:
    """Not for probes."""
    for path, _, operation in operations(document):
        given = {each["$ref"].rpartition("/")[2] for each in operation.get("parameters", []) if "$ref" in each}
        assert ("security" in operation) is (path not in paths.WITHOUT_KEY)
        assert ("x-cloze-timeout-ms" in given) is (path not in paths.UNCOUNTED)
        assert ("x-cloze-model" in given) is (path in paths.INFERENCE)


def test_paths_and_problems_are_in_the_documentation(document: dict[str, Any]) -> None:
    """Each by its name."""
    for path in document["paths"]:
        assert path.split("{")[0].rstrip("/") in HTTP, path
    for kind in ProblemType:
        assert f"`{kind}`" in HTTP, kind


async def test_a_version_is_named_by_the_path_alone(serving: Any) -> None:
    """A query says nothing, and the document knows of none."""
    async with serving(lambda: dummy_model(Task.ECHO)) as client:
        assert (await client.get("/v2/models/dummy?version=9")).json()["versions"] == ["local"]
        assert (await client.get("/v2/models/dummy/versions/9")).status_code == 404


async def test_the_document_is_the_same_each_time(serving: Any) -> None:
    """It must not grow with every client that asks, of whom no key is wanted."""
    async with serving(lambda: dummy_model(Task.ECHO)) as client:
        first, second = [(await client.get("/openapi.json")).content for _ in range(2)]
    assert first == second
