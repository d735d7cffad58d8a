"""Graphs in 16-bit floats."""

import warnings
from typing import Any

from onnx import ModelProto, TensorProto


def halve(model: ModelProto) -> ModelProto:
    """The same graph in 16-bit floats, whose inputs and outputs stay what they are.

    Constants beyond what 16 bits hold, such as those that hide padding, become the largest ones that they do.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - loads much else

    with warnings.catch_warnings():
        # One for each constant that is cut, and for each weight that comes close to zero.
        warnings.simplefilter("ignore")
        converted: Any = convert_float_to_float16(model, keep_io_types=True)
    assert isinstance(converted, ModelProto)
    assert all(output.type.tensor_type.elem_type == TensorProto.FLOAT for output in converted.graph.output)
    return converted
