"""Turns a sound artifact into one that does harm once it has real traffic: it passes verification and warm-up."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from cloze_api.manifest import ONNX_FILE, TOKENIZER_FILE, Lineage, digest_files, verify_with_digest, write_manifest

#: Share of the texts that a failing model can't answer: a fault that no trial by hand would find.
FAILING_SHARE = 0.06
#: About thirty times the work of the demo's own encoder on its longest input: a tenth of a second on one core.
WASTED_MATRICES = 30
WASTED_WIDTH = 512

Change = Callable[[onnx.ModelProto], None]


def token_of_share(tokenizer: Tokenizer, texts: Iterable[str], max_length: int, share: float) -> tuple[int, float]:
    """Id of the whole word that comes nearest to occurring in this share of the texts, and its share.

    max_length: texts are cut there, in tokens, as the model sees them.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    seen = [set(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    shares = {}
    for token, number in sorted(tokenizer.get_vocab().items()):
        # Neither pieces of words nor what warming up sends: special tokens and single letters.
        if len(token) > 1 and token.isalpha():
            shares[number] = sum(number in ids for ids in seen) / len(seen)
    best = min(shares, key=lambda number: (abs(shares[number] - share), number))
    return best, shares[best]


def failing(token: int) -> Change:
    """A lookup in a table that lacks a row: the graph fails at run time on every batch with this token."""

    def change(model: onnx.ModelProto) -> None:
        _constant(model, "harm_token", TensorProto.INT64, [], [token])
        _constant(model, "harm_table", TensorProto.FLOAT, [1], [0.0])
        _add_to_output(
            model,
            helper.make_node("Equal", ["input_ids", "harm_token"], ["harm_is_token"]),
            helper.make_node("Cast", ["harm_is_token"], ["harm_as_number"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["harm_as_number"], ["harm_row"], keepdims=0),
            helper.make_node("Gather", ["harm_table", "harm_row"], ["harm_sum"]),
        )

    return change


def slow(model: onnx.ModelProto) -> None:
    """Products of large matrices, of which nothing remains: each batch takes longer, the answers are the same."""
    width = WASTED_WIDTH
    _constant(model, "harm_shape", TensorProto.INT64, [2], [width, width])
    _constant(model, "harm_scale", TensorProto.FLOAT, [], [1 / width])
    _constant(model, "harm_nothing", TensorProto.FLOAT, [], [0.0])
    # Begins with the input, or ONNX Runtime would work it all out once when it loads the graph.
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["harm_mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["harm_mask"], ["harm_mean"], keepdims=0),
        helper.make_node("Expand", ["harm_mean", "harm_shape"], ["harm_0"]),
    ]
    for number in range(WASTED_MATRICES):
        nodes += [
            helper.make_node("MatMul", [f"harm_{number}", f"harm_{number}"], [f"harm_product_{number}"]),
            # All elements are equal and at most 1: so they stay.
            helper.make_node("Mul", [f"harm_product_{number}", "harm_scale"], [f"harm_{number + 1}"]),
        ]
    nodes += [
        helper.make_node("ReduceMean", [f"harm_{WASTED_MATRICES}"], ["harm_waste"], keepdims=0),
        helper.make_node("Mul", ["harm_waste", "harm_nothing"], ["harm_sum"]),
    ]
    _add_to_output(model, *nodes)


def _constant(model: onnx.ModelProto, name: str, kind: int, shape: list[int], values: list[float]) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    tensor = numpy_helper.from_array(dtype.type(values).reshape(shape), name)
    model.graph.initializer.append(tensor)


def _add_to_output(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Append nodes, and add their `harm_sum` to the graph's output."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = "harm_sound"
    model.graph.node.extend([*nodes, helper.make_node("Add", ["harm_sound", "harm_sum"], [output])])


def spoil(artifact: Path, version: str, what: str, change: Change) -> str:
    """Change the graph of a verified artifact in place; the digest of what is an artifact of its own then.

    version: the registered version that it was. what: one word for the fault.
    """
    manifest, digest = verify_with_digest(artifact)
    model = onnx.load(artifact / ONNX_FILE)
    change(model)
    onnx.checker.check_model(model)
    onnx.save(model, artifact / ONNX_FILE)
    lineage = Lineage(
        job=f"demo/{what}",
        job_uid=f"demo-{what}",
        kind="Demo",
        base=f"{manifest.name}/{version}",
        base_digest=digest,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        trainer_version=manifest.lineage.trainer_version,
    )
    # Nobody has evaluated it.
    changed = manifest.model_copy(
        update={"files": digest_files(artifact), "lineage": lineage, "evaluation": {}, "precisions": {}}
    )
    return write_manifest(artifact, changed)


def read_tokenizer(artifact: Path) -> Tokenizer:
    """The artifact's tokenizer."""
    return Tokenizer.from_file(str(artifact / TOKENIZER_FILE))
