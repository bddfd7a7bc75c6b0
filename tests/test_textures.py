"""Drawings depend on their seed and number alone, and their labels say what is drawn where."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train import TrainError
from train.textures import FORMULAS, MIXED, TILE, Tiles, cell_labels, compose, draw_tiles, photograph, texture

SIDE = 64


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    """One tile of each formula."""
    return draw_tiles(len(FORMULAS), 8, 1, seed=3)


@pytest.mark.parametrize("label", range(len(FORMULAS)), ids=[formula.__name__ for formula in FORMULAS])
def test_a_texture_is_its_seed_class_and_draw(label: int) -> None:
    drawn = texture(label, 0, seed=3)
    assert drawn.shape == (TILE, TILE)
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn, texture(label, 0, seed=3))
    assert not np.array_equal(drawn, texture(label, 1, seed=3)), "another draw falls elsewhere"
    assert not np.array_equal(drawn, texture(label + len(FORMULAS), 0, seed=3)), "another class of the same formula"
    assert not np.array_equal(drawn, texture(label, 0, seed=4))


@pytest.mark.parametrize("seed", range(3))
def test_every_texture_has_something_to_see(seed: int) -> None:
    for label in range(2 * len(FORMULAS)):
        assert texture(label, 0, seed).std() > 10, f"class {label} of seed {seed}"


def test_two_draws_of_a_class_are_alike_in_what_the_class_fixes() -> None:
    # the first formula is noise of one frequency: where its spectrum peaks is the class's, the phase is the draw's
    def peak(label: int, draw: int) -> float:
        drawn = texture(label, draw, seed=3).astype(np.float64)
        power = np.abs(np.fft.fft2(drawn - drawn.mean())) ** 2
        rows, columns = np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE), indexing="ij")
        return float((np.hypot(rows, columns) * power).sum() / power.sum())

    classes = [label * len(FORMULAS) for label in range(6)]
    within = [abs(np.log(peak(label, 0) / peak(label, 1))) for label in classes]
    between = [
        abs(np.log(peak(one, 0) / peak(other, 0))) for one, other in zip(classes, classes[1:] + classes[:1], strict=True)
    ]
    assert max(within) < 0.1
    assert np.median(between) > 0.2


def test_tiles_are_the_textures_and_palettes_run_from_dark_to_bright(tiles: Tiles) -> None:
    assert tiles.textures.shape == (len(FORMULAS), 1, TILE, TILE)
    assert np.array_equal(tiles.textures[5, 0], texture(5, 0, seed=3))
    brightness = tiles.palettes.mean(axis=2)
    assert (np.diff(brightness, axis=1) > 0).all()
    spread = np.ptp(tiles.palettes, axis=2).mean(axis=1)
    assert spread[0] < spread[-1], "the first palettes are nearly grey, the last have colour"


def test_drawing_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    draw_tiles(3, 2, 1, seed=0, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("classes", "palettes", "draws"), [(1, 8, 1), (8, 1, 1), (8, 8, 0), (40_000, 8, 1)])
def test_counts_that_leave_nothing_to_tell_apart_are_refused(classes: int, palettes: int, draws: int) -> None:
    with pytest.raises(TrainError, match=f"{classes} textures, {palettes} palettes, {draws} draws; expected 2 to"):
        draw_tiles(classes, palettes, draws, seed=0)


def test_a_scene_is_its_seed_and_number(tiles: Tiles) -> None:
    scene, again = compose(tiles, SIDE, 3, 7), compose(tiles, SIDE, 3, 7)
    assert np.array_equal(scene.image, again.image)
    assert np.array_equal(scene.texture, again.texture)
    assert np.array_equal(scene.palette, again.palette)
    assert not np.array_equal(scene.image, compose(tiles, SIDE, 3, 8).image)
    assert not np.array_equal(scene.image, compose(tiles, SIDE, 4, 7).image)


def test_labels_name_classes_and_mark_the_same_edges(tiles: Tiles) -> None:
    seen: set[int] = set()
    for number in range(40):
        scene = compose(tiles, SIDE, 3, number)
        assert scene.image.shape == (SIDE, SIDE, 3)
        assert scene.image.dtype == np.uint8
        assert np.array_equal(scene.texture == MIXED, scene.palette == MIXED)
        assert scene.texture.min() >= MIXED
        assert scene.texture.max() < len(FORMULAS)
        assert scene.palette.max() < 8
        assert (scene.texture != MIXED).any()
        seen.update(np.unique(scene.texture).tolist())
    assert seen == {MIXED, *range(len(FORMULAS))}


def test_a_label_is_what_is_painted_there() -> None:
    # flat textures, black and white palettes: brightness tells which palette was used
    flat = Tiles(
        np.full((2, 1, TILE, TILE), 127, np.uint8),
        np.stack([np.full((3, 3), 40), np.full((3, 3), 215)]).astype(np.float32),
    )
    for number in range(20):
        scene = compose(flat, SIDE, 0, number)
        bright = scene.image.mean(axis=2)
        assert (bright[scene.palette == 0] < 90).all()
        assert (bright[scene.palette == 1] > 165).all()


def test_a_photograph_differs_and_follows_its_generator(tiles: Tiles) -> None:
    image = compose(tiles, SIDE, 3, 0).image
    before = image.copy()
    taken = photograph(image, np.random.default_rng(5))
    assert taken.shape == image.shape
    assert taken.dtype == np.uint8
    assert np.array_equal(image, before), "the scene is not written to"
    assert np.array_equal(taken, photograph(image, np.random.default_rng(5)))
    assert not np.array_equal(taken, photograph(image, np.random.default_rng(6)))


def test_a_cell_has_a_label_where_all_its_pixels_have_it() -> None:
    labels = np.zeros((4, 4), np.int16)
    labels[:2, 2:] = 3
    labels[2:, :2] = 5
    labels[2, 1] = MIXED
    labels[3, 3] = 7
    assert cell_labels(labels, 2).tolist() == [[0, 3], [MIXED, MIXED]]
    assert cell_labels(labels, 4).tolist() == [[MIXED]]


@given(st.integers(0, 2**32 - 1))
def test_cells_of_stride_one_are_the_pixels(seed: int) -> None:
    labels: npt.NDArray[np.int16] = np.random.default_rng(seed).integers(MIXED, 9, (6, 6)).astype(np.int16)
    assert np.array_equal(cell_labels(labels, 1), labels)
