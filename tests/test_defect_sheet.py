"""The sheet of synthetic defects: what stands where, and that the outline leaves the defect alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.defects import Defect, DefectMaker
from engines import EngineError
from engines.images import Image, read_image
from tests.fakes import Asked, PaintingMaker
from train import TrainError
from train.defect_sheet import defect_sheet

SIDE = 256
GAP, CAPTION, HEAD = 14, 24, 34
COLOURS = {"dot": (250, 220, 0), "bar": (0, 200, 250)}
OUTLINE = (255, 0, 255)


def painter(images: list[Image]) -> PaintingMaker:
    """Paints a square or a bar of one colour where the image's index says."""

    def paint(image: Image, asked: Asked) -> tuple[int, int, int, int]:
        x, y, wide, high = box = (20 + 5 * asked.index, 40, *((20, 20) if asked.kind == "dot" else (60, 8)))
        image[y : y + high, x : x + wide] = COLOURS[asked.kind]
        return box

    return PaintingMaker(("dot", "bar"), paint, images)


@pytest.fixture
def images() -> list[Image]:
    return [np.full((SIDE, SIDE, 3), 60 + 10 * index, np.uint8) for index in range(9)]


def tile(sheet: Image, row: int, column: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image:
    x, y = GAP + column * (size[1] + GAP), HEAD + row * (size[0] + CAPTION)
    return sheet[y : y + size[0], x : x + size[1]]


def names(count: int) -> list[str]:
    return [f"{index:03d}.png" for index in range(count)]


def test_normal_images_at_the_left_and_one_defect_of_each_kind_beside_them(images: list[Image], tmp_path: Path) -> None:
    maker = painter(images)
    defect_sheet(maker, images, names(9), tmp_path / "sheet.png", rows=3, seed=7)
    assert [(asked.index, asked.kind, asked.seed, asked.draw) for asked in maker.asked] == [
        (index, kind, 7, 0) for index in (0, 4, 8) for kind in ("dot", "bar")
    ]
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (HEAD + 3 * (SIDE + CAPTION), GAP + 3 * (SIDE + GAP), 3)
    for row, index in enumerate((0, 4, 8)):
        np.testing.assert_array_equal(tile(sheet, row, 0), images[index])
        for column, kind in enumerate(maker.kinds, start=1):
            shown, defect = tile(sheet, row, column), maker.draw(index, kind, seed=0, draw=0)
            np.testing.assert_array_equal(shown[defect.shape], defect.image[defect.shape])
            line = (shown == OUTLINE).all(axis=2)
            np.testing.assert_array_equal(shown[~line], defect.image[~line])
            x, y, wide, high = defect.box
            rows, columns = np.nonzero(line)
            assert (columns.min(), columns.max()) == (x - 2, x + wide + 1)
            assert (rows.min(), rows.max()) == (y - 2, y + high + 1)


def test_headings_names_and_captions_are_written(images: list[Image], tmp_path: Path) -> None:
    defect_sheet(painter(images), images, names(9), tmp_path / "sheet.png", rows=1)
    sheet = read_image(tmp_path / "sheet.png").astype(int)
    for column in range(3):
        left = GAP + column * (SIDE + GAP)
        for band in (sheet[:HEAD], sheet[HEAD + SIDE :]):
            assert (band[:, left : left + SIDE].max(axis=2) < 120).sum() > 20


def test_grains_of_a_clump_share_an_outline(images: list[Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = np.zeros((SIDE, SIDE), bool)
    for x in range(100, 150, 12):
        shape[100:106, x : x + 6] = True
    clump = Defect(images[0], shape, shape, "dot", (100, 100, 54, 6), {"size_px": 12.0, "contrast": 9.0})
    monkeypatch.setattr(PaintingMaker, "draw", lambda *_, **__: clump)
    defect_sheet(painter(images), images, names(9), tmp_path / "sheet.png", rows=1)
    line = (tile(read_image(tmp_path / "sheet.png"), 0, 1) == OUTLINE).all(axis=2)
    assert np.flatnonzero(line[103]).tolist() == [98, 155]  # the two ends of the row of grains, and nothing between


@pytest.mark.parametrize(("shape", "size"), [((128, 64), (256, 128)), ((600, 1200), (128, 256)), ((640, 640), (256, 256))])
def test_other_sizes_fit_the_tile(shape: tuple[int, int], size: tuple[int, int], tmp_path: Path) -> None:
    images = [np.full((*shape, 3), 90, np.uint8)]
    defect_sheet(painter(images), images, ["a-name-that-is-much-too-long-for-its-tile-0001.png"], tmp_path / "sheet.png")
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (HEAD + size[0] + CAPTION, GAP + 3 * (size[1] + GAP), 3)
    assert (tile(sheet, 0, 0, size) == 90).all()
    assert ((tile(sheet, 0, 1, size) == OUTLINE).all(axis=2)).any()


def test_the_sheet_is_the_same_again_and_takes_the_real_maker(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(60, 200, (96, 96, 3)).astype(np.uint8) for _ in range(3)]
    maker = DefectMaker(images)
    for name in ("one.png", "two.png"):
        defect_sheet(maker, images, names(3), tmp_path / name, rows=2, seed=3)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert read_image(tmp_path / "one.png").shape[1] == GAP + (1 + len(maker.kinds)) * (256 + GAP)


@pytest.mark.parametrize(
    ("count", "named", "rows", "message"),
    [(0, 0, 6, "0 images and 0 names"), (3, 2, 6, "3 images and 2 names"), (3, 3, 0, "0 rows")],
)
def test_what_makes_no_sheet_is_refused(count: int, named: int, rows: int, message: str, tmp_path: Path) -> None:
    images = [np.zeros((32, 32, 3), np.uint8)] * count
    with pytest.raises(TrainError, match=message):
        defect_sheet(painter(images), images, names(named), tmp_path / "sheet.png", rows=rows)
    assert not (tmp_path / "sheet.png").exists()


def test_a_sheet_that_cannot_be_written_says_so(images: list[Image], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="could not be written"):
        defect_sheet(painter(images), images, names(9), tmp_path / "file" / "sheet.png", rows=1)
