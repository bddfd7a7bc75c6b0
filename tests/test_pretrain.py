"""Training on drawings: it learns, it can be interrupted, and what it writes is what the backbone loads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import train.drawn_task
import train.pretrain
from train import TrainError
from train.backbones import BACKBONES, build
from train.drawn_task import Scenes
from train.pretrain import PretrainSettings, learning_rate, pretrain
from train.product import Advance, Console
from train.textures import MIXED, draw_tiles
from train.weights import find_weights

SPEC = BACKBONES["resnet18"]
TINY = PretrainSettings(
    steps=6, batch=4, size=32, textures=14, palettes=4, seed=1, device="cpu", workers=0, save_every=3, command="train pretrain"
)


class Ear:
    """A console that remembers; it can interrupt the training."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.lines: list[str] = []
        self.told: dict[str, list[tuple[int, int]]] = {}
        self.note = ""
        self._stop_at = stop_at
        self.console = Console(self.lines.append, self.lines.append, self._progress)

    @contextlib.contextmanager
    def _progress(self, title: str) -> Iterator[Advance]:
        told = self.told.setdefault(title, [])

        def advance(done: int, total: int, note: str = "") -> None:
            told.append((done, total))
            self.note = note
            if title == "training" and done == self._stop_at:
                raise KeyboardInterrupt

        yield advance


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ear]:
    """A file from six small steps, and what was said."""
    out, ear = tmp_path_factory.mktemp("trained") / "drawn.safetensors", Ear()
    pretrain(TINY, out, ear.console)
    return out, ear


def test_the_file_is_small_float16_and_loads_as_the_backbone(trained: tuple[Path, Ear]) -> None:
    out, _ = trained
    assert out.stat().st_size <= 6 * 10**6
    weights = find_weights(str(out), SPEC)
    assert weights is not None
    assert {tensor.dtype for tensor in weights.state.values()} == {torch.float16}
    assert not any(name.endswith("num_batches_tracked") for name in weights.state)
    network = build(SPEC, weights.state, seed=0)
    fine, coarse = network(torch.zeros(1, 3, 64, 64))
    assert fine.dtype == torch.float32
    assert (fine.shape, coarse.shape) == ((1, 128, 8, 8), (1, 256, 4, 4))
    assert torch.equal(network.state_dict()["conv1.weight"], weights.state["conv1.weight"].float())


def test_the_file_says_how_it_was_made(trained: tuple[Path, Ear]) -> None:
    with safe_open(trained[0], "pt") as file:
        record = json.loads(file.metadata()["pretrain"])
    assert record["command"] == "train pretrain"
    settings = record["settings"]
    assert (settings["steps"], settings["seed"], settings["textures"]) == (6, 1, 14)
    assert record["accuracy"].keys() == {f"{name}/{stride}" for name in ("texture", "palette", "same") for stride in (8, 16)}
    assert record["versions"]["torch"] == torch.__version__
    assert math.isfinite(record["loss"])


def test_it_tells_where_it_is_and_leaves_no_checkpoint(trained: tuple[Path, Ear]) -> None:
    out, ear = trained
    assert ear.told["training"] == [(step, 6) for step in range(1, 7)]
    assert ear.told["textures"][-1] == (14, 14)
    assert ear.note.startswith("loss ")
    assert "same/8" in ear.note
    lines = [line for line in ear.lines if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 3 of 6", "step 6 of 6"]
    assert all("loss" in line and "texture/8" in line and "images/s" in line and "min left" in line for line in lines)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_training_changed_every_kernel_and_left_the_callers_generator(tmp_path: Path, trained: tuple[Path, Ear]) -> None:
    before = build(SPEC, None, TINY.seed).state_dict()
    for name, tensor in load_file(trained[0]).items():
        if tensor.ndim == 4:
            assert not torch.equal(before[name].half(), tensor), name
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    pretrain(dataclasses.replace(TINY, steps=1), tmp_path / "one.safetensors", Ear().console)
    assert torch.equal(torch.rand(3), expected)


def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path: Path, trained: tuple[Path, Ear]) -> None:
    out = tmp_path / "drawn.safetensors"
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, out, Ear(stop_at=5).console)
    assert not out.exists()
    with pytest.raises(TrainError, match="checkpoint of an earlier run; go on with --resume, or delete it"):
        pretrain(TINY, out, Ear().console)
    with pytest.raises(TrainError, match=r"made with other settings \(batch 4, now 8\)"):
        pretrain(dataclasses.replace(TINY, batch=8, resume=True), out, Ear().console)
    ear = Ear()
    pretrain(dataclasses.replace(TINY, resume=True), out, ear.console)
    assert "resumed at step 3" in ear.lines[0]
    assert ear.told["training"][0] == (4, 6)
    assert out.read_bytes() == trained[0].read_bytes()


