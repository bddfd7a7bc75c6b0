"""The density that is measured on good patches."""

from __future__ import annotations

import numpy as np
import pytest

from train import measured
from train.measured import MeasuredDensity


def by_hand(count: int, total: float, squares: float, alike: tuple[float, float], weight: float = 100) -> float:
    """mean + deviation of what one row has, shrunk towards `alike`, the mean and the mean square of rows like it."""
    mean, square = ((own + weight * like) / (count + weight) for own, like in ((total, alike[0]), (squares, alike[1])))
    return float(mean + np.sqrt(square - mean**2))


def test_by_hand() -> None:
    """Three rows in ever thinner places; six patches of two images. The regression is the rows' own means: they ascend."""
    published = np.array([1, 2, 3], np.float32)
    distances, row = np.array([1, 2, 4, 3, 5, 9], np.float32), np.array([0, 0, 1, 0, 1, 2])
    got = MeasuredDensity(published, distances, row, images=2).density()
    expected = [by_hand(3, 6, 14, (2, 14 / 3)), by_hand(2, 9, 41, (4.5, 20.5)), by_hand(1, 9, 81, (9, 81))]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got.dtype == np.float32


def test_an_image_does_not_speak_for_the_rows_that_judge_it() -> None:
    published = np.array([1, 2, 3], np.float32)
    distances, row = np.array([1, 2, 4, 3, 5, 9], np.float32), np.array([0, 0, 1, 0, 1, 2])
    got = MeasuredDensity(published, distances, row, images=2).density(without=1)
    expected = [by_hand(2, 3, 5, (2, 14 / 3)), by_hand(1, 4, 16, (4.5, 20.5)), by_hand(0, 0, 0, (9, 81))]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_row_that_no_patch_chose_is_given_what_rows_like_it_have() -> None:
    published = np.array([1, 5, 2], np.float32)
    distances, row = np.array([2, 2, 7, 7], np.float32), np.array([0, 0, 1, 1])
    low, middle, high = MeasuredDensity(published, distances, row, images=2).density()[[0, 2, 1]]
    assert low == 2
    assert high == 7
    assert low < middle < high


def test_where_the_published_density_says_nothing_all_rows_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_WEIGHT", 1e12)
    distances, row = np.array([1, 3, 5, 7], np.float32), np.array([0, 0, 1, 2])
    got = MeasuredDensity(np.ones(3, np.float32), distances, row, images=2).density()
    np.testing.assert_allclose(got, np.full(3, 4 + np.sqrt(5)), rtol=1e-5)


def test_many_patches_outweigh_rows_that_look_alike() -> None:
    rng = np.random.default_rng(0)
    distances = np.concatenate([rng.normal(5, 0.1, 20_000), np.full(100, 1.0)]).astype(np.float32)
    row = np.concatenate([np.zeros(20_000, int), np.ones(100, int)])
    got = MeasuredDensity(np.array([1, 1], np.float32), distances, row, images=2).density()
    assert got[0] == pytest.approx(5.1, abs=0.05)
    # as many patches as the others weigh: half at 1 and half about 5, 2 either side of 3
    assert got[1] == pytest.approx(3 + 2, abs=0.05)
