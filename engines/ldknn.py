"""Local-Density KNN in NumPy: the reference that every faster twin is tested against.

For a query x and a bank C, with c* the bank row nearest to x,

    score(x) = d(x, c*) - alpha * density(c*)
    density(c) = mean over the K nearest neighbours n of c among all normal patches, c itself left out, of d(c, n)

(Lyu, Mo, Wong, "REB: Reducing Biases in Representation for Industrial Anomaly Detection", arXiv 2308.12577, section on
LDKNN). d is the squared Euclidean distance by default, as in the authors' code; plain Euclidean is the other choice.
Distances here are squared until `distance` turns them into the metric asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.workers import Rooms, Workers

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

QUERY_BLOCK = 512
_BATCH = 4 * QUERY_BLOCK  # queries that are in work at a time
_FEW = QUERY_BLOCK // 2  # queries, up to which smaller blocks of rows give all threads something to do
ROW_BLOCK = 2048  # products of 512 queries with 2,048 rows are 4 MiB: near the cache, and the same whatever the bank
_KEPT = 3  # nearest rows of a block that are looked at again where rounding could have swapped them
_SPARE = 4  # candidates kept beyond K, so that float32 rounding cannot push a true neighbour out
_EPSILON = float(np.finfo(np.float32).eps)


class LDKNN:
    """Score embeddings against one bank. Safe to share between threads. Memory to work in is kept from call to call.

    Attributes:
        metric: of distances.
        workers: the threads that search.
    """

    def __init__(self, rows: Floats, density: Floats, *, alpha: float, metric: str = "sqeuclidean", threads: int = 0) -> None:
        """Prepare a bank.

        Args:
            rows: float32 (n, d), the bank.
            density: float32 (n,), `density(...)` of each row.
            alpha: weight of the density; 0 is plain nearest neighbour.
            metric: `sqeuclidean` or `euclidean`.
            threads: that search; 0 is one a core. The answers are the same to the last bit.

        Raises:
            EngineError: shapes that do not fit, an empty bank, or an unknown metric.
        """
        _check_rows(rows, "bank")
        if density.shape != (len(rows),):
            raise EngineError(f"density is {density.shape}, expected ({len(rows)},): one value a bank row")
        _check_metric(metric)
        # an equal row further down never wins a tie: without it the answers are the same, and repeated patches (a plain
        # background) do not force the exact search below
        self._kept = _first_of_equals(rows)
        self._rows = np.ascontiguousarray(rows if len(self._kept) == len(rows) else rows[self._kept])
        self._norms = _squared_norms(self._rows)
        self._density = np.asarray(density, np.float32)
        self._alpha = np.float32(alpha)
        self.metric = metric
        self.workers = Workers(threads)
        self._rooms = Rooms()

    @property
    def rows(self) -> Floats:
        """The distinct bank rows, float32 (n, d)."""
        return self._rows

    @property
    def density(self) -> Floats:
        """Their densities, float32 (n,)."""
        return self._density[self._kept]

    @property
    def alpha(self) -> float:
        """Weight of the density."""
        return float(self._alpha)

    def score(self, queries: Floats) -> Floats:
        """LDKNN score of each query: float32 (q, d) to float32 (q,), higher is more anomalous. O(q n d).

        Raises:
            EngineError: wrong shape or dtype. A query that is not finite scores NaN, which no caller may pass.
        """
        squared, nearest_row = self.search(queries)
        return np.asarray(distance(squared, self.metric) - self._alpha * self._density[nearest_row])

    def search(self, queries: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Nearest bank row of each query: squared distance float32 (q,) and row index int64 (q,).

        |q|^2 - 2 q.c + |c|^2 is one matrix product a block of queries and rows. It cancels in float32, so rows that come
        within rounding of the nearest are compared again by their differences in float64, ties go to the lower index, and
        the distance returned is always that of the difference.
        """
        _check_rows(queries, "queries", self._rows.shape[1])
        squared = np.empty(len(queries), np.float32)
        index = np.empty(len(queries), np.int64)
        for start in range(0, len(queries), _BATCH):
            part = slice(start, start + _BATCH)
            self._search_batch(queries[part], squared[part], index[part])
        squared[~np.isfinite(squared)] = np.nan  # a comparison with NaN is False: say it, don't hide it
        return squared, index

    def _search_batch(self, queries: Floats, squared: Floats, index: npt.NDArray[np.int64]) -> None:
        """Search up to _BATCH queries into `squared` and `index`: blocks by blocks of rows, then each block's nearest."""
        parts = [slice(start, start + QUERY_BLOCK) for start in range(0, len(queries), QUERY_BLOCK)]
        height = ROW_BLOCK if len(queries) > _FEW else ROW_BLOCK // 4
        blocks = -(-len(self._rows) // height)
        minus_twice = np.multiply(queries, np.float32(-2), out=self._rooms.get("minus twice", queries.shape))
        value = self._rooms.get("value", (len(queries), blocks * _KEPT))
        row = self._rooms.get("row", (len(queries), blocks * _KEPT), np.int64)

        def compare(number: int) -> None:
            block, part = number // len(parts), parts[number % len(parts)]
            columns = slice(block * _KEPT, (block + 1) * _KEPT)
            rows = slice(block * height, min((block + 1) * height, len(self._rows)))
            self._least(minus_twice[part], rows, value[part, columns], row[part, columns])

        def choose(number: int) -> None:
            part = parts[number]
            found = self._choose(queries[part], minus_twice[part], value[part], row[part])
            difference = self._rooms.get("difference", queries[part].shape)
            np.take(self._rows, found, axis=0, out=difference, mode="clip")  # as `raise` does, but without a copy
            np.subtract(queries[part], difference, out=difference)
            np.einsum("ij,ij->i", difference, difference, out=squared[part])
            index[part] = self._kept[found]

        self.workers.each(compare, blocks * len(parts))
        self.workers.each(choose, len(parts))

    def _least(self, minus_twice: Floats, rows: slice, value: Floats, row: npt.NDArray[np.int64]) -> None:
        """The _KEPT least of |c|^2 - 2 q.c among some rows, into `value` and `row`, (q, _KEPT) each."""
        every = np.arange(len(minus_twice))
        products = self._rooms.get("products", (len(minus_twice), rows.stop - rows.start))
        np.matmul(minus_twice, self._rows[rows].T, out=products)
        products += self._norms[rows]
        for place in range(_KEPT):
            column = products.argmin(axis=1)
            value[:, place] = products[every, column]
            row[:, place] = column + rows.start
            products[every, column] = np.inf

    def _choose(self, queries: Floats, minus_twice: Floats, value: Floats, row: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The nearest of the rows kept of each block, for each query."""
        every = np.arange(len(queries))
        best = value.argmin(axis=1)
        index = row[every, best]
        rounding = _rounding(_squared_norms(queries), self._norms.max(), queries.shape[1])
        limit = value[every, best] + rounding
        close = value <= limit[:, None]
        crowded = close[:, _KEPT - 1 :: _KEPT].any(axis=1)  # a block may hold more close rows than were kept
        doubtful = ~crowded & (np.count_nonzero(close, axis=1) > 1)
        if doubtful.any():
            query, column = np.nonzero(close & doubtful[:, None])
            index[doubtful] = self.nearest_of(queries, query, row[query, column])
        for number in np.flatnonzero(crowded):
            near = self._norms + self._rows @ minus_twice[number]
            candidates = np.flatnonzero(near <= near.min() + rounding[number])
            if len(candidates) == 0:  # beyond float32: whatever row, its distance is not finite
                continue
            index[number] = self.nearest_of(queries, np.full_like(candidates, number), candidates)[0]
        return np.asarray(index)

    def nearest_of(
        self, queries: Floats, query: npt.NDArray[np.int64], candidate: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Nearest candidate of each query named, by differences in float64; ties go to the lower index.

        Args:
            queries: float32 (q, d).
            query, candidate: int64 (pairs,) which query is compared with which row, in ascending order of the queries.

        Returns:
            int64, a row for each query that is named, in their order.
        """
        exact = np.empty(len(query))
        for start in range(0, len(query), ROW_BLOCK):
            part = slice(start, start + ROW_BLOCK)
            exact[part] = _squared_differences(queries[query[part]].astype(np.float64), self._rows[candidate[part]])
        order = np.lexsort((candidate, exact, query))
        _, first = np.unique(query[order], return_index=True)
        return np.asarray(candidate[order[first]])


def nearest(
    queries: Floats,
    rows: Floats,
    k: int,
    *,
    exclude: npt.NDArray[np.int64] | None = None,
    progress: Progress | None = None,
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The K nearest rows of each query, by squared Euclidean distance, nearest first. O(q n d) time, bounded memory.

    Args:
        queries: float32 (q, d).
        rows: float32 (n, d).
        k: neighbours wanted; fewer come back where there are fewer rows.
        exclude: int64 (q,) one row index to leave out for each query (itself), or -1 for none.
        progress: called with (queries done, queries in all).

    Returns:
        Squared distances float32 (q, k), computed from differences, and row indices int64 (q, k). Where the excluded
        row leaves fewer than k rows, k shrinks by one for all. Which rows are compared by differences is decided in
        float32, about the mean of the rows.

    Raises:
        EngineError: wrong shapes, or no row left to be a neighbour.
    """
    _check_rows(rows, "rows")
    _check_rows(queries, "queries", rows.shape[1])
    k = min(k, len(rows) - (0 if exclude is None else 1))
    if k < 1:
        raise EngineError(f"{len(rows)} rows leave no neighbour to measure, expected {1 if exclude is None else 2} or more")
    centre = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    squared = np.empty((len(queries), k), np.float32)
    index = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), QUERY_BLOCK):
        part = slice(start, start + QUERY_BLOCK)
        candidates = _candidates(queries[part], rows, centre, k + _SPARE, None if exclude is None else exclude[part])
        squared[part], index[part] = _sort_exactly(queries[part], rows, candidates, k)
        if progress is not None:
            progress(min(start + QUERY_BLOCK, len(queries)), len(queries))
    return squared, index


def density(
    bank: npt.NDArray[np.int64],
    features: Floats,
    k: int,
    *,
    metric: str = "sqeuclidean",
    progress: Progress | None = None,
) -> Floats:
    """Local density of bank rows: the mean distance to their K nearest neighbours among all normal patches.

    Args:
        bank: int64 (n,), the bank as indices into `features`; a row is left out of its own neighbours by this index,
            so an equal vector elsewhere still counts, at distance 0.
        features: float32 (N, d), every normal patch.
        k: neighbours; fewer where `features` has fewer.
        metric: `sqeuclidean` or `euclidean`.

    Returns:
        float32 (n,). Zero where `features` is a single row, which has no neighbour.
    """
    _check_metric(metric)
    if len(features) == 1:
        return np.zeros(len(bank), np.float32)
    squared, _ = nearest(features[bank], features, k, exclude=bank, progress=progress)
    return np.asarray(distance(squared, metric).mean(axis=1), dtype=np.float32)


def distance(squared: npt.NDArray, metric: str) -> npt.NDArray:
    """Squared Euclidean distances in the metric asked for."""
    return np.sqrt(squared) if metric == "euclidean" else squared


def _candidates(
    queries: Floats, rows: Floats, centre: Floats, count: int, exclude: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    """Indices (q, count) of the rows that look nearest in float32, unsorted; -1 where there are fewer.

    Distances are the same about any centre, and cancel least about the mean.
    """
    total = len(queries)
    queries = queries - centre
    best = np.full((total, count), np.inf, np.float32)
    index = np.full((total, count), -1, np.int64)
    for start in range(0, len(rows), ROW_BLOCK):
        block = rows[start : start + ROW_BLOCK] - centre
        near = queries @ block.T
        near *= -2
        near += _squared_norms(block)
        if exclude is not None:
            own = np.flatnonzero((exclude >= start) & (exclude < start + len(block)))
            near[own, exclude[own] - start] = np.inf
        closer = np.flatnonzero(near.min(axis=1) < best.max(axis=1))  # soon few: sorting costs more than the product
        near = near[closer]
        kept = np.argpartition(near, min(count, len(block)) - 1, axis=1)[:, :count]
        values = np.concatenate([best[closer], np.take_along_axis(near, kept, axis=1)], axis=1)
        rows_of = np.concatenate([index[closer], kept + start], axis=1)
        order = np.argpartition(values, count - 1, axis=1)[:, :count]
        best[closer] = np.take_along_axis(values, order, axis=1)
        index[closer] = np.take_along_axis(rows_of, order, axis=1)
    return np.where(np.isinf(best), -1, index)


def _sort_exactly(
    queries: Floats, rows: Floats, candidates: npt.NDArray[np.int64], k: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The k nearest of each query's candidates, by distances from differences, ties by index. Blocked over queries."""
    squared = np.empty((len(queries), k), np.float32)
    index = np.empty((len(queries), k), np.int64)
    step = max(1, 4 * 2**20 // (candidates.shape[1] * rows.shape[1]))  # 16 MiB of gathered rows
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        chosen = np.sort(candidates[part], axis=1)
        exact = _squared_differences(queries[part, None, :], rows[chosen])
        exact[chosen < 0] = np.inf
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        squared[part] = np.take_along_axis(exact, order, axis=1)
        index[part] = np.take_along_axis(chosen, order, axis=1)
    return squared, index


def _first_of_equals(rows: Floats) -> npt.NDArray[np.int64]:
    """Ascending indices of the rows, less those that equal an earlier one bit for bit."""
    first: dict[bytes, int] = {}
    for index, row in enumerate(np.ascontiguousarray(rows)):
        first.setdefault(hashlib.blake2b(row, digest_size=16).digest(), index)
    return np.fromiter(first.values(), np.int64, len(first))


def _squared_norms(vectors: Floats) -> Floats:
    return np.einsum("ij,ij->i", vectors, vectors)


def _squared_differences(one: Floats, other: Floats) -> Floats:
    difference = one - other
    return np.asarray(np.einsum("...j,...j->...", difference, difference))


def _rounding(query_norms: Floats, largest: np.float32, dim: int) -> Floats:
    """How far the expanded square may be off, float32 (q,): a sum of d rounded products errs by about sqrt(d) ulps."""
    return np.asarray(4 * _EPSILON * np.sqrt(dim) * (query_norms + largest), dtype=np.float32)


def _check_rows(rows: npt.NDArray, name: str, dim: int | None = None) -> None:
    fits = isinstance(rows, np.ndarray) and rows.dtype == np.float32 and rows.ndim == 2 and len(rows) > 0
    if not fits or (dim is not None and rows.shape[1] != dim):
        got = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise EngineError(f"{name} is {got}, expected float32 (n, {dim if dim is not None else 'd'}) with n of 1 or more")


def _check_metric(metric: str) -> None:
    if metric not in ("sqeuclidean", "euclidean"):
        raise EngineError(f"metric '{metric}', expected 'sqeuclidean' or 'euclidean'")
