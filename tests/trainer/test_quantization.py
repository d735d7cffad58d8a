"""8-bit products: within the error that rounding allows, and for each token alone."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from cloze_trainer import static_quantization
from cloze_trainer.data.examples import Row
from cloze_trainer.half import halve
from cloze_trainer.quantization import WEIGHT_MAX, quantize, quantize_weight

K, N = 24, 32
RANDOM = np.random.default_rng(1)
WEIGHT_KN = RANDOM.standard_normal((K, N)).astype(np.float32)
BIAS_N = RANDOM.standard_normal(N).astype(np.float32)


def graph(*, bias: bool = True, first: str = "product") -> onnx.ModelProto:
    """`y` = x·W (+ bias, in either order), and `z` = x·V of the same x."""
    constants = [numpy_helper.from_array(WEIGHT_KN, "W"), numpy_helper.from_array(WEIGHT_KN[::-1].copy(), "V")]
    nodes = [helper.make_node("MatMul", ["x", "V"], ["z"])]
    if bias:
        order = ["product", "b"] if first == "product" else ["b", "product"]
        nodes += [helper.make_node("MatMul", ["x", "W"], ["product"]), helper.make_node("Add", order, ["y"])]
        constants.append(numpy_helper.from_array(BIAS_N, "b"))
    else:
        nodes.append(helper.make_node("MatMul", ["x", "W"], ["y"]))
    made = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", K])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", N]) for name in "yz"],
        constants,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto, x: Any, *names: str) -> Any:
    """Outputs of a graph."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(names) or ["y"], {"x": x})


QUANTIZED = graph()
quantize(QUANTIZED)
SESSION = onnxruntime.InferenceSession(QUANTIZED.SerializeToString(), providers=["CPUExecutionProvider"])


def rounding_bound(x: Any) -> Any:
    """The largest error of a product by rounding: half a level of each token's values, and of each weight."""
    wide = np.maximum(x.max(-1), 0) - np.minimum(x.min(-1), 0)
    weights = np.abs(WEIGHT_KN)
    # The ends of a token's range are rounded, too, so that a value at one may be a level off.
    values = wide[..., None] / 255 * 1.01 * weights.sum(0)
    coarse = np.abs(x).sum(-1)[..., None] * weights.max(0) / WEIGHT_MAX / 2
    return values + coarse * 1.01 + 1e-4


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.just(K)),
        elements=st.floats(-100, 100, width=32),
    )
)
def test_products_are_within_what_rounding_allows(x: Any) -> None:
    """For any activation, also of one sign, or of zeros alone."""
    (found,) = SESSION.run(["y"], {"x": x})
    assert (np.abs(found - (x @ WEIGHT_KN + BIAS_N)) <= rounding_bound(x)).all()


def test_a_token_is_computed_without_regard_to_others() -> None:
    """Bit for bit: one with huge values beside it changes nothing."""
    x = RANDOM.standard_normal((2, 5, K)).astype(np.float32)
    loud = x.copy()
    loud[1] *= 1e4
    loud[0, 3:] = 1e5
    found, disturbed = SESSION.run(["y"], {"x": x})[0], SESSION.run(["y"], {"x": loud})[0]
    np.testing.assert_array_equal(found[0, :3], disturbed[0, :3])
    np.testing.assert_array_equal(found[0, :3], SESSION.run(["y"], {"x": x[:1, :3]})[0][0])


@pytest.mark.parametrize("options", [{"first": "bias"}, {"bias": False}])
def test_a_bias_may_stand_first_or_be_absent(options: dict[str, Any]) -> None:
    """Every product is replaced, and its result keeps its name."""
    model = graph(**options)
    x = RANDOM.standard_normal((2, 3, K)).astype(np.float32)
    expected = run(model, x, "y", "z")
    assert quantize(model) == 2
    for found, wanted in zip(run(model, x, "y", "z"), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=0.5)
    assert not [node for node in model.graph.node if node.op_type == "MatMul"]


def test_products_that_read_one_activation_share_its_integers() -> None:
    """As queries, keys and values do."""
    model = graph()
    quantize(model)
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("MatMulIntegerToFloat")) == (1, 2)
    assert not {tensor.name for tensor in model.graph.initializer} & {"W", "V", "b"}


def test_weights_fit_sixteen_bits_where_pairs_of_products_are_added() -> None:
    """As processors without instructions for 8-bit products add them, which must not overflow."""
    channels = quantize_weight(WEIGHT_KN)
    assert 2 * 255 * int(np.abs(channels.integers_KN.astype(np.int64)).max()) < 1 << 15
    assert (np.abs(channels.integers_KN * channels.scales_N - WEIGHT_KN) <= channels.scales_N * 0.501).all()
    assert quantize_weight(np.zeros((3, 2), np.float32)).integers_KN.tolist() == [[0, 0]] * 3


def test_ranges_that_are_found_beforehand_serve_as_well_where_texts_are_like_them(tmp_path: Path) -> None:
    """By output channel, in seven bits, of the same products as without; what is far outside the range is cut."""
    model = graph()
    model.graph.input[0].name = "input_ids"
    for node in model.graph.node:
        node.input[:] = ["cast" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Gather", ["table", "input_ids"], ["cast"]))
    table_VK = RANDOM.standard_normal((50, K)).astype(np.float32)
    table_VK[49] *= 100
    model.graph.initializer.append(numpy_helper.from_array(table_VK, "table"))
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"]))
    onnx.save(model, tmp_path / "model.onnx")
    rows = [Row(RANDOM.integers(0, 49, size=9), np.zeros(9, np.int64)) for _ in range(20)]
    assert static_quantization.quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx", rows, ["input_ids"]) == 2

    quantized = onnx.load(tmp_path / "int8.onnx")
    constants = {each.name: numpy_helper.to_array(each) for each in quantized.graph.initializer}
    integers_KN, scales_N = constants["W_quantized"], constants["W_scale"]
    assert (integers_KN.dtype, scales_N.shape) == (np.int8, (N,))
    assert np.abs(integers_KN.astype(int)).max() <= 64
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    for token, close in ((7, True), (49, False)):
        (found,) = session.run(["y"], {"input_ids": np.array([[3, token]])})
        expected = table_VK[[3, token]] @ WEIGHT_KN + BIAS_N
        assert np.allclose(found[0, 0], expected[0], atol=0.5)
        assert np.allclose(found[0, 1], expected[1], atol=0.5) == close


def test_sixteen_bit_graphs_take_and_give_what_32_bit_ones_do() -> None:
    """Their outputs are close, and of the same type."""
    x = RANDOM.standard_normal((2, 3, K)).astype(np.float32)
    model = graph()
    (expected,) = run(model, x)
    (found,) = run(halve(model), x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert not np.array_equal(found, expected)
