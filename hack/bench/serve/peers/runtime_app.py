"""One way to run a graph, alone in its process: a line of standard input is a number of seconds to run for, and is
answered with the tokens a second. The first line of the output holds the outputs of the first batch.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[dict[str, Any]], Any]


def _onnxruntime(graph: Path, threads: int, *, spinning: bool, fused: bool) -> Run:
    import onnxruntime  # noqa: PLC0415 - not in the other's environment

    if fused:
        from onnxruntime.transformers.optimizer import optimize_model  # noqa: PLC0415 - needs onnx

        config = json.loads((graph.parent / "config.json").read_text(encoding="utf-8"))
        model = optimize_model(
            str(graph),
            model_type="bert",
            num_heads=config["num_attention_heads"],
            hidden_size=config["hidden_size"],
            opt_level=1,
        )
        print({kind: count for kind, count in model.get_fused_operator_statistics().items() if count}, file=sys.stderr)
        graph = Path(os.environ["BENCH_SCRATCH"]) / "fused.onnx"
        model.save_model_to_file(str(graph))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False
    for which in ("intra", "inter"):
        options.add_session_config_entry(f"session.{which}_op.allow_spinning", str(int(spinning)))
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    return lambda feed: session.run(None, {name: feed[name] for name in names})[0]


def _openvino(graph: Path, threads: int, *, precision: str) -> Run:
    import openvino  # noqa: PLC0415 - not in the other's environment

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    request = compiled.create_infer_request()
    names = {name for node in compiled.inputs for name in node.get_names()}
    return lambda feed: next(iter(request.infer({name: feed[name] for name in names}).values()))


RUNTIMES: dict[str, Callable[[Path, int], Run]] = {
    "onnxruntime": lambda graph, threads: _onnxruntime(graph, threads, spinning=False, fused=False),
    "onnxruntime, spinning": lambda graph, threads: _onnxruntime(graph, threads, spinning=True, fused=False),
    "onnxruntime, fused": lambda graph, threads: _onnxruntime(graph, threads, spinning=False, fused=True),
    "onnxruntime, fused and spinning": lambda graph, threads: _onnxruntime(graph, threads, spinning=True, fused=True),
    "openvino, f32": lambda graph, threads: _openvino(graph, threads, precision="f32"),
    "openvino, bf16": lambda graph, threads: _openvino(graph, threads, precision="bf16"),
}


def main() -> None:
    """Entry point: the runtime's name, the graph, a JSON file of batches of token ids, threads."""
    name, graph, batches, threads = sys.argv[1:]
    run = RUNTIMES[name](Path(graph), int(threads))
    feeds = []
    for batch in json.loads(Path(batches).read_text(encoding="utf-8")):
        longest = max(map(len, batch))
        ids = np.array([each + [0] * (longest - len(each)) for each in batch], np.int64)
        mask = np.array([[1] * len(each) + [0] * (longest - len(each)) for each in batch], np.int64)
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feeds.append((sum(map(len, batch)), arrays))
    print(json.dumps(np.asarray(run(feeds[0][1])).tolist()), flush=True)
    source = itertools.cycle(feeds)
    for line in sys.stdin:
        began, tokens = time.perf_counter(), 0
        while time.perf_counter() - began < float(line):
            count, feed = next(source)
            run(feed)
            tokens += count
        print(tokens / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
