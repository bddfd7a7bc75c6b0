"""What a synthetic defect is filled with: crops of normal images, noise, and colours that are shifted a little."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from engines.images import Image

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_AXIS = np.full((3, 3), 1 / 3)  # onto the grey axis
_CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)


class Jitter(NamedTuple):
    """Relative changes of brightness, contrast and saturation, and a turn of the hue (1 is the whole circle)."""

    brightness: float
    contrast: float
    saturation: float
    hue: float


def is_grey(image: Image) -> bool:
    """Does an image hold no colour: one plane, or three equal ones?"""
    if image.ndim == 2:
        return True
    for looked_at in (image[::16, ::16], image):  # most images in colour show it in a few pixels
        red, green, blue = looked_at[..., 0], looked_at[..., 1], looked_at[..., 2]
        if not (np.array_equal(red, green) and np.array_equal(green, blue)):
            return False
    return True


def with_planes(image: Image, planes: int, *, grey: bool) -> Image:
    """Give an image one plane (H, W) or three (H, W, 3), without its colour where `grey`."""
    if image.ndim == 3 and (grey or planes == 1):
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    if image.ndim == 2 and planes == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    return image


def cut_turned(source: Image, middle: tuple[float, float], size: tuple[int, int], angle: float) -> Image:
    """A crop of `size` (width, height) around `middle` (x, y), its content turned by `angle` degrees.

    Mirrored where the turned crop leaves the source.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = (size[0] - 1) / 2, (size[1] - 1) / 2
    back = np.array([[cos, sin, middle[0] - cos * x - sin * y], [-sin, cos, middle[1] + sin * x - cos * y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(source, back, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101), dtype=np.uint8)


def noise(
    rng: np.random.Generator,
    size: tuple[int, int],
    planes: int,
    *,
    mean: int,
    half_range: int,
    cell: tuple[float, float],
    grey: bool,
) -> Image:
    """Uniform noise, mean - half_range .. mean + half_range, drawn in cells and resized: uint8 (h, w) or (h, w, 3).

    In colour the three channels are drawn independently around one mean, so grains are coloured and the whole is grey.

    Args:
        rng: source of the noise.
        size: width and height, pixels.
        planes: 1 or 3.
        mean, half_range: grey levels, within 0 .. 255 together.
        cell: width and height of a grain, pixels.
        grey: draw one channel and repeat it.
    """
    across, down = (max(1, round(length / grain)) for length, grain in zip(size, cell, strict=True))
    shape = (down, across) if grey or planes == 1 else (down, across, 3)
    levels = rng.integers(mean - half_range, mean + half_range, shape, dtype=np.uint8, endpoint=True)
    grains = cv2.resize(levels, size, interpolation=cv2.INTER_LINEAR)
    return with_planes(np.asarray(grains, dtype=np.uint8), planes, grey=False)


def jitter(fill: Image, change: Jitter, *, grey: bool) -> Image:
    """Shift colours: brightness, then contrast around the fill's mean luma, then saturation, then hue.

    All four are one affine map of RGB. Hue turns around the grey axis, so it and saturation leave grey as it is; a grey
    image takes brightness and contrast alone, by a table, and stays exactly grey.
    """
    bright, contrast, saturation = 1 + change.brightness, 1 + change.contrast, 1 + change.saturation
    gain = bright * contrast
    means = np.array(cv2.mean(fill)[: 3 if fill.ndim == 3 else 1])
    luma = float(means @ _LUMA) if fill.ndim == 3 else float(means[0])
    offset = bright * (1 - contrast) * luma
    if grey:
        table = np.clip(np.rint(np.arange(256) * gain + offset), 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(fill, table), dtype=np.uint8)
    saturate = saturation * np.eye(3) + (1 - saturation) * _LUMA
    turn = 2 * math.pi * change.hue
    hue = math.cos(turn) * np.eye(3) + math.sin(turn) * _CROSS + (1 - math.cos(turn)) * _AXIS
    affine = np.column_stack([gain * (hue @ saturate), np.full(3, offset)])
    return np.asarray(cv2.transform(fill, affine), dtype=np.uint8)


def tone_table(rng: np.random.Generator, count: int = 3) -> npt.NDArray[np.uint8]:
    """A table, uint8 (256,), of `count` random changes of tone: gamma, brightness, solarise, posterise, invert.

    The tone changes among the augmentations that DRAEM draws three of for its textures (arXiv 2108.07610, section 3.1).
    """
    table = np.arange(256.0)
    for change in rng.permutation(5)[:count]:
        if change == 0:
            table = 255 * (table / 255) ** rng.uniform(0.5, 2.0)
        elif change == 1:
            table = table * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30)
        elif change == 2:
            table = np.where(table >= rng.uniform(32, 128), 255 - table, table)
        elif change == 3:
            step = 2.0 ** rng.integers(1, 6)
            table = np.floor(table / step) * step
        else:
            table = 255 - table
        table = np.clip(table, 0, 255)
    return np.rint(table).astype(np.uint8)
