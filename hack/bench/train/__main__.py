"""Pretraining beside its peer: python hack/bench/train COMMAND --help"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "serve"))

from measure import Spread
from peer import PEERS, call, peer_python
from recovery import seconds_without_training
from servers import CACHE
from work import BATCH, LEARNING_RATE, MAX_LENGTH, SEED, Sizes, corpus, job

HERE = Path(__file__).parent
WAYS = ("chunks", "lines", "padded", "text-lines", "text-padded")
_LEFT_OUT = 3


class Bench:
    """One model, prepared."""

    def __init__(
        self, sizes: Sizes, steps: int, threads: int, arithmetic: str, *, compiled: bool = False, **shape: int
    ) -> None:
        """compiled, shape (`batch` and `max_length`): for what the peer doesn't run."""
        self.sizes, self.steps, self.threads, self.arithmetic = sizes, steps, threads, arithmetic
        self.folder = CACHE / f"train-{sizes.layers}x{sizes.width}-{sizes.vocab}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._document = job(sizes, steps=steps, warmup=steps // 10, threads=threads, file=corpus(), **shape)
        self._document["spec"]["optimization"] |= {"arithmetic": arithmetic, "compile": compiled}
        prepared = self.ours(documents=True)
        self.tokenizer, self._vocab = prepared["tokenizer"], prepared["vocab"]

    def ours(self, seed: int = SEED, **plan: Any) -> dict[str, Any]:
        """Our loop."""
        self._document["spec"]["optimization"]["seed"] = seed
        (self.folder / "job.json").write_text(json.dumps(self._document), encoding="utf-8")
        return call(sys.executable, HERE / "ours.py", {"folder": str(self.folder), **plan}, self.threads)

    def peer(self, way: str, **plan: Any) -> dict[str, Any]:
        """The peer's."""
        width = self.sizes.width
        model = {
            "vocab_size": self._vocab,
            "hidden_size": width,
            "num_hidden_layers": self.sizes.layers,
            "num_attention_heads": width // 64,
            "intermediate_size": 4 * width,
            "max_position_embeddings": MAX_LENGTH,
            "attention_probs_dropout_prob": 0.0,
        }
        common = {
            "model": model,
            "way": way,
            "steps": self.steps,
            "threads": self.threads,
            "warmup": self.steps // 10,
            "batch": BATCH,
            "max_length": MAX_LENGTH,
            "learning_rate": LEARNING_RATE,
            "seed": SEED,
            "bf16": self.arithmetic == "bf16",
            "fp16": self.arithmetic == "fp16",
            "tokenizer": self.tokenizer,
            "documents": str(self.folder / "documents.jsonl"),
            "cache": str(self.folder / "datasets"),
        }
        return call(peer_python(), PEERS / "transformers_mlm.py", {**common, **plan}, self.threads)


def speed(steps: Sequence[tuple[float, int]]) -> float:
    """Real tokens a second after the first steps."""
    (began, before), (ended, after) = steps[_LEFT_OUT], steps[-1]
    return (after - before) / (ended - began)


def throughput(sizes: Sizes, steps: int, threads: int, rounds: int, arithmetic: str) -> None:
    """real tokens/s over the peer's, in its ways of batching"""
    bench = Bench(sizes, steps, threads, arithmetic)
    found: dict[str, list[float]] = {"ours": [], **{way: [] for way in WAYS}}
    for number in range(rounds):
        found["ours"].append(speed(bench.ours(train=True)["steps"]))
        for way in WAYS:
            found[way].append(speed(bench.peer(way)["steps"]))
        print(f"round {number + 1}: { ({name: round(each[-1]) for name, each in found.items()}) }", file=sys.stderr)
    print(
        f"{sizes.name}, {arithmetic}, {threads} threads, {steps} steps, {rounds} rounds: real tokens/s, ours over each"
    )
    for name, figures in found.items():
        ratios = [ours / other for ours, other in zip(found["ours"], figures, strict=True)]
        print(f"  {name:11} {Spread(tuple(figures))!s:28} {'' if name == 'ours' else Spread(tuple(ratios))}")


def quality(sizes: Sizes, steps: int, threads: int, rounds: int, arithmetic: str) -> None:
    """held-out loss of both after as many real tokens, the peer in its default way"""
    bench = Bench(sizes, steps, threads, arithmetic)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEED, SEED + rounds):
            ours = bench.ours(train=True, evaluate=True, seed=seed)
            peer = bench.peer("chunks", weights=folder, seed=seed)
            theirs = bench.ours(weights=f"{folder}/model.safetensors", evaluate=True)
            for name, run, evaluation in (
                ("ours", ours, ours["evaluation"]),
                ("chunks", peer, theirs["evaluation"]),
            ):
                (began, _), (ended, tokens) = run["steps"][0], run["steps"][-1]
                print(
                    f"{sizes.name}, {arithmetic}, seed {seed}: {name:7} {tokens:,} tokens in {ended - began:.0f} s, "
                    f"held-out loss {evaluation['masked_loss']:.4f}, accuracy {evaluation['masked_accuracy']:.4f}",
                    flush=True,
                )


def utilization(
    sizes: Sizes, steps: int, threads: int, rounds: int, arithmetic: str, *, compiled: bool, **shape: int
) -> None:
    """share of a GPU's arithmetic that the model's own operations come to (MFU); ours alone"""
    bench = Bench(sizes, steps, threads, arithmetic, compiled=compiled, **shape)
    rates: list[float] = []
    for _ in range(rounds):
        run = bench.ours(train=True)
        rates.append(speed(run["steps"]))
    rows = f"{shape['batch']} rows of {shape['max_length']}"
    how = f"attention {run['attention']}, {'compiled' if compiled else 'not compiled'}"
    print(f"{sizes.name}, {arithmetic}, {rows}, {how}: real tokens/s {Spread(tuple(rates))}")
    print(f"  {run['flops_per_token']:,.0f} operations a token, {run['memory_bytes'] / 2**30:.1f} GiB at most")
    if run["peak_flops"] is None:
        print("  there is no GPU here whose most operations a second are known: no share of them can be told")
        return
    shares = tuple(rate * run["flops_per_token"] / run["peak_flops"] for rate in rates)
    print(f"  of {run['peak_flops'] / 1e12:,.0f} TFLOP/s: {Spread(shares)}")


