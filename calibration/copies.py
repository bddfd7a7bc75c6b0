"""How alike two pictures are, to find one picture saved again, or one part photographed again.

Good parts in a fixed pose correlate up to 0.98, so the limit comes from the set: a near copy differs by less than a tenth of
the lower quartile of what different parts of the set differ by, and never by more than 5 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from calibration.looks import MIN_IMAGES
from engines.ldknn import Floats

_THUMB_PX = 128
_MARGIN_PX = 6  # of a thumbnail: shifts up to 5 % of the image are found
_COARSE_PX = 48
_COARSE_MARGIN_PX = 3
_SIDE_PX = _COARSE_PX - 2 * _COARSE_MARGIN_PX
_CANDIDATES = 8
_REFERENCE_PAIRS = 8
_NEAR = 0.1  # a near copy differs by less than this part of what different parts of the set differ by,
_NEAR_MOST = 0.05  # and never by more than this
_NEAR_FEW = 0.002  # in sets too small to have a usual difference: what a camera's noise makes of one scene
_FLAT = 0.5  # grey levels: a thumbnail with less structure than this holds noise only


class Gallery:
    """Pictures that were kept so far, to ask whether the next one is a near copy of one of them. Keeps 70 kB of each."""

    def __init__(self) -> None:
        self._thumbs: list[Floats] = []
        self._names: list[str] = []
        self._middles = np.empty((0, _SIDE_PX**2), np.float32)
        self._usual: list[float] = []

    def add(self, thumb: Floats, name: str) -> None:
        """Keep a thumbnail; one without structure is not compared with anything."""
        if flat(thumb):
            return
        count = len(self._thumbs)
        for at in np.unique(np.linspace(0, count - 1, min(count, _REFERENCE_PAIRS), dtype=int)).tolist():
            self._usual.append(difference(self._thumbs[at], thumb))
        if count == len(self._middles):  # grown by doubling
            self._middles = np.concatenate([self._middles, np.empty((max(64, count), self._middles.shape[1]), np.float32)])
        self._middles[count] = _unit(_middle(_coarse(thumb))[None])[0]
        self._thumbs.append(thumb)
        self._names.append(name)

    def near_copy(self, thumb: Floats) -> tuple[str, float] | None:
        """Name of the picture that this one is a near copy of, and their correlation; None where there is none."""
        count = len(self._thumbs)
        if count == 0 or flat(thumb):
            return None
        alike = (self._middles[:count] @ _unit(_windows(_coarse(thumb))).T).max(axis=1)
        wanted = min(_CANDIDATES, count)
        nearest = np.argpartition(alike, -wanted)[-wanted:].tolist()
        least, at = min((difference(self._thumbs[index], thumb), index) for index in nearest)
        return (self._names[at], 1 - least) if least < most_difference(self._usual, count) else None


def thumbnail(grey: npt.NDArray[np.uint8]) -> Floats:
    """Structure of an image without its lighting: float32 (128, 128), blurred a little so that half-pixel shifts match."""
    small = cv2.resize(grey, (_THUMB_PX, _THUMB_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 1) - cv2.GaussianBlur(small, (0, 0), _THUMB_PX / 16))


def flat(thumb: Floats) -> bool:
    """True where a thumbnail has no structure to be alike in."""
    return bool(thumb.std() <= _FLAT)


def near_copies(thumbs: Sequence[Floats]) -> tuple[dict[int, tuple[float, int]], float]:
    """All near copies in a set at once, without thumbnails that are flat.

    Returns:
        For each index of a near copy its difference to the nearest earlier picture and the index of that one; and the
        largest difference that still is a near copy in this set.
    """
    if len(thumbs) < 2:
        return {}, _NEAR_FEW
    most = most_difference(_usual_differences(thumbs), len(thumbs))
    nearest: dict[int, tuple[float, int]] = {}
    for earlier, later in _candidate_pairs(thumbs):
        differs = difference(thumbs[earlier], thumbs[later])
        if differs < min(most, nearest.get(later, (np.inf, -1))[0]):
            nearest[later] = differs, earlier
    return nearest, most


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


def most_difference(usual: Sequence[float], count: int) -> float:
    """Largest difference that still is a near copy, in a set of `count` whose members usually differ by `usual`.

    It is taken from the lower quartile, so that bursts of frames don't set it.
    """
    return _NEAR_FEW if count < MIN_IMAGES else min(_NEAR_MOST, _NEAR * float(np.percentile(usual, 25)))


def _usual_differences(thumbs: Sequence[Floats]) -> list[float]:
    """Differences between images that stand far apart in the set."""
    count = len(thumbs)
    if count < MIN_IMAGES:
        return []
    steps = np.unique(np.linspace(1, count - 1, _REFERENCE_PAIRS + 2, dtype=int)[1:-1])
    return [difference(thumbs[i], thumbs[(i + step) % count]) for i in range(count) for step in steps]


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
    coarse = np.stack([_coarse(thumb) for thumb in thumbs])
    middle = _unit(_middle(coarse))
    alike = np.full((len(thumbs), len(thumbs)), -np.inf, np.float32)
    shifts = range(2 * _COARSE_MARGIN_PX + 1)
    for down in shifts:
        for right in shifts:
            shifted = coarse[:, down : down + _SIDE_PX, right : right + _SIDE_PX]
            np.maximum(alike, middle @ _unit(shifted).T, out=alike)
    np.fill_diagonal(alike, -np.inf)
    count = min(_CANDIDATES, len(thumbs) - 1)
    nearest = np.argpartition(alike, -count, axis=1)[:, -count:].tolist()
    return sorted({(min(row, column), max(row, column)) for row, columns in enumerate(nearest) for column in columns})


def _coarse(thumb: Floats) -> Floats:
    small = cv2.resize(thumb, (_COARSE_PX, _COARSE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 1))


def _middle(coarse: Floats) -> Floats:
    return coarse[..., _COARSE_MARGIN_PX:-_COARSE_MARGIN_PX, _COARSE_MARGIN_PX:-_COARSE_MARGIN_PX]


def _windows(coarse: Floats) -> Floats:
    """The middle of a coarse thumbnail under each shift, float32 (49, 42, 42)."""
    return np.lib.stride_tricks.sliding_window_view(coarse, (_SIDE_PX, _SIDE_PX)).reshape(-1, _SIDE_PX, _SIDE_PX)


def _unit(patches: npt.NDArray) -> Floats:
    """Flatten (n, h, w), take the mean away, scale to length 1: products of rows are normalised correlations."""
    flattened = patches.reshape(len(patches), -1)
    flattened = flattened - flattened.mean(axis=1, keepdims=True)
    return np.asarray(flattened / np.maximum(np.linalg.norm(flattened, axis=1, keepdims=True), 1e-6))
