"""Whatever the OpenAPI document allows, and much that it doesn't, is answered as the document says."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from cloze_api.task import Task
from cloze_server import paths
from cloze_server.app import create_app
from cloze_server.dummy import dummy_model
from cloze_server.settings import Settings

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
MODEL = f"{paths.OIP}/models/{{name}}"
VERSION = f"{MODEL}/versions/{{version}}"
POSTS = [f"POST {path}" for path in (*paths.INFERENCE, paths.FEEDBACK, f"{MODEL}/infer", f"{VERSION}/infer")]
GETS = [
    f"GET {path}"
    for path in (
        *(paths.MODELS, paths.HEALTH, paths.READY, paths.OIP, f"{paths.OIP}/health/live", f"{paths.OIP}/health/ready"),
        *(MODEL, VERSION, f"{MODEL}/ready", f"{VERSION}/ready"),
    )
]
# Of the models of the server, one that takes a text.
NAMED = {"name": str(Task.SEQUENCE_CLASSIFICATION), "version": "local"}


@pytest.fixture(scope="module")
def operations() -> dict[str, APIOperation[Any, Any, Any, Any]]:
    """What the document describes, by method and path."""
    app = create_app(Settings(model=("dummy:",)), [lambda: dummy_model(Task.ECHO)])
    document = json.loads(json.dumps(app.openapi()))
    described = schemathesis.openapi.from_dict(document, config=schemathesis.Config())
    return {found.label: found for found in (each.ok() for each in described.get_all_operations())}


def conform(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, url: str, examples: int) -> None:
    """Send so many requests of an operation, by the document or against it, and compare each reply with it."""
    posted = operation.method.upper() == "POST"
    named = NAMED if posted and "{" in operation.path else None

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=examples < 20)
    @given(operation.as_strategy(mode, path_parameters=named))
    def answered(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE:
            # A model that there isn't would be all that is ever answered.
            case.headers.pop("x-cloze-model", None)
            if isinstance(case.body, dict):
                case.body.pop("model", None)
        reply = case.call(base_url=url)
        assert reply.status_code != 500
        case.validate_response(reply, checks=CHECKS)

    answered()


def test_every_operation_is_tried(operations: dict[str, Any]) -> None:
    """None that is described is left out below."""
    assert set(operations) == {*POSTS, *GETS}


@pytest.mark.parametrize("label", [*POSTS, *GETS])
def test_what_the_document_allows_is_answered_as_it_says(operations: Any, all_tasks: Any, label: str) -> None:
    """Status, media type, headers and form."""
    conform(operations[label], GenerationMode.POSITIVE, all_tasks.url, examples=6)


@pytest.mark.parametrize("label", POSTS)
def test_what_the_document_forbids_is_answered_as_it_says(operations: Any, all_tasks: Any, label: str) -> None:
    """Alike: a refusal, or an answer where the server is more patient than the document."""
    conform(operations[label], GenerationMode.NEGATIVE, all_tasks.url, examples=6)


@pytest.mark.full
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("label", POSTS)
def test_many_requests_are_answered_as_the_document_says(
    operations: Any, all_tasks: Any, label: str, mode: GenerationMode
) -> None:
    """The same for as many as take a while."""
    conform(operations[label], mode, all_tasks.url, examples=400)
