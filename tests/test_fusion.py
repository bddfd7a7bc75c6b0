"""Blending and its measure, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.fusion import blend, fuse, fuse_at, push


def test_blending_is_weighted_and_leaves_the_outside_alone() -> None:
    under = np.array([[100, 100, 100, 7]], dtype=np.uint8)
    fill = np.array([[200, 200, 0, 255]], dtype=np.uint8)
    weight = np.array([[255, 102, 255, 0]], dtype=np.uint8)
    np.testing.assert_allclose(blend(under, fill, weight, 1.0), [[100, 40, -100, 0]], rtol=1e-6)
    np.testing.assert_allclose(blend(under, fill, weight, 0.5), [[50, 20, -50, 0]], rtol=1e-6)
    colour = blend(np.dstack([under] * 3), np.dstack([fill, under, fill]), weight, 1.0)
    np.testing.assert_allclose(colour[..., 0], [[100, 40, -100, 0]], rtol=1e-6)
    assert not colour[..., 1].any()


def test_what_changed_and_by_how_much() -> None:
    under = np.full((1, 4), 100, dtype=np.uint8)
    fused = fuse(under, np.array([[4.4, 5.0, -20.2, 200.0]], dtype=np.float32), 5)
    assert fused.after.tolist() == [[104, 105, 80, 255]]
    assert fused.changed.tolist() == [[0, 255, 255, 255]]
    assert fused.area_px == 3 and fused.contrast == pytest.approx((5 + 20 + 155) / 3)


def test_one_channel_is_enough_and_contrast_is_the_mean_over_all() -> None:
    under = np.full((1, 2, 3), 100, dtype=np.uint8)
    change = np.array([[[0, 0, 12], [4, 4, 4]]], dtype=np.float32)
    fused = fuse(under, change, 5)
    assert fused.changed.tolist() == [[255, 0]] and fused.area_px == 1 and fused.contrast == 4


def test_nothing_changed() -> None:
    fused = fuse(np.zeros((3, 3), dtype=np.uint8), np.zeros((3, 3), dtype=np.float32), 5)
    assert fused.area_px == 0 and fused.contrast == 0
    again = fuse_at(np.zeros((3, 3), dtype=np.uint8), np.zeros((3, 3), dtype=np.float32), 5, 30.0)
    assert again.area_px == 0


@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.5, 5.0, 60.0]), contrast=st.floats(8, 80))
def test_a_contrast_is_reached_from_any_change(seed: int, spread: float, contrast: float) -> None:
    rng = np.random.default_rng(seed)
    under = rng.integers(90, 166, (20, 20, 3), dtype=np.uint8)
    change = (spread * rng.uniform(0.5, 1.5, (20, 20, 1)) * rng.choice([-1, 1])).repeat(3, axis=2).astype(np.float32)
    assert fuse_at(under, change, 5, contrast).contrast == pytest.approx(contrast, rel=0.06)


def test_a_push_goes_where_there_is_room() -> None:
    weight = np.array([[0, 1, 255]], dtype=np.uint8)
    assert push(np.array([[255, 0, 90]], dtype=np.uint8), weight, 40).tolist() == [[0, 40, 40]]
    assert push(np.array([[0, 255, 128]], dtype=np.uint8), weight, 40).tolist() == [[0, -40, -40]]
    assert push(np.full((1, 3, 3), 200, dtype=np.uint8), weight, 9)[0, 2].tolist() == [-9, -9, -9]
