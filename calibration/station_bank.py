"""A bank that has also seen this station's good parts: rows chosen anew within a budget, densities brought up to date.

The rows of the bank and the patches of the station's images are one cloud, of which greedy k-centre takes as many rows as
the budget allows (`engines.bank`). Rows of the old bank already stand for many patches each; those that are not taken lie
near one that is.

The density of a row is what `fit` measures (train/measured.py): mean plus deviation of the distances at which good patches of
*other* images lie from it. Of the training's patches only the old densities are left, so

    density(c) = (w prior(c) + n (mean(t) + deviation(t))) / (w + n),        w = 100 patches,

where t are the distances of the n patches of the station's images whose nearest row, of another image, is c. The prior is the
old density for an old row, and for a new one mean plus deviation over all the station's patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from engines.bank import k_centre
from engines.bundle import Bank
from engines.ldknn import LDKNN, Floats, Progress, distance

_WEIGHT = 100.0  # of the prior, in patches; as in training


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
        metric: of the score.
        rng: source of k-centre's projection.
        progress: called with (rows taken, rows).

    Raises:
        CalibrationError: fewer than two images, or a budget that cannot be met.
    """
    if added.images < 2:
        raise CalibrationError(f"{added.images} images to add, expected 2 or more: each is judged by the rows of the others")
    old = len(bank.rows)
    if not 1 <= rows <= old + len(added.features):
        raise CalibrationError(f"{rows} rows, expected 1 to {old + len(added.features)}: the old rows and the added patches")
    cloud = np.concatenate([bank.rows, added.features])
    per_image = len(added.patch)
    image_of = np.repeat(np.arange(first_image, first_image + added.images, dtype=np.int32), per_image)
    taken = k_centre(cloud, rows, rng, progress)
    image = np.concatenate([bank.image, image_of])[taken]
    patch = np.concatenate([bank.patch, np.tile(added.patch, added.images)])[taken]
    prior = np.concatenate([bank.density, np.full(len(image_of), np.nan, np.float32)])[taken]
    chosen = np.ascontiguousarray(cloud[taken])
    near, row = _nearest_of_others(chosen, image, added, first_image)
    return Bank(chosen, update_density(prior, distance(near, metric), row), image, patch)


def update_density(prior: Floats, distances: Floats, row: npt.NDArray[np.int64]) -> Floats:
    """Densities float32 (m,) from priors and the station's patches.

    Args:
        prior: float32 (m,), the old density; NaN for a new row.
        distances: float32 (n,), of each patch of the station to its nearest row of another image.
        row: int64 (n,), that row.
    """
    t = distances.astype(np.float64)
    usual = t.mean() + t.std()
    before = np.where(np.isnan(prior), usual, prior)
    count = np.bincount(row, minlength=len(prior))
    shared = np.maximum(count, 1)
    mean = np.bincount(row, t, len(prior)) / shared
    deviation = np.sqrt(np.maximum(np.bincount(row, t**2, len(prior)) / shared - mean**2, 0))
    return np.asarray((_WEIGHT * before + count * (mean + deviation)) / (_WEIGHT + count), np.float32)


def _nearest_of_others(
    rows: Floats, image: npt.NDArray[np.int32], added: Candidates, first_image: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Squared distance float32 (n,) and row int64 (n,) of the nearest row of another image, for each added patch."""
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
