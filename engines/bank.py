"""Coreset selection in NumPy: the few normal patches that stand for all of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.ldknn import Floats, Progress

PROJECTION_DIM = 128
_FEWEST_ROWS = 100  # that can be asked for by their number
_BATCH = 16  # rows looked at in one pass over the projected patches; a pass is bound by memory, not by arithmetic


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
    """Gaussian random projection (Johnson and Lindenstrauss): float32 (n, d) to float32 (n, dim) when d > dim."""
    if features.shape[1] <= dim:
        return features
    matrix = rng.normal(0, 1 / np.sqrt(dim), (features.shape[1], dim)).astype(np.float32)
    return features @ matrix


def k_centre(features: Floats, count: int, rng: np.random.Generator, progress: Progress | None = None) -> npt.NDArray[np.int64]:
    """Greedy k-centre (Gonzalez 1985) on a random projection: each step takes the patch farthest from those taken.

    The first is the member farthest from the mean of ten random members. The distance to a new centre costs a pass
    over all patches, which is bound by memory: one pass therefore serves the 16 patches that are farthest now, and
    each of them is used only if it is still the farthest when its turn comes. The result is that of the plain greedy
    loop, but for float32 rounding of the distances. O(n count) time; memory is twice that of the projection, n x 128
    float32, and 18 floats a patch beside it.

    Args:
        features: float32 (n, d).
        count: how many to take, 1 to n.
        rng: source of the projection and of the ten members.
        progress: called with (taken, count).

    Returns:
        int64 (count,) indices in the order taken, each once.

    Raises:
        EngineError: `count` outside 1 to n, or features that are not finite.
    """
    total = len(features)
    if not 1 <= count <= total:
        raise EngineError(f"coreset of {count} rows, expected 1 to {total}")
    if count == total:
        return np.arange(total)
    points = project(features, PROJECTION_DIM, rng)
    points = points - points[0]  # about a member, |a|^2 - 2 a.b + |b|^2 cancels less
    norms = np.einsum("ij,ij->i", points, points)
    if not np.isfinite(norms).all():
        raise EngineError("features hold numbers that are not finite, expected finite embeddings; check the network's weights")
    middle = points[rng.choice(total, min(10, total), replace=False)].mean(axis=0)
    taken = np.empty(count, np.int64)
    taken[0] = int((norms - 2 * (points @ middle)).argmax())
    reach = _to_centres(points, norms, taken[:1])[0]
    reach[taken[0]] = -np.inf  # never again, even where every patch that is left equals a taken one
    done = 1
    while done < count:
        batch = np.argpartition(reach, -min(_BATCH, total))[-min(_BATCH, total) :]
        batch = np.union1d(batch, reach.argmax())  # of equally far patches the first comes next: have it, or never end
        columns = dict(zip(batch.tolist(), _to_centres(points, norms, batch), strict=True))
        while done < count:
            farthest = int(reach.argmax())
            if farthest not in columns:
                break
            np.minimum(reach, columns[farthest], out=reach)
            reach[farthest] = -np.inf
            taken[done] = farthest
            done += 1
        if progress is not None:
            progress(done, count)
    return taken


def _to_centres(points: Floats, norms: Floats, centres: npt.NDArray[np.int64]) -> Floats:
    """Squared distance of every point to each centre: float32 (centres, n)."""
    squared = points[centres] @ points.T
    squared *= -2
    squared += norms
    squared += norms[centres][:, None]
    return np.asarray(np.maximum(squared, 0, out=squared))
