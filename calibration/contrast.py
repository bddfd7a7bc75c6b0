"""How strongly a defect stands out: the step of brightness across its outline."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from engines.images import Image

LEAST = 0.5  # grey levels: less is none, in 8 bits
_BAND_PX, _REACH_PX = 3, 3.0  # inside and outside the outline; deviation of the weights along it
_SEEN = 0.005  # weight of a side, below which it is not there; one pixel alone has 0.018

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


def outline_step(image: Image, mask: Mask) -> float:
    """Mean difference in brightness between the two sides of a defect's outline, grey levels, `LEAST` or more.

    At each pixel of the outline the mean of a band of 3 pixels inside is compared with that of one outside, both weighted by
    a Gaussian along the outline, and the absolute differences are averaged: a shading that runs through a large defect and
    a texture within it add little. It needs an image and a mask alone, so that drawn and real defects are measured alike.

    Args:
        image: uint8 RGB (h, w, 3), at the network's size.
        mask: bool (h, w), the defect; it may have several pieces.
    """
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        return LEAST
    margin = _BAND_PX + int(3 * _REACH_PX)
    part = tuple(slice(max(0, at.min() - margin), at.max() + margin + 1) for at in (rows, columns))
    grey = image[part].astype(np.float32).mean(axis=2)
    within = mask[part].astype(np.uint8)
    wide = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _BAND_PX + 1,) * 2)
    near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    inside = (within > 0) & ~(cv2.erode(within, wide) > 0)
    outside = (cv2.dilate(within, wide) > 0) & (within == 0)
    inner, inner_weight = _along(grey, inside)
    outer, outer_weight = _along(grey, outside)
    edge = (cv2.dilate(within, near) > 0) & ~(cv2.erode(within, near) > 0)
    edge &= (inner_weight > _SEEN) & (outer_weight > _SEEN)
    if not edge.any():
        return LEAST
    return max(LEAST, float(np.abs(inner - outer)[edge].mean()))


def _along(grey: Floats, side: Mask) -> tuple[Floats, Floats]:
    """Weighted mean of one side around each pixel, and the weight that it rests on: float32 (h, w) both."""
    weight = np.asarray(cv2.GaussianBlur(side.astype(np.float32), (0, 0), _REACH_PX), np.float32)
    total = np.asarray(cv2.GaussianBlur(grey * side, (0, 0), _REACH_PX), np.float32)
    return total / np.maximum(weight, np.float32(1e-4)), weight
