"""The graph in other precisions: what is quantised, that it computes nearly the same, that TensorRT takes it."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.bundle import Precision
from tests.fakes import Floats, feature_graph
from train import TrainError
from train.precision import convert

SIZE = (16, 24)
CHANNELS, COLUMNS = 8, 16
INT8: tuple[Precision, ...] = ("int8", "int8-cpu")


def residual_graph() -> bytes:
    """A stem, two residual blocks (the second with a convolution in its short cut) and a grouped neck: seven convolutions."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors = [helper.make_tensor("shape", TensorProto.INT64, [2], [SIZE[0] * SIZE[1] // 16, COLUMNS])]

    def conv(name: str, given: str, inputs: int, outputs: int, stride: int = 1, group: int = 1) -> str:
        kernel = rng.normal(size=(outputs, inputs // group, 3, 3)) / np.sqrt(9 * inputs / group)
        tensors.append(numpy_helper.from_array(kernel.astype(np.float32), f"{name}.weight"))
        tensors.append(numpy_helper.from_array(rng.normal(size=outputs).astype(np.float32) / 10, f"{name}.bias"))
        reads = [given, f"{name}.weight", f"{name}.bias"]
        nodes.append(
            helper.make_node(
                "Conv", reads, [name], name=name, pads=[1] * 4, strides=[stride] * 2, group=group, kernel_shape=[3, 3]
            )
        )
        return name

    def then(op: str, *given: str) -> str:
        nodes.append(helper.make_node(op, list(given), [f"{given[0]}.{op}"], name=f"{given[0]}.{op}"))
        return f"{given[0]}.{op}"

    x = then("Relu", conv("stem", "image", 3, CHANNELS, 2))
    inner = then("Relu", conv("a1", x, CHANNELS, CHANNELS))
    x = then("Relu", then("Add", conv("a2", inner, CHANNELS, CHANNELS), x))
    inner = then("Relu", conv("b1", x, CHANNELS, CHANNELS, 2))
    x = then("Relu", then("Add", conv("b2", inner, CHANNELS, CHANNELS), conv("short", x, CHANNELS, CHANNELS, 2)))
    conv("neck", x, CHANNELS, COLUMNS, group=CHANNELS)
    nodes.append(helper.make_node("Transpose", ["neck"], ["last"], perm=[0, 2, 3, 1], name="permute"))
    nodes.append(helper.make_node("Reshape", ["last", "shape"], ["embeddings"], name="view"))
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *SIZE])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [SIZE[0] * SIZE[1] // 16, COLUMNS])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def inputs(count: int = 4) -> list[Floats]:
    return [np.random.default_rng(seed).normal(size=(1, 3, *SIZE)).astype(np.float32) for seed in range(count)]


def run(graph: bytes, tensor: Floats) -> Floats:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: tensor})[0])


def of(graph: bytes) -> tuple[onnx.GraphProto, dict[str, onnx.NodeProto], dict[str, onnx.TensorProto]]:
    """The graph, its nodes by what they make, its constants by name."""
    model = onnx.load_from_string(graph)
    made = {name: node for node in model.graph.node for name in node.output}
    return model.graph, made, {tensor.name: tensor for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def converted() -> dict[str, bytes]:
    return {precision: convert(residual_graph(), precision, inputs()) for precision in ("fp16", *INT8)}


@pytest.mark.parametrize(("precision", "close"), [("fp16", 0.005), ("int8", 0.05), ("int8-cpu", 0.05)])
def test_it_takes_and_gives_float32_and_computes_nearly_the_same(
    converted: dict[str, bytes], precision: str, close: float
) -> None:
    onnx.checker.check_model(onnx.load_from_string(converted[precision]))
    for tensor in inputs():
        expected, got = run(residual_graph(), tensor), run(converted[precision], tensor)
        assert (got.dtype, got.shape) == (np.float32, expected.shape)
        assert 0 < np.linalg.norm(got - expected) < close * np.linalg.norm(expected)


def test_fp16_holds_half_the_bytes_in_every_kernel(converted: dict[str, bytes]) -> None:
    _, made, constants = of(converted["fp16"])
    kernels = [constants[node.input[1]] for node in made.values() if node.op_type == "Conv"]
    assert len(kernels) == 7
    assert {tensor.data_type for tensor in kernels} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("precision", INT8)
def test_the_first_third_and_the_neck_stay_in_float(converted: dict[str, bytes], precision: str) -> None:
    _, made, constants = of(converted[precision])
    kept = {node.name for node in made.values() if node.op_type == "Conv" and node.input[1] in constants}
    assert kept == {"stem", "a1", "neck"}  # 2 of the 6 that are not grouped, and the grouped one


@pytest.mark.parametrize("precision", INT8)
def test_weights_are_int8_by_channel_and_symmetric(converted: dict[str, bytes], precision: str) -> None:
    _, made, constants = of(converted[precision])
    seen = 0
    for node in made.values():
        if node.op_type != "Conv" or node.input[1] in constants:
            continue
        weight, scale, zero = (constants[name] for name in made[node.input[1]].input)
        assert (weight.data_type, list(scale.dims)) == (TensorProto.INT8, [CHANNELS])
        assert not numpy_helper.to_array(zero).any()
        seen += 1
    assert seen == 4


def test_for_tensorrt_all_is_symmetric_and_biases_stay_in_float(converted: dict[str, bytes]) -> None:
    graph, made, constants = of(converted["int8"])
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.data_type == TensorProto.INT8
            assert not numpy_helper.to_array(zero).any()
    assert {constants[node.input[2]].data_type for node in made.values() if node.op_type == "Conv"} == {TensorProto.FLOAT}


def test_for_tensorrt_a_convolution_is_free_to_take_in_what_follows(converted: dict[str, bytes]) -> None:
    graph, made, constants = of(converted["int8"])
    branches: Counter[tuple[str, ...]] = Counter()
    for node in graph.node:
        if node.op_type == "Relu":
            assert made[node.input[0]].op_type != "DequantizeLinear"
        if node.op_type == "Add":
            branches[tuple(sorted(made[name].op_type for name in node.input))] += 1
    assert branches == {("Conv", "DequantizeLinear"): 2}
    read = set(itertools.chain.from_iterable(node.input for node in graph.node))
    assert set(constants) <= read  # what was dropped left nothing behind


def test_on_the_cpu_activations_are_unsigned(converted: dict[str, bytes]) -> None:
    graph, _, constants = of(converted["int8-cpu"])
    kinds = {constants[node.input[2]].data_type for node in graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {TensorProto.UINT8}


def test_the_same_images_give_the_same_graph(converted: dict[str, bytes]) -> None:
    assert convert(residual_graph(), "int8", inputs()) == converted["int8"]
    assert convert(residual_graph(), "int8", inputs(2)) != converted["int8"]


def test_a_graph_that_cannot_be_converted_is_refused_with_the_remedy() -> None:
    with pytest.raises(TrainError, match="no convolution that int8 would make faster; leave int8 out"):
        convert(feature_graph(), "int8", inputs())
    with pytest.raises(TrainError, match=r"cannot be made int8 \(.*\); check the versions of onnx and onnxruntime, or leave"):
        convert(residual_graph(), "int8", [])
    with pytest.raises(TrainError, match="cannot be made fp16"):
        convert(b"nonsense", "fp16", [])
    with pytest.raises(TrainError, match="precision 'fp32', expected fp16, int8 or int8-cpu"):
        convert(residual_graph(), "fp32", [])
