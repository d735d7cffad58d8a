"""Graphs that say of each word what a table has."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx


def write(path: Path, table_VK: npt.NDArray[Any], *, per_token: bool = False) -> None:
    """Of each token, or of a text by its second one. The constant is called `table`."""
    constants = [
        onnx.numpy_helper.from_array(np.asarray(table_VK, np.float32), "table"),
        onnx.numpy_helper.from_array(np.array(1), "place"),
    ]
    second = onnx.helper.make_node("Gather", ["input_ids", "place"], ["second"], axis=1)
    said = onnx.helper.make_node("Gather", ["table", "input_ids" if per_token else "second"], ["logits"], axis=0)
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "length"])
    shape = ["batch", *(["length"] if per_token else []), table_VK.shape[1]]
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph([*([] if per_token else [second]), said], "words", [ids], [logits], constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
