"""The roofline's counts and floors against numbers derived by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import roofline
from benchmarks.roofline import Device, Work
from engines import console, grouped, verdict_first


def test_one_convolution() -> None:
    # 8 outputs of 3 inputs, 3 x 3, stride 2: 8 x 16 x 16 numbers out, each a sum of 27 products
    (before, layer) = roofline.count(nn.Conv2d(3, 8, 3, 2, 1, bias=False), (32, 32))
    assert before == Work("preprocess", 2 * 3072, 0, 2 * 3072)
    assert layer == Work("1/2", 2 * 2048 * 27, 216, 3072 + 2048)
    assert layer.intensity("fp16") == 110_592 / (2 * (216 + 5120))


def test_a_grouped_convolution_reads_its_own_inputs() -> None:
    layer = roofline.count(nn.Conv2d(3, 6, 1, groups=3, bias=False), (4, 4))[1]
    assert (layer.operations, layer.weights) == (2 * 96 * 1, 6)


class _Small(nn.Module):
    """A backbone of a convolution, a pooling and a shortcut, and a neck that enlarges."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1, bias=False)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = functional.max_pool2d(functional.relu(self.norm(self.conv(x))), 2, 2)
            return functional.relu(y + y)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.Backbone()

    def forward(self, x: Tensor) -> Tensor:
        y = self.backbone(x)
        return torch.cat([y, functional.interpolate(y, scale_factor=2, mode="bilinear").mean() + y])


def test_a_small_net() -> None:
    layers = roofline.count(_Small().eval(), (8, 8))[1:]
    assert layers[:4] == [
        Work("1/1", 2 * 256 * 3, 12, 192 + 256),  # 1 x 1 convolution: 4 x 8 x 8 numbers of three products
        Work("1/2", 0, 0, 256 + 64),  # pooling
        Work("1/2", 0, 0, 64),  # the shortcut; batch norm and what works number by number cost nothing
        Work("neck", 0, 0, 64 + 256),  # enlarged
    ]


def test_the_floor_is_the_longer_of_computing_and_moving_layer_by_layer() -> None:
    device = Device("d", {"fp32": 1000.0, "fp16": 2000.0}, 100.0, "")
    layers = [Work("a", 4000, 10, 10), Work("b", 0, 25, 25)]
    # fp32: 4 s of computing against 0.8 s of moving, and 2 s of moving; fp16: half of each
    assert device.floor_ms(layers, "fp32") == 6000
    assert device.floor_ms(layers, "fp16") == 3000
    assert device.memory_share(layers, "fp32") == pytest.approx(1 / 3)


def test_the_search() -> None:
    assert roofline.search_work(10, 100, 8, verdict_first=False) == [Work("LDKNN", 16_000, 800, 80)]
    project, bound, search = roofline.search_work(1000, 2000, 512, verdict_first=True)
    assert (project.operations, bound.operations, search.operations) == (79_872_000, 320_000_000, 73_728_000)
    assert roofline.BOUND_DIMENSIONS == grouped.DIMENSIONS
    assert 9 * verdict_first._WINDOWS[0] == roofline.LEAST_SEARCHED


def test_dense_rates_of_the_jetsons() -> None:
    # a third-generation multiprocessor of 128 cores does 4,096 int8 operations a clock, which the data sheets agree with
    for device, clock in zip(roofline.JETSONS[:3], (1.02, 1.173, 1.3), strict=True):
        multiprocessors = device.rates["fp32"] / (2 * 128 * clock * 1e9)
        assert multiprocessors == pytest.approx(round(multiprocessors))
        assert device.rates["int8"] == pytest.approx(4096 * multiprocessors * clock * 1e9, rel=0.02)


def test_it_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = roofline.BACKBONES["resnet18"]
    monkeypatch.setattr(roofline, "BACKBONES", {"resnet18": spec})
    monkeypatch.setattr(roofline, "_GEMM", 128)
    monkeypatch.setattr(roofline, "_COPY", 2**16)
    monkeypatch.setattr(roofline, "_TRIES", 2)
    assert roofline.main(["--quick", "--threads", "1", "--json", str(tmp_path / "out.json")]) == console.DONE
    figures = json.loads((tmp_path / "out.json").read_text())
    assert set(figures["floor_ms"]["resnet18"]) == {*(device.name for device in roofline.JETSONS), "this CPU"}
    assert figures["measured_ms"]["resnet18"] > 0
    printed = capsys.readouterr().out
    assert "resnet18, work of one image of 256 x 256" in printed
    assert "20,000, verdict first" in printed
