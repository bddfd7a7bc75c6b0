"""The exact search that skips rows: groups of near rows are ruled out by a bound in an eighth of the dimensions.

With P the bank's m leading principal directions about its mean, the map

    z(x) = (P'(x - mean), |x - mean - P P'(x - mean)|)

of R^d to R^(m+1) never lengthens a difference: its first part is an orthogonal projection, and by the triangle inequality
the lengths of the two residuals differ by no more than the residuals do. So for a query q and every row b,

    |z(q) - z(b)| <= |q - b|.                                                                         (1)

Let u be the exact distance from q to any row (here the row whose image under z is nearest). The nearest row c* is no
farther than u, so by (1) |z(q) - z(c*)| <= u, and

    score(q) = d(q, c*) - alpha density(c*) <= u - alpha min { density(b) : |z(q) - z(b)| <= u }.        (2)

Rows are dealt into groups of near ones by halving the bank again and again along its widest direction, and the minimum of
|z(q) - z(b)| over each group is kept, from one pass over products of m + 2 dimensions instead of d. A group whose minimum
exceeds u holds neither c* nor a row of (2). So the groups that are left give the bound, and the exact search looks into them
alone: on embeddings of good and bad parts about a half of 2,048 rows, a third of 20,000.

Rounding is bounded (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, chapter 3) and given away on each side, so
the nearest row is that of `LDKNN`, to the last bit of the score, for any bank. Where bounds say nothing (one cluster, noise),
all groups are searched, and the bounds cost an eighth on top. O(q n m) for the bounds and O(f q n d) for the search of the
share f of pairs that is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.ldknn import LDKNN, Floats, distance
from engines.workers import Rooms

DIMENSIONS = 62  # of the projection; with the residual and the constant, products of 64
GROUPS = (128, 256)  # rows of one in a small bank and in a large one; the last group of a bank may have fewer
_LARGE = 4096  # rows of a bank, from which fewer groups and quicker minima outweigh that less is ruled out
_QUERIES, _ROWS = 256, 2048  # in one product: 2 MiB, which stays in the cache until its minima are taken
_ITERATIONS = 5  # towards a widest direction, which need not be the very widest
_UNIT = 2.0**-24  # of float32's rounding

Reals = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bounded:
    """An image's embeddings with what is known of them; in the thread's own memory, until it bounds the next.

    Attributes:
        embeddings: float32 (q, d).
        highest: float64 (q,) that the scores do not exceed; not finite where nothing is known.
        minima: float32 (q, groups) least |z(q) - z(b)|^2 - |z(q)|^2 of each group.
        limit: float64 (q,) what the minimum of the nearest row's group does not exceed.
    """

    embeddings: Floats
    highest: Reals
    minima: Floats
    limit: Reals


class Grouped:
    """The search of one bank, by groups of its rows. Safe to share between threads.

    The threads of the plain search do the work, and each keeps its memory from call to call: but for ties within rounding,
    what a call allocates anew is vectors of a few numbers a query.
    """

    def __init__(self, search: LDKNN) -> None:
        """Prepare a bank: O(n d^2 + d^3) for its principal directions, and a copy of it, in groups.

        Raises:
            EngineError: a bank that is not finite.
        """
        rows = search.rows
        if not np.isfinite(rows).all() or not np.isfinite(search.density).all():
            raise EngineError("the bank holds numbers that are not finite; train again")
        self._search = search
        self._rooms = Rooms()
        self._centre = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        directions = _principal(rows, self._centre)
        self._directions = directions.astype(np.float32)
        # rounded once, from float64: an error of half a unit, which `_limit` has room for
        projected = _projected(rows, self._centre, directions)
        self._size = GROUPS[len(rows) >= _LARGE]
        groups = _halve(projected, self._size)
        # ascending in their least density, so that the first group that is left has the least of all
        groups.sort(key=lambda group: (float(search.density[group].min()), int(group[0])))
        short = next((number for number, group in enumerate(groups) if len(group) < self._size), len(groups) - 1)
        groups.append(groups.pop(short))  # the one that may have fewer, last
        self._order = np.concatenate(groups)
        self._least_density = np.array([search.density[group].min() for group in groups], np.float32)
        self._by_density = np.argsort(self._least_density, kind="stable")  # the last one's place among the others
        squared = np.einsum("ij,ij->i", projected, projected)[self._order]
        self._reach = float(np.sqrt(squared.max()))
        self._columns = np.ascontiguousarray(np.column_stack([projected[self._order], squared]).T, np.float32)
        self._rows = rows[self._order] - self._centre
        self._norms = np.einsum("ij,ij->i", self._rows, self._rows)
        self._largest = float(self._norms.max())
        self._density = search.density

    def bound(self, embeddings: Floats) -> Bounded:
        """Bound the scores of float32 (q, d): inequality (2)."""
        count, groups = len(embeddings), len(self._least_density)
        parts = [slice(start, start + _QUERIES) for start in range(0, count, _QUERIES)]
        query = self._rooms.get("query", (count, len(self._columns)))
        minima = self._rooms.get("minima", (count, groups))
        squared, length, residual, highest, limit = np.empty((5, count))
        nearest = np.empty(count, np.int64)

        def project(number: int) -> None:
            part = parts[number]
            centred = self._rooms.get("vectors", embeddings[part].shape)
            np.subtract(embeddings[part], self._centre, out=centred)
            squared[part], length[part], residual[part] = self._project(centred, query[part])
            self._find_minima(query[part], minima[part])

        def finish(number: int) -> None:
            part = parts[number]
            away = self._rooms.get("vectors", embeddings[part].shape)
            np.take(self._search.rows, self._order[nearest[part]], axis=0, out=away, mode="clip")
            np.subtract(embeddings[part], away, out=away)
            reached = _squares(away)
            limit[part] = self._limit(reached, squared[part], length[part], residual[part])
            # not "below": beyond float32 a minimum or a limit is not a number, and then nothing may be ruled out
            left = ~(minima[part] > limit[part, None])
            first = self._by_density[left[:, self._by_density].argmax(axis=1)]
            bound = self._highest(reached, self._least_density[first])
            highest[part] = np.where(np.isfinite(limit[part]), bound, np.nan)

        self._search.workers.each(project, len(parts))
        self._find_nearest_looking(query, minima.argmin(axis=1), nearest)
        self._search.workers.each(finish, len(parts))
        return Bounded(embeddings, highest, minima, limit)

    def score(self, bounded: Bounded, chosen: Indices) -> Floats:
        """Exact scores of some of an image's patches, float32 (chosen,): those of `LDKNN.score`, bit for bit."""
        embeddings = np.take(
            bounded.embeddings, chosen, axis=0, out=self._rooms.get("chosen", (len(chosen), self._centre.size)), mode="clip"
        )
        if not np.isfinite(bounded.highest[chosen]).all():  # beyond float32, where nothing is ruled out
            return self._search.score(embeddings)
        nearest = self._nearest(embeddings, ~(bounded.minima[chosen] > bounded.limit[chosen, None]))
        squared = np.empty(len(chosen), np.float32)
        parts = [slice(start, start + _QUERIES) for start in range(0, len(chosen), _QUERIES)]

        def measure(number: int) -> None:
            part = parts[number]
            away = self._rooms.get("vectors", embeddings[part].shape)
            np.take(self._search.rows, nearest[part], axis=0, out=away, mode="clip")
            np.subtract(embeddings[part], away, out=away)
            np.einsum("ij,ij->i", away, away, out=squared[part])

        self._search.workers.each(measure, len(parts))
        weight = np.float32(self._search.alpha)
        return np.asarray(distance(squared, self._search.metric) - weight * self._density[nearest])

    def _nearest(self, embeddings: Floats, left: npt.NDArray[np.bool_]) -> Indices:
        """The nearest row of each query among the groups that are left, bool (q, groups); of equal ones, the lower.

        Products of float32 about the mean tell which rows can be nearest: with d terms, centring and norms they are off by
        at most 2 (d + 8) units of |q|^2 + |b|^2. Where that leaves more than one, these are compared by float64 differences.
        """
        count, groups = left.shape
        centred = np.subtract(embeddings, self._centre, out=self._rooms.get("centred", embeddings.shape))
        squares = _squares(centred)
        centred *= np.float32(-2)
        least = self._rooms.get("least", (groups, count))
        second = self._rooms.get("second", (groups, count))
        place = self._rooms.get("place", (groups, count), np.int64)
        least.fill(np.inf)
        second.fill(np.inf)
        by_group = np.ascontiguousarray(left.T)

        def look(group: int) -> None:
            members = np.flatnonzero(by_group[group])
            if len(members) == 0:
                return
            rows = self._group(group)
            own = centred
            if len(members) < count:
                own = self._rooms.get("own", (len(members), centred.shape[1]))
                np.take(centred, members, axis=0, out=own, mode="clip")
            products = self._rooms.get("products", (len(members), rows.stop - rows.start))
            np.matmul(own, self._rows[rows].T, out=products)
            products += self._norms[rows]
            best = products.argmin(axis=1)
            every = np.arange(len(members))
            least[group, members] = products[every, best]
            place[group, members] = best + rows.start
            products[every, best] = np.inf
            second[group, members] = products.min(axis=1)

        self._search.workers.each(look, groups)
        group = least.argmin(axis=0)
        every = np.arange(count)
        limit = least[group, every] + 4 * (centred.shape[1] + 8) * _UNIT * (squares + self._largest)
        nearest = self._order[place[group, every]]
        close = least <= limit
        for number in np.flatnonzero((np.count_nonzero(close, axis=0) > 1) | (second <= limit).any(axis=0)):
            nearest[number] = self._compare(
                embeddings[number], centred[number], np.flatnonzero(close[:, number]), limit[number]
            )
        return np.asarray(nearest)

    def _compare(self, query: Floats, minus_twice: Floats, groups: Indices, limit: float) -> int:
        """The nearest row of some groups whose products are within a limit, by differences in float64."""
        near = []
        for group in groups:
            rows = self._group(int(group))
            products = self._rows[rows] @ minus_twice + self._norms[rows]
            near.append(rows.start + np.flatnonzero(products <= limit))
        candidates = np.sort(self._order[np.concatenate(near)])
        away = query.astype(np.float64) - self._search.rows[candidates]
        return int(candidates[np.einsum("ij,ij->i", away, away).argmin()])

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

    def _highest(self, reached: Reals, least_density: Floats) -> Reals:
        near = distance(reached, self._search.metric)
        bound = near - self._search.alpha * least_density.astype(np.float64)
        # the score that is bounded was rounded to float32 in a few steps
        return np.asarray(bound + 8 * self._centre.size * _UNIT * near + 4 * _UNIT * np.abs(bound))

    def _find_minima(self, query: Floats, minima: Floats) -> None:
        """Least |z(q) - z(b)|^2 - |z(q)|^2 of each group, into `minima`, (q, groups)."""
        count, size = self._columns.shape[1], self._size
        for start in range(0, count, _ROWS):
            wide = min(_ROWS, count - start)
            products = self._rooms.get("products", (len(query), wide))
            np.matmul(query, self._columns[:, start : start + wide], out=products)
            whole, group = wide // size, start // size
            if whole > 0:
                grouped = products[:, : whole * size].reshape(len(query), whole, size)
                np.min(grouped, axis=2, out=minima[:, group : group + whole])
            if wide % size > 0:
                np.min(products[:, whole * size :], axis=1, out=minima[:, group + whole])

    def _find_nearest_looking(self, query: Floats, group: npt.NDArray[np.int64], nearest: npt.NDArray[np.int64]) -> None:
        """For each query the row of the least |z(q) - z(b)|, as a place in the order of the groups, into `nearest`."""
        by_group = np.argsort(group, kind="stable")
        chosen, starts = np.unique(group[by_group], return_index=True)
        ends = np.append(starts[1:], len(group))

        def find(number: int) -> None:
            members = by_group[starts[number] : ends[number]]
            start = int(chosen[number]) * self._size
            columns = self._columns[:, start : start + self._size]
            few = self._rooms.get("few", (len(members), query.shape[1]))
            products = self._rooms.get("products", (len(members), columns.shape[1]))
            np.matmul(np.take(query, members, axis=0, out=few, mode="clip"), columns, out=products)
            nearest[members] = start + products.argmin(axis=1)

        self._search.workers.each(find, len(chosen))

    def _limit(self, reached: Reals, squared: Reals, length: Reals, residual: Reals) -> Reals:
        """What the minimum of the group that holds the nearest row cannot exceed: u^2 - |z(q)|^2 and room for rounding.

        With dot products of n terms off by at most n units times the product of the norms (Higham 2002, section 3.1):
        each of m projected coordinates by about (d + 2) units of |q|; |q|^2 and |P'q|^2, and with them the square of the
        residual, by `slack`; the product in m + 2 dimensions by (m + 4) units of its terms' norms, and `length` by as many
        units of itself.
        """
        d, m = self._directions.shape
        norm = np.sqrt(squared)
        slack = squared * _UNIT * (d + 2 * (d + 2) * np.sqrt(m) + m)
        moved = (
            np.sqrt(m) * (d + 2) * _UNIT * norm  # the projection
            + np.minimum(np.sqrt(slack), slack / np.maximum(residual, 1e-30))  # the residual
            + 4 * _UNIT * (norm + self._reach)  # the centre, and z(b) to float32
        )
        product = (m + 4) * _UNIT * (2 * np.sqrt(length) * self._reach + self._reach**2 + length)
        farthest = np.sqrt(reached) * (1 + d * _UNIT) + moved
        return farthest**2 - length + product

    def _group(self, number: int) -> slice:
        return slice(number * self._size, min((number + 1) * self._size, len(self._order)))


