"""Jobs on a real cluster that share their prepared data, of which documents with personal data are left out."""

import json
from typing import Any

import live
import pytest
from test_loop import SMALL, pods, pretrain

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]

PERSONAL = ("Write to ann@example.org about the garden.", "Call (201) 555-0123 before noon, or leave a note.")


def prepared(namespace: str, name: str) -> dict[str, Any]:
    """What a finished job's log says of its corpus."""
    (pod,) = pods(namespace, name)
    log = live.kubectl("--namespace", namespace, "logs", pod["metadata"]["name"])
    (found,) = (json.loads(line) for line in log.splitlines() if '"event": "corpus prepared"' in line)
    return dict(found)


def test_one_job_prepares_what_both_are_trained_on(namespace: str) -> None:
    """They wait for the claim by its name; of text and cleaning that are the same one makes the data, the other takes
    them, and neither is trained on a document with an address or a telephone number.
    """
    corpus = live.get(namespace, "configmap", "text")["data"]["corpus.jsonl"]
    rows = [*corpus.splitlines(), *(json.dumps({"text": text}) for text in PERSONAL)]
    common = {
        "corpus": [{"uri": "configmap://personal/corpus.jsonl", "format": "jsonl"}],
        "cleaning": {"pii": "drop", "minCharacters": 10},
        "topology": {"nodes": 1, **SMALL},
        "storage": {"size": "1Gi", "dataCache": {"claimName": "prepared"}},
    }
    budget = {"steps": 20, "batchSequences": 8}
    live.create(
        namespace,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "personal"},
            "data": {"corpus.jsonl": "\n".join(rows) + "\n"},
        },
    )
    names = ("slow", "fast")
    live.apply(
        namespace,
        *(
            pretrain(namespace, name, **common, optimization={**budget, "learningRate": rate})
            for name, rate in zip(names, (1e-4, 1e-3), strict=True)
        ),
    )
    for name in names:
        live.until(
            lambda: live.condition(live.get(namespace, "pretrainjob", name), "SourcesReady").get("message", ""),  # noqa: B023
            lambda message: "PersistentVolumeClaim prepared doesn't exist" in message,
            60,
            f"{name} says what it waits for",
        )
    size = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    live.apply(
        namespace, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "prepared"}, "spec": size}
    )
    for name in names:
        live.finished(namespace, "pretrainjob", name, 300)
    found = [prepared(namespace, name) for name in names]
    assert sorted(each["reused"] for each in found) == [False, True]
    assert [each["documents"] for each in found] == [found[0]["documents"]] * 2
    for each in found:
        assert each["dropped"]["pii"] >= len(PERSONAL)
        assert each["documents"] == each["documents_in"] - sum(each["dropped"].values())
