"""Every graph that is exported compiles: TensorRT for RTX builds for other GPUs on a machine without one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from engines import EngineError
from engines.build import build_plan
from engines.bundle import Precision
from engines.trt import TensorRT, load_tensorrt
from train.backbones import BACKBONES, backbone_spec, build
from train.export import to_onnx
from train.features import FeatureNet
from train.precision import convert

SIZE = (64, 96)
BOARDS = ((8, 6), (8, 9))


@pytest.fixture(scope="module")
def runtime() -> TensorRT:
    """The real TensorRT for RTX."""
    try:
        return load_tensorrt("tensorrt-rtx")
    except EngineError as error:
        pytest.skip(str(error))


@cache
def exported(backbone: str) -> bytes:
    """An untrained backbone's feature graph: the operators are those of a trained one."""
    spec = backbone_spec(backbone)
    return to_onnx(FeatureNet(build(spec, None, 0), spec), SIZE)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_backbone_in_every_precision_builds_for_two_boards(
    backbone: str, precision: Precision, runtime: TensorRT
) -> None:
    graph = exported(backbone)
    if precision != "fp32":
        rng = np.random.default_rng(0)
        graph = convert(graph, precision, [rng.standard_normal((1, 3, *SIZE), np.float32) for _ in range(2)])
    assert build_plan(runtime, graph, capabilities=BOARDS).plan
    assert not [line for line in runtime.log if "error" in line]


def test_what_is_no_graph_is_refused(runtime: TensorRT) -> None:
    with pytest.raises(EngineError, match="cannot parse the graph"):
        build_plan(runtime, b"no graph", capabilities=BOARDS)


def test_a_board_that_this_version_does_not_know_is_refused(runtime: TensorRT) -> None:
    with pytest.raises(EngineError, match=r"knows no compute capability 5\.3"):
        build_plan(runtime, exported("resnet18"), capabilities=((5, 3),))
