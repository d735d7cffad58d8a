"""8-bit matrix products with activations' scales that are found beforehand, on training texts.

ONNX Runtime's own (QDQ): each product's input has one scale, from the range that it has on these texts, and weights
have one for each output channel and seven bits, as in `quantization`, where it says why. What lies beyond the range
is cut, which is what may make it better than a scale for each token, where a few values are far from all others and
mean nothing.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from cloze_trainer.data.examples import Row
from cloze_trainer.export import INPUTS
from cloze_trainer.quantization import products

CALIBRATION_EXAMPLES: Final = 256
"""Training texts by which ranges are found."""
# Per cent of the values that lie within the range. With 99.99 a MiniLM answers two texts of five otherwise.
_WITHIN = 99.999


class _Texts(CalibrationDataReader):  # type: ignore[misc] # the library has no types
    """Texts one at a time: padding isn't to be calibrated for."""

    def __init__(self, rows: Sequence[Row], inputs: Sequence[str]) -> None:
        self._rows, self._inputs = rows, inputs
        self._feeds: Iterator[dict[str, Any]] = iter(())

    def __len__(self) -> int:
        return len(self._rows)

    def set_range(self, start_index: int, end_index: int) -> None:
        """As the library asks for a part of them."""
        self._feeds = (_feed(row, self._inputs) for row in self._rows[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        """As the library asks for the next one."""
        return next(self._feeds, None)


def _feed(row: Row, inputs: Sequence[str]) -> dict[str, Any]:
    ids_1T = row.ids[None]
    given = dict(zip(INPUTS, (ids_1T, np.ones_like(ids_1T), row.segments[None]), strict=True))
    return {name: given[name] for name in inputs}


@contextmanager
def _quiet() -> Iterator[None]:
    """The library recommends what the export has done, and prints a line for each text."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)


def quantize(source: Path, target: Path, rows: Sequence[Row], inputs: Sequence[str]) -> int:
    """Write the graph with the products that `quantization` replaces in 8 bits; how many there are.

    rows: at least one text. inputs: of the graph.
    """
    model = onnx.load(source)
    named = products(model)
    for number, node in enumerate(named):
        node.name = node.name or f"product-{number}"
    with tempfile.TemporaryDirectory() as folder:
        # The library writes beside what it reads.
        copy = Path(folder) / "model.onnx"
        onnx.save(model, copy)
        with _quiet():
            quantize_static(
                copy,
                target,
                _Texts(rows, inputs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul"],
                nodes_to_quantize=[node.name for node in named],
                per_channel=True,
                reduce_range=True,
                calibrate_method=CalibrationMethod.Percentile,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["MatMul"],
                    "CalibPercentile": _WITHIN,
                    # Otherwise the intermediate values of all texts are in memory at once.
                    "CalibStridedMinMax": 1,
                    "CalibTensorRangeSymmetric": False,
                },
            )
    return len(named)
