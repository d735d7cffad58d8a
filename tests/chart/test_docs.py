"""The values and objects that the pages on stores and network policies tell people to use."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendering import render

from cloze_api.names import MANAGED_BY, PROGRESS_PORT, SERVER_PORT
from cloze_operator.desired.metadata import COMPONENTS

pytestmark = pytest.mark.cluster

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"


def blocks(page: str) -> list[dict[str, Any]]:
    """What a page's YAML blocks hold."""
    text = (PAGES / page).read_text(encoding="utf-8")
    found = re.findall(r"^( *)```yaml\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [each for _, block in found for each in yaml.safe_load_all(textwrap.dedent(block))]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(each, id=f"{page}-{number}")
        for page in ("production-stores.md", "network-policies.md")
        for number, each in enumerate(blocks(page))
        if "kind" not in each
    ],
)
def test_values_of_the_pages_are_accepted(values: dict[str, Any]) -> None:
    """The schema knows each, and the chart renders with all of a page together."""
    assert render(*(f"{key}={json.dumps(value)}" for key, value in values.items()))


def test_policies_for_users_namespaces_take_our_pods() -> None:
    """By the labels and ports that the operator gives them."""
    policies = [each["spec"] for each in blocks("network-policies.md") if each.get("kind") == "NetworkPolicy"]
    taken = {spec["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: spec for spec in policies}
    assert taken.keys() == set(COMPONENTS.values())
    ports = {"server": SERVER_PORT, "trainer": PROGRESS_PORT}
    for component, spec in taken.items():
        assert spec["podSelector"]["matchLabels"]["app.kubernetes.io/managed-by"] == MANAGED_BY
        assert [{"port": ports[component]}] in [rule.get("ports") for rule in spec["ingress"]]
        assert [{"port": 5000}] in [rule.get("ports") for rule in spec["egress"]]
