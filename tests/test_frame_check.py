"""Pictures that are none: each fault by pictures whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from edge.frame_check import Fault, FrameCheck
from engines.images import Image
from tests.fakes import flat, textured


def fault(*pictures: Image, size: tuple[int, int] | None = None) -> Fault | None:
    """What is said of the last one."""
    check = FrameCheck(size, black_level=8, saturated_level=250)
    *before, last = pictures
    for picture in before:
        check.fault(picture)
    return check.fault(last)


def reason(found: Fault | None) -> str:
    assert found is not None
    return found.reason


def test_a_picture_with_content_is_none_of_these() -> None:
    assert fault(textured(1)) is None
    assert fault(textured(1), textured(2), textured(1)) is None  # what was seen before the last one may come again


def test_the_same_picture_again_is_frozen_and_one_other_value_is_not() -> None:
    assert fault(textured(1), textured(1)) == Fault("the same frame again, bit for bit: the camera is frozen", camera=True)
    other = textured(1)
    other[63, 63, 2] ^= 1
    assert fault(textured(1), other) is None


def test_a_frozen_camera_stays_frozen_until_it_moves() -> None:
    assert fault(textured(1), textured(1), textured(1)) is not None
    assert fault(textured(1), textured(1), textured(2)) is None


def test_another_size_than_the_first_is_told_with_both() -> None:
    found = fault(textured(1), textured(2, (48, 64)))
    assert found == Fault("frame of 64 x 48 pixels, expected 64 x 64: the camera is in another mode", camera=True)
    assert fault(textured(1), textured(2, (48, 64)), textured(3)) is None  # and it does not become what is expected


def test_a_size_that_is_configured_holds_for_the_first_picture_too() -> None:
    assert fault(textured(1, (48, 64)), size=(64, 48)) is None
    assert "64 x 48 pixels, expected 48 x 64" in reason(fault(textured(1, (48, 64)), size=(48, 64)))


@pytest.mark.parametrize(("level", "black"), [(0, True), (8, True), (9, False)])
def test_black_is_up_to_the_level(level: int, black: bool) -> None:
    found = fault(flat(level))
    assert (found is not None and found.reason.startswith("black: nearly all values are 8 or less")) is black


@pytest.mark.parametrize(("level", "saturated"), [(255, True), (250, True), (249, False)])
def test_saturated_is_from_the_level_on(level: int, saturated: bool) -> None:
    found = fault(flat(level))
    assert (found is not None and found.reason.startswith("saturated: nearly all values are 250 or more")) is saturated


def test_black_and_saturated_are_the_lights_fault_and_the_cameras_where_it_froze_too() -> None:
    for level in (0, 255):
        found, again = fault(flat(level)), fault(flat(level), flat(level))
        assert found is not None
        assert again is not None
        assert (found.camera, again.camera) == (False, True)
        assert found.reason == again.reason  # what a person can see comes first


def test_nearly_all_means_995_of_1000() -> None:
    side = 4 * 100  # each fourth row and column: 100 x 100 pixels are looked at
    for lit, black in ((50, True), (51, False)):
        picture = flat(0, (side, side))
        picture[0 : 4 * lit : 4, 0] = 128
        assert (fault(picture) is not None) is black


def test_one_colour_of_light_is_not_black() -> None:
    assert fault(flat((200, 0, 0))) is None


def test_levels_that_are_none_let_dark_and_bright_pictures_through() -> None:
    check = FrameCheck(None, None, None)
    assert check.fault(flat(0)) is None
    assert check.fault(flat(255)) is None
    assert np.array_equal(flat(255), flat(255))
    assert check.fault(flat(255)) is not None  # frozen, whatever the levels
