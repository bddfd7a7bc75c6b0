"""The drawn product: what a demo is run on must be repeatable, and its masks must be true."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.images import Image, list_images, read_image
from train import TrainError
from train.data import open_dataset
from train.sample import DEFECTS, draw_part, write_sample


def drawn(seed: int, size_px: int, defect: str | None = None) -> tuple[Image, npt.NDArray[np.bool_]]:
    return draw_part(np.random.default_rng(seed), size_px, defect)


def silhouette(image: Image) -> npt.NDArray[np.uint8]:
    """1 on the part, its holes filled: the largest bright outline. The dark side of its chamfer may be missing."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    _, bright = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(grey), [max(outlines, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return np.asarray(filled, dtype=np.uint8)


def test_a_good_part_is_a_bright_disc_on_a_dark_belt() -> None:
    image, mask = drawn(0, 320)
    assert image.shape == (320, 320, 3)
    assert image.dtype == np.uint8
    assert mask.shape == (320, 320)
    assert mask.dtype == bool
    assert not mask.any()
    # a disc of radius 122 covers pi * 122^2 / 320^2 = 0.457 of the image, one of radius 122 - 3.5 0.431; pose moves both
    assert 0.41 < silhouette(image).mean() < 0.48
    assert image[160, 82:94].mean() > 2 * image[:20, :20].mean()


@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_the_same_seed_draws_the_same_part_and_another_seed_another(defect: str | None) -> None:
    first, again, other = drawn(3, 96, defect), drawn(3, 96, defect), drawn(4, 96, defect)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("defect", DEFECTS)
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32), size_px=st.sampled_from([64, 97, 320]))
def test_a_mask_is_exactly_where_the_part_changed(defect: str, seed: int, size_px: int) -> None:
    good, _ = drawn(seed, size_px)
    bad, mask = drawn(seed, size_px, defect)
    changed = (good != bad).any(axis=2)
    assert mask.any()
    assert mask.mean() < 0.1
    assert not (changed & ~mask).any()
    # a pixel may round to the same value where a dent's dark side turns to its bright side
    assert (changed & mask).sum() >= 0.85 * mask.sum()
    reach = 2 * round(2 + 4 * size_px / 320) + 1  # a chamfer of 3.5 units, and the pixel that a lens blurs
    near = cv2.dilate(silhouette(good), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    assert not mask[near == 0].any()


def test_good_parts_vary_beyond_noise() -> None:
    lows = [cv2.GaussianBlur(drawn(seed, 160)[0], (0, 0), 2).astype(float) for seed in range(6)]
    differences = [np.abs(one - other).mean() for one, other in itertools.pairwise(lows)]
    assert min(differences) > 1.0  # grey levels, after a blur that leaves little of the sensor's noise


def test_unknown_defect_and_small_size_are_refused() -> None:
    with pytest.raises(TrainError, match="defect 'melted', expected one of: scratch"):
        drawn(0, 96, "melted")
    with pytest.raises(TrainError, match="63 pixels, expected 64 or more"):
        drawn(0, 63)


def test_the_folder_is_what_the_data_module_calls_mvtec(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = tmp_path / "new" / "sample"
    write_sample(
        out,
        train=3,
        calibration=2,
        test_good=2,
        per_defect=2,
        size_px=64,
        progress=lambda done, total: steps.append((done, total)),
    )
    total = 3 + 2 + 2 + 2 * len(DEFECTS)
    assert steps == [(done, total) for done in range(1, total + 1)]
    dataset = open_dataset(out)
    assert dataset.layout == "mvtec"
    assert [sample.path.name for sample in dataset.train] == ["000.png", "001.png", "002.png"]
    assert sorted(sample.kind for sample in dataset.test) == sorted(["good"] * 2 + [*DEFECTS] * 2)
    assert len(list_images(out / "calibration" / "good")) == 2
    for sample in dataset.test:
        mask = sample.mask()
        if sample.good:
            assert mask is None
        else:
            assert mask is not None
            assert mask.any()
            assert mask.shape == sample.image().shape[:2]
    assert list(out.parent.iterdir()) == [out]


def test_an_image_does_not_depend_on_the_counts_but_on_the_seed(tmp_path: Path) -> None:
    write_sample(tmp_path / "few", train=1, calibration=1, test_good=0, per_defect=1, size_px=64)
    write_sample(tmp_path / "more", train=2, calibration=2, test_good=1, per_defect=2, size_px=64)
    write_sample(tmp_path / "other", train=1, calibration=0, test_good=0, per_defect=0, size_px=64, seed=1)
    few = sorted(path.relative_to(tmp_path / "few") for path in list_images(tmp_path / "few", recursive=True))
    assert len(few) == 2 + 2 * len(DEFECTS)
    for path in few:
        assert (tmp_path / "few" / path).read_bytes() == (tmp_path / "more" / path).read_bytes()
    first = Path("train/good/000.png")
    assert (tmp_path / "few" / first).read_bytes() != (tmp_path / "other" / first).read_bytes()
    train, calibration = (read_image(tmp_path / "few" / split / "good/000.png") for split in ("train", "calibration"))
    assert not np.array_equal(train, calibration)


def test_a_folder_that_holds_something_or_a_file_is_refused_and_kept(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    note = full / "note.txt"
    note.write_text("mine")
    for out in (full, note):
        with pytest.raises(TrainError, match="exists and is not an empty folder"):
            write_sample(out, train=1, calibration=0, test_good=0, per_defect=0, size_px=64)
    assert list(tmp_path.rglob("*")) == [full, note]
    assert note.read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_sample(tmp_path / "empty", train=1, calibration=0, test_good=0, per_defect=0, size_px=64)
    assert len(open_dataset(tmp_path / "empty").train) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_of_an_interrupted_run(tmp_path: Path, error: type[BaseException]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise error

    with pytest.raises(error):
        write_sample(tmp_path / "sample", train=3, size_px=64, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_filled_by_another_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "sample"

    def intrude(done: int, total: int) -> None:
        out.mkdir()
        (out / "theirs.txt").write_text("theirs")

    with pytest.raises(TrainError, match="could not be written"):
        write_sample(out, train=1, calibration=0, test_good=0, per_defect=0, size_px=64, progress=intrude)
    assert [path.name for path in tmp_path.rglob("*")] == ["sample", "theirs.txt"]


@pytest.mark.parametrize("name", ["train", "calibration", "test_good", "per_defect", "seed"])
def test_negative_numbers_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    numbers = {"train": 1, "calibration": 1, "test_good": 1, "per_defect": 1, "seed": 0, name: -1}
    with pytest.raises(TrainError, match="-1, expected 0 or more"):
        write_sample(tmp_path / "sample", **numbers, progress=None)
    assert list(tmp_path.iterdir()) == []


def test_a_small_size_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="32 pixels, expected 64 or more"):
        write_sample(tmp_path / "sample", size_px=32)
    assert list(tmp_path.iterdir()) == []
