"""The smallest defect that is found, as colours and numbers over a good image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from engines.images import Image

_WIDTH_PX, _LEGEND_PX = 720, 74
_STRENGTH = 0.45  # of the colours over the image
_NUMBERS = 6  # a side
_INK, _PAPER = (28, 39, 51), (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_map(image: Image, sizes: Sequence[Sequence[float | None]], title: str) -> Image:
    """Lay a map of sizes over an image, with numbers and a legend: uint8 RGB.

    Args:
        image: the judged region of a good image, uint8 RGB (h, w, 3).
        sizes: pixels, row by row; None is left without colour.
        title: one line below the picture.
    """
    height = max(1, round(_WIDTH_PX * image.shape[0] / image.shape[1]))
    shrinks = image.shape[1] > _WIDTH_PX
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(image, (_WIDTH_PX, height), interpolation=how), dtype=np.uint8)
    values = np.array([[np.nan if size is None else size for size in row] for row in sizes], np.float64)
    stated = values[np.isfinite(values)]
    legend = np.full((_LEGEND_PX, _WIDTH_PX, 3), _PAPER, np.uint8)
    if len(stated) == 0:
        _write(legend, "no size can be stated anywhere", (12, 24), 0.5)
        _write(legend, title, (12, _LEGEND_PX - 12), 0.45)
        return np.asarray(np.vstack([picture, legend]), dtype=np.uint8)
    low, high = float(stated.min()), float(stated.max())
    shown = np.isfinite(values).astype(np.float32)
    filled = np.where(np.isfinite(values), values, stated.mean()).astype(np.float32)
    size = (_WIDTH_PX, height)
    colours = _colours(np.asarray(cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR), dtype=np.float32), low, high)
    weight = _STRENGTH * cv2.resize(shown, size, interpolation=cv2.INTER_NEAREST)[..., None]
    picture = np.asarray(np.rint((1 - weight) * picture + weight * colours), dtype=np.uint8)
    rows, columns = values.shape
    for row, column in _spots(rows, columns):
        if np.isfinite(values[row, column]):
            at = round((column + 0.5) * _WIDTH_PX / columns), round((row + 0.5) * height / rows)
            _write(picture, _px(values[row, column]), at, 0.55, middle=True)
    ramp = np.geomspace(low, high, 300)[None].astype(np.float32) if high > low else np.full((1, 300), low, np.float32)
    legend[14:30, 60:360] = np.repeat(_colours(ramp, low, high), 16, axis=0)
    _write(legend, _px(low), (50, 27), 0.5, right=True)
    _write(legend, f"{_px(high)} px", (370, 27), 0.5)
    _write(legend, title, (12, _LEGEND_PX - 14), 0.45)
    return np.asarray(np.vstack([picture, legend]), dtype=np.uint8)


def _colours(values: npt.NDArray[np.float32], low: float, high: float) -> Image:
    """Small sizes dark blue, large ones yellow; equal steps of a factor. uint8 RGB."""
    span = max(math.log(high / low), math.log(1.25))  # small differences are not shown as large ones
    level = np.clip(np.log(np.maximum(values, 1e-6) / low) / span, 0, 1)
    coded = cv2.applyColorMap(np.rint(255 * level).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return np.asarray(cv2.cvtColor(coded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _px(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _spots(rows: int, columns: int) -> list[tuple[int, int]]:
    """Where numbers are written: the middles of a coarser grid."""
    down, across = ((np.arange(_NUMBERS) + 0.5) * length / _NUMBERS for length in (rows, columns))
    return [(int(row), int(column)) for row in down for column in across]


def _write(picture: Image, text: str, at: tuple[int, int], scale: float, *, middle: bool = False, right: bool = False) -> None:
    (width, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    x = at[0] - (width // 2 if middle else width if right else 0)
    y = at[1] + (height // 2 if middle else 0)
    plain = text.encode("ascii", "replace").decode()  # the font has no other letters
    for across, down in ((-1, 0), (1, 0), (0, -1), (0, 1)):  # a halo; thicker letters are wider ones in some fonts
        cv2.putText(picture, plain, (x + across, y + down), _FONT, scale, _PAPER, 1, cv2.LINE_AA)
    cv2.putText(picture, plain, (x, y), _FONT, scale, _INK, 1, cv2.LINE_AA)
