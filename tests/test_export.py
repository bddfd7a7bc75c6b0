"""What leaves the workstation must compute what was trained, or nothing leaves."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from engines.bundle import Golden, Input, Method, ProvisionalThreshold, make_preprocessor
from engines.inspector import Scorer
from engines.ort import OnnxRuntimeExtractor
from tests.fakes import DIM, GREY, FakeExtractor, Floats, cells, flat, tiny_bank
from train import TrainError
from train import export as module
from train.backbones import BACKBONES, build
from train.export import PARITY, TorchExtractor, check_parity, to_onnx
from train.features import FeatureNet

SIZE = (48, 80)  # height and width differ
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> FeatureNet:
    spec = BACKBONES["resnet18"]
    return FeatureNet(build(spec, None, 0), spec)


@pytest.fixture(scope="module")
def graph(network: FeatureNet) -> bytes:
    return to_onnx(network, SIZE)


def random_input(seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(1, 3, *SIZE)).astype(np.float32)


def test_the_graph_is_whole_in_itself(graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model)
    assert not [tensor.name for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    (tmp_path / "alone.onnx").write_bytes(graph)
    monkeypatch.chdir(tmp_path)
    assert os.listdir() == ["alone.onnx"]
    session = onnxruntime.InferenceSession("alone.onnx", providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape, value.type) for value in session.get_inputs()] == [
        ("image", [1, 3, 48, 80], "tensor(float)")
    ]
    assert [(value.name, value.shape, value.type) for value in session.get_outputs()] == [
        ("embeddings", [60, 512], "tensor(float)")
    ]


def test_the_graph_computes_what_torch_computes(network: FeatureNet, graph: bytes) -> None:
    exported = OnnxRuntimeExtractor(graph, input_shape=(1, 3, *SIZE), output_shape=(60, 512))
    trained = TorchExtractor(network, CPU)
    for seed in range(3):
        tensor = random_input(seed)
        expected, got = trained.extract(tensor), exported.extract(tensor)
        assert expected.std() > 0
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_extractors_digest_knows_the_weights(network: FeatureNet) -> None:
    other = copy.deepcopy(network)
    other.fine.weight.data[0, 0, 0, 0] += 1
    assert TorchExtractor(network, CPU).engine_digest == TorchExtractor(copy.deepcopy(network), CPU).engine_digest
    assert TorchExtractor(network, CPU).engine_digest != TorchExtractor(other, CPU).engine_digest


def test_an_exporter_that_fails_says_what_to_check(network: FeatureNet, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(module.torch.onnx, "export", broken)
    with pytest.raises(
        TrainError, match=r"ONNX export failed \(no such operator\); check the versions of torch and onnxscript"
    ):
        to_onnx(network, SIZE)
    given: list[object] = []
    monkeypatch.setattr(module.torch.onnx, "export", lambda network, *arguments, **named: given.append(network))
    with pytest.raises(TrainError, match="returned nothing; check the versions"):
        to_onnx(network, SIZE)
    assert given[0] is not network  # a copy goes to the CPU, the network stays on its device


# ---- the gate, on the tiny network: a flat picture's score is a squared distance between colours

THRESHOLD = ProvisionalThreshold(value=1.0, n=20, rate=0.05)
PICTURES = (flat(GREY), flat(GREY + 40), flat(GREY + 80))


def scorer(offset: float = 0.0, *, nan: bool = False) -> Scorer:
    """The tiny network with embeddings that are `offset` too high, or not a number."""

    def spoil(embeddings: Floats) -> Floats:
        return embeddings * np.float32(np.nan) if nan else embeddings + np.float32(offset)

    method = Method(backbone="tiny", dim=DIM, grid=(8, 8), k=1)
    spec = Input(size=(64, 64))
    return Scorer(method, make_preprocessor(spec, None), tiny_bank(cells(GREY)), FakeExtractor(spoil=spoil))


def golden_of(reference: Scorer) -> Golden:
    scores = np.array([reference.score(picture).value for picture in PICTURES])
    return Golden(("grey", "lighter", "light"), PICTURES, scores)


def test_the_gate_opens_for_equal_scores() -> None:
    result = check_parity(scorer(), golden_of(scorer()), THRESHOLD, 0.1)
    assert (result.flips, result.max_difference, len(result.rows)) == (0, 0.0, 3)


def test_the_gate_closes_on_a_difference_and_gives_the_figures() -> None:
    golden = golden_of(scorer())
    spread = 0.1
    with pytest.raises(TrainError, match="does not agree with the trained network: 0 decision flips") as caught:
        check_parity(scorer(1e-4), golden, THRESHOLD, spread)
    worst = scorer(1e-4).score(PICTURES[2]).value
    assert f"on light (got {worst:.6g}, expected {golden.scores[2]:.6g})" in str(caught.value)
    assert f"at most {PARITY:g}; nothing was written" in str(caught.value)
    # the same difference is a small one where normal scores spread widely
    assert check_parity(scorer(1e-4), golden, THRESHOLD, 100.0).flips == 0


def test_the_gate_closes_on_a_flip_however_small_the_difference() -> None:
    golden = golden_of(scorer())
    between = (golden.scores[1] + scorer(1e-4).score(PICTURES[1]).value) / 2
    threshold = ProvisionalThreshold(value=between, n=20, rate=0.05)
    with pytest.raises(TrainError, match="1 decision flips"):
        check_parity(scorer(1e-4), golden, threshold, 1e6)


def test_the_gate_closes_on_nan() -> None:
    with pytest.raises(TrainError, match=r"largest difference nan .* on .* \(got nan"):
        check_parity(scorer(nan=True), golden_of(scorer()), THRESHOLD, 0.1)
    with pytest.raises(TrainError, match="got nan"):
        check_parity(scorer(nan=True), golden_of(scorer()), None, 0.1)
