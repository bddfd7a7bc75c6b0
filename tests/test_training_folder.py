"""Pictures of good parts are collected once each, checked on the way, and nothing that is there is overwritten."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import edge.training_folder as module
from edge import StationError
from edge.training_folder import Kept, Refused, TrainingFolder
from engines import EngineError
from engines.images import Image, encode_png, read_image
from tests.test_audit import part
from train.data import open_dataset


def soft(seed: int) -> Image:
    return np.asarray(cv2.GaussianBlur(part(seed), (0, 0), 3), dtype=np.uint8)


def fill(folder: TrainingFolder, seeds: range) -> None:
    for seed in seeds:
        assert isinstance(folder.offer(part(seed), "camera"), Kept)


def test_what_is_kept_is_what_fit_takes_bit_for_bit(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path / "new/line-1", {"station": "line-1"})
    fill(folder, range(12))
    folder.close("end")
    dataset = open_dataset(tmp_path / "new/line-1")
    assert (dataset.layout, len(dataset.train)) == ("plain", 12)
    assert all(np.array_equal(sample.image(), part(seed)) for seed, sample in enumerate(dataset.train))


def test_a_folder_in_a_known_layout_goes_on_there(tmp_path: Path) -> None:
    (tmp_path / "train/good").mkdir(parents=True)
    folder = TrainingFolder(tmp_path, {})
    fill(folder, range(2))
    folder.close("end")
    assert [path.name for path in sorted((tmp_path / "train/good").iterdir())] == ["part-000001.png", "part-000002.png"]
    assert open_dataset(tmp_path).layout == "mvtec"


def test_copies_are_let_go(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path, {})
    fill(folder, range(9))
    noise = np.random.default_rng(0).normal(0, 2, part(4).shape)
    for image, problem, twin in (
        (part(4), "duplicate", "part-000005.png"),
        (np.clip(part(4) + noise, 0, 255).astype(np.uint8), "near-duplicate", "part-000005.png"),
    ):
        refused = folder.offer(image, "camera")
        assert isinstance(refused, Refused)
        assert (refused.problem, refused.file) == (problem, None)
        assert twin in refused.detail
    assert folder.refused == {"duplicate": 1, "near-duplicate": 1}
    assert len(list(tmp_path.glob("part-*.png"))) == 9


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (soft(30), "blurred"),
        (np.clip(part(31) * 2.2, 0, 255).astype(np.uint8), "over-exposed"),
        ((part(32) * 0.5).astype(np.uint8), "under-exposed"),
        (np.ascontiguousarray(part(33)[:, :120]), "wrong size"),
    ],
)
def test_what_is_odd_is_set_aside_with_its_reason_and_once(tmp_path: Path, image: Image, problem: str) -> None:
    folder = TrainingFolder(tmp_path, {})
    fill(folder, range(10))
    first, second = folder.offer(image, "camera"), folder.offer(image, "camera")
    assert isinstance(first, Refused)
    assert isinstance(second, Refused)
    assert first.file == f"set-aside/part-000011-{problem.replace(' ', '-')}.png"
    assert np.array_equal(read_image(tmp_path / first.file), image)
    assert (first.problem, second.problem, second.file) == (problem, problem, None)
    assert folder.there == 10
    assert len(open_dataset(tmp_path).train) == 10  # what is set aside is not trained on
    assert isinstance(folder.offer(part(40), "camera"), Kept)
    assert (tmp_path / "part-000012.png").exists()  # a number is given once


@pytest.mark.parametrize(("level", "problem"), [(0, "under-exposed"), (255, "over-exposed")])
def test_a_blank_picture_is_refused_even_as_the_first(tmp_path: Path, level: int, problem: str) -> None:
    refused = TrainingFolder(tmp_path, {}).offer(np.full((64, 64, 3), level, np.uint8), "camera")
    assert isinstance(refused, Refused)
    assert (refused.problem, refused.file) == (problem, None)


def test_a_picture_too_small_for_the_network_is_refused(tmp_path: Path) -> None:
    refused = TrainingFolder(tmp_path, {}).offer(np.full((8, 64, 3), 99, np.uint8), "camera")
    assert isinstance(refused, Refused)
    assert refused.problem == "wrong size"


def test_the_review_holds_the_first_pictures_against_the_whole_set(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path, {})
    assert isinstance(folder.offer(soft(50), "blurred"), Kept)  # nothing to hold it against yet
    fill(folder, range(11))
    (odd,) = folder.review()
    assert (odd.problem, odd.source, odd.file) == ("blurred", "blurred", "set-aside/part-000001-blurred.png")
    assert np.array_equal(read_image(tmp_path / "set-aside/part-000001-blurred.png"), soft(50))
    assert not (tmp_path / "part-000001.png").exists()
    assert (folder.there, len(folder.kept)) == (11, 11)
    folder.close("end")
    (notes,) = tmp_path.glob("recording-*.json")
    written = json.loads(notes.read_text())
    assert len(written["kept"]) == 11
    assert [aside["file"] for aside in written["set_aside"]] == ["set-aside/part-000001-blurred.png"]


def test_a_second_recording_goes_on_and_knows_what_is_there(tmp_path: Path) -> None:
    first = TrainingFolder(tmp_path, {})
    fill(first, range(10))
    first.close("end")
    (tmp_path / "from-elsewhere.png").write_bytes(encode_png(part(60)))
    (tmp_path / "cut.png").write_bytes(encode_png(part(61))[:100])
    before = {path: path.read_bytes() for path in tmp_path.glob("*.png")}
    second = TrainingFolder(tmp_path, {})
    assert second.there == 11
    assert "cut.png" in second.unreadable[0]
    assert isinstance(second.offer(part(3), "camera"), Refused)
    assert isinstance(second.offer(part(60), "camera"), Refused)
    kept = second.offer(part(70), "camera")
    assert isinstance(kept, Kept)
    assert kept.file == "part-000011.png"
    assert all(path.read_bytes() == data for path, data in before.items())
    assert second.review() == []
    second.close("end")
    assert len(list(tmp_path.glob("recording-*.json"))) == 2


def test_half_a_picture_of_a_killed_recorder_goes(tmp_path: Path) -> None:
    (tmp_path / ".part-000001.png.abc.tmp").write_bytes(b"half")
    TrainingFolder(tmp_path, {}).close("end")
    assert list(tmp_path.glob(".part*")) == []


def test_one_recorder_a_folder(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path, {})
    with pytest.raises(StationError, match="another recorder writes there"):
        TrainingFolder(tmp_path, {})
    folder.close("end")
    TrainingFolder(tmp_path, {}).close("end")


def test_a_full_disk_is_one_error_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = TrainingFolder(tmp_path, {})
    fill(folder, range(3))
    usual = os.fsync

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match="No space left on device"):
        folder.offer(part(9), "camera")
    monkeypatch.setattr(os, "fsync", usual)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"part-{n:06d}.png" for n in (1, 2, 3)]
    assert list(tmp_path.glob(".part*")) == []
    assert isinstance(folder.offer(part(9), "camera"), Kept)  # there is room again: the same number is still free
    assert folder.kept[-1].file == "part-000004.png"


def test_the_notes_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NOTED_EVERY", 2)
    folder = TrainingFolder(tmp_path, {"station": "line-1"})
    (notes,) = tmp_path.glob("recording-*.json")
    fill(folder, range(3))
    written = json.loads(notes.read_text())
    assert (written["station"], len(written["kept"]), written["ended"]) == ("line-1", 2, None)
    folder.close("end")
    assert (len(json.loads(notes.read_text())["kept"]), json.loads(notes.read_text())["reason"]) == (3, "end")
