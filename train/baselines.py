"""What LDKNN is compared with: other scores from the same neighbours in the same bank.

    nn      distance to the nearest row alone (LDKNN with alpha 0)
    knn     mean distance to the K nearest rows
    kth-nn  distance to the K-th nearest row
    lof     local outlier factor (Breunig et al., "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000)
    ldof    local distance-based outlier factor (Zhang, Hutter, Jin, "A New Local Distance-Based Outlier Detection
            Approach for Scattered Real-World Data", PAKDD 2009)

The first three use the bundle's metric. The two factors are ratios of plain Euclidean distances, as published.

Conventions where the papers divide by zero or run out of neighbours: 1e-10 is added to the mean that is divided by, in
LOF and in LDOF (scikit-learn does so in LOF), so that equal rows give large numbers and never infinity. With fewer than
K rows, all there are are neighbours; in LOF, where a row is not its own neighbour, all but one. LDOF needs a distance
among the neighbours, so it looks at two or more even when K is 1. The lone row of a bank of one has k-distance 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines.ldknn import Floats, Progress, distance, nearest
from train import TrainError

BASELINES = ("nn", "knn", "kth-nn", "lof", "ldof")

_TINY = 1e-10
_BLOCK = 2**20  # numbers gathered at a time for LDOF: 8 MiB of float64

Doubles = npt.NDArray[np.float64]


class Neighbourhood:
    """A bank with all that the baselines need of it; scores queries with one search for all of them."""

    def __init__(self, rows: Floats, k: int, *, metric: str = "sqeuclidean", progress: Progress | None = None) -> None:
        """Measure the bank's own neighbourhoods. O(n^2 d).

        Args:
            rows: float32 (n, d), the bank.
            k: neighbours.
            metric: of `nn`, `knn` and `kth-nn`; `sqeuclidean` or `euclidean`.
            progress: called with (rows done, rows in all).

        Raises:
            TrainError: `k` below 1.
            EngineError: rows of a wrong shape or dtype.
        """
        if k < 1:
            raise TrainError(f"K is {k}, expected 1 or more neighbours")
        self._rows, self._k, self._metric = rows, k, metric
        self._lof_k = max(1, min(k, len(rows) - 1))
        if len(rows) == 1:
            self._k_distance: Doubles = np.zeros(1)
            self._reachable: Doubles = np.full(1, 1 / _TINY)
            return
        squared, index = nearest(rows, rows, self._lof_k, exclude=np.arange(len(rows)), progress=progress)
        near = np.sqrt(squared, dtype=np.float64)
        self._k_distance = near[:, -1]
        self._reachable = self._reachability(near, index)

    def scores(self, queries: Floats) -> dict[str, Floats]:
        """Score embeddings, float32 (q, d), with each of `BASELINES`: float32 (q,) each, higher is more anomalous.

        Raises:
            EngineError: queries of a wrong shape or dtype.
        """
        squared, index = nearest(queries, self._rows, max(self._k, 2))
        near = distance(squared[:, : self._k], self._metric)
        plain = np.sqrt(squared, dtype=np.float64)
        return {
            "nn": near[:, 0],
            "knn": near.mean(axis=1),
            "kth-nn": near[:, -1],
            "lof": self._lof(plain[:, : self._lof_k], index[:, : self._lof_k]).astype(np.float32),
            "ldof": (plain.mean(axis=1) / (self._spread(index) + _TINY)).astype(np.float32),
        }

    def _lof(self, near: Doubles, index: npt.NDArray[np.int64]) -> Doubles:
        """Breunig et al., definition 7, for points outside the bank: float64 (q,), about 1 in the middle of it."""
        return self._reachable[index].mean(axis=1) / self._reachability(near, index)

    def _reachability(self, near: Doubles, index: npt.NDArray[np.int64]) -> Doubles:
        """Local reachability density (definition 6) from distances and rows of the neighbours, (q, k) each."""
        return 1 / (np.maximum(near, self._k_distance[index]).mean(axis=1) + _TINY)

    def _spread(self, index: npt.NDArray[np.int64]) -> Doubles:
        """Mean distance among each query's neighbours (Zhang et al., definition 2): int64 (q, k) to float64 (q,)."""
        count = index.shape[1]
        spread = np.zeros(len(index))
        if count == 1:
            return spread
        step = max(1, _BLOCK // (count * self._rows.shape[1]))
        for start in range(0, len(index), step):
            vectors = self._rows[index[start : start + step]].astype(np.float64)
            vectors -= vectors.mean(axis=1, keepdims=True)  # small numbers: the products below cancel less
            products = vectors @ vectors.transpose(0, 2, 1)
            norms = np.einsum("qii->qi", products)
            squared = norms[:, :, None] + norms[:, None, :] - 2 * products
            spread[start : start + step] = np.sqrt(np.maximum(squared, 0)).sum(axis=(1, 2))
        return spread / (count * (count - 1))
