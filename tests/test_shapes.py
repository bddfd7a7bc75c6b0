"""Shapes of synthetic defects, against areas and masks worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.shapes import (
    RECTANGLE,
    Clump,
    Outline,
    PerlinMask,
    closed_curve,
    draw_gradients,
    draw_outline,
    perlin,
    render_within,
    soften,
)


def test_a_rectangle_fills_its_frame() -> None:
    weight = RECTANGLE.render(7, 4)
    assert weight.shape == (4, 7) and weight.dtype == np.uint8 and (weight == 255).all()


def test_a_turned_frame_keeps_its_area_and_fills_the_box_around_it() -> None:
    weight = Outline(RECTANGLE.points, 30.0).render(40, 20)
    # 40 cos 30 + 20 sin 30 = 44.6 wide, 40 sin 30 + 20 cos 30 = 37.3 high, 800 pixels
    assert weight.shape == pytest.approx((37.3, 44.6), abs=1.5)
    assert np.count_nonzero(weight) == pytest.approx(800, rel=0.05)
    assert weight.any(axis=0).all() and weight.any(axis=1).all()
    # positive angles turn clockwise on the screen, as pixels' y runs down: the right corner lies below the middle
    right = np.flatnonzero(weight[:, -1]).mean()
    assert right > weight.shape[0] / 2


@given(seed=st.integers(0, 10_000), count=st.integers(3, 9), tension=st.sampled_from([0.0, 0.2, 0.3, 0.4]))
def test_outlines_span_the_unit_square_and_fill_some_of_it(seed: int, count: int, tension: float) -> None:
    outline = draw_outline(np.random.default_rng(seed), count, tension, 0.25)
    assert outline.points.min(axis=0) == pytest.approx([0, 0]) and outline.points.max(axis=0) == pytest.approx([1, 1])
    weight = outline.render(80, 50)
    assert weight.shape == (50, 80) and set(np.unique(weight)) <= {0, 255}
    assert 100 < np.count_nonzero(weight) <= 4000
    assert weight.any(axis=0).all() and weight.any(axis=1).all()


def test_without_tension_or_with_straight_segments_alone_the_outline_is_a_polygon() -> None:
    for tension, straight in ((0.0, 0.0), (0.4, 1.0)):
        points = draw_outline(np.random.default_rng(1), 5, tension, straight).points
        steps = np.diff(np.vstack([points, points[:1]]), axis=0)
        headings = np.arctan2(steps[:, 1], steps[:, 0])
        turns = np.abs(np.angle(np.exp(1j * np.diff(np.append(headings, headings[0])))))
        assert np.count_nonzero(turns > 1e-6) == 5
    curved = draw_outline(np.random.default_rng(1), 5, 0.4, 0.0).points
    turns = np.abs(np.diff(np.unwrap(np.arctan2(*np.diff(curved, axis=0).T[::-1]))))
    assert np.count_nonzero(turns > 1e-3) > 40


def test_a_curve_bulges_between_its_points_as_worked_out_by_hand() -> None:
    square = np.array([(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)])
    curve = closed_curve(square, 0.5, np.array([False, True, False, False]))
    np.testing.assert_allclose(curve[::12], square)
    # midpoints (0, 1) and (1, 0) are split at (0.5, 0.5): handles (0.25, -0.25) and (1.75, -0.25) for the first segment
    np.testing.assert_allclose(curve[6], (1.0, -1.5 / 8))
    np.testing.assert_allclose(curve[18], (2.0, 1.0))  # straight
    np.testing.assert_allclose(curve[42], (-1.5 / 8, 1.0))
    # unequal edges of 1 and 3: the line from (0.5, 0) to (1, 1.5) is split a quarter of the way
    corner = closed_curve(np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 3.0)]), 1.0, np.array([True, False, True]))
    leave = np.array([1.0, 0.0]) + 0.75 * np.array([0.5, 1.5])
    near = (corner[13] - corner[12]) * 12 / 3
    assert near[0] > 0 and near[1] > 0
    assert math.atan2(near[1], near[0]) == pytest.approx(math.atan2(leave[1], leave[0] - 1), abs=0.2)


def test_a_clump_is_where_the_grains_are_above_the_level() -> None:
    grains = np.array([[0, 0], [200, 200]], dtype=np.uint8)
    weight = Clump(RECTANGLE, grains, 100).render(20, 20)
    assert not weight[:8].any() and weight[12:].all()
    assert Clump(RECTANGLE, grains, 250).render(20, 20).all()  # no grain: the outline


def test_perlin_noise_is_0_on_the_lattice_and_follows_its_gradients() -> None:
    gradients = draw_gradients(np.random.default_rng(0), 4, 3)
    assert gradients.shape == (2, 4, 5)
    np.testing.assert_allclose(np.hypot(*gradients), 1, rtol=1e-6)
    noise = perlin(gradients, 400, 300)  # cells of 100 pixels
    assert noise.shape == (300, 400) and np.abs(noise).max() <= 1
    assert abs(noise[100, 100]) < 0.02  # half a pixel from a corner, where the noise is 0
    # straight right from a corner at which the gradient points right, the noise rises by sqrt(2) a cell
    right = np.zeros((2, 2, 2), dtype=np.float32)
    right[0] = 1
    ramp = perlin(right, 100, 100)
    assert ramp[50, 2] == pytest.approx(math.sqrt(2) * 0.025, rel=0.02)
    assert ramp[50, 97] == pytest.approx(-math.sqrt(2) * 0.025, rel=0.02)


def test_a_perlin_mask_is_cut_to_its_bounding_box() -> None:
    weight = PerlinMask(draw_gradients(np.random.default_rng(3), 2, 2), 20.0, 0.3).render(90, 60)
    assert weight.shape[0] <= 60 and weight.shape[1] <= 90
    for edge in (weight[0], weight[-1], weight[:, 0], weight[:, -1]):
        assert edge.any()
    nothing = PerlinMask(draw_gradients(np.random.default_rng(3), 2, 2), 20.0, 2.0).render(90, 60)
    assert nothing.shape == (1, 1) and not nothing.any()


def test_soft_edges_stay_within_the_shape() -> None:
    weight = np.zeros((20, 20), dtype=np.uint8)
    weight[4:16, 0:16] = 255
    soft = soften(weight, 5)
    assert not soft[weight == 0].any()
    assert soft[9, 8] == 255 and 0 < soft[9, 0] < 60 and 0 < soft[9, 15] < 60
    assert (np.diff(soft[9, :8].astype(int)) >= 0).all()


def test_a_shape_too_thin_for_a_soft_edge_keeps_its_hard_one() -> None:
    line = np.full((2, 30), 255, dtype=np.uint8)
    np.testing.assert_array_equal(soften(line, 3), line)


@given(
    seed=st.integers(0, 1000),
    size_px=st.floats(4, 60),
    frame=st.tuples(st.floats(1, 300), st.floats(1, 300)),
)
def test_a_shape_comes_in_the_size_wanted_and_fits(seed: int, size_px: float, frame: tuple[float, float]) -> None:
    outline = draw_outline(np.random.default_rng(seed), 5, 0.3, 0.25, angle=30.0)
    weight = render_within(outline, frame, (180, 260), 1, size_px)
    assert weight.shape[0] <= 180 and weight.shape[1] <= 260
    # a frame 60 times longer than wide is a line, whose area comes in whole rows: makers draw none above 3.3
    if max(frame) / min(frame) < 3.3:
        assert math.sqrt(np.count_nonzero(weight)) == pytest.approx(size_px, rel=0.1)


def test_a_shape_larger_than_the_image_is_shrunk_as_a_whole() -> None:
    weight = render_within(RECTANGLE, (400, 100), (50, 200), 1, None)
    assert weight.shape == (50, 200)
    assert render_within(RECTANGLE, (20, 10), (50, 200), 1, None).shape == (10, 20)