def test_processes_that_draw_change_nothing(tmp_path: Path, trained: tuple[Path, Ear]) -> None:
    out = tmp_path / "drawn.safetensors"
    pretrain(dataclasses.replace(TINY, workers=2), out, Ear().console)
    assert out.read_bytes() == trained[0].read_bytes()


def test_the_loss_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    update = train.pretrain._update

    def remember(*arguments: object) -> tuple[float, dict[str, float]]:
        loss, right = update(*arguments)  # type: ignore[arg-type]
        losses.append(loss)
        return loss, right

    monkeypatch.setattr(train.pretrain, "_update", remember)
    pretrain(dataclasses.replace(TINY, steps=40, batch=8), tmp_path / "drawn.safetensors", Ear().console)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


@pytest.mark.parametrize("poisoned", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_leaves_what_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: float
) -> None:
    entropy = train.drawn_task._cross_entropy
    monkeypatch.setattr(train.drawn_task, "_cross_entropy", lambda *arguments: entropy(*arguments) * poisoned)
    out = tmp_path / "drawn.safetensors"
    out.write_bytes(b"older")
    with pytest.raises(TrainError, match=f"the loss is {poisoned} at step 0; try again with a lower rate"):
        pretrain(TINY, out, Ear().console)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_bytes() == b"older"


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_a_weight(student: train.drawn_task.Student, *_: object) -> tuple[float, dict[str, float]]:
        with torch.no_grad():
            student.backbone.conv1.weight[0, 0, 0, 0] = math.nan  # type: ignore[union-attr, operator]
        return 1.0, {"same/8": 0.0}

    monkeypatch.setattr(train.pretrain, "_update", break_a_weight)
    with pytest.raises(TrainError, match=r"backbone.conv1.weight holds numbers that are not finite after step 3"):
        pretrain(TINY, tmp_path / "drawn.safetensors", Ear().console)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0, expected 1 or more"),
        ({"batch": 0}, "batch is 0, expected 1 or more"),
        ({"save_every": 0}, "save_every is 0, expected 1 or more"),
        ({"size": 40}, "size 40, expected a multiple of 16 from 32 to 256"),
        ({"size": 272}, "size 272, expected a multiple of 16 from 32 to 256"),
        ({"rate": 0.0}, "rate 0.0, expected a number above 0"),
        ({"warm_up": 1.0}, "warm-up 1.0, expected a part of the steps"),
        ({"seed": -1}, "seed -1, expected 0 to"),
        ({"backbone": "alexnet"}, "backbone 'alexnet', expected one of"),
        ({"resume": True}, "no checkpoint to resume from"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        pretrain(dataclasses.replace(TINY, **change), tmp_path / "drawn.safetensors", Ear().console)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"suffix '\.npz', expected \.safetensors"):
        pretrain(TINY, tmp_path / "drawn.npz", Ear().console)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoint = tmp_path / "drawn.safetensors.checkpoint"
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(TrainError, match=r"checkpoint: cannot be read .* delete it and start again"):
        pretrain(dataclasses.replace(TINY, resume=True), tmp_path / "drawn.safetensors", Ear().console)


def test_the_rate_rises_then_falls_along_a_cosine() -> None:
    settings = PretrainSettings(steps=100, warm_up=0.2, rate=1.0)
    assert [learning_rate(step, settings) for step in (0, 9, 19, 20)] == pytest.approx([0.05, 0.5, 1.0, 1.0])
    assert learning_rate(60, settings) == pytest.approx(0.5)  # halfway down
    assert 0 < learning_rate(99, settings) < 0.001


def test_a_scene_gives_two_photographs_and_labels_for_both_taps() -> None:
    item = Scenes(draw_tiles(14, 4, 1, seed=1), 64, seed=1)[5]
    assert item["images"].shape == (2, 3, 64, 64)
    assert item["images"].dtype == np.uint8
    assert not np.array_equal(*item["images"])
    for name, classes in (("texture", 14), ("palette", 4)):
        assert item[f"{name}/8"].shape == (8, 8)
        assert item[f"{name}/16"].shape == (4, 4)
        assert MIXED <= item[f"{name}/8"].min() <= item[f"{name}/8"].max() < classes
        # a coarse cell that has a label gives it to the four fine cells in it
        coarse = item[f"{name}/16"].repeat(2, 0).repeat(2, 1)
        assert np.array_equal(item[f"{name}/8"][coarse != MIXED], coarse[coarse != MIXED])
