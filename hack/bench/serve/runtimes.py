"""What the machine can do at most, by what runs the graph."""

import json
import random
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import measure
import numpy as np
import servers
from measure import Spread
from workload import Workload

_ONNXRUNTIME = ("onnxruntime", "onnxruntime, spinning", "onnxruntime, fused", "onnxruntime, fused and spinning")
_OPENVINO = ("openvino, f32", "openvino, bf16")
_BUDGET_PER_THREAD = 256


def sorted_batches(work: Workload, budget: int) -> list[list[list[int]]]:
    """Batches under a budget of padded tokens, each of texts of about one length, in an order that mixes lengths."""
    batches: list[list[list[int]]] = [[]]
    for ids in sorted(work.ids, key=len):
        if batches[-1] and (len(batches[-1]) + 1) * len(ids) > budget:
            batches.append([])
        batches[-1].append(ids)
    random.Random(0).shuffle(batches)  # noqa: S311 - an order
    return batches


def runtimes(artifact: Path, work: Workload, *, threads: int, rounds: int, seconds: float) -> None:
    """Tokens a second of a bare loop over batches sorted by length, by what runs the graph, in turn."""
    rows: dict[str, list[float]] = {}
    outputs = {}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "batches.json"
        file.write_text(json.dumps(sorted_batches(work, _BUDGET_PER_THREAD * threads)), encoding="utf-8")
        loops = {}
        for name in (*_ONNXRUNTIME, *_OPENVINO):
            python = servers.interpreter("openvino") if name in _OPENVINO else sys.executable
            program = servers.PEERS / "runtime_app.py"
            loops[name] = stack.enter_context(
                subprocess.Popen(
                    [python, str(program), name, str(artifact / "model.onnx"), str(file), str(threads)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={"BENCH_SCRATCH": scratch, "PATH": ""},
                )
            )
            outputs[name] = np.array(json.loads(_line(loops[name])))
        for number in range(rounds):
            for name, loop in loops.items():
                assert loop.stdin
                loop.stdin.write(f"{seconds}\n")
                loop.stdin.flush()
                rows.setdefault(name, []).append(float(_line(loop)))
                print(f"round {number + 1}, {name}: {rows[name][-1]:.0f} tokens/s", file=sys.stderr, flush=True)
        for loop in loops.values():
            assert loop.stdin
            loop.stdin.close()
    plain = rows[_ONNXRUNTIME[0]]
    measure.table(
        ("runtime", "tokens/s", "times onnxruntime's", "largest difference of a logit"),
        (
            (
                name,
                Spread(tuple(found)),
                Spread(tuple(own / bare for own, bare in zip(found, plain, strict=True))),
                f"{np.abs(outputs[name] - outputs[_ONNXRUNTIME[0]]).max():.1e}",
            )
            for name, found in rows.items()
        ),
    )


def _line(loop: "subprocess.Popen[str]") -> str:
    assert loop.stdout
    line = loop.stdout.readline()
    if not line:
        raise SystemExit("a runtime ended: see above")
    return line
