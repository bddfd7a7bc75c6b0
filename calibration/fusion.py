"""How a fill is laid into an image, and how much of the image that changes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from calibration.shapes import Weight
from engines.images import Image

Change = npt.NDArray[np.float32]  # what is added to a crop: the crop's shape, grey levels

_TRIES, _CLOSE = 16, 0.02


@dataclass(frozen=True)
class Fused:
    """A crop with its defect: uint8 like the crop, where it changed (uint8 (h, w), 255 or 0), and by how much.

    `area_px` counts the changed pixels; `contrast` is the mean over them and over the channels of the absolute change.
    """

    after: Image
    changed: npt.NDArray[np.uint8]
    area_px: int
    contrast: float


def blend(under: Image, fill: Image, weight: Weight, opacity: float) -> Change:
    """The change that alpha-blending makes: (fill - under) x opacity x weight / 255, exactly 0 where the weight is."""
    difference = cv2.subtract(fill, under, dtype=cv2.CV_32F)
    return np.asarray(cv2.multiply(difference, _spread(weight, under), scale=opacity / 255, dtype=cv2.CV_32F), np.float32)


def push(under: Image, weight: Weight, levels: float) -> Change:
    """A change of the same size all over the shape, away from the nearer end of the grey scale.

    At least half of the shape then has room for it, whatever the image.
    """
    dark = np.median(under[weight > 0]) < 128
    change = _spread((weight > 0).astype(np.float32), under) * np.float32(levels if dark else -levels)
    return np.asarray(change, dtype=np.float32)


def fuse(under: Image, change: Change, visible: int) -> Fused:
    """Add a change to a crop, in 8 bits.

    Args:
        under: uint8 (h, w) or (h, w, 3).
        change: float32 of the same shape.
        visible: a pixel has changed if any of its channels differs by this many grey levels or more.
    """
    after = np.asarray(cv2.add(under, change, dtype=cv2.CV_8U), dtype=np.uint8)
    difference = cv2.absdiff(after, under)
    largest = difference
    if under.ndim == 3:
        red, green, blue = cv2.split(difference)
        largest = cv2.max(cv2.max(red, green), blue)
    changed = np.asarray(cv2.threshold(largest, visible - 1, 255, cv2.THRESH_BINARY)[1], dtype=np.uint8)
    means = cv2.mean(difference, mask=changed)[: 3 if under.ndim == 3 else 1]
    return Fused(after, changed, cv2.countNonZero(changed), sum(means) / len(means))


def fuse_at(under: Image, change: Change, visible: int, contrast: float) -> Fused:
    """Add a change, scaled so that its contrast comes as near to `contrast` as rounding and clipping allow."""
    strongest = float(np.abs(change).max(initial=0))
    gain, nearest = 1.0, fuse(under, change, visible)
    for _ in range(_TRIES):
        if strongest == 0 or abs(nearest.contrast / contrast - 1) < _CLOSE:
            break
        fused = fuse(under, change * np.float32(gain), visible)
        if abs(fused.contrast - contrast) < abs(nearest.contrast - contrast):
            nearest = fused
        # where nothing shows, the strongest pixel is brought to the contrast first
        gain = gain * contrast / fused.contrast if fused.area_px > 0 else contrast / strongest
    return nearest


def _spread(weight: npt.NDArray[np.uint8] | npt.NDArray[np.float32], under: Image) -> npt.NDArray[np.float32]:
    """Repeat (h, w) for each channel of the crop, as float32."""
    plane = weight.astype(np.float32)
    return plane if under.ndim == 2 else np.asarray(cv2.merge([plane, plane, plane]), dtype=np.float32)
