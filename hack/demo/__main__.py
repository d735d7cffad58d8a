"""The demo: real text through pretraining, registry, fine-tuning, serving and canaries on the current cluster.

hack/demo run     everything, ending with a table
hack/demo tasks   after it: examples/tasks.yaml on files that are made of the same text
hack/demo data    only fetch and split the text, and print where it lies
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import baseline
import datasets
import derived
import traffic
import yaml
from kubectl import get, kubectl, upload
from rich.console import Console
from watch import DemoError, Resource, follow, serving, succeeded

if TYPE_CHECKING:
    from trials import Story

NAMESPACE = "cloze-demo"
CACHE = Path.home() / ".cache" / "cloze" / "datasets"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RESOURCES, BETTER, TASKS = (EXAMPLES / name for name in ("demo.yaml", "demo-better.yaml", "tasks.yaml"))
REQUESTS = 200
SERVED = ("spam", "part-of-speech")
TUNED = (*SERVED, "spam-student")

LOADER: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "List",
    "items": [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "demo-data", "namespace": NAMESPACE},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        },
    ],
}


def loader_pod(image: str) -> dict[str, Any]:
    """A pod that holds the claim while the files are copied."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "demo-loader", "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "loader",
                    "image": image,
                    "command": ["sleep", "600"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "demo-data"}}],
        },
    }


def load(folder: Path, files: tuple[str, ...] = datasets.FILES) -> None:
    """Put files of a folder on the claim `demo-data`."""
    kubectl("apply", "--filename", "-", stdin=json.dumps(LOADER))
    kubectl("--namespace", NAMESPACE, "delete", "pod", "demo-loader", "--ignore-not-found", "--wait")
    operator = get("cloze-system", "deployments")
    image = next(
        entry["spec"]["template"]["spec"]["containers"][0]["image"]
        for entry in operator
        if entry["metadata"]["name"] == "cloze-operator"
    )
    kubectl("apply", "--filename", "-", stdin=json.dumps(loader_pod(image)))
    kubectl("--namespace", NAMESPACE, "wait", "--for=condition=Ready", "pod/demo-loader", "--timeout=180s")
    upload(NAMESPACE, "demo-loader", folder, files, "/data")
    kubectl("--namespace", NAMESPACE, "delete", "pod", "demo-loader", "--wait=false")


