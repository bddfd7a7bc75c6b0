"""Statistics of a picture: by hand, and what each is blind to."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import CalibrationError
from calibration.appearance import STATISTICS, measure, statistics_of
from engines.images import Image
from engines.preprocess import Preprocessor
from tests.fakes import flat


def named(image: Image) -> dict[str, float]:
    return dict(zip(STATISTICS, statistics_of(image).tolist(), strict=True))


def scene(seed: int = 0) -> Image:
    """Soft, coloured shapes with fine grain, 64 x 64, 60 to 180 grey levels."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(70, 160, (8, 8, 3), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 6, coarse.shape), 50, 190).astype(np.uint8)


def test_brightness_and_colour_by_hand() -> None:
    # grey as OpenCV's: 0.299 * 100 + 0.587 * 60 + 0.114 * 40 = 69.68, rounded to 70; red 100 of 200, blue 40 of 200
    found = named(flat((100, 60, 40)))
    assert (found["brightness"], found["red"], found["blue"]) == (70, 50, 20)


def test_position_is_where_the_edges_are_by_hand() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:32, 40:48] = 200  # edges around x 44 of 64, y 24 of 64
    found = named(image)
    assert found["across"] == pytest.approx(100 * 44 / 64, abs=1e-6)
    assert found["down"] == pytest.approx(100 * 24 / 64, abs=1e-6)


def test_sharpness_of_a_checkerboard_by_hand() -> None:
    # cells of 2 pixels, 0 and 100. OpenCV's Laplacian is the sum of the four neighbours less four times the pixel, and
    # beyond the border it mirrors at the outermost pixel: inside, two of four differ, 200 everywhere; on the border a pixel's
    # mirrored neighbour is the one further in, of its own cell, so one differs, 100; at corners none, 0.
    image = np.kron(np.indices((16, 16)).sum(axis=0) % 2, np.ones((2, 2))).astype(np.uint8) * np.uint8(100)
    fine = (200 * 30 * 30 + 100 * 4 * 30) / 32**2
    # at half the size cells are pixels: all four differ, and mirroring keeps that: 400
    assert named(np.dstack([image] * 3))["sharpness"] == pytest.approx(100 * fine / 400)


@given(st.floats(0.6, 1.3))
def test_light_moves_brightness_alone(factor: float) -> None:
    before, after = named(scene()), named(np.rint(scene() * factor).clip(0, 255).astype(np.uint8))
    assert after["brightness"] == pytest.approx(before["brightness"] * factor, abs=1)
    assert after["sharpness"] == pytest.approx(before["sharpness"], rel=0.03)
    for name in ("red", "blue", "across", "down"):
        assert after[name] == pytest.approx(before[name], abs=0.3)


@given(st.floats(0.5, 3.0))
def test_blur_moves_sharpness_alone(sigma_px: float) -> None:
    before, after = named(scene()), named(np.asarray(cv2.GaussianBlur(scene(), (0, 0), sigma_px), np.uint8))
    assert after["sharpness"] < 0.9 * before["sharpness"]
    for name in ("brightness", "red", "blue"):
        assert after[name] == pytest.approx(before[name], abs=1)


@pytest.mark.parametrize(("image", "broken"), [(flat(0), set(STATISTICS[1:])), (flat(90), {"sharpness", "across", "down"})])
def test_without_light_or_structure_there_is_no_number(image: Image, broken: set[str]) -> None:
    assert {name for name, value in named(image).items() if np.isnan(value)} == broken


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((1, 8, 3), np.uint8)])
def test_other_arrays_are_refused(image: Image) -> None:
    with pytest.raises(CalibrationError, match="expected uint8"):
        statistics_of(image)


def test_only_what_is_judged_is_measured() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    preprocessor = Preprocessor((64, 64), mask=mask, frame_size=(64, 64))
    changed = scene()
    changed[:32] = 255
    assert measure(preprocessor, changed) == pytest.approx(measure(preprocessor, scene()))
    assert measure(Preprocessor((64, 64)), changed) != pytest.approx(measure(Preprocessor((64, 64)), scene()))
