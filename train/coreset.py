"""Coreset selection in torch, for a GPU: the same as `engines.bank.k_centre`. Checked on a CPU, not yet on a GPU.

A GPU reads all patches fast enough for the plain greedy loop, one pass a row; nothing in it waits for the host.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engines.bank import PROJECTION_DIM, by_projection, check_count, project
from engines.ldknn import Floats, Progress
from train import TrainError

_BLOCK = 4096  # patches compared at once with all rows taken
_REPORT = 256  # rows between two calls of progress


@torch.inference_mode()
def k_centre(
    features: Floats, count: int, rng: np.random.Generator, device: torch.device, progress: Progress | None = None
) -> npt.NDArray[np.int64]:
    """Greedy k-centre on a device: the rows that `engines.bank.k_centre` takes, but for float32 rounding.

    Of equally far patches a GPU need not take the first. TF32, which torch leaves off for products, must stay off. The
    device holds the features, and at the most as much again.

    Args:
        features: float32 (n, d).
        count: how many to take, 1 to n.
        rng: source of the projection, which is computed on the CPU, and of the ten members.
        device: where the distances are computed.
        progress: called with (taken, count); on a GPU, what has been asked for.

    Returns:
        int64 (count,) indices in the order taken, each once.

    Raises:
        EngineError: `count` outside 1 to n.
        TrainError: features that are not finite.
    """
    total = len(features)
    check_count(count, total)
    if count == total:
        return np.arange(total)
    points = _about_the_first(project(features, PROJECTION_DIM, rng), device)
    norms = _squared_norms(points)
    if not bool(norms.isfinite().all()):
        raise TrainError("features hold numbers that are not finite, expected finite embeddings; check the network's weights")
    members = torch.from_numpy(rng.choice(total, min(10, total), replace=False)).to(device)
    taken = torch.empty(count, dtype=torch.int64, device=device)
    taken[:1] = _squared_to(points, norms, points[members].mean(dim=0)).argmax()
    projected = by_projection(count, features.shape[1])
    _take_farthest(points, norms, taken, range(1, projected), progress)
    if projected < count:
        del points
        points = _about_the_first(features, device)
        _take_farthest(points, _squared_norms(points), taken, range(projected, count), progress)
    return np.asarray(taken.cpu().numpy())


def _take_farthest(points: Tensor, norms: Tensor, taken: Tensor, turns: range, progress: Progress | None) -> None:
    """Fill `taken` at `turns`, given those before; indices stay on the device, so that the host never waits for one."""
    reach = _squared_to_nearest(points, norms, taken[: turns.start])
    reach.index_fill_(0, taken[: turns.start], -torch.inf)  # never again, even where all that are left equal a taken one
    for number in turns:
        farthest = reach.argmax().view(1)
        taken[number : number + 1] = farthest
        torch.minimum(reach, _squared_to(points, norms, points.index_select(0, farthest)[0]), out=reach)
        reach.index_fill_(0, farthest, -torch.inf)
        if progress is not None and ((number + 1) % _REPORT == 0 or number + 1 == turns.stop):
            progress(number + 1, len(taken))


def _squared_to(points: Tensor, norms: Tensor, centre: Tensor) -> Tensor:
    """Squared distance of every point to a centre, float32 (d,) to float32 (n,)."""
    return torch.addmv(norms, points, centre, alpha=-2).add_(centre.dot(centre)).clamp_(min=0)


def _squared_to_nearest(points: Tensor, norms: Tensor, taken: Tensor) -> Tensor:
    """Squared distance of every point to the nearest of those taken: float32 (n,)."""
    rows, of_rows = points[taken].T, norms[taken]
    blocks = zip(points.split(_BLOCK), norms.split(_BLOCK), strict=True)
    nearest = [torch.addmm(of_rows, block, rows, alpha=-2).amin(dim=1).add_(own).clamp_(min=0) for block, own in blocks]
    return torch.cat(nearest)


def _about_the_first(points: Floats, device: torch.device) -> Tensor:
    """On the device and about a member: |a|^2 - 2 a.b + |b|^2 cancels less."""
    moved = torch.from_numpy(points).to(device)
    return moved - moved[0]


def _squared_norms(points: Tensor) -> Tensor:
    return torch.linalg.vector_norm(points, dim=1).square_()
