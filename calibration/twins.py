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
SIDE_PX = _COARSE_PX - 2 * _COARSE_MARGIN_PX
CANDIDATES = 8
REFERENCE_PAIRS = 8
_FEWEST = 8  # images for which there is a usual difference
_NEAR_FEW = 0.002  # limit in sets with fewer: what a camera's noise makes of one scene
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


def flat(thumb: Floats) -> bool:
    """True where a thumbnail has no structure to be alike in."""
    return bool(thumb.std() <= _FLAT)


def find_twins(thumbs: Sequence[Floats], near: Nearness) -> Twins:
    """Pairs of pictures that show the same part; thumbnails without structure are nobody's twins.

    Args:
        thumbs: of `thumbnail`, in the order of the pictures.
        near: how alike twins are.

    Returns:
        Pairs ordered by their places. Of each picture its eight nearest are looked at.
    """
    kept = [place for place, thumb in enumerate(thumbs) if not flat(thumb)]
    structured = [thumbs[place] for place in kept]
    if len(kept) < 2:
        return Twins((), _NEAR_FEW)
    limit = limit_of(_usual(structured), len(structured), near)
    pairs = []
    for earlier, later in _candidate_pairs(structured):
        differs = difference(structured[earlier], structured[later])
        if differs < limit:
            pairs.append(Twin(kept[earlier], kept[later], differs))
    return Twins(tuple(pairs), limit)


def limit_of(usual: Sequence[float], count: int, near: Nearness) -> float:
    """The difference below which pictures are twins, in a set of `count` whose members usually differ by `usual`.

    It is taken from the lower quartile, so that bursts of frames do not set it.
    """
    if count < _FEWEST:
        return _NEAR_FEW
    quartile = float(np.percentile(usual, 25))
    if quartile < near.varied:
        near = NEAR_COPIES
    return min(near.most, near.share * quartile)


def _usual(thumbs: Sequence[Floats]) -> list[float]:
    """Differences between images that stand far apart in the set."""
    count = len(thumbs)
    if count < _FEWEST:
        return []
    steps = np.unique(np.linspace(1, count - 1, REFERENCE_PAIRS + 2, dtype=int)[1:-1])
    return [difference(thumbs[i], thumbs[(i + step) % count]) for i in range(count) for step in steps]


def difference(one: Floats, other: Floats) -> float:
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
    small = np.stack([coarse(thumb) for thumb in thumbs])
    middle = unit(middle_of(small))
    alike = np.full((len(thumbs), len(thumbs)), -np.inf, np.float32)
    shifts = range(2 * _COARSE_MARGIN_PX + 1)
    for down in shifts:
        for right in shifts:
            shifted = small[:, down : down + SIDE_PX, right : right + SIDE_PX]
            np.maximum(alike, middle @ unit(shifted).T, out=alike)
    np.fill_diagonal(alike, -np.inf)
    count = min(CANDIDATES, len(thumbs) - 1)
    nearest = np.argpartition(alike, -count, axis=1)[:, -count:].tolist()
    return sorted({(min(row, column), max(row, column)) for row, columns in enumerate(nearest) for column in columns})


def coarse(thumb: Floats) -> Floats:
    """A thumbnail at 48 x 48 pixels, float32, for a first look."""
    small = cv2.resize(thumb, (_COARSE_PX, _COARSE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 1))


def middle_of(small: Floats) -> Floats:
    """What of a coarse thumbnail is compared, float32 (..., 42, 42): the rest is room for shifts."""
    return small[..., _COARSE_MARGIN_PX:-_COARSE_MARGIN_PX, _COARSE_MARGIN_PX:-_COARSE_MARGIN_PX]


def windows(small: Floats) -> Floats:
    """The middle of a coarse thumbnail under each shift, float32 (49, 42, 42)."""
    return np.lib.stride_tricks.sliding_window_view(small, (SIDE_PX, SIDE_PX)).reshape(-1, SIDE_PX, SIDE_PX)


def unit(patches: npt.NDArray) -> Floats:
    """Flatten (n, h, w), take the mean away, scale to length 1: products of rows are normalised correlations."""
    flattened = patches.reshape(len(patches), -1)
    flattened = flattened - flattened.mean(axis=1, keepdims=True)
    return np.asarray(flattened / np.maximum(np.linalg.norm(flattened, axis=1, keepdims=True), 1e-6))
