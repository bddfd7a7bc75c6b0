"""Figures of merit against numbers worked out by hand, and against scikit-learn on unquantised scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from train.metrics import (
    LEVELS,
    PixelTally,
    Region,
    Truth,
    best_f1,
    connected_regions,
    image_auroc,
    image_roc,
    level_edges,
    merge,
    quantise,
    shrink_mask,
)

GOOD, BAD = np.array([1.0, 2.0, 3.0]), np.array([2.5, 4.0])


def tally_of(levels: list[int], regions: list[list[int]], saturation: list[float] | None = None) -> PixelTally:
    """A tally of one image of one row; `regions` are pixel indices, drawn for overlap and for saturated overlap."""
    drawn = [np.array(region, np.int32) for region in regions]
    whole = tuple(Region(pixels, float(len(pixels))) for pixels in drawn)
    limits = [float(len(pixels)) for pixels in drawn] if saturation is None else saturation
    annotated = tuple(Region(pixels, limit) for pixels, limit in zip(drawn, limits, strict=True))
    tally = PixelTally()
    tally.add(np.array([levels], np.uint16), np.ones((1, len(levels)), bool), Truth(whole, annotated))
    return tally


def test_image_auroc_counts_pairs() -> None:
    # 4 beats all three, 2.5 beats two of three
    assert image_auroc(GOOD, BAD) == pytest.approx(5 / 6)


def test_image_auroc_gives_ties_half() -> None:
    assert image_auroc(np.array([1.0]), np.array([1.0])) == 0.5


def test_best_f1() -> None:
    # rejecting from 2.5 on: precision 2/3, recall 1; from 4 on: precision 1, recall 1/2, F1 2/3
    assert best_f1(GOOD, BAD) == pytest.approx(0.8)


def test_roc_runs_from_corner_to_corner() -> None:
    overkill, detected = image_roc(GOOD, BAD)
    assert (overkill[0], detected[0], overkill[-1], detected[-1]) == (0, 0, 1, 1)


def test_pixel_auroc_counts_pairs() -> None:
    # defects at 1 and 3, clean at 0 and 2: three of four pairs in order
    assert tally_of([0, 1, 2, 3], [[1, 3]]).auroc() == pytest.approx(0.75)


def test_pixel_auroc_pools_images() -> None:
    # apart each image is perfect; together the clean 5 beats the defect 4
    one, other = tally_of([0, 4], [[1]]), tally_of([5, 9], [[1]])
    assert one.auroc() == other.auroc() == 1.0
    assert merge([one, other]).auroc() == pytest.approx(0.75)


def test_pro_weighs_regions_equally() -> None:
    # ten clean pixels at 10..19; a region of one found whole, a region of two found half: (1 + 1/2) / 2, at every rate
    tally = tally_of([*range(10, 20), 50, 50, 1], [[10], [11, 12]])
    assert tally.aupro() == pytest.approx(0.75)
    assert tally.aupro(1.0) == pytest.approx(0.75)


def test_pro_is_interpolated_at_the_limit() -> None:
    # the region ties with one of two clean pixels: the curve runs straight from (0, 0) to (0.5, 1), 0.6 at 0.3
    assert tally_of([7, 7, 0], [[0]]).aupro() == pytest.approx(0.3 * 0.6 / 2 / 0.3)


def test_pro_ignores_what_comes_after_the_limit() -> None:
    # half of the clean pixels score above the region
    assert tally_of([7, 9, 0], [[0]]).aupro() == 0.0


def test_saturated_overlap_is_full_at_saturation() -> None:
    levels, region = [5, 5, 9, 9, 1, 1], [[2, 3, 4, 5]]
    assert tally_of(levels, region, [2.0]).auspro() == pytest.approx(1.0)
    assert tally_of(levels, region).auspro() == pytest.approx(0.5)
    assert tally_of(levels, region, [2.0]).aupro() == pytest.approx(0.5)


def test_saturation_may_fall_within_a_pixel() -> None:
    # one pixel found of the 1.5 wanted
    assert tally_of([5, 9, 1, 1], [[1, 2, 3]], [1.5]).auspro() == pytest.approx(1 / 1.5)


def test_undefined_figures_are_none() -> None:
    clean_only, defect_only = tally_of([1, 2], []), tally_of([1], [[0]])
    assert clean_only.auroc() is None and clean_only.aupro() is None and clean_only.auspro() is None
    assert defect_only.auroc() is None and defect_only.aupro() is None


def test_unjudged_pixels_count_nowhere() -> None:
    judged = np.array([[True, True, False]])
    tally = PixelTally()
    tally.add(np.array([[1, 5, 9]], np.uint16), judged, Truth((Region(np.array([1], np.int32), 1.0),)))
    assert tally.clean.sum() == 1 and tally.auroc() == 1.0


def test_merge_equals_one_tally() -> None:
    one, other = tally_of([1, 5, 3], [[1]]), tally_of([2, 2, 8], [[0, 2]])
    both = merge([one, other])
    assert both.components == 2
    np.testing.assert_array_equal(both.clean, one.clean + other.clean)
    np.testing.assert_array_equal(both.overlap, one.overlap + other.overlap)
    assert one.components == 1  # the parts stay as they were


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.lists(st.floats(-2e6, 2e6, width=32), max_size=30))
def test_levels_keep_order(patches: list[float], heat: list[float]) -> None:
    ordered = np.sort(np.array(heat, np.float32))
    edges = level_edges(np.array(patches, np.float32))
    assert edges.shape == (LEVELS - 1,)
    assert (np.diff(quantise(ordered, edges).astype(int)) >= 0).all()


@pytest.mark.parametrize("outlier", [3.0, 1e12])
def test_quantised_figures_match_exact_ones_whatever_the_range(outlier: float) -> None:
    rng = np.random.default_rng(0)
    heat = rng.normal(0, 1, (200, 200)).astype(np.float32)
    defect = np.zeros(heat.shape, bool)
    defect[50:80, 50:80] = True
    heat[defect] += 1
    heat[60, 60] = outlier
    tally = PixelTally()
    pixels = np.flatnonzero(defect).astype(np.int32)
    levels = quantise(heat, level_edges(heat))
    tally.add(levels, np.ones(heat.shape, bool), Truth((Region(pixels, float(len(pixels))),)))
    assert tally.auroc() == pytest.approx(roc_auc_score(defect.ravel(), heat.ravel()), abs=1e-5)
    # with one region and no limit, overlap against false positives is the ROC curve itself
    assert tally.aupro(1.0) == pytest.approx(tally.auroc(), abs=1e-5)


def test_level_edges_leave_ignored_patches_out() -> None:
    edges = level_edges(np.array([[np.nan, 1.0], [2.0, np.nan]], np.float32))
    assert np.isfinite(edges).all() and edges[0] >= 1 and edges[-1] <= 2


def test_mask_is_shrunk_with_its_image() -> None:
    mask = np.zeros((128, 64), bool)
    mask[32:64, 16:32] = True
    expected = np.zeros((64, 64), bool)
    expected[16:32, 16:32] = True
    np.testing.assert_array_equal(shrink_mask(mask, (64, 64)), expected)


def test_defects_that_would_vanish_keep_one_pixel_each() -> None:
    mask = np.zeros((640, 640), bool)
    mask[5, 5] = True  # a hundredth of the network pixel (0, 0)
    mask[337:341, 127:130] = True  # nine of its pixels lie in the network pixel (33, 12), three in (34, 12)
    assert np.argwhere(shrink_mask(mask, (64, 64))).tolist() == [[0, 0], [33, 12]]


def test_a_vanishing_speck_beside_a_large_defect_is_kept() -> None:
    mask = np.zeros((640, 640), bool)
    mask[100:200, 100:200] = True
    mask[500, 333] = True
    small = shrink_mask(mask, (64, 64))
    assert small[50, 33] and np.count_nonzero(small) == 101


def test_an_empty_mask_stays_empty() -> None:
    assert not shrink_mask(np.zeros((100, 100), bool), (64, 64)).any()


def test_a_small_mask_is_enlarged() -> None:
    mask = np.zeros((32, 32), bool)
    mask[8:16, 8:16] = True
    small = shrink_mask(mask, (64, 64))
    assert small[18:30, 18:30].all() and not small[:14].any() and not small[34:].any()


def test_regions_touch_at_corners() -> None:
    mask = np.zeros((5, 5), bool)
    mask[0, 0] = mask[1, 1] = True  # one region
    mask[4, 3:5] = True  # another
    regions = connected_regions(mask)
    assert [region.pixels.tolist() for region in regions] == [[0, 6], [23, 24]]
    assert [region.saturation for region in regions] == [2.0, 2.0]