def _squares(vectors: Floats) -> Reals:
    """Squared norms."""
    return np.einsum("ij,ij->i", vectors, vectors).astype(np.float64)


def _halve(points: Reals, size: int) -> list[Indices]:
    """Deal points into groups of near ones: int64 indices, `size` each, and fewer in one at most."""
    whole, groups = [np.arange(len(points))], []
    while whole:
        part = whole.pop()
        if len(part) <= size:
            groups.append(np.sort(part))
            continue
        about = points[part] - points[part].mean(axis=0)
        direction = about[np.einsum("ij,ij->i", about, about).argmax()]
        for _ in range(_ITERATIONS):
            direction = about.T @ (about @ direction)
            direction /= max(float(np.sqrt(direction @ direction)), 1e-300)
        half = -(-len(part) // (2 * size)) * size
        order = np.argpartition(about @ direction, half - 1)
        whole += [part[order[half:]], part[order[:half]]]
    return groups


def _principal(rows: Floats, centre: Floats) -> Reals:
    """The leading principal directions of rows about a centre: float64 (d, m), orthonormal columns."""
    scatter = np.zeros((rows.shape[1],) * 2)
    for start in range(0, len(rows), _QUERIES):
        centred = rows[start : start + _QUERIES].astype(np.float64) - centre
        scatter += centred.T @ centred
    _, vectors = np.linalg.eigh(scatter)
    return np.ascontiguousarray(vectors[:, ::-1][:, :DIMENSIONS])


def _projected(rows: Floats, centre: Floats, directions: Reals) -> Reals:
    """z of the rows: float64 (n, m + 1)."""
    projected = np.empty((len(rows), directions.shape[1] + 1))
    for start in range(0, len(rows), _QUERIES):
        part = slice(start, start + _QUERIES)
        centred = rows[part].astype(np.float64) - centre
        within = centred @ directions
        projected[part, :-1] = within
        left = centred - within @ directions.T
        projected[part, -1] = np.sqrt(np.einsum("ij,ij->i", left, left))
    return projected
