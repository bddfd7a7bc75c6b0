"""What the benchmark beside anomalib gives both sides and computes, with a stand-in for anomalib's PatchCore."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import peer
from engines import console
from engines.images import encode_png
from train.backbones import backbone_spec


class _Model(nn.Module):
    """The part of anomalib's PatchcoreModel that is used: in training it keeps embeddings, after that it searches them."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = nn.Module()
        self.feature_extractor.feature_extractor = backbone_spec("resnet18").build()
        self.embedding_store: list[Tensor] = []
        self.register_buffer("memory_bank", torch.empty(0))

    def forward(self, images: Tensor) -> SimpleNamespace | None:
        trunk = self.feature_extractor.feature_extractor.eval()
        fine, coarse = trunk(images)
        both = torch.cat([fine, functional.interpolate(coarse, scale_factor=2.0)], dim=1)
        embeddings = both.permute(0, 2, 3, 1).reshape(-1, both.shape[1])
        if self.training:
            self.embedding_store.append(embeddings)
            return None
        nearest = torch.cdist(embeddings, self.memory_bank).amin(dim=1)
        return SimpleNamespace(pred_score=nearest.max()[None], pred_label=nearest.max()[None] > 0.5)


class _Patchcore(nn.Module):
    made: ClassVar[list[_Patchcore]] = []

    def __init__(self, backbone: str, layers: tuple[str, ...], pre_trained: bool) -> None:
        super().__init__()
        assert (backbone, layers, pre_trained) == ("resnet18", ("layer2", "layer3"), False)
        self.model = _Model()
        self.seen: list[Tensor] = []
        _Patchcore.made.append(self)

    def pre_processor(self, batch: Tensor) -> Tensor:
        assert batch.dtype == torch.float32
        assert 0 <= batch.min() <= batch.max() <= 1
        return functional.interpolate(batch, size=(256, 256))

    def forward(self, batch: Tensor) -> SimpleNamespace | None:
        return self.model(self.pre_processor(batch))


@pytest.fixture
def _anomalib(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("anomalib.models")
    module.Patchcore = _Patchcore  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "anomalib", ModuleType("anomalib"))
    monkeypatch.setitem(sys.modules, "anomalib.models", module)
    monkeypatch.setattr(_Patchcore, "made", [])


@pytest.fixture
def product(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder, count, bright in (("train/good", 6, 0), ("test/good", 2, 0), ("test/bad", 2, 120)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(60, 100, (64, 64, 3), dtype=np.uint8)
            image[20:40, 20:40] += np.uint8(bright)
            (tmp_path / folder / f"{number}.png").write_bytes(encode_png(image))
    return tmp_path


@pytest.mark.usefixtures("_anomalib")
def test_both_get_the_same_and_are_compared(product: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(product), "--weights", "none", "--rows", "100", "--images", "4", "--repeats", "3", "--threads", "1"]
    assert peer.main([*words, "--json", str(tmp_path / "out.json")]) == console.DONE
    (made,) = _Patchcore.made
    assert made.model.memory_bank.shape == (100, 384)
    assert not made.training
    assert torch.equal(
        made.model.feature_extractor.feature_extractor.conv1.weight,
        peer.build(backbone_spec("resnet18"), None, 0).conv1.weight,
    )
    figures = json.loads((tmp_path / "out.json").read_text())
    assert set(figures["methods"]) - {peer.EIGHT_BITS} == {peer.PEER, peer.THIS, peer.MAPPED}
    assert figures["methods"][peer.PEER]["ratio_p50"] == 1
    expected = dict.fromkeys(figures["methods"].keys() - {peer.MAPPED}, 1)
    assert figures["auroc"] == expected  # the bright square is plain to see
    printed = capsys.readouterr().out
    assert "100 bank rows, 1 threads, 3 images" in printed
    assert "2 good and 2 bad test images" in printed
    assert "anomalib of unknown version" in printed


@pytest.mark.usefixtures("_anomalib")
def test_a_precision_that_is_not_offered_is_not_timed_and_the_reason_is_said(
    product: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.variants.time_ratio", lambda scorer, reference, tensor: 2.0)
    words = ["--data", str(product), "--weights", "none", "--rows", "100", "--images", "4", "--repeats", "3", "--threads", "1"]
    assert peer.main(words) == console.DONE
    printed = " ".join(capsys.readouterr().out.split())
    assert "int8-cpu is not offered: " in printed
    assert "this, in int8-cpu" not in printed


@pytest.mark.usefixtures("_anomalib")
def test_weights_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = peer.Setup(peer.Settings(Path()), 64, (), {"conv1.weight": torch.zeros(1), "other": torch.zeros(1)})
    with pytest.raises(peer.TrainError, match="differ in"):
        peer.PeerJudge(_Patchcore, setup, lambda done, total: None)


def test_methods_take_turns_and_each_image_is_timed_once() -> None:
    calls: list[tuple[str, int]] = []
    images = [np.full((1, 1, 3), number, np.uint8) for number in range(12)]
    judges: dict[str, peer.Judge] = {
        name: lambda image, name=name: calls.append((name, int(image[0, 0, 0]))) or 0.0  # type: ignore[misc]
        for name in ("one", "other")
    }
    taken = peer.alternate(judges, images, lambda done, total: None)
    assert {name: len(times) for name, times in taken.items()} == {"one": 12, "other": 12}
    assert [name for name, _ in calls] == ["one"] * 11 + ["other"] * 11 + ["one"] * 3 + ["other"] * 3
    assert [number for name, number in calls if name == "one"] == [0, *range(10), 10, 10, 11]  # the first warms up


def test_the_ratio_is_the_peers_time_over_this_ones() -> None:
    figures = peer.summarise([10.0, 10.0, 20.0], [40.0, 40.0, 40.0])
    times = {"p5": 10, "p50": 10, "p95": 19}
    assert figures == pytest.approx({**times, "ratio_p5": 4, "ratio_p50": 4, "ratio_p95": 40 / 19})


def test_without_anomalib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "anomalib.models", None)
    assert peer.main(["--data", "nowhere"]) == console.BAD_INPUT
    assert "pip install anomalib" in capsys.readouterr().err
