"""Our server in fp32 beside int8: how much more it answers, and how much less right."""

import json
import statistics
import sys
import urllib.request
from pathlib import Path
from typing import Any

import measure
import servers
from measure import Spread
from workload import Workload

from cloze_api.manifest import verify
from cloze_api.precision import Precision

_CONNECTIONS = 16
_AT_A_TIME = 16
_PRECISIONS = (Precision.FP32, Precision.INT8)


def precision(artifact: Path, work: Workload, *, threads: int, rounds: int, seconds: float) -> None:
    """Requests/s with 16 connections in fp32 and int8, and the accuracy of both on all mails of the test part."""
    if Precision.INT8 not in verify(artifact).precisions:
        raise SystemExit(f"{artifact} has no int8: make it with cloze-train import --precision int8 --examples FILE")
    print(f"{len(work.texts)} texts, {statistics.mean(work.tokens):.0f} tokens on average", file=sys.stderr)
    figures: dict[Precision, list[tuple[float, float]]] = {each: [] for each in _PRECISIONS}
    labels: dict[Precision, list[str]] = {}
    for number in range(rounds):
        print(f"round {number + 1}", file=sys.stderr)
        # Who comes first changes with the round, as the machine may slow down with its work.
        for each in _PRECISIONS if number % 2 == 0 else reversed(_PRECISIONS):
            server = servers.ours(threads, name=f"cloze in {each}", flags=("--precision", each))
            with servers.running(server, artifact, threads):
                if each not in labels:
                    labels[each] = _labels(work)
                found = measure.load(server, work, connections=_CONNECTIONS, seconds=seconds, seed=number)
            figures[each].append((found["requests_per_second"], found["p95_ms"]))
    right = {
        each: statistics.mean(a == b for a, b in zip(labels[each], work.labels, strict=True)) for each in _PRECISIONS
    }
    measure.table(
        ("precision", "requests/s", "p95, ms", f"accuracy on {len(work.texts)} mails"),
        (
            (each, *(Spread(column) for column in zip(*figures[each], strict=True)), f"{right[each]:.4f}")
            for each in _PRECISIONS
        ),
    )
    fp32, int8 = figures.values()
    ratio = Spread(tuple(after / before for (before, _), (after, _) in zip(fp32, int8, strict=True)))
    loss = 100 * (right[Precision.FP32] - right[Precision.INT8])
    flips = sum(a != b for a, b in zip(*labels.values(), strict=True))
    print(f"int8 answers {ratio} times as many requests; {loss:+.2f} points of accuracy lost, {flips} other answers")


def _labels(work: Workload) -> list[str]:
    """What the server says of each text."""
    found = []
    for at in range(0, len(work.texts), _AT_A_TIME):
        body = json.dumps({"inputs": work.texts[at : at + _AT_A_TIME], "top_k": 1, "truncate": "right"}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{servers.PORT}/v1/classify", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as reply:  # noqa: S310 - likewise
            results: list[Any] = json.load(reply)["results"]
        found += [result["predictions"][0]["label"] for result in results]
    return found
