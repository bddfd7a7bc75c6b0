"""A trial of a bank on what good images alone can give: new good parts, and parts with synthetic defects.

Every good image is judged by the rows of the other images, as a new part would be, once as it is and several times with a
synthetic defect. The defects lie on the part, and are drawn small and faint, log-uniformly from below what can be seen: a
setting is to be chosen by what is hard. All that a score is made of, a distance and a row for each patch, is kept, so
that any density and any alpha can be tried without another search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.defects import make_maker
from engines.images import Image
from engines.ldknn import Floats, Progress, distance
from engines.pooling import Windows
from engines.preprocess import Preprocessor
from train.features import embed
from train.normals import Normals
from train.others import Indices, Nearest, OtherImages

DEFECTS = 240  # in all, or one an image where there are more images
_SIZE = (6.0, 40.0)  # pixels at 256 x 256, the square root of a defect's area
_SMALLEST_PX, _LARGEST = 2.0, 1 / 3  # that a maker draws; the largest as a share of the shorter side
_CONTRAST = (6.0, 40.0)  # grey levels
_SMALLER = (1 / 8, 1 / 4, 1 / 2, 1)  # sizes of bank beside the one asked for
_FEWEST_ROWS = 32  # of a smaller bank
_BATCH = 8

Doubles = npt.NDArray[np.float64]


class Defects:
    """Faint and small synthetic defects of all kinds in turn, the same for the same seed."""

    def __init__(self, images: Sequence[Image], saliency: Sequence[npt.NDArray[np.bool_]] | None, seed: int) -> None:
        """Prepare to draw on images, uint8 RGB (h, w, 3), where their masks show the part."""
        self._maker = make_maker("defectmaker", images, saliency)
        self._images = len(images)
        height, width = images[0].shape[:2]
        self._scale = np.sqrt(height * width) / 256
        self._largest = _LARGEST * min(height, width)
        self._seed = seed
        self.source = np.arange(max(DEFECTS, self._images)) % self._images

    def draw(self, number: int) -> Image:
        """Defect `number`, on image `source[number]`: uint8 RGB (h, w, 3)."""
        rng = np.random.default_rng([self._seed, number, 3])
        size, contrast = (float(np.exp(rng.uniform(*np.log(limits)))) for limits in (_SIZE, _CONTRAST))
        kind = self._maker.kinds[(number + number // self._images) % len(self._maker.kinds)]  # another in each round
        size_px = min(max(_SMALLEST_PX, size * self._scale), self._largest)
        source = int(self.source[number])
        return self._maker.draw(source, kind, seed=self._seed, draw=number, size_px=size_px, contrast=contrast).image


@dataclass(frozen=True)
class Trial:
    """What good images and defects find in one bank.

    Attributes:
        good: of every judged patch of n good images, image by image.
        defective: of every judged patch of the defects.
        source: int64 (defects,) the good image that each is drawn on.
        judged: bool (rows, columns) patches that count.
        metric: of the score.
    """

    good: Nearest
    defective: Nearest
    source: Indices
    judged: npt.NDArray[np.bool_]
    metric: str

    @property
    def images(self) -> int:
        """Good images."""
        return len(self.good.row) // np.count_nonzero(self.judged)

    @property
    def drawn(self) -> Doubles:
        """Defects on each good image, float64 (n,)."""
        return np.bincount(self.source, minlength=self.images).astype(np.float64)

    def wins(self, density: Callable[[int], Floats], alphas: Sequence[float]) -> Doubles:
        """How defects rank above good images: float64 (alphas, n, n).

        Args:
            density: float32 (m,) of the bank's rows, without what the image of that number says of it.
            alphas: weights of the density to try.

        Returns:
            At (a, i, j), how many of the defects on image j score above good image i, ties counting one half. From it
            follow the AUROC and, by weighing rows and columns alike, any bootstrap over images.
        """
        shape = (-1, np.count_nonzero(self.judged))
        good, defective = (
            (distance(of.squared, self.metric).reshape(shape), of.row.reshape(shape)) for of in (self.good, self.defective)
        )
        windows = Windows(self.judged)

        def scores(near: Floats, row: Indices, dense: Floats) -> Doubles:
            maps = np.zeros((len(alphas), len(near), *self.judged.shape), np.float32)
            for number, alpha in enumerate(alphas):
                maps[number][:, self.judged] = near - np.float32(alpha) * dense[row]
            return windows.pool(maps)

        clean, found = np.empty((len(alphas), self.images)), np.empty((len(alphas), len(self.source)))
        for image in range(self.images):
            dense = density(image)
            clean[:, image] = scores(good[0][image, None], good[1][image, None], dense)[:, 0]
            drawn = np.flatnonzero(self.source == image)
            found[:, drawn] = scores(defective[0][drawn], defective[1][drawn], dense)
        wins = np.zeros((len(alphas), self.images, self.images))
        for defect, source in enumerate(self.source):
            wins[:, :, source] += (found[:, None, defect] > clean) + 0.5 * (found[:, None, defect] == clean)
        return wins


def hold_trials(
    normals: Normals,
    bank: OtherImages,
    good: Sequence[Nearest],
    sizes: Sequence[int],
    defects: Defects,
    metric: str,
    progress: Progress,
) -> list[Trial]:
    """Draw the defects, embed them, and search them in banks of several sizes.

    Args:
        normals: the embedded product; defects are drawn on its bank's images.
        bank: rows of its coreset.
        good: what the patches of the bank's images find, by size.
        sizes: of the bank, as for `OtherImages.search`.
        defects: what draws.
        metric: of the score.
        progress: called with (defects done, defects in all).

    Returns:
        A trial for each size.
    """
    as_input = Preprocessor(normals.preprocessor.size)  # pictures have that size already
    found: list[list[Nearest]] = []
    for start in range(0, len(defects.source), _BATCH):
        batch = range(start, min(start + _BATCH, len(defects.source)))
        inputs = np.concatenate([as_input(defects.draw(number)) for number in batch])
        if normals.preprocessor.ignored is not None:
            inputs[:, :, normals.preprocessor.ignored] = 0
        patches = embed(normals.network, inputs, normals.device).reshape(len(batch), -1, normals.network.dim)
        judged = patches[:, normals.judged.ravel()].reshape(-1, normals.network.dim)
        found.append(bank.search(judged, np.repeat(defects.source[start : start + _BATCH], normals.patches), sizes))
        progress(batch.stop, len(defects.source))
    return [
        Trial(one, _joined([searched[number] for searched in found]), defects.source, normals.judged, metric)
        for number, one in enumerate(good)
    ]


def auroc(wins: Doubles, weight: Doubles, drawn: Doubles) -> Doubles:
    """Area under the ROC curve with each image, and the defects on it, weighed.

    Args:
        wins: float64 (a, n, n) of `Trial.wins`.
        weight: float64 (b, n), of the images.
        drawn: float64 (n,), how many defects each image has.

    Returns:
        float64 (a, b), 0 to 1.
    """
    pairs = weight.sum(axis=1) * (weight @ drawn)
    return np.asarray([((weight @ one) * weight).sum(axis=1) for one in wins] / pairs)


def sizes_to_try(bank: OtherImages, patches: int) -> tuple[int, ...]:
    """The bank's size and smaller ones, ascending; its size alone where it is all patches, whose order says nothing."""
    rows = len(bank.rows)
    if rows == patches:
        return (rows,)
    least = max(bank.smallest, min(_FEWEST_ROWS, rows))
    return tuple(sorted({max(least, round(share * rows)) for share in _SMALLER}))


def _joined(parts: Sequence[Nearest]) -> Nearest:
    return Nearest(np.concatenate([part.squared for part in parts]), np.concatenate([part.row for part in parts]))
