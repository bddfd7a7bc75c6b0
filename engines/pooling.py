"""From patch scores to an image's score: the highest mean of 3 x 3 windows, stride 3."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines import EngineError

_SIDE = 3  # of a window, and the stride


class Windows:
    """The windows of a map, of which each judged patch counts in one at least.

    `cover` adds a last window flush with the border, so that every patch can reject a part; `paper` is the authors'
    average pooling, which on a 32 x 32 map never sees the last two rows and columns. Patches that are not judged are
    left out of a window's mean, and windows without a judged patch are left out. On a map smaller than a window, windows
    are as large as the map.
    """

    def __init__(self, judged: npt.NDArray[np.bool_], pooling: str = "cover") -> None:
        """Lay the windows.

        Args:
            judged: bool (rows, columns) patches that count.
            pooling: `cover` or `paper`.

        Raises:
            EngineError: an unknown pooling, or no judged patch below any window.
        """
        if pooling not in ("cover", "paper"):
            raise EngineError(f"pooling '{pooling}', expected 'cover' or 'paper'")
        self._judged = judged
        high, wide = (min(_SIDE, length) for length in judged.shape)
        tops, lefts = (_starts(length, pooling) for length in judged.shape)
        corners = tops[:, None] * judged.shape[1] + lefts
        within = np.arange(high)[:, None] * judged.shape[1] + np.arange(wide)
        index = corners.reshape(-1, 1) + within.reshape(1, -1)
        counted = judged.ravel()[index]
        seen = counted.any(axis=1)
        if not seen.any():
            raise EngineError(f"pooling '{pooling}' covers none of the {np.count_nonzero(judged)} judged patches; use 'cover'")
        self._index, self._counted = index[seen], counted[seen]
        self._count = np.count_nonzero(self._counted, axis=1)

    @property
    def index(self) -> npt.NDArray[np.int64]:
        """The patches below each window, int64 (windows, cells) of the flattened map; -1 where one is not judged."""
        return np.where(self._counted, self._index, -1)

    def means(self, patches: npt.NDArray) -> npt.NDArray[np.float64]:
        """Mean judged score of each window: (..., rows, columns) to float64 (..., windows)."""
        judged = np.where(self._judged, patches, 0)  # what is not judged may be NaN
        flat = judged.reshape(*judged.shape[:-2], -1)
        return np.asarray(flat[..., self._index].sum(axis=-1, dtype=np.float64) / self._count)

    def pool(self, patches: npt.NDArray) -> npt.NDArray[np.float64]:
        """Image scores: (..., rows, columns) to float64 (...); NaN where a judged patch is NaN, below a window or not."""
        lost = (np.isnan(patches) & self._judged).any(axis=(-2, -1))
        return np.where(lost, np.nan, self.means(patches).max(axis=-1))

    def patches(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The judged patches below some of the windows: their indices in the flattened map, ascending, each once."""
        return np.unique(self._index[windows][self._counted[windows]])


def _starts(length: int, pooling: str) -> npt.NDArray[np.int64]:
    last = max(length - _SIDE, 0)
    starts = np.arange(0, last + 1, _SIDE)
    if pooling == "cover" and starts[-1] != last:
        starts = np.append(starts, last)
    return starts
