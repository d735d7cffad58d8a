"""Graphs with 8-bit matrix products: weights by output channel, activations by token.

Each token's row of an activation gets a scale and a zero point of its own, when the graph runs. With one scale for the
whole batch, as ONNX's DynamicQuantizeLinear has it, an answer would depend on the texts that happen to come along.

With x = s·q + m for a token (q from 0 to 255, s its scale, m what q = 0 stands for) and w = t·p for an output channel
(p from -63 to 63, t its scale), a sum over K products is

    Σ x·w = s · t·Σ q·p + m · t·Σ p

of which t·Σ p is known beforehand. Weights have seven bits and no eighth, since processors without instructions for
8-bit products (VNNI, AMX) add pairs of them in 16 bits: 2·255·63 fits, and the sums are the same everywhere.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

WEIGHT_MAX = 63
# A narrower product, as in the head of a classifier, costs next to nothing and decides most.
_NARROWEST = 16
_CONTRIB = "com.microsoft"
"""Operators of ONNX Runtime beyond the standard."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Channels:
    """A weight matrix (K, N) by output channel. sums_N: t·Σ p of each."""

    integers_KN: npt.NDArray[np.int8]
    scales_N: npt.NDArray[np.float32]
    sums_N: npt.NDArray[np.float32]


def quantize_weight(weight_KN: npt.NDArray[np.float32]) -> Channels:
    """The nearest integers, symmetric around zero."""
    largest_N = np.abs(weight_KN).max(axis=0)
    scales_N = (np.where(largest_N > 0, largest_N, 1.0) / WEIGHT_MAX).astype(np.float32)
    integers_KN = np.clip(np.rint(weight_KN / scales_N), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)
    sums_N = integers_KN.sum(axis=0, dtype=np.int64) * scales_N.astype(np.float64)
    return Channels(integers_KN, scales_N, sums_N.astype(np.float32))


def products(model: ModelProto) -> list[NodeProto]:
    """The nodes that multiply an activation by a constant matrix, and are worth 8 bits."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return [node for node in model.graph.node if _is_product(node, constants)]


def quantize(model: ModelProto) -> int:
    """Replace, in place, every product of an activation with a constant matrix; how many there were.

    Products of two activations, as in attention, and gathered embeddings stay as they are, and so do products that are
    done once for a sequence (Gemm).
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    rewritten = _Rewritten()
    absorbed: set[str] = set()
    count = 0
    for node in graph.node:
        if node.output[0] in absorbed:
            continue
        if not _is_product(node, constants):
            rewritten.nodes.append(node)
            continue
        count += 1
        weight_KN = numpy_helper.to_array(constants[node.input[1]])
        output, bias_N = node.output[0], np.zeros(weight_KN.shape[1], np.float32)
        if found := _bias(readers[output], output, constants, weight_KN.shape[1]):
            output, bias_N = found
            absorbed.add(output)
        rewritten.product(node.input[0], weight_KN, bias_N, output)
    _replace(graph, rewritten)
    if count:
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    return count


