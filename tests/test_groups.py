"""Which pictures are of the same part, by folder and by what they look like."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from calibration.groups import by_folder, by_likeness
from calibration.twins import NEAR_COPIES, SAME_PART, Nearness, find_twins, thumbnail
from tests.fakes import textured


def thumbs(*images: np.ndarray) -> list[np.ndarray]:
    return [thumbnail(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)) for image in images]


def test_a_folder_is_a_part_and_a_file_beside_folders_is_one() -> None:
    root = Path("/set")
    paths = [root / "1.png", root / "a" / "1.png", root / "a" / "2.png", root / "b" / "x" / "1.png"]
    assert by_folder(paths, root) == [None, "a", "a", "b/x"]


def test_a_chain_of_frames_is_one_part_and_strangers_stay_alone() -> None:
    parts = [textured(seed) for seed in range(12)]
    frames = [np.clip(parts[2].astype(np.int16) + step, 0, 255).astype(np.uint8) for step in (3, 6)]
    names = [str(number) for number in range(14)]
    groups = by_likeness(names, thumbs(*parts, *frames))
    assert [place for place, group in enumerate(groups) if group == "2"] == [2, 12, 13]
    assert [group for place, group in enumerate(groups) if place not in (2, 12, 13)] == [None] * 11


def test_another_light_is_the_same_part_but_no_near_copy() -> None:
    parts = [textured(seed) for seed in range(12)]
    light = np.linspace(0.5, 1.5, parts[0].shape[1])[None, :, None]
    noise = np.random.default_rng(1).normal(0, 30, parts[0].shape)
    again = np.clip(parts[4] * light + noise, 0, 255).astype(np.uint8)
    small = thumbs(*parts, again)
    (pair,) = find_twins(small, SAME_PART).pairs
    assert (pair.earlier, pair.later) == (4, 12)
    assert find_twins(small, NEAR_COPIES).pairs == ()


def test_parts_that_all_look_alike_are_twins_only_as_near_copies() -> None:
    # one bar in 24 poses, without any grain: the fifth that tells textured parts apart joins more and more of them
    random = np.random.default_rng(1)
    parts = []
    for _ in range(24):
        image = np.full((96, 96), 60, np.float32)
        corners = cv2.boxPoints(((48.0, 48.0), (60.0, 24.0), random.normal(0, 10)))
        cv2.fillPoly(image, [np.rint(16 * corners).astype(np.int32)], 180, cv2.LINE_AA, 4)
        image += random.normal(0, 1, image.shape)
        parts.append(np.repeat(np.clip(image, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2))
    found = find_twins(thumbs(*parts), SAME_PART)
    assert found == find_twins(thumbs(*parts), NEAR_COPIES)
    assert len(found.pairs) < len(find_twins(thumbs(*parts), Nearness(SAME_PART.share, SAME_PART.most)).pairs)


def test_none_and_one_picture_have_no_twins() -> None:
    assert by_likeness([], []) == []
    assert by_likeness(["a"], thumbs(textured(1))) == [None]
