"""What makes a picture odd among others: by hand where numbers are small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.looks import MIN_IMAGES, Looks, look, oddities

USUAL = Looks(size=(100, 200), focus=-1.0, level=4.6, saturated=0.01, black=0.02)
SET = [USUAL] * MIN_IMAGES


def test_shares_and_level_by_hand() -> None:
    image = np.full((32, 40, 3), 100, np.uint8)
    image[:8] = 5  # a quarter is black,
    image[8:16, :, 0] = 250  # and another quarter has a saturated channel
    looks = look(image)
    assert looks.size == (32, 40)
    assert looks.black == 0.25
    assert looks.saturated == 0.25
    grey = (8 * 5 + 8 * round(0.299 * 250 + 0.701 * 100) + 16 * 100) / 32
    assert looks.level == pytest.approx(np.log(grey + 1), abs=1e-3)


def test_a_picture_like_the_others_is_not_odd() -> None:
    assert oddities(USUAL, SET) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"focus": -1.31}, "blurred"),
        ({"level": 4.6 + 0.23}, "over-exposed"),
        ({"level": 4.6 - 0.23}, "under-exposed"),
        ({"saturated": 0.12}, "over-exposed"),
        ({"black": 0.13}, "under-exposed"),
        ({"size": (200, 100)}, "wrong size"),
    ],
)
def test_each_oddity_is_named(changed: dict, problem: str) -> None:
    (found,) = oddities(replace(USUAL, **changed), SET)
    assert found.problem == problem


@pytest.mark.parametrize("changed", [{"focus": -1.29}, {"focus": 0.0}, {"level": 4.8}, {"saturated": 0.1}, {"black": 0.11}])
def test_what_a_person_would_not_notice_is_not_odd_nor_is_a_sharper_picture(changed: dict) -> None:
    assert oddities(replace(USUAL, **changed), SET) == []


def test_few_pictures_have_no_usual_but_a_size() -> None:
    blurred = replace(USUAL, focus=-9.0, level=0.0)
    assert oddities(blurred, SET[:-1]) == []
    assert [found.problem for found in oddities(replace(blurred, size=(1, 1)), SET[:1])] == ["wrong size"]
    assert oddities(blurred, []) == []


def test_sizes_that_vary_by_nature_are_not_odd() -> None:
    sizes = [replace(USUAL, size=(100 + index, 200)) for index in range(10)]
    assert oddities(sizes[0], sizes) == []
