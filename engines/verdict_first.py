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

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.ldknn import LDKNN, Floats, distance
from engines.pooling import Windows
from engines.workers import Rooms

_DIMENSIONS = 62  # of the projection; with the residual and the constant, products of 64
_GROUP = 256  # rows that share a minimum
_QUERIES, _ROWS = 256, 2048  # in one product: 2 MiB, which stays in the cache until its minima are taken
_WINDOWS = (4, 16)  # searched exactly first, and then at a time, so that the bank is read once for all of them
_UNIT = 2.0**-24  # of float32's rounding

Reals = npt.NDArray[np.float64]


class VerdictFirst:
    """Image scores against one bank, exact, and several times faster than the map. Safe to share between threads.

    The search's own threads do the work, and each keeps its memory from call to call: but for ties within rounding, what a
    call allocates anew is vectors of a number or two a patch.
    """

    def __init__(self, search: LDKNN, judged: npt.NDArray[np.bool_], pooling: str = "cover") -> None:
        """Prepare a bank: O(n d^2 + d^3) for its principal directions, and a copy of it in 64 dimensions.

        Args:
            search: the exact search, which this one agrees with, and whose threads it uses.
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
        self._rooms = Rooms()

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
        for next_ones in np.split(order, range(first, len(order), further)):
            chosen = next_ones[ceilings[next_ones] > best]
            if len(chosen) == 0:
                break
            patches = self._windows.patches(chosen)
            patches = patches[np.isneginf(exact[patches])]
            if len(patches) > 0:
                exact[patches] = self._search.score(embeddings[patches])
            best = max(best, float(self._windows.means(exact.reshape(self._judged.shape))[chosen].max()))
        return best

    def upper_bounds(self, embeddings: Floats) -> npt.NDArray[np.float64]:
        """For each of float32 (q, d), float64 (q,) that its score does not exceed: inequality (2)."""
        count, groups = len(embeddings), len(self._least_density)
        parts = [slice(start, start + _QUERIES) for start in range(0, count, _QUERIES)]
        query = self._rooms.get("query", (count, len(self._columns)))
        minima = self._rooms.get("minima", (count, groups))
        squared, length, residual, bound = np.empty((4, count))
        nearest = np.empty(count, np.int64)

        def project(number: int) -> None:
            part = parts[number]
            centred = self._rooms.get("vectors", embeddings[part].shape)
            np.subtract(embeddings[part], self._centre, out=centred)
            squared[part], length[part], residual[part] = self._project(centred, query[part])
            self._minima(query[part], minima[part])

        def bound_part(number: int) -> None:
            part = parts[number]
            away = self._rooms.get("vectors", embeddings[part].shape)
            np.take(self._search.rows, self._order[nearest[part]], axis=0, out=away, mode="clip")
            np.subtract(embeddings[part], away, out=away)
            reached = _squares(away)
            limit = self._limit(reached, squared[part], length[part], residual[part])
            # not "below": beyond float32 a minimum or a limit is not a number, and then nothing may be ruled out
            first = (~(minima[part] > limit[:, None])).argmax(axis=1)
            bound[part] = self._bound(reached, self._least_density[first])

        self._search.workers.each(project, len(parts))
        self._find_nearest_looking(query, minima.argmin(axis=1), nearest)
        self._search.workers.each(bound_part, len(parts))
        return bound

    def _project(self, centred: Floats, query: Floats) -> tuple[Reals, Reals, Reals]:
        """What is multiplied with the bank, into `query`, (q, m + 2): -2 z(q) and 1; and |q|^2, |z(q)|^2, the residual."""
        squared = _squares(centred)
        within_plane = self._rooms.get("projection", (len(centred), self._directions.shape[1]))
        np.matmul(centred, self._directions, out=within_plane)
        within = _squares(within_plane)
        residual = np.sqrt(np.maximum(squared - within, 0))
        np.multiply(within_plane, np.float32(-2), out=query[:, :-2])
        query[:, -2] = -2 * residual
        query[:, -1] = 1
        return squared, within + residual**2, residual

    def _bound(self, reached: Reals, least_density: Floats) -> Reals:
        near = distance(reached, self._search.metric)
        bound = near - self._search.alpha * least_density.astype(np.float64)
        # the score that is bounded was rounded to float32 in a few steps
        return np.asarray(bound + 8 * self._centre.size * _UNIT * near + 4 * _UNIT * np.abs(bound))

    def _minima(self, query: Floats, minima: Floats) -> None:
        """Least |z(q) - z(b)|^2 - |z(q)|^2 of each group, into `minima`, (q, groups)."""
        count = self._columns.shape[1]
        for start in range(0, count, _ROWS):
            wide = min(_ROWS, count - start)
            products = self._rooms.get("products", (len(query), wide))
            np.matmul(query, self._columns[:, start : start + wide], out=products)
            whole, group = wide // _GROUP, start // _GROUP
            if whole > 0:
                grouped = products[:, : whole * _GROUP].reshape(len(query), whole, _GROUP)
                np.min(grouped, axis=2, out=minima[:, group : group + whole])
            if wide % _GROUP > 0:
                np.min(products[:, whole * _GROUP :], axis=1, out=minima[:, group + whole])

    def _find_nearest_looking(self, query: Floats, group: npt.NDArray[np.int64], nearest: npt.NDArray[np.int64]) -> None:
        """For each query the row of the least |z(q) - z(b)|, as an index into the order by density, into `nearest`."""
        by_group = np.argsort(group, kind="stable")
        chosen, starts = np.unique(group[by_group], return_index=True)
        ends = np.append(starts[1:], len(group))

        def find(number: int) -> None:
            members = by_group[starts[number] : ends[number]]
            start = int(chosen[number]) * _GROUP
            columns = self._columns[:, start : start + _GROUP]
            few = self._rooms.get("few", (len(members), query.shape[1]))
            products = self._rooms.get("products", (len(members), columns.shape[1]))
            np.matmul(np.take(query, members, axis=0, out=few, mode="clip"), columns, out=products)
            nearest[members] = start + products.argmin(axis=1)

        self._search.workers.each(find, len(chosen))

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
