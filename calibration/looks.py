"""What a picture looks like among others of its kind: its focus, exposure and size, and how each differs from the usual.

Nothing here is an absolute rule, because an image is only odd among its own kind. A value is judged by its robust z-score
(x - median) / (1.4826 MAD) over the set, flagged beyond 3.5 (Iglewicz and Hoaglin, "How to Detect and Handle Outliers",
1993), and only where it also differs by an amount that a person would notice. Sets of fewer than 8 images have no usual.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from engines.images import Image

LIMIT = 3.5  # robust z-score beyond which a value is flagged
MIN_IMAGES = 8  # the median and MAD of fewer say little
_LEAST_BLUR = 0.3  # in natural log: 26 % of the fine detail gone
_LEAST_LEVEL = float(np.log(1.25))  # a quarter brighter or darker
_LEAST_CLIPPED = 0.1  # share of pixels
_SATURATED = 250  # grey levels; JPEG ringing keeps clipped areas from being 255 throughout
_BLACK = 5
_FOCUS_SIDE_PX = 1024  # finer detail than this is far below what the network sees

Oddness = Literal["blurred", "over-exposed", "under-exposed", "wrong size"]


@dataclass(frozen=True)
class Looks:
    """What is kept of one image instead of its pixels.

    Attributes:
        size: (height, width) in pixels.
        focus: natural log of fine detail over coarser detail.
        level: natural log of 1 + the mean grey level.
        saturated: share of pixels with a channel of 250 or more.
        black: share of pixels whose channels are all 5 or less.
    """

    size: tuple[int, int]
    focus: float
    level: float
    saturated: float
    black: float


@dataclass(frozen=True)
class Oddity:
    """How an image differs from the usual: what it is, value got and usual value in words, and how bad (higher is worse)."""

    problem: Oddness
    detail: str
    value: float


def look(image: Image) -> Looks:
    """Measure a uint8 RGB (H, W, 3) image."""
    grey = grey_of(image)
    return Looks(
        size=(image.shape[0], image.shape[1]),
        focus=focus(grey),
        level=float(np.log(grey.mean() + 1)),
        saturated=float((image.max(axis=2) >= _SATURATED).mean()),
        black=float((image.max(axis=2) <= _BLACK).mean()),
    )


def oddities(image: Looks, among: Sequence[Looks]) -> list[Oddity]:
    """In what an image differs from a set: its size, and from 8 images on its focus and exposure; worst first.

    Args:
        image: need not be of the set.
        among: images that are meant to be good.
    """
    found = _odd_size(image, among)
    if len(among) >= MIN_IMAGES:
        found += _odd_exposure(image, among)
        sharp = np.array([one.focus for one in among])
        z = -_z(image.focus, sharp, _LEAST_BLUR)
        if z > LIMIT:
            share = np.exp(image.focus - np.median(sharp))
            found.append(Oddity("blurred", f"fine detail {share:.0%} of the usual: out of focus or moved", z))
    return found


def robust_z(values: npt.NDArray[np.float64], least: float) -> npt.NDArray[np.float64]:
    """Robust z-scores, float64 (n,), where a deviation below `least` never reaches the limit, however alike the rest is."""
    median, scale = _usual(values, least)
    return np.asarray((values - median) / scale)


def grey_of(image: Image) -> npt.NDArray[np.uint8]:
    """uint8 (H, W) grey levels of a uint8 RGB (H, W, 3) image."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def focus(grey: npt.NDArray[np.uint8]) -> float:
    """Natural log of the energy of 1 to 2 pixel detail over that of 2 to 4 pixel detail (differences of Gaussians).

    Unlike the variance of the Laplacian, the ratio knows neither contrast nor lighting, and the pixel noise that a
    defocused camera still adds hardly reaches either band.
    """
    shrink = min(1.0, _FOCUS_SIDE_PX / max(grey.shape))
    values = (cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) if shrink < 1 else grey).astype(
        np.float32
    )
    one, two, four = (cv2.GaussianBlur(values, (0, 0), sigma) for sigma in (1, 2, 4))
    return float(np.log(((one - two).var() + 1e-3) / ((two - four).var() + 1e-3)))


def _usual(values: npt.NDArray[np.float64], least: float) -> tuple[float, float]:
    median = float(np.median(values))
    return median, max(1.4826 * float(np.median(np.abs(values - median))), least / LIMIT)


def _z(value: float, among: npt.NDArray[np.float64], least: float) -> float:
    median, scale = _usual(among, least)
    return (value - median) / scale


def _odd_exposure(image: Looks, among: Sequence[Looks]) -> list[Oddity]:
    levels, saturated, black = (np.array([getattr(one, name) for one in among]) for name in ("level", "saturated", "black"))
    usual = np.exp(np.median(levels)) - 1
    brighter = _z(image.level, levels, _LEAST_LEVEL)
    clipped = _z(image.saturated, saturated, _LEAST_CLIPPED)
    crushed = _z(image.black, black, _LEAST_CLIPPED)
    level = f"mean level {np.exp(image.level) - 1:.0f} of 255, usual {usual:.0f}"
    if clipped > LIMIT and clipped >= brighter:
        return [Oddity("over-exposed", f"{image.saturated:.1%} of pixels saturated, usual {np.median(saturated):.1%}", clipped)]
    if brighter > LIMIT:
        return [Oddity("over-exposed", level, brighter)]
    if crushed > LIMIT and crushed >= -brighter:
        return [Oddity("under-exposed", f"{image.black:.1%} of pixels black, usual {np.median(black):.1%}", crushed)]
    return [Oddity("under-exposed", level, -brighter)] if -brighter > LIMIT else []


def _odd_size(image: Looks, among: Sequence[Looks]) -> list[Oddity]:
    """A size other than the one that most images have; where no size has a majority, sizes vary by nature."""
    if not among:
        return []
    usual, count = Counter(one.size for one in among).most_common(1)[0]
    if 2 * count <= len(among) or image.size == usual:
        return []
    detail = f"{image.size[1]} x {image.size[0]} pixels, usual {usual[1]} x {usual[0]}"
    return [Oddity("wrong size", detail, abs(float(np.log(image.size[0] * image.size[1] / (usual[0] * usual[1])))))]
