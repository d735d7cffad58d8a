"""What every comparison does: run the generator, check answers, climb a ladder of connections, state a spread."""

import base64
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import servers
from servers import Server
from workload import Workload

_GENERATOR = Path(__file__).with_name("generator.py")


@dataclass(frozen=True)
class Spread:
    """One figure over several rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return _shown(self.median)
        return f"{_shown(self.median)} ({_shown(min(self.values))}–{_shown(max(self.values))})"


def _shown(figure: float) -> str:
    """Three digits, and no exponent."""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def generate(plan: dict[str, Any]) -> dict[str, Any]:
    """Run the generator."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder, "plan.json"), Path(folder, "result.json")
        given.write_text(json.dumps(plan), encoding="utf-8")
        subprocess.run([sys.executable, str(_GENERATOR), str(given), str(result)], check=True)
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def load(server: Server, work: Workload, **plan: Any) -> dict[str, Any]:
    """Figures of one run against a server that answers already; told to whoever watches."""
    found = generate(servers.plan(server, work.texts, work.tokens, **plan))
    how = f"{plan['connections']} connections" if "connections" in plan else f"{plan['rate']:.3g} requests/s offered"
    print(
        f"{server.name}, {how}: {found['requests_per_second']} requests/s, {found['tokens_per_second']:.0f} tokens/s, "
        f"p50 {found['p50_ms']} ms, p95 {found['p95_ms']} ms, {found['statuses']}, "
        f"generator {found['generator_cpu']} CPUs",
        file=sys.stderr,
        flush=True,
    )
    return found


def ladder(
    server: Server, artifact: Path, work: Workload, *, seconds: float, threads: int, connections: Iterable[int]
) -> dict[int, dict[str, Any]]:
    """Figures of a closed loop by its number of connections."""
    with servers.running(server, artifact, threads):
        return {count: load(server, work, connections=count, seconds=seconds, seed=count) for count in connections}


def answers(server: Server, replies: dict[str, str]) -> dict[int, tuple[str, float]]:
    """What a server said of each text."""
    return {int(index): server.answer(json.loads(base64.b64decode(body))) for index, body in replies.items()}


def disagreements(
    expected: dict[int, tuple[str, float]], found: dict[int, tuple[str, float]], tolerance: float
) -> list[int]:
    """Texts whose label is another, or whose probability is further off than that."""
    return [
        index
        for index in expected.keys() & found.keys()
        if expected[index][0] != found[index][0] or abs(expected[index][1] - found[index][1]) > tolerance
    ]


def best_within(rungs: Iterable[dict[str, Any]], p95_ms: float) -> float:
    """Most requests a second among the rungs that keep the p95."""
    return max((rung["requests_per_second"] for rung in rungs if rung["p95_ms"] <= p95_ms), default=0.0)


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table as the documentation has it."""
    heads = list(heads)
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
