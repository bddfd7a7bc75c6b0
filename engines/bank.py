"""Coreset selection in NumPy: the few normal patches that stand for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.ldknn import LDKNN, Floats, Progress

PROJECTION_DIM = 128
_FEWEST_ROWS = 100  # that can be asked for by their number
_BATCH = 16  # rows looked at in one pass over the patches; a pass is bound by memory, not by arithmetic
_BLOCK = 2048  # patches projected at once; rows taken that are searched at once
_LAST = 50  # one row in so many is taken last, by the embeddings themselves


def coreset_size(amount: float, patches: int) -> int:
    """Rows that a coreset keeps of `patches`: a fraction up to 1, at least 1 row, or a number of rows, at least _FEWEST_ROWS.

    What lies between is refused: who asks for 2 means 2 % more often than a bank of two rows.

    Raises:
        EngineError: an amount that is neither.
    """
    if 0 < amount <= 1:
        return max(1, round(amount * patches))
    if not (amount >= _FEWEST_ROWS and float(amount).is_integer()):
        raise EngineError(
            f"coreset {amount:g}, expected a fraction above 0 and at most 1 (2 % is 0.02), or a whole number of rows,"
            f" {_FEWEST_ROWS} or more"
        )
    return min(int(amount), patches)


def project(features: Floats, dim: int, rng: np.random.Generator) -> Floats:
    """Gaussian random projection (Johnson and Lindenstrauss), about the first row.

    Float32 (n, d) to a new float32 (n, dim); of its own width where d is no more than dim, for that needs no projection.
    """
    if features.shape[1] <= dim:
        return features - features[0]
    matrix = rng.normal(0, 1 / np.sqrt(dim), (features.shape[1], dim)).astype(np.float32)
    projected = np.empty((len(features), dim), np.float32)
    for start in range(0, len(features), _BLOCK):  # in one product of all, each thread takes much room to work in
        np.matmul(features[start : start + _BLOCK] - features[0], matrix, out=projected[start : start + _BLOCK])
    return projected


def check_count(count: int, total: int) -> None:
    """Refuse a coreset of no rows, or of more than there are. Raises EngineError."""
    if not 1 <= count <= total:
        raise EngineError(f"coreset of {count} rows, expected 1 to {total}")


def by_projection(count: int, dim: int) -> int:
    """How many of `count` rows are taken on the projection of d = `dim` embeddings; the rest, by the embeddings, come last."""
    return count if dim <= PROJECTION_DIM else count - count // _LAST


def k_centre(features: Floats, count: int, rng: np.random.Generator, progress: Progress | None = None) -> npt.NDArray[np.int64]:
    """Greedy k-centre (Gonzalez 1985): each step takes the patch farthest from those taken.

    Farthest on a random projection; for the last row in 50, by the embeddings themselves. The projection finds some
    distances too short, and leaves a few patches uncovered: the last rows go to those. The first is the member farthest
    from the mean of ten random members.

    The distance to a new centre costs a pass over all patches, which is bound by memory: one pass therefore serves the
    16 patches that are farthest now, and each of them is used only if it is still the farthest when its turn comes. The
    result is that of the plain greedy loop, but for float32 rounding of the distances. O(n d count) time; memory is that
    of the projection, n x 128 float32, and 22 floats a patch beside it.

    Args:
        features: float32 (n, d).
        count: how many to take, 1 to n.
        rng: source of the projection and of the ten members.
        progress: called with (taken, count).

    Returns:
        int64 (count,) indices in the order taken, each once; where all are taken, in their own order.

    Raises:
        EngineError: `count` outside 1 to n, or features that are not finite.
    """
    total = len(features)
    check_count(count, total)
    if count == total:
        return np.arange(total)
    cloud = _Cloud(project(features, PROJECTION_DIM, rng))
    if not cloud.finite:
        raise EngineError("features hold numbers that are not finite, expected finite embeddings; check the network's weights")
    middle = cloud.points[rng.choice(total, min(10, total), replace=False)].mean(axis=0)
    taken = np.empty(count, np.int64)
    taken[0] = cloud.squared_to(middle[None])[0].argmax()
    projected = by_projection(count, features.shape[1])
    reach = cloud.squared_to(cloud.points[taken[:1]])[0]
    _take_farthest(cloud, reach, taken, range(1, projected), progress)
    if projected < count:
        del cloud  # and the projection with it
        reach = _squared_to_nearest(features, taken[:projected])
        _take_farthest(_Cloud(features), reach, taken, range(projected, count), progress)
    return taken


class _Cloud:
    """Points that distances are measured to, about the first of them: there |a|^2 - 2 a.b + |b|^2 cancels less."""

    def __init__(self, points: Floats) -> None:
        self.points = points
        self._norms = np.empty(len(points), np.float32)
        for part, block in self._blocks():
            np.einsum("ij,ij->i", block, block, out=self._norms[part])

    @property
    def finite(self) -> bool:
        """True where every distance will be a number."""
        return bool(np.isfinite(self._norms).all())

    def squared_to(self, centres: Floats) -> Floats:
        """Squared distance of every point to each centre: float32 (c, d) to float32 (c, n)."""
        centres = centres - self.points[0]
        norms = np.einsum("ij,ij->i", centres, centres)[:, None]
        centres *= -2
        squared = np.empty((len(centres), len(self.points)), np.float32)
        for part, block in self._blocks():
            np.matmul(centres, block.T, out=squared[:, part])
        squared += self._norms
        squared += norms
        return np.asarray(np.maximum(squared, 0, out=squared))

    def _blocks(self) -> Iterator[tuple[slice, Floats]]:
        """All points about the first: at once where they are so already (a projection), else a sixteenth at a time.

        Many small products would be slow on a busy machine, where the threads of each wait for one another.
        """
        if not self.points[0].any():
            yield slice(None), self.points
            return
        size = -(-len(self.points) // 16)
        room = np.empty((size, self.points.shape[1]), np.float32)
        for start in range(0, len(self.points), size):
            block = self.points[start : start + size]
            yield slice(start, start + len(block)), np.subtract(block, self.points[0], out=room[: len(block)])


def _take_farthest(cloud: _Cloud, reach: Floats, taken: npt.NDArray[np.int64], turns: range, progress: Progress | None) -> None:
    """Fill `taken` at `turns`, given those before and `reach`, each point's squared distance to the nearest of these."""
    done = turns.start
    reach[taken[:done]] = -np.inf  # never again, even where every patch that is left equals a taken one
    while done < turns.stop:
        batch = np.argpartition(reach, -min(_BATCH, len(reach)))[-min(_BATCH, len(reach)) :]
        batch = np.union1d(batch, reach.argmax())  # of equally far patches the first comes next: have it, or never end
        columns = dict(zip(batch.tolist(), cloud.squared_to(cloud.points[batch]), strict=True))
        while done < turns.stop:
            farthest = int(reach.argmax())
            if farthest not in columns:
                break
            np.minimum(reach, columns[farthest], out=reach)
            reach[farthest] = -np.inf
            taken[done] = farthest
            done += 1
        columns.clear()  # or they would be held beside the next
        if progress is not None:
            progress(done, len(taken))


def _squared_to_nearest(features: Floats, taken: npt.NDArray[np.int64]) -> Floats:
    """Squared distance of every patch to the nearest of those taken: float32 (n,)."""
    reach = np.full(len(features), np.inf, np.float32)
    for start in range(0, len(taken), _BLOCK):
        rows = features[taken[start : start + _BLOCK]]
        squared, _ = LDKNN(rows, np.zeros(len(rows), np.float32), alpha=0).search(features)
        np.minimum(reach, squared, out=reach)
    return reach
