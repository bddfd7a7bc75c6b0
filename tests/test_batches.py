"""What an adaptation sees: every draw fixed by its number, every class beside its good image, nothing ignored shown."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calibration.defects import KINDS, DefectMaker
from engines.images import Image
from engines.preprocess import IMAGENET_MEAN, IMAGENET_STD
from tests.fakes import Asked, PaintingMaker, textured
from train.batches import Task, labels_of, passes
from train.sample import draw_part
from train.schedule import Plan

SIDE = 64
BLANK = (124, 116, 104)  # 255 times ImageNet's mean, rounded


def square_maker(side: int = 6) -> PaintingMaker:
    """Paints a square at a place that it draws, in the last channel alone."""

    def paint(image: Image, asked: Asked) -> tuple[int, int, int, int]:
        rng = np.random.default_rng([asked.seed, asked.draw])
        x, y = (int(rng.integers(length - side + 1)) for length in image.shape[1::-1])
        image[y : y + side, x : x + side, 2] = 255
        return x, y, side, side

    return PaintingMaker(("square",), paint)


@dataclasses.dataclass(frozen=True)
class Numbers(torch.utils.data.Dataset[npt.NDArray[np.uint8]]):
    """One class, and a picture of one pixel that holds the draw's number in base 256."""

    def __getitem__(self, draw: int) -> npt.NDArray[np.uint8]:
        return np.array([[[[draw // 256, draw % 256, 0]]]], np.uint8)


def drawn(count: int) -> list[Image]:
    return [draw_part(np.random.default_rng(number), SIDE)[0] for number in range(count)]


def task_on(images: list[Image], **changed: Any) -> Task:
    usual: dict[str, Any] = {"maker": DefectMaker(images), "saliency": None, "ignored": None, "seed": 0}
    return Task(images, **{**usual, **changed})


def places(height: int, width: int) -> Image:
    """A picture that says at every pixel where it is: x, y, 0."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def spotted(height: int = SIDE, width: int = SIDE) -> Image:
    """Grey, and one white pixel by which its orientation is known."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[5, 20] = 255
    return image


def white_spot(image: Image) -> tuple[int, int]:
    row, column = np.unravel_index(int(image[..., 0].argmax()), image.shape[:2])
    return int(row), int(column)


def orientations(array: npt.NDArray) -> list[npt.NDArray]:
    """All eight of a square."""
    return [np.rot90(turned, quarter) for turned in (array, np.swapaxes(array, 0, 1)) for quarter in range(4)]


# ---- draws


def test_a_draw_holds_the_good_image_and_one_of_every_kind() -> None:
    images = drawn(3)
    task = task_on(images, augment=False)
    assert task.classes == ("good", *KINDS)
    pictures = task[0]
    assert pictures.shape == (7, SIDE, SIDE, 3)
    assert pictures.dtype == np.uint8
    assert any(np.array_equal(pictures[0], image) for image in images)
    assert all((picture != pictures[0]).any() for picture in pictures[1:])


def test_defects_are_made_on_the_augmented_image() -> None:
    maker = square_maker()
    task = task_on(drawn(2), maker=maker)
    for draw in range(6):
        good, bad = task[draw]
        asked = maker.asked[-1]
        assert asked.draw == draw
        assert not np.array_equal(asked.image, drawn(2)[asked.index])  # its colours changed
        (turn,) = (number for number, turned in enumerate(orientations(asked.image)) if np.array_equal(turned, good))
        x, y, wide, high = maker.boxes[-1]
        expected = np.zeros((SIDE, SIDE), bool)
        expected[y : y + high, x : x + wide] = True
        changed = (good != bad).any(axis=2)
        assert changed.any()
        assert not (changed & ~orientations(expected)[turn]).any()  # turned with its defect


def test_a_draw_depends_on_seed_and_number_alone() -> None:
    images = drawn(4)
    task, again = task_on(images, window_px=32), task_on(images, window_px=32)
    forth = [task[draw] for draw in range(9)]
    back = [again[draw] for draw in reversed(range(9))][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(forth, back, strict=True))
    assert len({pictures.tobytes() for pictures in forth}) == 9
    assert not np.array_equal(task_on(images, window_px=32, seed=1)[0], forth[0])


def test_every_image_has_its_turn_once_an_epoch() -> None:
    images = [textured(seed, (SIDE, SIDE)) for seed in range(5)]
    maker = square_maker()
    task = task_on(images, maker=maker, augment=False)
    for draw in range(25):
        assert np.array_equal(task[draw][0], images[maker.asked[draw].index])
    order = [asked.index for asked in maker.asked]
    epochs = [order[at : at + 5] for at in range(0, 25, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


# ---- orientation and colour


def test_a_square_image_comes_in_all_eight_orientations() -> None:
    task = task_on([spotted()], maker=square_maker())
    last = SIDE - 1
    corners = {(5, 20), (5, last - 20), (last - 5, 20), (last - 5, last - 20)}
    seen = {white_spot(task[draw][0]) for draw in range(80)}
    assert seen == corners | {(column, row) for row, column in corners}


def test_without_quarter_turns_a_square_image_is_flipped_alone() -> None:
    task = task_on([spotted()], maker=square_maker(), turns=False)
    last = SIDE - 1
    seen = {white_spot(task[draw][0]) for draw in range(40)}
    assert seen == {(5, 20), (5, last - 20), (last - 5, 20), (last - 5, last - 20)}


def test_a_rectangle_keeps_its_shape_in_four_orientations() -> None:
    task = task_on([spotted(48, 80)], maker=square_maker())
    draws = [task[draw] for draw in range(60)]
    assert {pictures.shape for pictures in draws} == {(2, 48, 80, 3)}
    assert {white_spot(pictures[0]) for pictures in draws} == {(5, 20), (5, 59), (42, 20), (42, 59)}


@pytest.mark.parametrize("size", [(48, 80), (80, 48)])
def test_the_real_maker_takes_rectangles_in_every_orientation(size: tuple[int, int]) -> None:
    images = [textured(seed, size) for seed in range(2)]
    saliency = [image[..., 0] > 100 for image in images]
    task = task_on(images, maker=DefectMaker(images, saliency), saliency=saliency)
    assert {task[draw].shape for draw in range(8)} == {(7, *size, 3)}


def test_grey_stays_grey_in_every_class() -> None:
    images = [np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2) for image in drawn(3)]
    task = task_on(images)
    for draw in range(6):
        pictures = task[draw]
        assert np.array_equal(pictures[..., 0], pictures[..., 1])
        assert np.array_equal(pictures[..., 1], pictures[..., 2])
    assert len({int(task[draw][0].max()) for draw in range(6)}) > 1  # but lighter and darker


def test_colours_shift_by_a_tenth_at_most() -> None:
    grey = np.full((SIDE, SIDE, 3), 100, np.uint8)
    task = task_on([grey], maker=square_maker())
    levels = [int(task[draw][0][0, 0, 0]) for draw in range(60)]  # contrast and hue leave flat grey as it is
    assert min(levels) >= 90
    assert max(levels) <= 110
    assert max(levels) - min(levels) > 10


# ---- where the part is


def test_defects_are_made_with_the_images_own_saliency() -> None:
    masks = [np.zeros((SIDE, SIDE), bool) for _ in range(2)]
    masks[0][4:20], masks[1][:, 30:] = True, True
    task = task_on(drawn(2), maker=(maker := square_maker()), saliency=masks)
    for draw in range(6):
        assert task[draw].shape[0] == 2
        index, saliency = maker.asked[-1].index, maker.asked[-1].saliency
        assert saliency is masks[index]


def test_a_defect_that_lies_under_the_mask_is_drawn_again() -> None:
    ignored = np.ones((SIDE, SIDE), bool)
    ignored[: SIDE // 2] = False
    maker = square_maker()
    task = task_on([spotted()], maker=maker, ignored=ignored, augment=False)
    for draw in range(20):
        good, bad = task[draw]
        assert not np.array_equal(good, bad)
    assert len(maker.asked) > 25


def test_ignored_pixels_are_blank_in_every_class_however_it_is_turned() -> None:
    ignored = np.zeros((SIDE, SIDE), bool)
    ignored[30:36, 12:40] = True
    images = [spotted(), spotted()]
    task = task_on(images, maker=DefectMaker(images), ignored=ignored)
    turns = set()
    for draw in range(12):
        pictures = task[draw]
        row, column = white_spot(np.where(pictures[0] == BLANK, np.uint8(0), pictures[0]))
        (turned,) = (
            mask
            for mask, image in zip(orientations(ignored), orientations(spotted()[..., 0]), strict=True)
            if image[row, column] == 255
        )
        turns.add((row, column))
        assert (pictures[:, turned] == BLANK).all()
        assert not (pictures[0][~turned] == BLANK).all(axis=1).any()
    assert len(turns) > 2
    # the network takes them for what the station blanks: 0 after normalisation
    blank = (np.array(BLANK) / 255 - IMAGENET_MEAN) / np.array(IMAGENET_STD)
    assert np.abs(blank).max() < 0.01


def test_the_images_themselves_stay_as_they_are() -> None:
    images = drawn(2)
    before = [image.copy() for image in images]
    ignored = np.zeros((SIDE, SIDE), bool)
    ignored[:20] = True
    for augment in (True, False):
        task = task_on(images, maker=DefectMaker(images), ignored=ignored, augment=augment)
        for draw in range(4):
            assert task[draw].shape[0] == 7
    assert all(np.array_equal(one, other) for one, other in zip(images, before, strict=True))


# ---- windows


@pytest.mark.parametrize("size", [(70, 90), (90, 70), (40, 90), (40, 40)])
def test_a_window_lies_inside_the_image_and_holds_the_defect_in_its_middle_half(size: tuple[int, int]) -> None:
    side = 40
    maker = square_maker()
    task = task_on([places(*size)], maker=maker, window_px=side, augment=False)
    offsets = set()
    for draw in range(60):
        pictures = task[draw]
        assert pictures.shape == (2, side, side, 3)
        x, y, wide, high = maker.boxes[-1]
        left, top = (int(value) for value in pictures[1, 0, 0, :2])
        assert np.array_equal(pictures[1, ..., :2], places(*size)[top : top + side, left : left + side, :2])
        for at, corner, length in ((x + wide // 2, left, size[1]), (y + high // 2, top, size[0])):
            assert 0 <= corner <= length - side
            offset = at - corner
            assert 10 <= offset <= 30 or (corner == 0 and offset < 10) or (corner == length - side and offset > 30)
            offsets.add(offset)
        assert (pictures[1, ..., 2] == 255).any()  # the defect shows
        assert not pictures[0, ..., 2].any()
    assert len(offsets) > 10


def test_the_good_images_window_lies_on_the_part() -> None:
    salient = np.zeros((100, 100), bool)
    salient[70, 20] = True
    task = task_on([places(100, 100)], maker=square_maker(), saliency=[salient], window_px=32, augment=False)
    corners = {tuple(task[draw][0, 0, 0, :2].tolist()) for draw in range(40)}
    assert all(0 <= x <= 20 - 8 and 70 - 24 <= y <= 70 - 8 for x, y in corners)
    assert len(corners) > 10
    everywhere = task_on([places(100, 100)], maker=square_maker(), window_px=32, augment=False)
    corners = {tuple(everywhere[draw][0, 0, 0, :2].tolist()) for draw in range(60)}
    for values in zip(*corners, strict=True):
        assert min(values) < 10
        assert max(values) > 60


# ---- passes


def dealt(plan: Plan, updates: range, rank: int = 0, processes: int = 1) -> list[list[int]]:
    """The numbers of the draws in each of a process's passes."""
    numbers: Any = Numbers()
    given_out = passes(numbers, plan, updates, rank=rank, processes=processes, workers=0)
    return [(256 * pictures[:, 0, 0, 0].int() + pictures[:, 0, 0, 1]).tolist() for pictures in given_out]


def test_a_pass_holds_the_classes_of_one_normal_after_the_other() -> None:
    task = task_on(drawn(3))
    (first, second) = passes(task, Plan(2, 2), range(1), rank=0, processes=1, workers=0)
    assert (first.shape, first.dtype) == ((14, SIDE, SIDE, 3), torch.uint8)
    assert np.array_equal(first.numpy(), np.concatenate([task[0], task[1]]))
    assert np.array_equal(second.numpy(), np.concatenate([task[2], task[3]]))


def test_labels_count_the_classes_of_each_normal() -> None:
    labels = labels_of(torch.zeros(6, 4, 4, 3, dtype=torch.uint8), 3)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_processes_that_draw_ahead_change_nothing() -> None:
    task = task_on(drawn(3), window_px=32)
    cv2.medianBlur(textured(0, (1000, 1000)), 5)  # OpenCV has threads of its own by now, which no fork would take along

    def drawn_by(workers: int) -> list[Tensor]:
        return list(passes(task, Plan(2, 2), range(3), rank=0, processes=1, workers=workers))

    here, ahead = drawn_by(0), drawn_by(2)
    assert len(here) == 6
    assert all(torch.equal(one, other) for one, other in zip(here, ahead, strict=True))


def test_an_update_later_on_draws_what_it_would_have() -> None:
    plan = Plan(2, 3)
    assert dealt(plan, range(2, 5)) == dealt(plan, range(5))[4:]
    assert dealt(plan, range(1)) == [[0, 1, 2], [3, 4, 5]]
    assert dealt(plan, range(0)) == []


@settings(max_examples=25)
@given(share=st.integers(1, 3), processes=st.integers(1, 4), normals=st.integers(2, 5), updates=st.integers(1, 4))
def test_processes_together_see_what_one_would(share: int, processes: int, normals: int, updates: int) -> None:
    plan = Plan(share * processes, normals)
    alone = dealt(plan, range(updates))
    ranks = [dealt(plan, range(updates), rank, processes) for rank in range(processes)]
    assert {len(passes_of_rank) for passes_of_rank in ranks} == {share * updates}
    together = [given_out for turn in zip(*ranks, strict=True) for given_out in turn]
    assert together == alone
    flat = [draw for given_out in alone for draw in given_out]
    assert all(later == earlier + 1 for earlier, later in pairwise(flat))
