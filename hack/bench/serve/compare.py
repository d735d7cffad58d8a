"""Ours beside each peer, at the latency that the peer has where it is fastest."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import servers
from artifacts import with_graph
from measure import Spread
from servers import DEFAULT_BATCH, PEER_SERVERS, SWEEP
from workload import Workload

from cloze_api.precision import Precision

# It runs torch's weights, no graph.
_WITHOUT_GRAPH = "fastapi"


def compare(
    artifact: Path,
    work: Workload,
    *,
    peers: Sequence[str],
    sweep: bool,
    threads: int,
    rounds: int,
    seconds: float,
    connections: Sequence[int],
    precision: Precision = Precision.FP32,
) -> None:
    """Our throughput at the p95 that a peer has, over the peer's: where it is fastest, and for each load.

    precision: of the graph that everybody runs.
    """
    if precision is not Precision.FP32:
        peers = [name for name in peers if name != _WITHOUT_GRAPH]
    print(f"{len(work.texts)} texts, {statistics.mean(work.tokens):.0f} tokens on average", file=sys.stderr)
    candidates = [
        PEER_SERVERS[name](batch) for name in peers for batch in (SWEEP[name] if sweep else (DEFAULT_BATCH[name],))
    ]

    def climb(server: servers.Server, model: Path) -> list[dict[str, Any]]:
        rungs = measure.ladder(server, model, work, seconds=seconds, threads=threads, connections=connections)
        return list(rungs.values())

    flags = ("--precision", precision)
    ours = [servers.ours(threads, parallel=parallel, flags=flags) for parallel in ((1, threads) if sweep else (1,))]
    folder = with_graph(artifact, precision)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for number in range(rounds):
        print(f"round {number + 1}", file=sys.stderr)
        mine = [rung for each in ours for rung in climb(each, artifact)]
        expected = measure.answers(ours[0], {k: v for rung in mine for k, v in rung["replies"].items()})
        for peer in candidates:
            theirs = climb(peer, folder)
            replies = {index: reply for rung in theirs for index, reply in rung["replies"].items()}
            wrong = measure.disagreements(expected, measure.answers(peer, replies), 2e-3)
            if wrong:
                raise SystemExit(f"{peer.name} answers {len(wrong)} texts in another way, the first is {wrong[0]}")
            # One that answered nothing in its time counts as if it had answered one.
            rates = [max(float(rung["requests_per_second"]), 1 / seconds) for rung in theirs]
            pairs = zip(theirs, rates, strict=True)
            ratios = [measure.best_within(mine, rung["p95_ms"]) / rate for rung, rate in pairs]
            fastest = rates.index(max(rates))
            rows.setdefault(peer.name, []).append((rates[fastest], theirs[fastest]["p95_ms"], ratios[fastest], *ratios))
    heads = ("peer", "its most requests/s", "its p95 then, ms", "ours then, times its")
    measure.table(
        (*heads, *(f"at its p95 with {count}" for count in connections)),
        ((name, *(Spread(column) for column in zip(*values, strict=True))) for name, values in rows.items()),
    )
