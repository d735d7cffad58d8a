"""The demo: real text through pretraining, registry, fine-tuning and serving on the current cluster.

hack/demo run     everything, ending with a table
hack/demo data    only fetch and split the text, and print where it lies
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import baseline
import datasets
import traffic
from kubectl import get, kubectl, upload
from rich.console import Console
from rich.table import Table
from watch import DemoError, Resource, follow, serving, succeeded

NAMESPACE = "cloze-demo"
CACHE = Path.home() / ".cache" / "cloze" / "datasets"
RESOURCES = Path(__file__).resolve().parents[2] / "examples" / "demo.yaml"
REQUESTS = 200
SERVED = ("spam", "part-of-speech")

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


def load(folder: Path) -> None:
    """Put the files on the claim `demo-data`."""
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
    upload(NAMESPACE, "demo-loader", folder, datasets.FILES, "/data")
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


def report(
    jobs: dict[str, Resource],
    stages: dict[str, float],
    baselines: dict[str, float],
    answers: dict[str, traffic.Traffic],
    console: Console,
) -> None:
    """The closing tables. jobs: status of each training job by name."""

    def version(name: str) -> str:
        model = jobs[name]["model"]
        return f"{model['name']} v{model['version']}"

    quality = Table(title="Quality on held-out text", title_justify="left")
    for column in ("model", "measure", "Cloze", "baseline", "difference", "what the baseline is"):
        quality.add_column(column, justify="right" if column in ("Cloze", "baseline", "difference") else "left")
    quality.add_row(
        version("encoder"), "masked-token accuracy", f"{jobs['encoder']['metrics']['masked_accuracy']:.4f}", "", "", ""
    )
    for name, metric, measure, what in (
        ("spam", "f1", "F1 of spam", "TF-IDF, logistic regression"),
        ("part-of-speech", "accuracy", "accuracy over words", "most frequent tag"),
    ):
        value, baseline_value = jobs[name]["metrics"][metric], baselines[name]
        quality.add_row(
            version(name), measure, f"{value:.4f}", f"{baseline_value:.4f}", f"{value - baseline_value:+.4f}", what
        )
    console.print(quality)

    served = Table(title="Requests", title_justify="left")
    for column in ("service", "sent", "failed", "right", "p50", "p95"):
        served.add_column(column, justify="left" if column == "service" else "right")
    for service, seen in answers.items():
        right = f"{seen.right / max(1, seen.judged):.4f}"
        p50, p95 = (f"{1000 * seen.quantile(share):.0f} ms" for share in (0.5, 0.95))
        served.add_row(service, str(seen.sent), str(seen.failed), right, p50, p95)
    console.print(served)

    times = Table(title="Time", title_justify="left")
    times.add_column("stage")
    times.add_column("seconds", justify="right")
    for stage, seconds in stages.items():
        times.add_row(stage, f"{seconds:.0f}")
    times.add_row("together", f"{sum(stages.values()):.0f}")
    console.print(times)
    console.print(
        f"""The cluster stays up. To look around:
  eval "$(python3 hack/cluster env)"
  kubectl -n {NAMESPACE} get cloze
  kubectl -n cloze-system port-forward service/cloze-mlflow 5000    then http://localhost:5000
  kubectl -n {NAMESPACE} port-forward service/spam 8080:80           then
  curl -s localhost:8080/v1/classify --json '{{"inputs": "You won a free prize, click here"}}'
`make demo-clean` deletes the demo's objects, `make cluster-down` stops the cluster.""",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def run() -> None:
    """The whole demo. Raises DemoError or RuntimeError with what went wrong."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    stages: dict[str, float] = {}
    mark = time.monotonic()

    def done(stage: str) -> None:
        nonlocal mark
        stages[stage], mark = time.monotonic() - mark, time.monotonic()

    console.print("fetching and splitting the text (near-duplicates stay on one side; the first time about a minute)")
    folder = datasets.prepare(CACHE)
    load(folder)
    done("text")
    # A second demo starts afresh: new runs register new versions of the same models.
    kubectl("--namespace", NAMESPACE, "delete", "--filename", str(RESOURCES), "--ignore-not-found", "--wait")
    kubectl("--namespace", NAMESPACE, "apply", "--filename", str(RESOURCES))
    console.print(f"applied {RESOURCES.name}: one PretrainJob, two FineTuneJobs from it, two ModelDeployments")
    with ThreadPoolExecutor(max_workers=1) as pool:
        done_jobs = follow(NAMESPACE, {("PretrainJob", "encoder"): succeeded}, timeout=1200)
        done("pretraining")
        done_jobs |= follow(NAMESPACE, {("FineTuneJob", name): succeeded for name in SERVED}, timeout=1200)
        done("fine-tuning")
        jobs = {name: resource["status"] for (_, name), resource in done_jobs.items()}
        # The baselines run beside the rollout, which mostly waits.
        spam, tags = pool.submit(baseline.spam_f1, folder), pool.submit(baseline.most_frequent_tag_accuracy, folder)
        follow(
            NAMESPACE,
            {("ModelDeployment", name): serving(jobs[name]["model"]["version"]) for name in SERVED},
            timeout=600,
        )
        done("rollout")
        baselines = {"spam": spam.result(), "part-of-speech": tags.result()}
        done("baselines")
    answers = ask(folder)
    done("requests")
    report(jobs, stages, baselines, answers, console)
    if failed := sum(seen.failed for seen in answers.values()):
        raise DemoError(f"{failed} requests failed")


def main() -> None:
    """Parse, run, and end with one sentence when something went wrong."""
    parser = argparse.ArgumentParser(
        prog="hack/demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=("run", "data"))
    arguments = parser.parse_args()
    try:
        if arguments.command == "data":
            print(datasets.prepare(CACHE))
        else:
            run()
    except (DemoError, RuntimeError) as error:
        sys.exit(f"the demo failed: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"the demo failed: `{' '.join(map(str, error.cmd))}` ended with {error.returncode}, see above")
    except KeyboardInterrupt:
        sys.exit("stopped; what was applied goes on in the cluster, `make demo-clean` deletes it")


if __name__ == "__main__":
    main()
