"""Runs on real pods that need a real S3 store: for checkpoints without a volume, and for examples."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

import live
import pytest
import stores
from test_chaos import checkpoint
from test_loop import SMALL, finetune, kill, model, pods, pretrain, resumed_at, weights_digest

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(1200), stores.within_reach]

ALONE: dict[str, Any] = {
    "topology": {"nodes": 1, **SMALL},
    "optimization": {"steps": 1500, "batchSequences": 8, "warmupSteps": 10},
}


@pytest.fixture(scope="module")
def bucket(namespace: str) -> Iterator[stores.Bucket]:
    """An empty bucket, and the Secret `store` for it."""
    with stores.s3() as made:
        keys = made.secret() | {"AWS_ENDPOINT_URL": made.endpoint, "AWS_REGION": "us-east-1"}
        live.apply(namespace, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store"}, "stringData": keys})
        yield made


def test_killed_pod_without_a_volume_changes_no_bit(namespace: str, bucket: stores.Bucket, platform: str) -> None:
    """Its successor has nothing but the bucket, and ends with the weights of an undisturbed run on a volume."""
    in_bucket = {
        "storage": {"ephemeral": True, "size": "1Gi"},
        "checkpoint": {
            "everySteps": 20,
            "keep": 2,
            "uri": f"s3://{bucket.name}/runs",
            "credentials": {"secretName": "store"},
        },
    }
    live.apply(
        namespace, pretrain(namespace, "on-volume", **ALONE), pretrain(namespace, "in-bucket", **ALONE, **in_bucket)
    )
    live.until(lambda: checkpoint(namespace, "in-bucket"), lambda step: step >= 100, 300, "the run is under way")
    gone = kill(namespace, "in-bucket", 0)
    jobs = [live.finished(namespace, "pretrainjob", name, 600) for name in ("on-volume", "in-bucket")]
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow:
        digests = {
            weights_digest(model(namespace, name), job["status"]["model"]["version"], mlflow)
            for name, job in zip(("on-volume", "in-bucket"), jobs, strict=True)
        }
    assert len(digests) == 1
    (successor,) = pods(namespace, "in-bucket", 0)
    assert successor["metadata"]["uid"] != gone
    assert min(resumed_at(namespace, "in-bucket")) >= 100
    assert live.items(namespace, "persistentvolumeclaims", "cloze.dev/owner=in-bucket") == []
    run = f"runs/{namespace}/in-bucket/{jobs[1]['metadata']['uid']}/"
    whole = {key.removeprefix(run).split("/")[0] for key in bucket.objects() if key.endswith("/COMPLETE")}
    assert len(whole) == 2, bucket.objects()


def test_examples_are_tables_of_a_private_store(namespace: str, bucket: stores.Bucket) -> None:
    """The pod has the Secret of the data set, reads columns by the names that the spec gives, and passes over what is
    broken; a job without the Secret fails with the reason.
    """
    texts = live.get(namespace, "configmap", "text")["data"]
    for part in ("train", "test"):
        rows = [json.loads(line) for line in texts[f"spam-{part}.jsonl"].splitlines()]
        table = io.StringIO(newline="")
        csv.writer(table).writerows(
            [("body", "class", "length"), *((row["text"], row["label"], len(row["text"]) // 1000) for row in rows)]
        )
        table.write("of a mail without a class,,\n")
        bucket.put(f"mails/{part}.csv.gz", gzip.compress(table.getvalue().encode()))
    dataset = {part: f"s3://{bucket.name}/mails/{part}.csv.gz" for part in ("train", "test")} | {
        "format": "csv",
        "fields": {"text": "body", "label": "class", "metadata": ["length"]},
        "maxBrokenLines": 1,
    }
    few = {"optimization": {"steps": 20, "batchSequences": 8, "warmupSteps": 2}, "topology": {"nodes": 1, **SMALL}}
    base = {"base": {"pretrainJob": {"name": "short"}}}
    live.apply(
        namespace,
        pretrain(namespace, "short", **few),
        finetune(namespace, "tables", **base, dataset={**dataset, "credentials": {"secretName": "store"}}),
        finetune(namespace, "shut-out", **base, dataset=dataset),
    )
    done = live.finished(namespace, "finetunejob", "tables", 420)
    assert done["status"]["model"]["version"]
    (pod,) = pods(namespace, "tables", 0)
    log = live.kubectl("--namespace", namespace, "logs", pod["metadata"]["name"])
    report = next(found for found in map(json.loads, log.splitlines()) if found["event"] == "examples prepared")
    assert (report["lines_broken"], report["broken"]) == (2, {"LabelMissing": 2})
    refused = live.until(
        lambda: live.get(namespace, "finetunejob", "shut-out"),
        lambda found: live.state(found) == "Failed",
        180,
        "the job without the Secret has failed",
    )
    assert "s3://" in json.dumps(refused["status"]["conditions"])
