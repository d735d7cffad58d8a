"""Our server beside its peers: python hack/bench/serve {compare,limit,load,overhead} --help

Everybody gets the same graph, tokenizer, texts and threads, one after the other on the same machine, again and again in
turn, and must give the same answers. Figures are medians over the rounds, with the lowest and the highest.
"""

import argparse
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import servers
from artifacts import SIZES, artifact
from servers import DEFAULT_BATCH, PEER_SERVERS, SWEEP, Server
from workload import Workload, mails

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64)
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
        return f"{self.median:,.3g} ({min(self.values):,.3g}–{max(self.values):,.3g})"


def generate(plan: dict[str, Any]) -> dict[str, Any]:
    """Run the generator."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(plan, file)
        file.flush()
        done = subprocess.run([sys.executable, str(_GENERATOR), file.name], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


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


def ladder(
    server: Server, artifact: Path, work: Workload, *, seconds: float, threads: int, connections: Iterable[int]
) -> dict[int, dict[str, Any]]:
    """Figures of a closed loop by its number of connections."""
    found = {}
    with servers.running(server, artifact, threads):
        for count in connections:
            found[count] = generate(
                servers.plan(server, work.texts, work.tokens, connections=count, seconds=seconds, seed=count)
            )
    return found


def _ladder(
    arguments: argparse.Namespace, server: Server, work: Workload, connections: Iterable[int]
) -> dict[int, dict[str, Any]]:
    return ladder(
        server,
        arguments.artifact,
        work,
        seconds=arguments.seconds,
        threads=arguments.threads,
        connections=connections,
    )


def best_within(rungs: dict[int, dict[str, Any]], p95_ms: float) -> float:
    """Most requests a second among the rungs that keep the p95."""
    return max((rung["requests_per_second"] for rung in rungs.values() if rung["p95_ms"] <= p95_ms), default=0.0)


def compare(arguments: argparse.Namespace) -> None:
    """Our throughput at the p95 that a peer has where it is fastest, over the peer's."""
    work = mails(arguments.artifact)
    print(f"{len(work.texts)} texts, {statistics.mean(work.tokens):.0f} tokens on average", file=sys.stderr)
    candidates = [
        make(batch)
        for name, make in PEER_SERVERS.items()
        if name in arguments.peers
        for batch in (SWEEP[name] if arguments.sweep else (DEFAULT_BATCH[name],))
    ]
    ours = servers.ours(arguments.threads, parallel=arguments.parallel)
    ratios: dict[str, list[float]] = {}
    best: dict[str, list[tuple[float, float]]] = {}
    for round_number in range(arguments.rounds):
        mine = _ladder(arguments, ours, work, CONNECTIONS)
        expected = answers(ours, mine[max(mine)]["replies"])
        _show(round_number, ours, mine)
        for peer in candidates:
            theirs = _ladder(arguments, peer, work, CONNECTIONS)
            _show(round_number, peer, theirs)
            wrong = disagreements(expected, answers(peer, theirs[max(theirs)]["replies"]), 2e-3)
            if wrong:
                raise SystemExit(f"{peer.name} answers {len(wrong)} texts in another way, the first is {wrong[0]}")
            fastest = max(theirs.values(), key=lambda rung: float(rung["requests_per_second"]))
            same = best_within(mine, fastest["p95_ms"])
            ratios.setdefault(peer.name, []).append(same / fastest["requests_per_second"])
            best.setdefault(peer.name, []).append((fastest["requests_per_second"], fastest["p95_ms"]))
    print("| peer | its requests/s | its p95, ms | ours at that p95, times its |\n| --- | --- | --- | --- |")
    for name, values in ratios.items():
        rate, p95 = (Spread(tuple(column)) for column in zip(*best[name], strict=True))
        print(f"| {name} | {rate} | {p95} | {Spread(tuple(values))} |")


def _show(round_number: int, server: Server, rungs: dict[int, dict[str, Any]]) -> None:
    for count, rung in rungs.items():
        print(
            f"round {round_number + 1}: {server.name}, {count} connections: {rung['requests_per_second']} requests/s, "
            f"{rung['tokens_per_second']:.0f} tokens/s, p50 {rung['p50_ms']} ms, p95 {rung['p95_ms']} ms, "
            f"{rung['statuses']}, generator {rung['generator_cpu']} CPUs",
            file=sys.stderr,
            flush=True,
        )


def raw_tokens_per_second(artifact: Path, work: Workload, threads: int, budget: int) -> float:
    """A bare onnxruntime loop over batches that are sorted by length: what the machine can do at most."""
    import numpy as np  # noqa: PLC0415 - the other commands do without
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(artifact / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    batches: list[list[list[int]]] = [[]]
    for ids in sorted(work.ids, key=len):
        if batches[-1] and (len(batches[-1]) + 1) * len(ids) > budget:
            batches.append([])
        batches[-1].append(ids)
    feeds = []
    for batch in batches:
        longest = len(batch[-1])
        arrays = {
            "input_ids": np.array([ids + [0] * (longest - len(ids)) for ids in batch], np.int64),
            "attention_mask": np.array([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch], np.int64),
        }
        arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
        feeds.append({name: arrays[name] for name in names})
    began = time.perf_counter()
    for feed in feeds:
        session.run(None, feed)
    return sum(work.tokens) / (time.perf_counter() - began)


def limit(arguments: argparse.Namespace) -> None:
    """Tokens a second through HTTP under saturating load, over those of the bare loop at its best budget."""
    work = mails(arguments.artifact)
    ratios, raw, served, cpus = [], [], [], []
    for _ in range(arguments.rounds):
        raw.append(
            max(raw_tokens_per_second(arguments.artifact, work, arguments.threads, size) for size in (512, 1024, 2048))
        )
        ours = servers.ours(arguments.threads, parallel=arguments.parallel)
        (rung,) = _ladder(arguments, ours, work, (64,)).values()
        served.append(rung["tokens_per_second"])
        cpus.append(rung["generator_cpu"])
        ratios.append(served[-1] / raw[-1])
        print(f"bare loop {raw[-1]:.0f} tokens/s, through HTTP {served[-1]:.0f}", file=sys.stderr, flush=True)
    print(
        f"| bare loop, tokens/s | through HTTP | ratio | generator's CPUs |\n| --- | --- | --- | --- |\n"
        f"| {Spread(tuple(raw))} | {Spread(tuple(served))} | {Spread(tuple(ratios))} | {Spread(tuple(cpus))} |"
    )


def _artifact(name: str) -> Path:
    return artifact(name) if name in SIZES else Path(name).resolve()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python hack/bench/serve", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for function in (compare, limit):
        command = commands.add_parser(function.__name__, help=str(function.__doc__))
        command.set_defaults(run=function)
        command.add_argument(
            "artifact", type=_artifact, help=f"{' or '.join(SIZES)}, or the folder of a text classifier's artifact"
        )
        command.add_argument("--threads", type=int, default=2, help="compute threads of everybody (default 2)")
        command.add_argument("--parallel", type=int, default=1, help="our batches at the same time (default 1)")
        command.add_argument("--rounds", type=int, default=3)
        command.add_argument("--seconds", type=float, default=8, help="measured for each number of connections")
        if function is compare:
            command.add_argument("--peers", nargs="+", choices=list(PEER_SERVERS), default=list(PEER_SERVERS))
            command.add_argument("--sweep", action="store_true", help="the settings tried for the best of each peer")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
