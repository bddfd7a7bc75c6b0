"""Good patches among the bank rows of other images."""

from __future__ import annotations

import numpy as np
import pytest

from train import TrainError, others
from train.others import OtherImages


def test_by_hand() -> None:
    """One patch an image at 0, 1, 3 and 10 on a line: each finds the nearest other one."""
    line = np.array([[0.0], [1], [3], [10]], np.float32)
    seen: list[tuple[int, int]] = []
    (found,) = OtherImages(line, np.arange(4)).search(line, np.arange(4), (4,), lambda *at: seen.append(at))
    assert found.squared.tolist() == [1, 1, 4, 49]
    assert found.row.tolist() == [1, 0, 1, 2]
    assert seen[-1] == (4, 4)


def test_every_beginning_is_searched_as_a_bank_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "QUERY_BLOCK", 5)
    monkeypatch.setattr(others, "ROW_BLOCK", 7)
    rng = np.random.default_rng(0)
    rows, image_of_row = rng.normal(size=(60, 8)).astype(np.float32) + 100, rng.integers(0, 9, 60)
    patches, image = rng.normal(size=(33, 8)).astype(np.float32) + 100, rng.integers(0, 11, 33)  # two are in no bank
    bank = OtherImages(rows, image_of_row)
    sizes = (bank.smallest, 10, 31, 60)
    for size, found in zip(sizes, bank.search(patches, image, sizes), strict=True):
        squared = ((patches[:, None].astype(np.float64) - rows[None, :size]) ** 2).sum(axis=2)
        squared[image[:, None] == image_of_row[None, :size]] = np.inf
        assert found.row.tolist() == squared.argmin(axis=1).tolist()
        np.testing.assert_allclose(found.squared, squared.min(axis=1), rtol=1e-4)


def test_the_smallest_bank_has_rows_of_two_images() -> None:
    assert OtherImages(np.zeros((5, 2), np.float32), np.array([3, 3, 3, 1, 3])).smallest == 4


def test_the_first_patches_alone() -> None:
    rows = np.arange(6, dtype=np.float32)[:, None]
    (found,) = OtherImages(rows, np.arange(6)).search(rows, np.arange(6), (6,))
    assert found.first(2).row.tolist() == found.row[:2].tolist()
    assert found.first(2).squared.tolist() == found.squared[:2].tolist()


def test_rows_of_one_image_are_refused() -> None:
    with pytest.raises(TrainError, match=r"all 5 bank rows come from one image.*raise --coreset"):
        OtherImages(np.zeros((5, 2), np.float32), np.full(5, 7))