def checkpoint(sizes: Sizes, steps: int, threads: int, rounds: int, arithmetic: str) -> None:
    """how long a checkpoint blocks the training, over torch.save and fsync of the same state"""
    del steps, arithmetic
    plan = {"layers": sizes.layers, "width": sizes.width, "vocab": sizes.vocab, "threads": threads, "rounds": rounds}
    found = call(sys.executable, HERE / "saving.py", plan, threads)
    ours, theirs, beside = (tuple(found[name]) for name in ("ours", "theirs", "beside"))
    ratios, costs = (tuple(a / b for a, b in zip(each, theirs, strict=True)) for each in (ours, beside))
    print(f"{sizes.name}: a state of {found['bytes'] / 1e6:,.0f} MB, {rounds} rounds")
    print(f"  torch.save and fsync  {Spread(theirs)} s")
    print(f"  blocked by ours       {Spread(ours)} s, {Spread(ratios)} of it")
    print(f"  with what steps beside it take longer  {Spread(beside)} s, {Spread(costs)} of it")


def restart(sizes: Sizes, steps: int, threads: int, rounds: int, arithmetic: str) -> None:
    """seconds from the death of one of two ranks to the first new step"""
    del arithmetic
    document = job(sizes, steps=100 * steps, warmup=steps, threads=max(1, threads // 2), file=corpus())
    document["spec"] |= {"checkpoint": {"everySteps": 5}}
    document["spec"]["topology"]["processesPerNode"] = 2
    print(f"{sizes.name}, 2 ranks: training again after {Spread(tuple(seconds_without_training(document, rounds)))} s")


def preparation(vocab: int, processes: int, rounds: int) -> None:
    """tokenizing and packing, MB/s over the peer's; and the memory of ours on ten times as much"""
    bench = Bench(Sizes(4, 256, vocab), 1, processes, "fp32")
    documents = bench.folder / "documents.jsonl"
    megabytes = sum(len(json.loads(line)["text"].encode()) for line in documents.open(encoding="utf-8")) / 1e6
    plan = {"tokenizer": bench.tokenizer, "max_length": MAX_LENGTH, "processes": processes}

    def ours(file: Path) -> dict[str, Any]:
        parallel = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(processes)}
        given = {**plan, "documents": str(file)}
        return call(sys.executable, HERE / "preparation.py", given, processes, **parallel)

    def theirs(file: Path) -> dict[str, Any]:
        return call(peer_python(), PEERS / "transformers_preparation.py", {**plan, "documents": str(file)}, processes)

    found: list[tuple[float, float]] = []
    for number in range(rounds):
        one, other = ours(documents), theirs(documents)
        found.append((megabytes / one["seconds"], megabytes / other["seconds"]))
        print(f"round {number + 1}: {found[-1]}", file=sys.stderr)
    mine, peers = zip(*found, strict=True)
    print(f"{megabytes:.1f} MB, vocabulary {vocab:,}, {processes} processes, {rounds} rounds: MB/s, and ours over it")
    print(f"  ours         {Spread(mine)}")
    print(f"  datasets.map {Spread(peers)!s:28} {Spread(tuple(one / other for one, other in found))}")
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        large = Path(folder, "documents.jsonl")
        large.write_bytes(documents.read_bytes() * 10)
        more = ours(large)
    peaks = [each["peak_bytes"] / 2**20 for each in (one, more)]
    print(f"  most memory of ours: {peaks[0]:.0f} MiB, and {peaks[1]:.0f} MiB with {10 * megabytes:.0f} MB")


def _sizes(text: str) -> tuple[int, int]:
    layers, width = text.split("x")
    return int(layers), int(width)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python hack/bench/train", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for function, steps, rounds in (
        (throughput, 15, 3),
        (quality, 300, 1),
        (utilization, 60, 3),
        (checkpoint, 0, 5),
        (restart, 100, 3),
    ):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(run=function)
        command.add_argument("sizes", type=_sizes, help="layers and width, such as 4x256 or 6x384")
        command.add_argument("--vocab", type=int, default=30_522)
        command.add_argument("--steps", type=int, default=steps)
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--arithmetic", choices=["fp32", "bf16", "fp16"], default="fp32")
        command.add_argument("--rounds", type=int, default=rounds)
        if function is utilization:
            command.add_argument("--batch", type=int, default=256, help="rows (256)")
            command.add_argument("--max-length", type=int, default=512, help="tokens of a row (512)")
            command.add_argument("--compile", action="store_true", dest="compiled", help="as optimization.compile does")
    command = commands.add_parser(preparation.__name__, help=preparation.__doc__)
    command.set_defaults(run=preparation)
    command.add_argument("--vocab", type=int, default=30_522)
    command.add_argument("--processes", type=int, default=2)
    command.add_argument("--rounds", type=int, default=3)
    given = vars(parser.parse_args())
    if given["run"] is preparation:
        given.pop("run")
        preparation(**given)
        return
    run, (layers, width), vocab = given.pop("run"), given.pop("sizes"), given.pop("vocab")
    run(Sizes(layers, width, vocab), **given)


if __name__ == "__main__":
    main()