def ask(folder: Path) -> dict[str, traffic.Traffic]:
    """Send held-out examples to both served models."""
    results = {}
    for service, route, file in (
        ("spam", "/v1/classify", "spam-test.jsonl"),
        ("part-of-speech", "/v1/token-classify", "pos-test.jsonl"),
    ):
        rows = baseline.read(folder / file)
        step = max(1, len(rows) // REQUESTS)
        with traffic.forwarded(NAMESPACE, service) as base:
            results[service] = traffic.send(base, route, rows[::step][:REQUESTS])
    return results


def resources(*, gateway: bool) -> list[Resource]:
    """The objects of the demo. gateway: whether there is one; without it new versions take over at once."""
    found: list[Resource] = list(yaml.safe_load_all(RESOURCES.read_text(encoding="utf-8")))
    if not gateway:
        for resource in found:
            for field in ("traffic", "rollout"):
                resource["spec"].pop(field, None)
    return found


def apply(objects: list[Resource], verb: str = "apply", *arguments: str) -> None:
    """Apply objects, or do something else with them."""
    body = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    kubectl("--namespace", NAMESPACE, verb, "--filename", "-", *arguments, stdin=body)


def mlflow() -> AbstractContextManager[str]:
    """Address of the chart's MLflow while the block runs."""
    return traffic.forwarded("cloze-system", "cloze-mlflow", 5000)


def run() -> None:
    """The whole demo. Raises DemoError or RuntimeError with what went wrong."""
    # MLflow and ONNX take seconds to import, which `data` needn't wait for.
    import models  # noqa: PLC0415
    import report  # noqa: PLC0415
    import trials  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else 140)
    stages: dict[str, float] = {}
    mark = time.monotonic()

    def done(stage: str) -> None:
        nonlocal mark
        stages[stage], mark = time.monotonic() - mark, time.monotonic()

    console.print("fetching and splitting the text (near-duplicates stay on one side; the first time about a minute)")
    folder = datasets.prepare(CACHE)
    load(folder)
    done("text")
    missing = trials.missing()
    objects = resources(gateway=not missing)
    better = list(yaml.safe_load_all(BETTER.read_text(encoding="utf-8")))
    # A second demo starts afresh: new runs register new versions of the same models.
    apply([*objects, *better], "delete", "--ignore-not-found", "--wait")
    if not missing:
        with mlflow() as uri:
            models.forget_aliases(uri, SERVED)
    apply(objects)
    console.print(f"applied {RESOURCES.name}: one PretrainJob, three FineTuneJobs from it, two ModelDeployments")
    with ThreadPoolExecutor(max_workers=1) as pool:
        done_jobs = follow(NAMESPACE, {("PretrainJob", "encoder"): succeeded}, timeout=1200)
        done("pretraining")
        done_jobs |= follow(NAMESPACE, {("FineTuneJob", name): succeeded for name in TUNED}, timeout=1200)
        done("fine-tuning")
        jobs = {name: resource["status"] for (_, name), resource in done_jobs.items()}
        # The baselines run beside the rollout, which mostly waits.
        spam, tags = pool.submit(baseline.spam_f1, folder), pool.submit(baseline.most_frequent_tag_accuracy, folder)
        follow(
            NAMESPACE,
            {("ModelDeployment", name): serving(jobs[name]["model"]["version"]) for name in SERVED},
            timeout=600,
        )
        done("first rollout")
        baselines = {"spam": spam.result(), "part-of-speech": tags.result()}
        done("baselines")
    answers = ask(folder)
    done("requests")
    story = None
    if missing:
        console.print(missing)
    else:
        apply(better)
        console.print(f"applied {BETTER.name}: a FineTuneJob for the next version of the spam filter")
        (trained,) = follow(NAMESPACE, {("FineTuneJob", "spam-better"): succeeded}, timeout=1200).values()
        jobs["spam-better"] = trained["status"]
        done("better model")
        stage = trials.Stage(NAMESPACE, folder, mlflow, console)
        story = stage.run(*(jobs[name]["model"]["version"] for name in ("spam", "spam-better")))
        done("canaries")
    report.quality(jobs, baselines, console)
    report.requests(answers, console)
    if story:
        report.rollouts(story, console)
    report.times(stages, console)
    report.farewell(NAMESPACE, console)
    check(answers, story)


def tasks() -> None:
    """The further tasks, after the demo. Raises DemoError or RuntimeError with what went wrong."""
    import report  # noqa: PLC0415 - as above

    if not any(one["metadata"]["name"] == "encoder" for one in get(NAMESPACE, "pretrainjobs")):
        raise DemoError("there is no encoder to start from: run `make demo` first")
    load(derived.prepare(datasets.prepare(CACHE)), derived.FILES)
    jobs: list[Resource] = list(yaml.safe_load_all(TASKS.read_text(encoding="utf-8")))
    apply(jobs, "delete", "--ignore-not-found", "--wait")
    apply(jobs)
    names = [job["metadata"]["name"] for job in jobs]
    done = follow(NAMESPACE, {("FineTuneJob", name): succeeded for name in names}, timeout=3600)
    report.tasks({name: resource["status"] for (_, name), resource in done.items()}, Console())


def check(answers: Mapping[str, traffic.Traffic], story: "Story | None") -> None:
    """Whether all went as it should. Raises DemoError."""
    if failed := sum(seen.failed for seen in answers.values()):
        raise DemoError(f"{failed} requests failed")
    if story is None:
        return
    if wrong := [one.version for one in story.rollouts if not one.is_as_expected]:
        raise DemoError(f"the rollout of version {', '.join(wrong)} ended otherwise than it should")
    if story.lost or story.mixed_up:
        raise DemoError(f"{story.lost} requests got lost and {story.mixed_up} got another's answer")


def main() -> None:
    """Parse, run, and end with one sentence when something went wrong."""
    parser = argparse.ArgumentParser(
        prog="hack/demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=("run", "tasks", "data"))
    arguments = parser.parse_args()
    try:
        if arguments.command == "data":
            print(datasets.prepare(CACHE))
        else:
            {"run": run, "tasks": tasks}[arguments.command]()
    except (DemoError, RuntimeError) as error:
        sys.exit(f"the demo failed: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"the demo failed: `{' '.join(map(str, error.cmd))}` ended with {error.returncode}, see above")
    except KeyboardInterrupt:
        sys.exit("stopped; what was applied goes on in the cluster, `make demo-clean` deletes it")


if __name__ == "__main__":
    main()
