"""What every peer's application does with a batch of texts: the same graph, tokenizer and threads as ours has."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Classifier:
    """Texts to the likeliest label and its probability, in one padded batch."""

    def __init__(self) -> None:
        folder = Path(os.environ["BENCH_ARTIFACT"])
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(manifest["limits"]["max_length"])
        self.tokenizer.enable_padding(pad_id=manifest["special_tokens"]["pad"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("BENCH_THREADS", "2"))
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            folder / os.environ.get("BENCH_GRAPH", "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.labels = manifest["labels"]

    def __call__(self, texts: list[str]) -> list[dict[str, object]]:
        """One answer for each text."""
        encoded = self.tokenizer.encode_batch(texts)
        arrays = {
            "input_ids": np.array([each.ids for each in encoded], np.int64),
            "attention_mask": np.array([each.attention_mask for each in encoded], np.int64),
        }
        arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
        (logits,) = self.session.run(None, {name: arrays[name] for name in self.inputs})
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = powers / powers.sum(axis=-1, keepdims=True)
        best = scores.argmax(axis=-1)
        return [
            {"label": self.labels[label], "score": float(scores[row, label])} for row, label in enumerate(best.tolist())
        ]
