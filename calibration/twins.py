"""Pictures of a set that show the same part again: alike far beyond what different parts of the set are.

Good parts in a fixed pose correlate up to 0.98, so no fixed correlation tells a part from its neighbour. The limit comes
from the set: a fixed share of what images differ by that stand far apart in the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from engines.ldknn import Floats

_THUMB_PX = 128
_MARGIN_PX = 6  # of a thumbnail: shifts up to 5 % of the image are found
_COARSE_PX = 48
_COARSE_MARGIN_PX = 3
_CANDIDATES = 8
_REFERENCE_PAIRS = 8
_FEWEST = 8  # images for which there is a usual difference
_NEAR_FEW = 0.01  # limit in sets with fewer
_FLAT = 0.5  # grey levels: a thumbnail with less structure than this holds noise only


@dataclass(frozen=True)
class Nearness:
    """How alike twins are: they differ (1 - correlation) by less than `share` of the usual difference, and than `most`.

    Where the usual difference is below `varied`, NEAR_COPIES holds instead: all parts look alike there, two in the same pose
    as much as one part twice, and only a near copy can be told from another part.
    """

    share: float
    most: float
    varied: float = 0.0


NEAR_COPIES = Nearness(0.1, 0.05)
"""One picture saved again, or the next frame of a burst: what a training set should not hold twice."""

SAME_PART = Nearness(0.2, 0.15, varied=0.4)
"""Looser: one part under other light too. A missed twin breaks a calibration's guarantee, a false one costs an image.

`benchmarks.grouping` has the groups that both make of real images.
"""


@dataclass(frozen=True)
class Twin:
    """Two pictures by their places in the set, and 1 - the correlation of their structure."""

    earlier: int
    later: int
    difference: float


@dataclass(frozen=True)
class Twins:
    """All twins of a set, and the difference below which two pictures count as twins."""

    pairs: tuple[Twin, ...]
    limit: float


def thumbnail(grey: npt.NDArray[np.uint8]) -> Floats:
    """Structure of an image without its lighting: float32 (128, 128), blurred a little so that half-pixel shifts match."""
    small = cv2.resize(grey, (_THUMB_PX, _THUMB_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 1) - cv2.GaussianBlur(small, (0, 0), _THUMB_PX / 16))


def find_twins(thumbs: Sequence[Floats], near: Nearness) -> Twins:
    """Pairs of pictures that show the same part; thumbnails without structure are nobody's twins.

    Args:
        thumbs: of `thumbnail`, in the order of the pictures.
        near: how alike twins are.

    Returns:
        Pairs ordered by their places. Of each picture its eight nearest are looked at.
    """
    kept = [place for place, thumb in enumerate(thumbs) if thumb.std() > _FLAT]
    structured = [thumbs[place] for place in kept]
    if len(kept) < 2:
        return Twins((), _NEAR_FEW)
    limit = _limit(structured, near)
    pairs = []
    for earlier, later in _candidate_pairs(structured):
        difference = _difference(structured[earlier], structured[later])
        if difference < limit:
            pairs.append(Twin(kept[earlier], kept[later], difference))
    return Twins(tuple(pairs), limit)


def _limit(thumbs: Sequence[Floats], near: Nearness) -> float:
    """From the lower quartile of the differences between distant images: a quartile, so that bursts do not set it."""
    count = len(thumbs)
    if count < _FEWEST:
        return _NEAR_FEW
    steps = np.unique(np.linspace(1, count - 1, _REFERENCE_PAIRS + 2, dtype=int)[1:-1])
    usual = [_difference(thumbs[i], thumbs[(i + step) % count]) for i in range(count) for step in steps]
    quartile = float(np.percentile(usual, 25))
    if quartile < near.varied:
        near = NEAR_COPIES
    return min(near.most, near.share * quartile)


def _difference(one: Floats, other: Floats) -> float:
    """1 - the largest normalised correlation of the middle of one with the other, over shifts of up to 6 pixels.

    The peak is read between pixels too, from a parabola along each axis: half a pixel of a thumbnail is a shift that
    would cost more correlation than another part in the same pose does.
    """
    middle = one[_MARGIN_PX:-_MARGIN_PX, _MARGIN_PX:-_MARGIN_PX]
    alike = cv2.matchTemplate(other, middle, cv2.TM_CCOEFF_NORMED)
    row, column = np.unravel_index(alike.argmax(), alike.shape)
    peak = float(alike[row, column])
    rise = _rise(alike[:, column], int(row)) + _rise(alike[row], int(column))
    return max(0.0, 1 - peak - rise)


def _rise(values: npt.NDArray, at: int) -> float:
    """How far the parabola through the largest value, at `at`, and its two neighbours rises above it; 0 at the border."""
    if not 0 < at < len(values) - 1:
        return 0.0
    left, top, right = values[at - 1 : at + 2].tolist()
    bend = left - 2 * top + right
    return -((left - right) ** 2) / (8 * bend) if bend < 0 else 0.0


def _candidate_pairs(thumbs: Sequence[Floats]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) worth a close look: each image with its nearest ones at 48 x 48 pixels.

    One matrix product a shift, so that a thousand images take seconds; the products are float32 (n, n).
    """
    size = (_COARSE_PX, _COARSE_PX)
    coarse = np.stack([cv2.GaussianBlur(cv2.resize(thumb, size, interpolation=cv2.INTER_AREA), (0, 0), 1) for thumb in thumbs])
    side, shifts = _COARSE_PX - 2 * _COARSE_MARGIN_PX, range(2 * _COARSE_MARGIN_PX + 1)
    middle = _unit(coarse[:, _COARSE_MARGIN_PX:-_COARSE_MARGIN_PX, _COARSE_MARGIN_PX:-_COARSE_MARGIN_PX])
    alike = np.full((len(thumbs), len(thumbs)), -np.inf, np.float32)
    for down in shifts:
        for right in shifts:
            np.maximum(alike, middle @ _unit(coarse[:, down : down + side, right : right + side]).T, out=alike)
    np.fill_diagonal(alike, -np.inf)
    count = min(_CANDIDATES, len(thumbs) - 1)
    nearest = np.argpartition(alike, -count, axis=1)[:, -count:].tolist()
    return sorted({(min(row, column), max(row, column)) for row, columns in enumerate(nearest) for column in columns})


def _unit(patches: npt.NDArray) -> Floats:
    """Flatten (n, h, w), take the mean away, scale to length 1: products of rows are normalised correlations."""
    flat = patches.reshape(len(patches), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6))
