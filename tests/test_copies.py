"""Near copies one after the other, as a recorder asks, and all at once, as an audit does."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from calibration.copies import Gallery
from calibration.twins import NEAR_COPIES, find_twins, thumbnail
from engines.ldknn import Floats
from tests.test_audit import part


def noisy(image: npt.NDArray[np.uint8], seed: int) -> Floats:
    """The same scene once more, with a camera's noise."""
    grain = np.random.default_rng(seed).normal(0, 2, image.shape)
    return thumb(np.clip(image + grain, 0, 255).astype(np.uint8))


def thumb(image: npt.NDArray[np.uint8]) -> Floats:
    return thumbnail(np.ascontiguousarray(image[:, :, 0]))


def gallery(count: int) -> Gallery:
    kept = Gallery()
    for seed in range(count):
        assert kept.near_copy(thumb(part(seed))) is None
        kept.add(thumb(part(seed)), f"part {seed}")
    return kept


def test_another_part_in_the_same_pose_is_no_copy_and_the_same_scene_again_is() -> None:
    kept = gallery(12)
    for seed in (0, 5, 11):
        name, alike = kept.near_copy(noisy(part(seed), seed)) or ("", 0.0)
        assert name == f"part {seed}"
        assert alike > 0.99
    assert kept.near_copy(thumb(part(40))) is None


def test_a_shifted_copy_is_found() -> None:
    move = np.array([[1, 0, 4], [0, 1, -3]], np.float32)
    shifted = cv2.warpAffine(part(3), move, part(3).shape[:2], borderMode=cv2.BORDER_REPLICATE)
    name, _ = gallery(12).near_copy(thumb(np.asarray(shifted, dtype=np.uint8))) or ("", 0.0)
    assert name == "part 3"


def test_one_still_scene_is_kept_once_from_the_first_picture_on() -> None:
    kept = gallery(1)
    assert all(kept.near_copy(noisy(part(0), seed)) is not None for seed in range(5))


def test_nothing_is_a_copy_in_an_empty_gallery_and_flat_pictures_are_never() -> None:
    kept = Gallery()
    level = thumbnail(np.full((64, 64), 100, np.uint8))
    assert kept.near_copy(thumb(part(0))) is None
    kept.add(level, "flat")
    assert kept.near_copy(level) is None


def test_one_after_the_other_and_all_at_once_agree() -> None:
    thumbs = [thumb(part(seed)) for seed in range(80)]  # past the gallery's first growth
    copies = [noisy(part(seed), seed) for seed in (2, 70)]
    twins = find_twins([*thumbs, *copies], NEAR_COPIES)
    assert [(twin.later, twin.earlier) for twin in twins.pairs] == [(80, 2), (81, 70)]
    kept = Gallery()
    for index, one in enumerate(thumbs):
        kept.add(one, str(index))
    assert [(kept.near_copy(one) or ("", 0))[0] for one in copies] == ["2", "70"]
