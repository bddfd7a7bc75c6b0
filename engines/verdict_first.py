"""The exact image score from a fraction of the exact search: bound every patch cheaply, search where it can matter.

The image score is the highest of about a hundred windows' means, so most patches need no exact distance to their nearest
row: it is enough to know that their window cannot win. With P the bank's m leading principal directions about its mean, the map

    z(x) = (P'(x - mean), |x - mean - P P'(x - mean)|)

of R^d to R^(m+1) never lengthens a difference: its first part is an orthogonal projection, and by the triangle inequality
the lengths of the two residuals differ by no more than the residuals do. So for a query q and every row b,

    |z(q) - z(b)| <= |q - b|.                                                                         (1)

Let u be the exact distance from q to any row (here the row whose image under z is nearest). The nearest row c* is no
farther than u, so by (1) |z(q) - z(c*)| <= u, and

    score(q) = d(q, c*) - alpha density(c*) <= u - alpha min { density(b) : |z(q) - z(b)| <= u }.        (2)

Rows are sorted by density, and the minimum of |z(q) - z(b)| is kept for groups of consecutive rows: the first group whose
minimum does not exceed u gives the bound (2) with one pass over the products of m + 1 dimensions instead of d. Windows are
then searched exactly in the order of the means of their patches' bounds, until the next is not above the best exact mean:
no window that is left can exceed it. Rounding is bounded (Higham 2002, chapter 3) and given away on each side, so the answer
is that of scoring every patch and pooling, for any bank; on adversarial ones (one cluster, densities of no relation to
distances) it is slow.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.ldknn import LDKNN, Floats, distance
from engines.pooling import Windows

_DIMENSIONS = 62  # of the projection; with the residual and the constant, products of 64
_GROUP = 256  # rows that share a minimum
_QUERIES, _ROWS = 256, 2048  # in one product: 2 MiB, which stays in the cache until its minima are taken
_WINDOWS = (4, 16)  # searched exactly first, and then at a time, so that the bank is read once for all of them
_UNIT = 2.0**-24  # of float32's rounding

Reals = npt.NDArray[np.float64]


class VerdictFirst:
    """Image scores against one bank, exact, and several times faster than the map. Safe to share between threads."""

    def __init__(self, search: LDKNN, judged: npt.NDArray[np.bool_], pooling: str = "cover") -> None:
        """Prepare a bank: O(n d^2 + d^3) for its principal directions, and a copy of it in 64 dimensions.

        Args:
            search: the exact search, which this one agrees with.
            judged, pooling: how patches become an image score, as for `Windows`.

        Raises:
            EngineError: a bank that is not finite, or windows that judge nothing.
        """
        self._search = search
        self._judged = judged
        self._windows = Windows(judged, pooling)
        rows = search.rows
        if not np.isfinite(rows).all() or not np.isfinite(search.density).all():
            raise EngineError("the bank holds numbers that are not finite; train again")
        self._order = np.argsort(search.density, kind="stable")
        self._least_density = search.density[self._order[::_GROUP]]
        self._centre = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        directions = _principal(rows, self._centre)
        self._directions = directions.astype(np.float32)
        # rounded once, from float64: an error of half a unit, which `_allowance` has room for
        projected = _projected(rows, self._order, self._centre, directions)
        squared = np.einsum("ij,ij->i", projected, projected)
        self._reach = float(np.sqrt(squared.max()))
        self._columns = np.ascontiguousarray(np.column_stack([projected, squared]).T, np.float32)
        self._own = threading.local()

    def score(self, embeddings: Floats) -> float:
        """Image score of float32 (patches, d): what scoring every patch and pooling gives.

        Raises:
            EngineError: wrong shape or dtype. NaN where an embedding is not finite, which no caller may pass.
        """
        shape = (self._judged.size, self._search.rows.shape[1])
        if not isinstance(embeddings, np.ndarray) or embeddings.dtype != np.float32 or embeddings.shape != shape:
            got = f"{embeddings.dtype} {embeddings.shape}" if isinstance(embeddings, np.ndarray) else type(embeddings).__name__
            raise EngineError(f"embeddings is {got}, expected float32 {shape}")
        highest = self.upper_bounds(embeddings)
        if not np.isfinite(highest).all():  # not a number, or beyond float32: for the search that says so
            return float(self._windows.pool(self._search.score(embeddings).reshape(self._judged.shape)))
        ceilings = self._windows.means(highest.reshape(self._judged.shape))
        order = np.argsort(-ceilings, kind="stable")
        exact = np.full(len(embeddings), -np.inf, np.float32)
        best = -np.inf
        first, further = _WINDOWS
        for chosen in np.split(order, range(first, len(order), further)):
            if ceilings[chosen[0]] <= best:
                break
            patches = self._windows.patches(chosen)
            patches = patches[np.isneginf(exact[patches])]
            if len(patches) > 0:
                exact[patches] = self._search.score(embeddings[patches])
            best = max(best, float(self._windows.means(exact.reshape(self._judged.shape))[chosen].max()))
        return best

    def upper_bounds(self, embeddings: Floats) -> npt.NDArray[np.float64]:
        """For each of float32 (q, d), float64 (q,) that its score does not exceed: inequality (2)."""
        centred = embeddings - self._centre
        squared = _squares(centred)
        query = self._room("query", (len(embeddings), len(self._columns)))
        np.matmul(centred, self._directions, out=query[:, :-2])
        within = _squares(query[:, :-2])
        residual = np.sqrt(np.maximum(squared - within, 0))
        length = within + residual**2
        query[:, :-2] *= -2
        query[:, -2] = -2 * residual
        query[:, -1] = 1
        minima = self._minima(query)
        row = self._order[self._nearest_looking(query, minima)]
        reached = _squares(embeddings - self._search.rows[row])
        # not "below": beyond float32 a minimum or a limit is not a number, and then nothing may be ruled out
        first = (~(minima > self._limit(reached, squared, length, residual)[:, None])).argmax(axis=1)
        near = distance(reached, self._search.metric)
        bound = near - self._search.alpha * self._least_density[first].astype(np.float64)
        # the score that is bounded was rounded to float32 in a few steps
        return bound + 8 * embeddings.shape[1] * _UNIT * near + 4 * _UNIT * np.abs(bound)

    def _minima(self, query: Floats) -> Floats:
        """Least |z(q) - z(b)|^2 - |z(q)|^2 of each group: float32 (q, groups)."""
        count = self._columns.shape[1]
        groups = len(self._least_density)
        minima = self._room("minima", (len(query), groups))
        room = self._room("products", (_QUERIES, _ROWS))
        for above in range(0, len(query), _QUERIES):
            part = query[above : above + _QUERIES]
            for start in range(0, count, _ROWS):
                wide = min(_ROWS, count - start)
                products = room.ravel()[: len(part) * wide].reshape(len(part), wide)
                np.matmul(part, self._columns[:, start : start + wide], out=products)
                whole, group = wide // _GROUP, start // _GROUP
                into = minima[above : above + len(part), group : group + -(-wide // _GROUP)]
                if whole > 0:
                    grouped = products[:, : whole * _GROUP].reshape(len(part), whole, _GROUP)
                    np.min(grouped, axis=2, out=into[:, :whole])
                if wide % _GROUP > 0:
                    np.min(products[:, whole * _GROUP :], axis=1, out=into[:, whole])
        return minima

    def _nearest_looking(self, query: Floats, minima: Floats) -> npt.NDArray[np.int64]:
        """For each query the row of the least |z(q) - z(b)|, as an index into the order by density."""
        group = minima.argmin(axis=1)
        nearest = np.empty(len(query), np.int64)
        for chosen in np.unique(group):
            members = np.flatnonzero(group == chosen)
            start = chosen * _GROUP
            products = query[members] @ self._columns[:, start : start + _GROUP]
            nearest[members] = start + products.argmin(axis=1)
        return nearest

    def _limit(self, reached: Reals, squared: Reals, length: Reals, residual: Reals) -> Reals:
        """What the minimum of the group that holds the nearest row cannot exceed: u^2 - |z(q)|^2 and room for rounding.

        With dot products of n terms off by at most n units times the product of the norms (Higham 2002, section 3.1):
        each of m projected coordinates by about (d + 2) units of |q|; |q|^2 and |P'q|^2, and with them the square of the
        residual, by `slack`; and the product in m + 2 dimensions by (m + 4) units of its terms' norms.
        """
        d, m = self._directions.shape
        norm = np.sqrt(squared)
        slack = squared * _UNIT * (d + 2 * (d + 2) * np.sqrt(m) + m)
        moved = (
            np.sqrt(m) * (d + 2) * _UNIT * norm  # the projection
            + np.minimum(np.sqrt(slack), slack / np.maximum(residual, 1e-30))  # the residual
            + 4 * _UNIT * (norm + self._reach)  # the centre, and z(b) to float32
        )
        product = (m + 4) * _UNIT * (2 * np.sqrt(length) * self._reach + self._reach**2)
        farthest = np.sqrt(reached) * (1 + d * _UNIT) + moved
        return farthest**2 - length + product

    def _room(self, name: str, shape: tuple[int, int]) -> Floats:
        """Memory of this thread to work in, kept from call to call."""
        kept = self._own.__dict__.get(name)
        if kept is None or kept.shape != shape:
            kept = self._own.__dict__[name] = np.empty(shape, np.float32)
        return kept


def _squares(vectors: Floats) -> Reals:
    """Squared norms."""
    return np.einsum("ij,ij->i", vectors, vectors).astype(np.float64)


def _principal(rows: Floats, centre: Floats) -> Reals:
    """The leading principal directions of rows about a centre: float64 (d, m), orthonormal columns."""
    scatter = np.zeros((rows.shape[1],) * 2)
    for start in range(0, len(rows), _QUERIES):
        centred = rows[start : start + _QUERIES].astype(np.float64) - centre
        scatter += centred.T @ centred
    _, vectors = np.linalg.eigh(scatter)
    return np.ascontiguousarray(vectors[:, ::-1][:, :_DIMENSIONS])


def _projected(rows: Floats, order: npt.NDArray[np.int64], centre: Floats, directions: Reals) -> Reals:
    """z of the rows in an order: float64 (n, m + 1)."""
    projected = np.empty((len(order), directions.shape[1] + 1))
    for start in range(0, len(order), _QUERIES):
        part = slice(start, start + _QUERIES)
        centred = rows[order[part]].astype(np.float64) - centre
        within = centred @ directions
        projected[part, :-1] = within
        left = centred - within @ directions.T
        projected[part, -1] = np.sqrt(np.einsum("ij,ij->i", left, left))
    return projected
