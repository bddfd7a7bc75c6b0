"""Density that fits a coreset: how far good patches lie from each bank row, and how far that strays.

LDKNN subtracts from the distance to the nearest row c what is usual there. As published, that is the mean distance of c to
its K nearest neighbours among all normal patches (arXiv 2308.12577): right where the bank holds all of them, for then a good
patch's distance to c is a distance between neighbours. A k-centre coreset has one row for a whole neighbourhood: a good
patch lies at some distance from it however dense the patches are, and the published term takes away too much where rows
are isolated and too little where many patches share one.

So it is measured: every good patch is searched in the rows of the *other* images, and with the distances t of the patches
whose nearest row is c

    density(c) = mean(t) + deviation(t),        of these and w more patches such as rows like c have:

    mean(t^p) about c = (sum of t^p + w g_p(K-density of c)) / (n + w),    deviation^2 = mean(t^2) - mean(t)^2,

(so where the two disagree, the deviation has room for both), where n patches have c as their nearest row, w = 100, and g_p
is the isotonic regression (Barlow et al. 1972) of t^p on the published density over all good patches: a row in a denser place
is expected to be nearer, and nothing else is assumed. One deviation is added because an image is judged by its highest
window: it is the strays of good patches that decide, not their mean. The weights, 100 and 1, were chosen on synthetic defects
over good images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.isotonic import IsotonicRegression

from engines.ldknn import Floats
from train.others import Indices

Doubles = npt.NDArray[np.float64]

_WEIGHT = 100.0  # of what rows like this one have, in patches
_POWERS = (1, 2)


class MeasuredDensity:
    """Density of each bank row from good patches' distances to it, with or without one image's patches."""

    def __init__(self, published: Floats, distances: Floats, row: Indices, images: int) -> None:
        """Measure.

        Args:
            published: float32 (m,), the published density of each bank row.
            distances: float32 (n,), of each good patch to its nearest row of another image, in the metric of the score.
            row: int64 (n,), that row.
            images: that the patches come from, image by image, equally many each.
        """
        self._rows = len(published)
        self._row, self._distances = row.reshape(images, -1), distances.astype(np.float64).reshape(images, -1)
        self._count, self._sums = self._tally(slice(None))
        # a row looks alike to all patches that share it, and the regression weighs them together
        rows = np.flatnonzero(self._count)
        self._alike = [
            np.asarray(
                IsotonicRegression(out_of_bounds="clip")
                .fit(published[rows], sums[rows] / self._count[rows], sample_weight=self._count[rows])
                .predict(published),
                np.float64,
            )
            for sums in self._sums
        ]

    def density(self, without: int | None = None) -> Floats:
        """float32 (m,); `without` names an image whose own patches are not counted at the rows that they lie at.

        They stay in the regression, where they are some of very many.
        """
        count, sums = self._count, self._sums
        if without is not None:
            own_count, own_sums = self._tally(slice(without, without + 1))
            count = count - own_count
            sums = [whole - own for whole, own in zip(sums, own_sums, strict=True)]
        mean, square = ((whole + _WEIGHT * alike) / (count + _WEIGHT) for whole, alike in zip(sums, self._alike, strict=True))
        return np.asarray(mean + np.sqrt(np.maximum(square - mean**2, 0)), np.float32)

    def _tally(self, images: slice) -> tuple[Indices, list[Doubles]]:
        """How many patches of these images have each row as their nearest, and the sums of their distances' powers."""
        row, distances = self._row[images].ravel(), self._distances[images].ravel()
        sums = [np.asarray(np.bincount(row, distances**power, self._rows), np.float64) for power in _POWERS]
        return np.asarray(np.bincount(row, minlength=self._rows), np.int64), sums
