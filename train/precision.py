"""The feature graph in half precision and in eight bits, from its float32 graph and the product's own good images.

The precision is put into the ONNX file: an fp16 graph, or Q/DQ nodes round what runs in eight bits. So one way of building
serves every TensorRT, and no engine has to be told. docs/precision.md has the figures that the choices here were made by.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from engines.bundle import Precision
from train import TrainError

_QUANTISED = ("Conv", "Relu", "MaxPool", "Add")
_FLOAT_SHARE = 1 / 3  # of the convolutions, from the first: few channels, and all later ones repeat their errors


def convert(graph: bytes, precision: Precision, tensors: Iterable[npt.NDArray[np.float32]]) -> bytes:
    """The graph in another precision, float32 in and out.

    Args:
        graph: float32 ONNX file: `image` (1, 3, h, w) to `embeddings` (patches, d).
        precision: `fp16`; `int8`, symmetric, as TensorRT wants it; `int8-cpu`, as ONNX Runtime is fastest on x86.
        tensors: float32 (1, 3, h, w) network inputs that the ranges of activations are measured on; not looked at for fp16.

    Raises:
        TrainError: a graph that cannot be converted, with the converter's reason.
    """
    try:
        model = onnx.load_from_string(graph)
        if precision == "fp16":
            converted = convert_float_to_float16(model, keep_io_types=True)
            _sort(converted.graph)  # the converter appends its casts
            onnx.checker.check_model(converted)
            return bytes(converted.SerializeToString())
        if precision in ("int8", "int8-cpu"):
            return _quantise(model, symmetric=precision == "int8", tensors=tensors)
    except TrainError:
        raise
    except Exception as error:  # the converters' exceptions share no public base class
        raise TrainError(
            f"the feature graph cannot be made {precision} ({error}); check the versions of onnx and onnxruntime,"
            " or leave this precision out"
        ) from None
    raise TrainError(f"precision '{precision}', expected fp16, int8 or int8-cpu")


def _quantise(model: onnx.ModelProto, *, symmetric: bool, tensors: Iterable[npt.NDArray[np.float32]]) -> bytes:
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node-{number}"  # nodes are left out by name
    excluded = _kept_in_float(model.graph.node)
    kind = QuantType.QInt8 if symmetric else QuantType.QUInt8
    # TensorRT takes no int32 bias, and ONNX Runtime's QLinearConv takes no other
    options = {"ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": not symmetric}
    with tempfile.TemporaryDirectory() as folder:
        prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        quant_pre_process(model, str(prepared), skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(written),
            _Reader(tensors, model.graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            activation_type=kind,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=options,
        )
        quantised = onnx.load(written)
    if symmetric:
        _drop_needless(quantised.graph)
    onnx.checker.check_model(quantised)
    return bytes(quantised.SerializeToString())


def _kept_in_float(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Names of nodes that stay in float32: the first third of the trunk, and the neck.

    The neck's grouped convolutions are slow in int8, and their results are the embeddings.

    Raises:
        TrainError: nothing would be left to quantise.
    """
    trunk = [number for number, node in enumerate(nodes) if node.op_type == "Conv" and _groups(node) == 1]
    if not trunk:
        raise TrainError("the feature graph has no convolution that int8 would make faster; leave int8 out")
    first = trunk[round(_FLOAT_SHARE * len(trunk))]
    return [
        node.name
        for number, node in enumerate(nodes)
        if number < first or node.op_type not in _QUANTISED or (node.op_type == "Conv" and _groups(node) > 1)
    ]


def _groups(node: onnx.NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes after those whose results they read, as ONNX demands."""
    made_here = {name for node in graph.node for name in node.output}
    waiting, ready, done = list(graph.node), [], set[str]()
    while waiting:
        now = [node for node in waiting if all(name in done or name not in made_here for name in node.input)]
        if not now:
            raise TrainError("the nodes of the converted graph read each other in a ring; check the version of onnxruntime")
        ready += now
        done.update(name for node in now for name in node.output)
        waiting = [node for node in waiting if not set(node.output) <= done]
    del graph.node[:]
    graph.node.extend(ready)


def _drop_needless(graph: onnx.GraphProto) -> None:
    """Take Q/DQ pairs out where TensorRT fuses across: before a ReLU, and where a convolution's result is added to.

    A convolution takes in the addition and the ReLU that follow it as long as its own result stays in float; the other
    branch of the addition keeps its pair, and is read in eight bits.
    """
    maker = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    dropped: list[onnx.NodeProto] = []

    def drop(end: onnx.NodeProto) -> None:
        """Let the users of a dequantised tensor read what was quantised."""
        start = maker[end.input[0]]
        for user in users[end.output[0]]:
            user.input[list(user.input).index(end.output[0])] = start.input[0]
        dropped.extend([start, end])

    for node in list(graph.node):
        if node.op_type != "DequantizeLinear" or node.input[0] not in maker or node.output[0] in outputs:
            continue
        used_by = users.get(node.output[0], [])
        if used_by and all(user.op_type == "Relu" for user in used_by):
            drop(node)
    for node in list(graph.node):
        if node.op_type != "Add":
            continue
        for name in node.input:
            end = maker.get(name)
            if end is None or end.op_type != "DequantizeLinear" or len(users[name]) > 1 or end.input[0] not in maker:
                continue
            source = maker.get(maker[end.input[0]].input[0])
            if source is not None and source.op_type == "Conv":
                drop(end)
                break  # the other branch stays as it is
    for node in dropped:
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


class _Reader(CalibrationDataReader):
    """Network inputs, one at a time, as the quantiser asks for them."""

    def __init__(self, tensors: Iterable[npt.NDArray[np.float32]], name: str) -> None:
        self._tensors: Iterator[npt.NDArray[np.float32]] = iter(tensors)
        self._name = name

    def get_next(self) -> dict[str, Any] | None:
        tensor = next(self._tensors, None)
        return None if tensor is None else {self._name: tensor}
