"""The exact image score from a fraction of the exact search: bound every patch cheaply, search where it can matter.

The image score is the highest of about a hundred windows' means, so most patches need no exact distance to their nearest row:
it is enough to know that their window cannot win. `Grouped` bounds every patch. Windows are then searched exactly in the order
of the means of their patches' bounds, until the next is not above the best exact mean: no window that is left can exceed it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.grouped import Grouped
from engines.ldknn import LDKNN, Floats
from engines.pooling import Windows

_WINDOWS = (4, 16)  # searched exactly first, and then at a time, so that the bank is read once for all of them


class VerdictFirst:
    """Image scores against one bank, exact, and several times faster than the map. Safe to share between threads."""

    def __init__(self, search: LDKNN, judged: npt.NDArray[np.bool_], pooling: str = "cover") -> None:
        """Prepare a bank, as `Grouped` does.

        Args:
            search: the plain search, which this one agrees with, and whose threads it uses.
            judged, pooling: how patches become an image score, as for `Windows`.

        Raises:
            EngineError: a bank that is not finite, or windows that judge nothing.
        """
        self._judged = judged
        self._windows = Windows(judged, pooling)
        self._shape = (judged.size, search.rows.shape[1])
        self._search = search
        self._grouped = Grouped(search)

    def score(self, embeddings: Floats) -> float:
        """Image score of float32 (patches, d): what scoring every patch and pooling gives.

        Raises:
            EngineError: wrong shape or dtype. NaN where an embedding is not finite, which no caller may pass.
        """
        self._check(embeddings)
        highest = self._grouped.bound(embeddings)
        if not np.isfinite(highest).all():  # not a number, or beyond float32: for the search that says so
            return float(self._windows.pool(self._grouped.score(embeddings).reshape(self._judged.shape)))
        ceilings = self._windows.means(highest.reshape(self._judged.shape))
        order = np.argsort(-ceilings, kind="stable")
        exact = np.full(len(embeddings), -np.inf, np.float32)
        best = -np.inf
        first, further = _WINDOWS
        for next_ones in np.split(order, range(first, len(order), further)):
            chosen = next_ones[ceilings[next_ones] > best]
            if len(chosen) == 0:
                break
            patches = self._windows.patches(chosen)
            patches = patches[np.isneginf(exact[patches])]
            if len(patches) > 0:
                exact[patches] = self._search.score(embeddings[patches])  # groups do not pay for so few
            best = float(np.maximum(best, self._windows.means(exact.reshape(self._judged.shape))[chosen].max()))
            if np.isnan(best):  # with which nothing compares
                break
        return best

    def patches(self, embeddings: Floats) -> Floats:
        """The exact score of every patch, float32 (patches,): those of `LDKNN.score`. Raises as `score`."""
        self._check(embeddings)
        return self._grouped.score(embeddings)

    def _check(self, embeddings: Floats) -> None:
        if not isinstance(embeddings, np.ndarray) or embeddings.dtype != np.float32 or embeddings.shape != self._shape:
            got = f"{embeddings.dtype} {embeddings.shape}" if isinstance(embeddings, np.ndarray) else type(embeddings).__name__
            raise EngineError(f"embeddings is {got}, expected float32 {self._shape}")
