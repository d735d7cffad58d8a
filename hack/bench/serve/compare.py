"""Ours beside each peer, at the latency that the peer has where it is fastest."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import measure
import servers
from measure import Spread
from servers import DEFAULT_BATCH, PEER_SERVERS, SWEEP
from workload import Workload


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
) -> None:
    """Our throughput at the p95 that a peer has where it is fastest, over the peer's."""
    print(f"{len(work.texts)} texts, {statistics.mean(work.tokens):.0f} tokens on average", file=sys.stderr)
    candidates = [
        PEER_SERVERS[name](batch) for name in peers for batch in (SWEEP[name] if sweep else (DEFAULT_BATCH[name],))
    ]
    ours = servers.ours(threads)
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for number in range(rounds):
        print(f"round {number + 1}", file=sys.stderr)
        mine = measure.ladder(ours, artifact, work, seconds=seconds, threads=threads, connections=connections)
        expected = measure.answers(ours, {k: v for rung in mine.values() for k, v in rung["replies"].items()})
        for peer in candidates:
            theirs = measure.ladder(peer, artifact, work, seconds=seconds, threads=threads, connections=connections)
            replies = {index: reply for rung in theirs.values() for index, reply in rung["replies"].items()}
            wrong = measure.disagreements(expected, measure.answers(peer, replies), 2e-3)
            if wrong:
                raise SystemExit(f"{peer.name} answers {len(wrong)} texts in another way, the first is {wrong[0]}")
            fastest = max(theirs.values(), key=lambda rung: float(rung["requests_per_second"]))
            rate, p95 = fastest["requests_per_second"], fastest["p95_ms"]
            most = max(rung["requests_per_second"] for rung in mine.values())
            rows.setdefault(peer.name, []).append((rate, p95, measure.best_within(mine, p95) / rate, most / rate))
    heads = ("peer", "its requests/s", "its p95, ms", "ours at that p95, times its", "most of each")
    measure.table(
        heads,
        ((name, *(Spread(column) for column in zip(*values, strict=True))) for name, values in rows.items()),
    )