def _is_product(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
    return weight is not None and len(weight.dims) == 2 and weight.dims[1] >= _NARROWEST


def _bias(
    readers: Sequence[NodeProto], product: str, constants: dict[str, TensorProto], width: int
) -> tuple[str, Array] | None:
    """What is added to a product and to nothing else: the sum's name, and the bias (N)."""
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    (added,) = [name for name in readers[0].input if name != product] or [product]
    if added not in constants or list(constants[added].dims) != [width]:
        return None
    return readers[0].output[0], numpy_helper.to_array(constants[added])


def _replace(graph: GraphProto, rewritten: "_Rewritten") -> None:
    used = {name for node in rewritten.nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(rewritten.nodes)
    graph.initializer.extend([*kept, *rewritten.constants.values()])


@dataclass(slots=True)
class _Rewritten:
    """A graph in the making. tokens: activations that are quantized already, for the products that share them."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    tokens: dict[str, "_Tokens"] = field(default_factory=dict)

    def node(self, operator: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node; its output."""
        made = helper.make_node(operator, inputs, [output], name=output, domain=domain, **attributes)
        self.nodes.append(made)
        return output

    def constant(self, name: str, value: Array) -> str:
        """Add a constant, once; its name."""
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def product(self, activation: str, weight_KN: Array, bias_N: Array, output: str) -> None:
        """Σ x·w + bias, for each token and output channel."""
        if activation not in self.tokens:
            self.tokens[activation] = self._quantized(activation, len(weight_KN))
        tokens, channels, width = self.tokens[activation], quantize_weight(weight_KN), weight_KN.shape[1]
        # Of the sum's two parts the second is a product, too, of (m, 1) with (t·Σ p, bias): done in one go with adding.
        offsets_2N = np.stack([channels.sums_N, bias_N])
        integers = [
            tokens.integers,
            self.constant(f"{output}/integers", channels.integers_KN),
            self.constant("quantized/one", np.array(1, np.float32)),
            self.constant(f"{output}/scales", channels.scales_N),
        ]
        summed = self.node("MatMulIntegerToFloat", integers, f"{output}/summed", domain=_CONTRIB)
        scaled = self.node("Mul", [summed, tokens.scales], f"{output}/scaled")
        offsets = self.constant(f"{output}/offsets", offsets_2N)
        rows = self.node("Gemm", [tokens.offsets, offsets, scaled], f"{output}/rows")
        last = self.constant(f"quantized/width-{width}", np.array([width], np.int64))
        shape = self.node("Concat", [tokens.lead, last], f"{output}/shape", axis=0)
        self.node("Reshape", [rows, shape], output)

    def _quantized(self, activation: str, width: int) -> "_Tokens":
        """An activation (…, K) as R rows."""

        def named(what: str) -> str:
            return f"{activation}/quantized/{what}"

        last = self.constant("quantized/last", np.array([-1], np.int64))
        zero = self.constant("quantized/zero", np.array(0, np.float32))
        whole = self.node("Shape", [activation], named("shape"))
        first = self.constant("quantized/first", np.array([0], np.int64))
        lead = self.node("Slice", [whole, first, last], named("lead"))
        flat = self.constant(f"quantized/rows-of-{width}", np.array([-1, width], np.int64))
        rows_RK = self.node("Reshape", [activation, flat], named("rows"))
        # Zero is within the range, so that it stays what it is.
        lowest = self.node("Min", [self.node("ReduceMin", [rows_RK, last], named("min")), zero], named("lowest"))
        highest = self.node("Max", [self.node("ReduceMax", [rows_RK, last], named("max")), zero], named("highest"))
        span = self.node("Sub", [highest, lowest], named("span"))
        # A row of zeros has a scale, too.
        levels = self.constant("quantized/levels", np.array(255, np.float32))
        tiny = self.constant("quantized/tiny", np.array(1e-12, np.float32))
        exact = self.node("Div", [span, levels], named("exact"))
        scales_R1 = self.node("Max", [exact, tiny], named("scales"))
        ratio = self.node("Div", [lowest, scales_R1], named("ratio"))
        below = self.node("Round", [ratio], named("below"))
        offsets_R1 = self.node("Mul", [below, scales_R1], named("offset"))
        points = self.node("Neg", [below], named("points"))
        zeros_R = self.node("Squeeze", [points, last], named("zeros"))
        integers_RK = self.node(
            "QuantizeLinear",
            [
                rows_RK,
                self.node("Squeeze", [scales_R1, last], named("scale")),
                self.node("Cast", [zeros_R], named("zero-points"), to=TensorProto.UINT8),
            ],
            named("integers"),
            axis=0,
        )
        right = self.constant("quantized/right", np.array([0, 0, 0, 1], np.int64))
        offsets_R2 = self.node(
            "Pad", [offsets_R1, right, self.constant("quantized/one", np.array(1, np.float32))], named("pair")
        )
        return _Tokens(lead, integers_RK, scales_R1, offsets_R2)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Names of a quantized activation's parts.

    lead: its shape but for K. integers: q (R, K). scales: s (R, 1). offsets: m and 1 (R, 2).
    """

    lead: str
    integers: str
    scales: str
    offsets: str
