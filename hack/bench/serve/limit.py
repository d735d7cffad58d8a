"""Through HTTP, over what the machine can do at most."""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
import onnxruntime
import servers
from measure import Spread
from runtimes import sorted_batches
from workload import Workload

_BUDGETS = (512, 1024, 2048)


def raw_loop(artifact: Path, work: Workload, threads: int, budget: int) -> Callable[[float], float]:
    """A bare onnxruntime loop over batches that are sorted by length, in which nothing is padded for nothing.

    Gives tokens a second over so many seconds, and goes on where it stopped.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(artifact / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    batches = sorted_batches(work, budget)
    feeds: Iterator[tuple[int, dict[str, Any]]] = itertools.cycle([_feed(batch, names) for batch in batches])

    def run(seconds: float) -> float:
        session.run(None, next(feeds)[1])
        began, tokens = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            count, feed = next(feeds)
            session.run(None, feed)
            tokens += count
        return tokens / (time.perf_counter() - began)

    return run


def _feed(batch: list[list[int]], names: list[str]) -> tuple[int, dict[str, Any]]:
    longest = max(map(len, batch))
    ids = np.array([each + [0] * (longest - len(each)) for each in batch], np.int64)
    mask = np.array([[1] * len(each) + [0] * (longest - len(each)) for each in batch], np.int64)
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return sum(map(len, batch)), {name: arrays[name] for name in names}


def limit(artifact: Path, work: Workload, *, threads: int, rounds: int, seconds: float) -> None:
    """Tokens a second through HTTP under saturating load, over those of the bare loop at its best budget, in turn."""
    loops = {budget: raw_loop(artifact, work, threads, budget) for budget in _BUDGETS}
    # A large model has more than the usual ten seconds of work waiting; whoever is refused asks again at once here, and
    # takes the processors from those who aren't.
    ours = servers.ours(threads, flags=("--max-wait-seconds", "30"))
    rows: list[tuple[dict[int, float], float, float]] = []
    with servers.running(ours, artifact, threads):
        for _ in range(rounds):
            raw = {budget: run(seconds) for budget, run in loops.items()}
            print(f"bare loop, tokens/s by budget: { {k: round(v) for k, v in raw.items()} }", file=sys.stderr)
            served = measure.load(ours, work, connections=64, seconds=seconds)
            rows.append((raw, served["tokens_per_second"], served["generator_cpu"]))
    # One budget for all rounds: the best of each round would be the luckiest.
    best = max(_BUDGETS, key=lambda budget: Spread(tuple(raw[budget] for raw, _, _ in rows)).median)
    bare = Spread(tuple(raw[best] for raw, _, _ in rows))
    http = Spread(tuple(tokens for _, tokens, _ in rows))
    ratio = Spread(tuple(tokens / raw[best] for raw, tokens, _ in rows))
    cpus = Spread(tuple(used for _, _, used in rows))
    heads = (f"bare loop (budget {best}), tokens/s", "through HTTP, tokens/s", "ratio", "generator's CPUs")
    measure.table(heads, [(bare, http, ratio, cpus)])
