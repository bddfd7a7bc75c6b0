"""A contact sheet of synthetic defects: one picture in which a person can judge whether they look real."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from calibration.defects import Defect, Maker, Mask
from engines.atomic import write_file
from engines.images import Image
from train import TrainError

_TILE_PX = 256  # longer side of a tile
_GAP_PX, _CAPTION_PX, _HEAD_PX = 14, 24, 34
_OUTLINE = (255, 0, 255)  # few materials are magenta
_DISTANCE_PX = 2  # of the outline from the defect, in the tile
_JOINED_PX = 13  # grains of a clump that lie closer than this share an outline
_PAPER = 232  # grey, so that images of white ground have an edge
_DPI = 100


def defect_sheet(
    maker: Maker, images: Sequence[Image], names: Sequence[str], path: Path | str, rows: int = 6, seed: int = 0
) -> None:
    """Write a PNG: a normal image a row, and beside it one defect of each kind on that image.

    A thin line runs around each defect, a little outside it. Below each are the square root of the changed area, in
    pixels of the image, and the mean change in grey levels.

    Args:
        maker: makes the defects; the sheet shows draw 0 of each kind.
        images: the maker's normal images, uint8 RGB (H, W, 3).
        names: the images' file names.
        path: the PNG file.
        rows: images shown, spread evenly over the set; all of them where there are fewer.
        seed: of the defects.

    Raises:
        TrainError: no image, another number of names than of images, or fewer rows than 1.
        CalibrationError: what the maker cannot draw.
        EngineError: the file cannot be written.
    """
    if len(images) == 0 or len(images) != len(names):
        raise TrainError(f"{len(images)} images and {len(names)} names, expected one or more of both, a name for each image")
    if rows < 1:
        raise TrainError(f"{rows} rows, expected 1 or more")
    chosen = np.linspace(0, len(images) - 1, min(rows, len(images))).round().astype(int).tolist()
    high, wide = _tile_size(images[0])
    step_x, step_y = wide + _GAP_PX, high + _CAPTION_PX
    width = _GAP_PX + step_x * (1 + len(maker.kinds))
    height = _HEAD_PX + step_y * len(chosen)
    canvas = np.full((height, width, 3), _PAPER, np.uint8)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)

    def put(row: int, column: int, tile: Image, caption: str) -> None:
        x, y = _GAP_PX + column * step_x, _HEAD_PX + row * step_y
        canvas[y : y + high, x : x + wide] = tile
        write(x, y + high + 3, caption, 9, "normal")

    def write(x: int, y: int, text: str, size: float, weight: str) -> None:
        figure.text(x / width, 1 - y / height, text, size=size, weight=weight, color="#333333", va="top", parse_math=False)

    for column, heading in enumerate(("normal", *maker.kinds)):
        write(_GAP_PX + column * step_x, 10, heading, 11, "bold")
    for row, index in enumerate(chosen):
        put(row, 0, _tile(images[index], (high, wide)), _shorten(names[index], wide // 7))
        for column, kind in enumerate(maker.kinds, start=1):
            defect = maker.draw(index, kind, seed=seed, draw=0)
            put(row, column, _outlined(defect, (high, wide)), _caption(defect))
    figure.figimage(canvas, zorder=-1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    write_file(path, buffer.getvalue())


def _caption(defect: Defect) -> str:
    return f"{float(defect.parameters['size_px']):.0f} px, contrast {float(defect.parameters['contrast']):.0f}"


def _tile_size(image: Image) -> tuple[int, int]:
    scale = _TILE_PX / max(image.shape[:2])
    return max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))


def _tile(image: Image, size: tuple[int, int]) -> Image:
    way = cv2.INTER_AREA if image.shape[0] > size[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size[::-1], interpolation=way), dtype=np.uint8)


def _outlined(defect: Defect, size: tuple[int, int]) -> Image:
    tile = _tile(defect.image, size)
    # the outer outline alone, around close grains together: lines within a clump would hide it
    shape = _covered(defect.shape, size)
    around = cv2.dilate(cv2.morphologyEx(shape, cv2.MORPH_CLOSE, _disc(_JOINED_PX)), _disc(2 * _DISTANCE_PX + 1))
    outlines, _ = cv2.findContours(around, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, outlines, -1, _OUTLINE, 1)
    return tile


def _covered(mask: Mask, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Where the mask covers any part of a tile's pixel, so that no defect is lost: uint8 `size`, 0 or 1."""
    share = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(share > 0, dtype=np.uint8)


def _disc(window: int) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (window, window)), dtype=np.uint8)


def _shorten(name: str, most: int) -> str:
    """The end of a file name says which it is, so the start goes."""
    return name if len(name) <= most else f"...{name[3 - most :]}"
