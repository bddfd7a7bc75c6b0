"""The step across an outline, on pictures whose step is known."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.contrast import LEAST, outline_step
from calibration.probes import measured_contrast
from engines.preprocess import Preprocessor, Roi
from tests.fakes import flat


def square(top: int, left: int, side: int = 20, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize(("top", "left"), [(20, 20), (0, 30), (44, 44)])
def test_a_flat_defect_on_a_flat_part_steps_by_its_difference_at_a_border_too(top: int, left: int) -> None:
    mask, image = square(top, left), flat(100)
    image[mask] = 140
    assert outline_step(image, mask) == pytest.approx(40, abs=0.01)


def test_pieces_count_whether_they_are_darker_or_brighter() -> None:
    one, other, image = square(6, 6, 16), square(40, 40, 16), flat(100)
    image[one], image[other] = 130, 70
    assert outline_step(image, one | other) == pytest.approx(30, abs=0.01)


def test_a_shading_that_runs_through_has_hardly_a_step() -> None:
    image = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * np.uint8(2), 64, axis=0).repeat(3, axis=2)
    mask = square(12, 12, 40)
    inside = image[mask].astype(float)
    assert inside.std() > 20
    assert outline_step(image, mask) < 6


def test_a_texture_within_adds_little() -> None:
    mask, image = square(12, 12, 40), flat(100)
    image[mask] = np.where(np.random.default_rng(0).random((mask.sum(), 1)) < 0.5, 60, 140)
    assert outline_step(image, mask) < 10  # each pixel differs by 40


@pytest.mark.parametrize("mask", [np.zeros((64, 64), bool), np.ones((64, 64), bool)])
def test_without_an_outline_there_is_no_step(mask: np.ndarray) -> None:
    assert outline_step(flat(100), mask) == LEAST
    assert outline_step(flat(100), square(20, 20)) == LEAST


def test_it_is_measured_as_the_network_sees_it() -> None:
    # a pixel of the network is 5 x 8 source pixels: the defect covers 12 of the 40 of one, 24 of its 80 grey levels, and 4
    # of the next one's, which counts as outside and raises that a little
    mask, frame = square(72, 40, 4, (160, 256)), flat(100, (160, 256))
    frame[mask] = 180
    step = measured_contrast(Preprocessor((32, 32)), frame, mask)
    assert 23 < step < 24
    cropped = Preprocessor((32, 32), roi=Roi(32, 64, 32, 32), frame_size=(160, 256))
    assert measured_contrast(cropped, frame, mask) == pytest.approx(80, abs=0.5)
