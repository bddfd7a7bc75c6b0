"""The exact search that skips rows: groups of near rows are ruled out by a bound in a sixth of the dimensions.

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
alone: on embeddings of good and bad parts about a third of 2,048 rows, a fifth
of 20,000.

Rounding is bounded (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, chapter 3) and given away on each side, so
the nearest row is that of `LDKNN`, to the last bit of the score, for any bank. Where bounds say nothing (one cluster, noise),
all groups are searched, and the bounds cost a sixth on top. O(q n m) for the bounds and O(f q n d) for the search of the
share f of pairs that is left.

A thread takes a part of an image's patches from the first product to the last: nobody waits for others in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.ldknn import LDKNN, Floats, distance
from engines.workers import Rooms

DIMENSIONS = 78  # of the projection; with the residual and the constant, products of 80
GROUPS = (64, 128)  # rows of one in a small bank and in a large one
_LARGE = 4096  # rows of a bank, from which fewer groups and quicker minima outweigh that less is ruled out
_QUERIES = (128, 512)  # patches of a part, at least and at most: products of fewer are slow, of more leave the cache
_ROWS = 512  # of a product in the bounds: 1 MiB, which stays in the cache until its minima are taken
_KEPT = 2**19  # products of the exact search that are kept before their minima are taken: 2 MiB
_BLOCK = 256  # rows that are centred at a time
_ITERATIONS = 5  # towards a widest direction, which need not be the very widest
_UNIT = 2.0**-24  # of float32's rounding
_NOWHERE = np.float32(2.0**127)  # the square of a row that fills up the last group: farther than any

Reals = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Part:
    """What the bounds of some patches found: float64 (c,) each, but for the first and the last."""

    vectors: Floats  # float32 (c, d + 1), about the mean and with a 1; in a room
    squared: Reals  # |q|^2 about the mean
    reached: Reals  # u^2
    limit: Reals  # what the minimum of the nearest row's group does not exceed; not finite beyond float32
    left: Flags  # bool (groups, c), which groups may hold the nearest row


class Grouped:
    """The search of one bank, by groups of its rows. Safe to share between threads.

    The threads of the plain search do the work, and each keeps its memory from call to call: but for ties within rounding,
    what a call allocates anew is vectors of a few numbers a query and group.
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
        size = self._size = GROUPS[len(rows) >= _LARGE]
        groups = _halve(projected, size)
        groups.sort(key=len, reverse=True)  # the one that may have fewer, last
        self._order = np.concatenate([*groups, np.full(-len(rows) % size, groups[-1][0])])  # whole groups, by `_filled`
        self._density = search.density
        self._least_density = np.array([self._density[group].min() for group in groups], np.float32)
        squares = np.einsum("ij,ij->i", projected, projected)
        self._reach = float(np.sqrt(squares.max()))
        self._images = self._filled(projected, squares)
        centred = rows - self._centre
        squares = np.einsum("ij,ij->i", centred, centred, dtype=np.float64)
        self._largest = float(squares.max())
        centred *= np.float32(-2)
        filled = self._filled(centred, squares)
        # a group's rows as columns: the products of few patches with it are quickest so
        self._blocks = np.ascontiguousarray(filled.reshape(-1, size, filled.shape[1]).transpose(0, 2, 1))

    def bound(self, embeddings: Floats) -> Reals:
        """What the scores of float32 (q, d) do not exceed, float64 (q,): inequality (2); not finite where nothing is known."""
        parts = self._parts(len(embeddings))
        highest = np.empty(len(embeddings))

        def work(number: int) -> None:
            part = parts[number]
            found = self._look(embeddings[part])
            density = self._rooms.get("least", found.left.shape)
            density.fill(np.inf)
            np.copyto(density, self._least_density[:, None], where=found.left)
            bound = self._highest(found.reached, density.min(axis=0))
            highest[part] = np.where(np.isfinite(found.limit), bound, np.nan)

        self._search.workers.each(work, len(parts))
        return highest

    def left(self, embeddings: Floats) -> Flags:
        """The groups that may hold the nearest row of each of float32 (q, d), bool (groups, q): where `score` searches."""
        return self._look(embeddings).left

    def score(self, embeddings: Floats) -> Floats:
        """Exact scores of float32 (q, d), float32 (q,): those of `LDKNN.score`, bit for bit."""
        parts = self._parts(len(embeddings))
        squared = np.empty(len(embeddings), np.float32)
        density = np.empty(len(embeddings), np.float32)
        known = np.empty(len(parts), bool)

        def work(number: int) -> None:
            part = parts[number]
            own = embeddings[part]
            found = self._look(own)
            known[number] = np.isfinite(found.limit).all()
            if not known[number]:
                return
            nearest = self._nearest(own, found)
            away = self._away(own, nearest)
            np.einsum("ij,ij->i", away, away, out=squared[part])
            density[part] = self._density[nearest]

        self._search.workers.each(work, len(parts))
        if not known.all():  # beyond float32, where nothing is ruled out
            return self._search.score(embeddings)
        return np.asarray(distance(squared, self._search.metric) - np.float32(self._search.alpha) * density)

    def _filled(self, vectors: npt.NDArray, squares: Reals) -> Floats:
        """Rows in the order of the groups, and a square each as the last column, float32 (whole groups, ...).

        Those that only fill up the last group have a square that keeps them from being anyone's nearest.
        """
        filled = np.empty((len(self._order), vectors.shape[1] + 1), np.float32)
        filled[:, :-1] = vectors[self._order]
        filled[:, -1] = squares[self._order]
        filled[len(vectors) :] = 0
        filled[len(vectors) :, -1] = _NOWHERE
        return filled

    def _parts(self, count: int) -> list[slice]:
        least, most = _QUERIES
        each = min(max(-(-count // self._search.workers.threads), least), most)
        return [slice(start, start + each) for start in range(0, count, each)]

    def _look(self, embeddings: Floats) -> _Part:
        """The bounds of some patches, float32 (c, d)."""
        count, d = embeddings.shape
        vectors = self._rooms.get("vectors", (count, d + 1))
        vectors[:, d] = 1
        centred = np.subtract(embeddings, self._centre, out=vectors[:, :d])
        squared = _squares(centred)
        within_plane = self._rooms.get("projection", (count, self._directions.shape[1]))
        np.matmul(centred, self._directions, out=within_plane)
        within = _squares(within_plane)
        residual = np.sqrt(np.maximum(squared - within, 0))
        length = within + residual**2
        image = self._rooms.get("image", (self._images.shape[1], count))  # -2 z(q) and 1, as columns
        np.multiply(within_plane.T, np.float32(-2), out=image[:-2])
        image[-2] = -2 * residual
        image[-1] = 1
        minima, looking = self._minima(image)
        reached = _squares(self._away(embeddings, self._order[looking]))
        limit = self._limit(reached, squared, length, residual)
        # beyond float32 products of the exact search may overflow: then nothing is known
        limit[~(squared + self._largest < _NOWHERE / 8)] = np.nan
        return _Part(vectors, squared, reached, limit, minima <= limit)

    def _minima(self, image: Floats) -> tuple[Floats, Indices]:
        """Least |z(q) - z(b)|^2 - |z(q)|^2 of each group, float32 (groups, c), and the place of the least of all."""
        size, count = self._size, image.shape[1]
        minima = self._rooms.get("minima", (len(self._least_density), count))
        best, place = np.full(count, np.inf, np.float32), np.zeros(count, np.int64)
        every = np.arange(count)
        for start in range(0, len(self._images), _ROWS):
            images = self._images[start : start + _ROWS]
            products = self._rooms.get("products", (len(images), count))
            np.matmul(images, image, out=products)
            grouped = products.reshape(-1, size, count)
            own = minima[start // size : start // size + len(grouped)]
            np.minimum.reduce(grouped, axis=1, out=own)
            group = own.argmin(axis=0)
            least = own[group, every]
            better = np.flatnonzero(least < best)
            best[better] = least[better]
            group = group[better]
            place[better] = start + group * size + grouped[group, :, better].argmin(axis=1)
        return minima, place

    def _nearest(self, embeddings: Floats, found: _Part) -> Indices:
        """The nearest row of each patch among the groups that are left; of equal ones, the lower. int64 (c,)

        Products about the mean, of d + 1 terms with the row's square among them, tell which rows can be nearest: with centring
        they are off by at most 2 (d + 8) units of |q|^2 + |b|^2. Where that leaves more than one, these are compared by
        float64 differences.
        """
        count, d = embeddings.shape
        room = 4 * (d + 8) * _UNIT * (found.squared + self._largest)
        best = np.full(count, np.inf, np.float32)
        limit = best + room
        group, query = np.nonzero(found.left)
        ends = np.searchsorted(group, np.arange(len(found.left) + 1))
        close: list[tuple[Indices, Indices, Floats]] = []
        first = 0
        while first < len(found.left):
            last = max(first + 1, int(np.searchsorted(ends, ends[first] + _KEPT // self._size, side="right")) - 1)
            part = slice(int(ends[first]), int(ends[last]))
            products = self._products(found.vectors, query[part], ends[first : last + 1], first)
            nearest = products[np.arange(len(products)), products.argmin(axis=1)]  # thrice as quick as their minimum
            least = self._rooms.get("least", (last - first, count))
            least.fill(np.inf)
            least[found.left[first:last]] = nearest
            np.minimum(best, least.min(axis=0), out=best)
            limit = best + room
            pair = np.flatnonzero(nearest <= limit[query[part]])
            some = products[pair]
            row, column = np.nonzero(some <= limit[query[part][pair], None])
            pair = pair[row]
            close.append((query[part][pair], self._order[group[part][pair] * self._size + column], some[row, column]))
            first = last
        number, candidate, value = (np.concatenate(column) for column in zip(*close, strict=True))
        kept = np.flatnonzero(value <= limit[number])
        kept = kept[np.argsort(number[kept], kind="stable")]
        number, candidate = number[kept], candidate[kept]
        many = np.bincount(number, minlength=count)[number] > 1
        nearest_row = np.full(count, -1)
        nearest_row[number[~many]] = candidate[~many]
        if many.any():
            several = np.unique(number[many])
            nearest_row[several] = self._search.nearest_of(embeddings, number[many], candidate[many])
        assert (nearest_row >= 0).all(), "a patch is within rounding of no row that its bounds left"
        return nearest_row

    def _products(self, vectors: Floats, query: Indices, ends: Indices, first: int) -> Floats:
        """|c|^2 - 2 q.c of each pair of a patch and a group, from the `first` one on: float32 (pairs, size)."""
        products = self._rooms.get("products", (len(query), self._size))
        for number in np.flatnonzero(np.diff(ends)):
            part = slice(int(ends[number] - ends[0]), int(ends[number + 1] - ends[0]))
            own = self._rooms.get("own", (part.stop - part.start, vectors.shape[1]))
            np.take(vectors, query[part], axis=0, out=own, mode="clip")
            np.matmul(own, self._blocks[first + number], out=products[part])
        return products

    def _away(self, embeddings: Floats, rows: Indices) -> Floats:
        """Differences from a row each, float32 (c, d), in a room."""
        away = self._rooms.get("away", embeddings.shape)
        np.take(self._search.rows, rows, axis=0, out=away, mode="clip")
        return np.subtract(embeddings, away, out=away)

    def _highest(self, reached: Reals, least_density: Floats) -> Reals:
        near = distance(reached, self._search.metric)
        bound = near - self._search.alpha * least_density.astype(np.float64)
        # the score that is bounded was rounded to float32 in a few steps
        return np.asarray(bound + 8 * self._centre.size * _UNIT * near + 4 * _UNIT * np.abs(bound))

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
    for start in range(0, len(rows), _BLOCK):
        centred = rows[start : start + _BLOCK].astype(np.float64) - centre
        scatter += centred.T @ centred
    _, vectors = np.linalg.eigh(scatter)
    return np.ascontiguousarray(vectors[:, ::-1][:, :DIMENSIONS])


def _projected(rows: Floats, centre: Floats, directions: Reals) -> Reals:
    """z of the rows: float64 (n, m + 1)."""
    projected = np.empty((len(rows), directions.shape[1] + 1))
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        centred = rows[part].astype(np.float64) - centre
        within = centred @ directions
        projected[part, :-1] = within
        left = centred - within @ directions.T
        projected[part, -1] = np.sqrt(np.einsum("ij,ij->i", left, left))
    return projected
