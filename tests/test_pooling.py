"""From patch scores to an image's score: every judged patch counts, and what is not a number is never lost."""

from __future__ import annotations

import numpy as np
import pytest

from engines import EngineError
from engines.ldknn import Floats
from engines.pooling import Windows, _starts

ALL = np.ones((32, 32), bool)


def spike(row: int, col: int, value: float = 9.0, shape: tuple[int, int] = (32, 32)) -> Floats:
    patches = np.zeros(shape, np.float32)
    patches[row, col] = value
    return patches


def pool(patches: Floats, judged: np.ndarray, pooling: str = "cover") -> float:
    return float(Windows(judged, pooling).pool(patches))


def test_there_are_121_windows_on_the_paper_s_map() -> None:
    assert _starts(32, "cover").tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 29]
    assert len(_starts(32, "paper")) == 10


def test_a_spike_anywhere_is_seen() -> None:
    assert {pool(spike(row, col), ALL) for row in range(32) for col in range(32)} == {1.0}


def test_the_paper_s_pooling_misses_the_last_two_rows_and_columns() -> None:
    for row in range(32):
        for col in range(32):
            assert pool(spike(row, col), ALL, "paper") == (0.0 if max(row, col) >= 30 else 1.0)


@pytest.mark.parametrize("pooling", ["cover", "paper"])
def test_a_map_of_thirds_is_pooled_alike(pooling: str) -> None:
    patches = np.random.default_rng(13).normal(size=(9, 12)).astype(np.float32)
    expected = max(patches[r : r + 3, c : c + 3].mean() for r in range(0, 9, 3) for c in range(0, 12, 3))
    assert pool(patches, np.ones((9, 12), bool), pooling) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 5), (3, 3), (4, 7)])
def test_small_maps_are_pooled_over_what_there_is(shape: tuple[int, int]) -> None:
    cells = min(3, shape[0]) * min(3, shape[1])
    for row in range(shape[0]):
        for col in range(shape[1]):
            assert pool(spike(row, col, shape=shape), np.ones(shape, bool)) == pytest.approx(9 / cells)


def test_a_score_may_be_negative() -> None:
    assert pool(np.full((32, 32), -2, np.float32), ALL) == -2


def test_patches_that_are_not_judged_are_left_out() -> None:
    judged = ALL.copy()
    judged[:3, :2] = False  # the first window keeps three judged patches
    patches = np.full((32, 32), -5, np.float32)
    patches[:3, :2] = 1e9
    patches[:3, 2] = (3, 6, 9)
    assert pool(patches, judged) == 6
    patches[:3, :2] = np.nan
    assert pool(patches, judged) == 6


def test_a_window_without_a_judged_patch_is_no_zero() -> None:
    judged = ALL.copy()
    judged[:6, :6] = False
    assert pool(np.full((32, 32), -2, np.float32), judged) == -2


@pytest.mark.parametrize("pooling", ["cover", "paper"])
@pytest.mark.parametrize("at", [(0, 0), (15, 15), (31, 31), (30, 2)])
def test_nan_at_a_judged_patch_is_never_lost(pooling: str, at: tuple[int, int]) -> None:
    assert np.isnan(pool(spike(*at, value=np.nan), ALL, pooling))


def test_infinity_at_a_judged_patch_rejects() -> None:
    assert pool(spike(31, 31, value=np.inf), ALL) == np.inf


def test_pooling_that_can_judge_nothing_is_refused() -> None:
    judged = np.zeros((32, 32), bool)
    judged[31] = True
    assert pool(spike(31, 31, 6.0), judged) == 2.0
    with pytest.raises(EngineError, match="none of the 32 judged patches"):
        pool(spike(31, 31), judged, "paper")
    with pytest.raises(EngineError, match="pooling 'mean'"):
        pool(spike(31, 31), judged, "mean")


@pytest.mark.parametrize("pooling", ["cover", "paper"])
def test_several_maps_are_pooled_as_each_by_itself(pooling: str) -> None:
    rng = np.random.default_rng(3)
    judged = rng.random((7, 8)) < 0.5
    maps = rng.normal(size=(2, 3, 7, 8)).astype(np.float32)
    maps[:, :, ~judged] = np.nan
    row, column = np.argwhere(judged)[0]
    maps[1, 2, row, column] = np.nan
    windows = Windows(judged, pooling)
    each = [[windows.pool(maps[i, j]) for j in range(3)] for i in range(2)]
    assert np.array_equal(windows.pool(maps), each, equal_nan=True)
    assert np.isnan(each).sum() == 1


def test_the_patches_below_windows_are_the_judged_ones() -> None:
    judged = np.ones((6, 6), bool)
    judged[0, 1] = False
    windows = Windows(judged)
    assert windows.patches(np.array([0])).tolist() == [0, 2, 6, 7, 8, 12, 13, 14]
    assert windows.patches(np.array([1, 0])).tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]
    patches = np.arange(36, dtype=np.float32).reshape(6, 6)
    assert windows.means(patches)[0] == pytest.approx(np.mean([0, 2, 6, 7, 8, 12, 13, 14]))
