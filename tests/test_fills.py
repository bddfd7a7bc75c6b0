"""Fills of synthetic defects, against colours worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.fills import Jitter, cut_turned, is_grey, jitter, noise, tone_table, with_planes

NONE = Jitter(0.0, 0.0, 0.0, 0.0)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)


def test_an_image_is_grey_only_if_every_pixel_is() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert is_grey(grey) and is_grey(grey[..., 0])
    for channel in range(3):
        spot = grey.copy()
        spot[5, 7, channel] ^= 1
        assert not is_grey(spot)


def test_planes() -> None:
    image = np.array([[[100, 200, 50]]], dtype=np.uint8)
    # 0.299 * 100 + 0.587 * 200 + 0.114 * 50 = 153
    assert with_planes(image, 1, grey=False).tolist() == [[153]]
    assert with_planes(image, 3, grey=True).tolist() == [[[153, 153, 153]]]
    assert with_planes(image, 3, grey=False) is image
    assert with_planes(np.array([[7]], dtype=np.uint8), 3, grey=True).tolist() == [[[7, 7, 7]]]


def test_a_crop_turned_by_nothing_is_the_crop_and_by_90_degrees_its_rotation() -> None:
    image = picture()
    np.testing.assert_array_equal(cut_turned(image, (5, 4), (5, 3), 0.0), image[3:6, 3:8])
    turned = cut_turned(image, (5, 4), (3, 5), 90.0)
    np.testing.assert_array_equal(turned, np.rot90(image[3:6, 3:8], -1))  # clockwise, as shapes turn


def test_no_jitter_leaves_an_image_alone() -> None:
    image = picture()
    np.testing.assert_array_equal(jitter(image, NONE, grey=False), image)
    np.testing.assert_array_equal(jitter(image[..., 0].copy(), NONE, grey=True), image[..., 0])


def test_brightness_scales_and_contrast_spreads_around_the_mean() -> None:
    image = np.array([[40, 80], [120, 160]], dtype=np.uint8)
    np.testing.assert_array_equal(jitter(image, Jitter(0.1, 0, 0, 0), grey=True), [[44, 88], [132, 176]])
    np.testing.assert_array_equal(jitter(image, Jitter(0, 0.1, 0, 0), grey=True), [[34, 78], [122, 166]])
    # brightness first: 44, 88, 132, 176 around 110
    np.testing.assert_array_equal(jitter(image, Jitter(0.1, -0.5, 0, 0), grey=True), [[77, 99], [121, 143]])
    colour = np.repeat(image[..., None], 3, axis=2)
    np.testing.assert_allclose(jitter(colour, Jitter(0.1, -0.5, 0, 0), grey=False)[..., 1], [[77, 99], [121, 143]], atol=1)


def test_saturation_moves_away_from_luma_and_hue_turns_around_grey() -> None:
    image = np.array([[[100, 200, 50]]], dtype=np.uint8)  # luma 153
    np.testing.assert_allclose(jitter(image, Jitter(0, 0, -1.0, 0), grey=False)[0, 0], [153, 153, 153], atol=1)
    np.testing.assert_allclose(jitter(image, Jitter(0, 0, 0.1, 0), grey=False)[0, 0], [95, 205, 40], atol=1)
    # a third of a turn takes red's part to green, green's to blue, blue's to red
    np.testing.assert_allclose(jitter(image, Jitter(0, 0, 0, 1 / 3), grey=False)[0, 0], [50, 100, 200], atol=1)


@given(st.tuples(*[st.floats(-0.1, 0.1)] * 4), st.integers(0, 100))
def test_grey_stays_exactly_grey(changes: tuple[float, float, float, float], seed: int) -> None:
    image = np.repeat(picture(seed)[..., :1], 3, axis=2)
    shifted = jitter(image, Jitter(*changes), grey=True)
    assert (shifted == shifted[..., :1]).all()
    np.testing.assert_array_equal(shifted[..., 0], jitter(image[..., 0].copy(), Jitter(*changes), grey=True))


@pytest.mark.parametrize("planes", [1, 3])
def test_noise_is_uniform_in_its_range_and_has_cells_of_its_size(planes: int) -> None:
    fine = noise(np.random.default_rng(0), (60, 50), planes, mean=100, half_range=45, cell=(1.0, 1.0), grey=planes == 1).astype(
        int
    )
    assert fine.shape == ((50, 60) if planes == 1 else (50, 60, 3))
    assert fine.min() == 55 and fine.max() == 145
    assert fine.mean() == pytest.approx(100, abs=1.5) and fine.std() == pytest.approx(91 / 12**0.5, rel=0.04)
    wide = noise(np.random.default_rng(0), (64, 64), 1, mean=100, half_range=45, cell=(8.0, 2.0), grey=True).astype(int)
    assert wide.min() >= 55 and wide.max() <= 145
    # neighbours along a grain are alike, across it they are not
    assert np.abs(np.diff(wide, axis=0)).mean() > 2.5 * np.abs(np.diff(wide, axis=1)).mean()


def test_noise_without_range_is_one_level() -> None:
    assert set(np.unique(noise(np.random.default_rng(0), (5, 6), 3, mean=70, half_range=0, cell=(9.0, 9.0), grey=False))) == {
        70
    }


def test_noise_is_drawn_once_for_grey_and_once_a_channel_for_colour() -> None:
    grey = noise(np.random.default_rng(0), (30, 30), 3, mean=100, half_range=40, cell=(1.0, 1.0), grey=True)
    assert (grey == grey[..., :1]).all()
    colour = noise(np.random.default_rng(0), (30, 30), 3, mean=100, half_range=40, cell=(1.0, 1.0), grey=False).astype(float)
    assert abs(np.corrcoef(colour[..., 0].ravel(), colour[..., 1].ravel())[0, 1]) < 0.15


def test_tone_tables_are_of_8_bits_and_differ() -> None:
    tables = {tone_table(np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert len(tables) == 20
    assert all(len(table) == 256 for table in tables)
