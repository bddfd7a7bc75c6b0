"""A bank that has also seen this station's good parts: rows chosen anew within a budget, densities measured anew.

The rows of the bank and the patches of the station's images are one cloud, of which greedy k-centre takes as many rows as
the budget allows (`engines.bank`). Rows of the old bank already stand for many patches each; those that are not taken lie
near one that is.

The density is measured as `fit` measures it (train/measured.py), by the station's patches alone, each searched in the rows of
*other* images: with their distances t,

    density(c) = mean(t) + deviation(t),        of the patches whose nearest row is c, and w = 100 such as rows like c have,

where what rows like c have is an isotonic regression of t and t^2 on how far row c lies from its K nearest rows. In training
that order comes from all good patches; the rows alone order each other nearly as well, so a bundle need not carry patches
of its training along (docs/capability.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from engines.bank import k_centre
from engines.bundle import Bank
from engines.ldknn import LDKNN, Floats, Progress, distance, nearest

_WEIGHT = 100.0  # of what rows like this one have, in patches; as in training

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """Embedded good images of the station.

    Attributes:
        features: float32 (images * judged patches, d), image by image.
        images: how many.
        patch: int32 (judged patches,) where in the grid each patch of an image lies.
    """

    features: Floats
    images: int
    patch: npt.NDArray[np.int32]

    def only(self, chosen: npt.NDArray[np.bool_]) -> Candidates:
        """Some of the images, bool (images,)."""
        by_image = self.features.reshape(self.images, len(self.patch), -1)
        kept = by_image[chosen]
        return Candidates(kept.reshape(-1, self.features.shape[1]), len(kept), self.patch)


def extend_bank(
    bank: Bank,
    added: Candidates,
    rows: int,
    *,
    first_image: int,
    k: int,
    metric: str,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Bank:
    """The bank of `rows` rows that stands for the old one and for the added images.

    Args:
        bank: the old one.
        added: two images or more.
        rows: budget, no more than there are old rows and added patches.
        first_image: index that the first added image has among the bundle's bank images.
        k: neighbours that say how isolated a row is.
        metric: of the score.
        rng: source of k-centre's projection.
        progress: called with (rows taken, rows).

    Raises:
        CalibrationError: fewer than two images, or a budget that cannot be met.
    """
    if added.images < 2:
        raise CalibrationError(f"{added.images} images to add, expected 2 or more: each is judged by the rows of the others")
    old = len(bank.rows)
    if not 2 <= rows <= old + len(added.features):
        raise CalibrationError(f"{rows} rows, expected 2 to {old + len(added.features)}: the old rows and the added patches")
    cloud = np.concatenate([bank.rows, added.features])
    per_image = len(added.patch)
    image_of = np.repeat(np.arange(first_image, first_image + added.images, dtype=np.int32), per_image)
    taken = k_centre(cloud, rows, rng, progress)
    image = np.concatenate([bank.image, image_of])[taken]
    patch = np.concatenate([bank.patch, np.tile(added.patch, added.images)])[taken]
    chosen = np.ascontiguousarray(cloud[taken])
    near, row = nearest_of_others(chosen, image, added, first_image)
    apart, _ = nearest(chosen, chosen, k, exclude=np.arange(rows))
    density = measure_density(distance(apart, metric).mean(axis=1), distance(near, metric), row)
    return Bank(chosen, density, image, patch)


def measure_density(isolation: Floats, distances: Floats, row: npt.NDArray[np.int64]) -> Floats:
    """Densities float32 (m,) from the station's patches.

    Args:
        isolation: float32 (m,), how far each row lies from its nearest rows.
        distances: float32 (n,), of each patch of the station to its nearest row of another image.
        row: int64 (n,), that row.
    """
    t = distances.astype(np.float64)
    count = np.bincount(row, minlength=len(isolation))
    rows = np.flatnonzero(count)
    moments = []
    for power in (1, 2):
        sums = np.bincount(row, t**power, len(isolation))
        alike = np.interp(isolation, *isotonic(isolation[rows].astype(np.float64), sums[rows] / count[rows], count[rows]))
        moments.append((sums + _WEIGHT * alike) / (count + _WEIGHT))
    mean, square = moments
    return np.asarray(mean + np.sqrt(np.maximum(square - mean**2, 0)), np.float32)


def isotonic(at: Doubles, value: Doubles, weight: npt.NDArray[np.int64]) -> tuple[Doubles, Doubles]:
    """The rising function nearest to values in weighted squares, by pooling adjacent violators (Barlow et al. 1972).

    Args:
        at: float64 (n,), in any order.
        value, weight: float64 (n,) and int64 (n,).

    Returns:
        Its distinct arguments, ascending, and its values there; between them it is a straight line.
    """
    points, place = np.unique(at, return_inverse=True)
    weights = np.bincount(place, weight)
    means = np.bincount(place, weight * value) / weights
    blocks: list[tuple[float, float, int]] = []  # mean, weight, points
    for mean, heavy in zip(means.tolist(), weights.tolist(), strict=True):
        block = (mean, heavy, 1)
        while blocks and blocks[-1][0] >= block[0]:
            before = blocks.pop()
            together = before[1] + block[1]
            block = (before[0] * before[1] + block[0] * block[1]) / together, together, before[2] + block[2]
        blocks.append(block)
    return points, np.repeat([mean for mean, _, _ in blocks], [many for _, _, many in blocks])


def nearest_of_others(
    rows: Floats, image: npt.NDArray[np.int32], added: Candidates, first_image: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Squared distance float32 (n,) and row int64 (n,) of the nearest row of another image, for each added patch.

    Args:
        rows, image: float32 (m, d) and int32 (m,), of a bank.
        added: whose first image has the number `first_image` in that bank.
        first_image: as in `extend_bank`.
    """
    squared = np.empty(len(added.features), np.float32)
    found = np.empty(len(added.features), np.int64)
    per_image = len(added.patch)
    whole = LDKNN(rows, np.zeros(len(rows), np.float32), alpha=0)
    for number in range(added.images):
        part = slice(number * per_image, (number + 1) * per_image)
        patches = added.features[part]
        own = image == first_image + number
        squared[part], found[part] = whole.search(patches)
        again = np.flatnonzero(own[found[part]])  # most are nearest to another image's row already
        if len(again) > 0:
            others = np.flatnonzero(~own)
            search = LDKNN(rows[others], np.zeros(len(others), np.float32), alpha=0)
            near, which = search.search(np.ascontiguousarray(patches[again]))
            squared[part][again] = near
            found[part][again] = others[which]
    return squared, found
