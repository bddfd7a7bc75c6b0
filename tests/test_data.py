"""Folders of the field's layouts are found as what they are; anything else is refused with what was expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.images import encode_png
from tests.fakes import flat
from train import TrainError
from train.data import Dataset, few_shot, open_dataset


def put(root: Path, *names: str, level: int = 100) -> None:
    """Write a small flat picture at each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(flat(level, (16, 24))))


def put_mask(path: Path, columns: slice) -> None:
    picture = flat(0, (16, 24))
    picture[:, columns] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture))


def names(samples: tuple) -> list[str]:
    return [sample.path.name for sample in samples]


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "nut"
    put(root, "train/good/2.png", "train/good/10.png", "train/good/1.png")
    put(root, "test/good/0.png", "test/crack/0.png", "test/crack/1.png", "test/bent/0.png")
    put_mask(root / "ground_truth/crack/0_mask.png", slice(0, 6))
    return root


def test_mvtec_is_detected_with_kinds_and_masks(mvtec: Path) -> None:
    dataset = open_dataset(mvtec)
    assert dataset.layout == "mvtec"
    assert names(dataset.train) == ["1.png", "2.png", "10.png"]  # natural order
    assert all(sample.good for sample in dataset.train)
    assert [(sample.kind, sample.path.name) for sample in dataset.test] == [
        ("bent", "0.png"),
        ("crack", "0.png"),
        ("crack", "1.png"),
        ("good", "0.png"),
    ]
    assert dataset.validation == ()
    bent, masked, unmasked, good = dataset.test
    mask = masked.mask()
    assert mask is not None
    assert mask.shape == (16, 24)
    assert mask.dtype == bool
    assert mask.sum() == 16 * 6
    assert bent.mask() is None
    assert unmasked.mask() is None
    assert good.mask() is None
    assert masked.image().shape == (16, 24, 3)


def test_the_summary_counts_every_class_good_first(mvtec: Path) -> None:
    assert open_dataset(mvtec).summary() == f"{mvtec} (mvtec): train: good 3; test: good 1, bent 1, crack 2"


def test_loco_joins_the_masks_of_an_image_and_keeps_validation_apart(tmp_path: Path) -> None:
    put(tmp_path, "train/good/0.png", "train/good/1.png", "validation/good/0.png", "test/good/0.png")
    put(tmp_path, "test/logical_anomalies/000.png", "test/structural_anomalies/000.png")
    put_mask(tmp_path / "ground_truth/logical_anomalies/000/000.png", slice(0, 3))
    put_mask(tmp_path / "ground_truth/logical_anomalies/000/001.png", slice(20, 24))
    dataset = open_dataset(str(tmp_path))
    assert dataset.layout == "loco"
    assert len(dataset.train) == 2
    assert [sample.path.parent.parent.name for sample in dataset.validation] == ["validation"]
    logical = next(sample for sample in dataset.test if sample.kind == "logical_anomalies")
    assert names_of_masks(logical.masks) == ["000.png", "001.png"]
    mask = logical.mask()
    assert mask is not None
    assert np.flatnonzero(mask.any(axis=0)).tolist() == [0, 1, 2, 20, 21, 22, 23]
    counts = "train: good 2; validation: good 1; test: good 1, logical_anomalies 1, structural_anomalies 1"
    assert dataset.summary() == f"{tmp_path} (loco): {counts}"


def names_of_masks(masks: tuple[Path, ...]) -> list[str]:
    return [path.name for path in masks]


def test_btad_calls_good_ok_and_masks_have_no_suffix(tmp_path: Path) -> None:
    put(tmp_path, "train/ok/0.png", "test/ok/0.png", "test/ko/0.png")
    put_mask(tmp_path / "ground_truth/ko/0.png", slice(0, 1))
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "btad"
    assert [(sample.kind, sample.good) for sample in dataset.test] == [("ko", False), ("good", True)]
    mask = dataset.test[0].mask()
    assert mask is not None
    assert mask.sum() == 16


def test_a_plain_folder_is_training_images_alone(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", ".hidden.png")
    (tmp_path / "notes.txt").write_text("no image")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "plain"
    assert names(dataset.train) == ["a.png", "b.png"]
    assert dataset.test == ()
    assert dataset.summary() == f"{tmp_path} (plain): train: good 2; test: none"


def test_a_folder_without_a_test_part_can_be_trained_on(tmp_path: Path) -> None:
    put(tmp_path, "train/good/0.png")
    assert open_dataset(tmp_path).test == ()


def test_a_layout_that_is_named_is_not_detected(mvtec: Path) -> None:
    put(mvtec, "photo.png")
    assert open_dataset(mvtec).layout == "mvtec"
    plain = open_dataset(mvtec, "plain")
    assert names(plain.train) == ["photo.png"]
    with pytest.raises(TrainError, match="no good image to train on in layout 'btad'"):
        open_dataset(mvtec, "btad")


def test_an_unknown_layout_is_refused(mvtec: Path) -> None:
    with pytest.raises(TrainError, match="layout 'visa', expected one of: mvtec, loco, btad, plain"):
        open_dataset(mvtec, "visa")


def test_the_folder_above_several_products_names_them(mvtec: Path) -> None:
    put(mvtec.parent, "bolt/train/good/0.png")
    with pytest.raises(TrainError, match=r"several products; choose one, such as .*/bolt \(found: bolt, nut\)"):
        open_dataset(mvtec.parent)


def test_empty_wrong_and_missing_folders_show_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="found nothing; expected one of") as caught:
        open_dataset(tmp_path)
    for layout in ("mvtec   train/good", "loco    train/good", "btad    train/ok", "plain   images of good parts"):
        assert layout in str(caught.value)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "list.csv").write_text("x")
    with pytest.raises(TrainError, match=r"found list\.csv, pictures; expected one of"):
        open_dataset(tmp_path)
    with pytest.raises(TrainError, match="no such folder; expected one of"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(TrainError, match="a file, no folder; expected one of"):
        open_dataset(tmp_path / "list.csv")


def test_a_layout_without_good_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train/good").mkdir(parents=True)
    put(tmp_path, "test/good/0.png")
    with pytest.raises(TrainError, match="no good image to train on in layout 'mvtec'; expected one of"):
        open_dataset(tmp_path)


@pytest.fixture
def ten(tmp_path: Path) -> Dataset:
    put(tmp_path, *(f"{number}.png" for number in range(10)))
    return open_dataset(tmp_path)


def test_few_shot_draws_by_seed_in_the_folders_order(ten: Dataset) -> None:
    few = few_shot(ten, 4, seed=0)
    assert len(few.train) == 4
    assert set(few.train) < set(ten.train)
    assert few.train == tuple(sorted(few.train, key=ten.train.index))
    assert few_shot(ten, 4, seed=0) == few
    assert len({few_shot(ten, 4, seed=seed).train for seed in range(5)}) > 1
    assert few_shot(ten, 50, seed=0).train == ten.train


@pytest.mark.parametrize("count", [0, -1])
def test_few_shot_needs_an_image(ten: Dataset, count: int) -> None:
    with pytest.raises(TrainError, match=f"{count} training images, expected 1 or more"):
        few_shot(ten, count, seed=0)


def test_images_in_folders_below_a_plain_one_are_said_to_be_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "monday/b.png", "tuesday/c.png")
    dataset = open_dataset(tmp_path)
    assert [sample.path.name for sample in dataset.train] == ["a.png"]
    assert dataset.summary().endswith("test: none; 2 images in folders below it are left out")
