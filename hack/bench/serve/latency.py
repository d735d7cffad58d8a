"""How long requests take at a given share of what the server can do, and beyond it."""

import random
import statistics
from pathlib import Path

import measure
import servers
from measure import Spread
from workload import Workload

_SHARES = (0.4, 0.7)
_OVERLOAD = 3.0


def queue_p95(services: list[float], rate: float, *, count: int = 200_000) -> float:
    """p95 of the time in an M/G/1 queue, first come first served, by Lindley's recursion over drawn service times.

    services: seconds, measured. rate: arrivals a second.
    """
    source = random.Random(0)  # noqa: S311 - a simulation
    wait, times = 0.0, []
    for _ in range(count):
        service = source.choice(services)
        times.append(wait + service)
        wait = max(0.0, wait + service - source.expovariate(rate))
    return statistics.quantiles(times, n=20)[-1]


def latency(artifact: Path, work: Workload, *, threads: int, rounds: int, seconds: float) -> None:
    """p95 at 40 % and 70 % of the capacity, beside an unloaded server and an M/G/1 queue; goodput at three times it."""
    ours = servers.ours(threads)
    rows = []
    for number in range(rounds):
        with servers.running(ours, artifact, threads):
            alone = measure.load(ours, work, connections=1, seconds=seconds, seed=number)
            peak = measure.load(ours, work, connections=32, seconds=seconds, seed=number)["requests_per_second"]
            services = [each / 1000 for each in alone["latencies_ms"]]
            row = [f"{peak:.1f}", f"{alone['p95_ms']:.0f}"]
            for share in _SHARES:
                rate = share * peak
                found = measure.load(ours, work, rate=rate, seconds=3 * seconds, seed=number)
                # A queue of one server can't take the rate at all when ours is faster than one request at a time.
                possible = rate * statistics.mean(services) < 1
                simulated = f"{1000 * queue_p95(services, rate):.0f}" if possible else "∞"
                row += [f"{found['p95_ms']:.0f} (×{found['p95_ms'] / alone['p95_ms']:.2f})", simulated]
            over = measure.load(ours, work, rate=_OVERLOAD * peak, seconds=3 * seconds, seed=number)
            good = over["requests_per_second"] / peak
            rows.append((*row, f"{good:.2f}", f"{over['p95_ms'] / 1000:.1f}", _refused(over["statuses"])))
    heads = ["peak, requests/s", "p95 alone, ms"]
    for share in _SHARES:
        heads += [f"p95 at {share:.0%}, ms", "M/G/1, ms"]
    heads += [f"goodput at {_OVERLOAD:.0f}×", "p95 of the accepted, s", "refused"]
    measure.table(heads, rows)
    print(f"goodput: {Spread(tuple(float(row[-3]) for row in rows))}")


def _refused(statuses: dict[str, int]) -> str:
    return f"{statuses.get('429', 0) / max(1, sum(statuses.values())):.0%}"
