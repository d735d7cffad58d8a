"""Triton Inference Server through nvidia-pytriton, with its dynamic batcher: python pytriton_app.py PORT."""

import json
import os
import sys

import numpy as np
from common import Classifier
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

classify = Classifier()


@batch
def infer(text: "np.ndarray") -> list["np.ndarray"]:
    """BYTES in, a JSON document out for each."""
    answers = classify([each.decode() for each in text[:, 0].tolist()])
    return [np.array([[json.dumps(answer).encode()] for answer in answers], dtype=object)]


if __name__ == "__main__":
    port, size = int(sys.argv[1]), int(os.environ.get("BENCH_BATCH", "32"))
    configuration = TritonConfig(http_port=port, grpc_port=port + 1, metrics_port=port + 2, http_address="127.0.0.1")
    # Its Python stub can't take a long path.
    with Triton(config=configuration, workspace=os.environ["BENCH_SHORT_FOLDER"]) as triton:
        triton.bind(
            model_name="classify",
            infer_func=infer,
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=size, batcher=DynamicBatcher()),
        )
        triton.serve()
