"""Figures of merit: image AUROC and F1, pixel AUROC, and per-region overlap, over any number of images.

Pixel figures depend on the order of the scores alone. Maps are therefore quantised to 65,536 levels, and images stream
through histograms of those levels: what is held does not grow with the number of pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score, roc_curve

from engines.preprocess import Preprocessor

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

LEVELS = 2**16
PRO_LIMIT = 0.3  # false-positive rate up to which per-region overlap is integrated (Bergmann et al. 2021)
SPRO_LIMIT = 0.05  # the same for saturated overlap (Bergmann et al. 2022)


def image_auroc(good: Floats, bad: Floats) -> float:
    """Area under the ROC curve of image scores: (n,) of good parts against (m,) of defective ones, each 1 or more."""
    return float(roc_auc_score(*_labelled(good, bad)))


def image_roc(good: Floats, bad: Floats) -> tuple[Floats, Floats]:
    """ROC curve of image scores: overkill rate and detection rate, float64 (points,) each, from (0, 0) to (1, 1)."""
    overkill, detected, _ = roc_curve(*_labelled(good, bad))
    return overkill, detected


def best_f1(good: Floats, bad: Floats) -> float:
    """F1 of the defective class at the threshold that is best for it, known only in hindsight."""
    precision, recall, _ = precision_recall_curve(*_labelled(good, bad))
    return float((2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)).max())


@dataclass(frozen=True)
class Region:
    """A defect region at network resolution.

    Attributes:
        pixels: int32 (n,) indices into the flattened map, n of 1 or more.
        saturation: how many of them must be found for full marks, in pixels, above 0; n is plain overlap.
    """

    pixels: npt.NDArray[np.int32]
    saturation: float


@dataclass(frozen=True)
class Truth:
    """What is defective in one image.

    Attributes:
        components: the connected parts of the defect area, each to be found whole (PRO).
        annotated: the regions as annotated, one a mask file, with their saturation (sPRO); empty outside LOCO.
    """

    components: tuple[Region, ...] = ()
    annotated: tuple[Region, ...] = ()


def shrink_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Bring a mask of the judged region, bool (H, W), to network resolution, bool (h, w), with the images' own resize.

    A pixel is defective where half of it is. A connected part that would vanish keeps the one pixel that holds most of
    it, so that a small defect counts as missed rather than as never there.
    """
    high, wide = size
    picture = np.repeat(mask[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    small = np.ascontiguousarray(Preprocessor(size).resized(picture)[:, :, 0] >= 128)
    flat = small.reshape(-1)
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    rows, columns = np.nonzero(mask)
    cells = rows * high // mask.shape[0] * wide + columns * wide // mask.shape[1]
    label = labels[rows, columns]
    for lost in np.setdiff1d(np.arange(1, count), label[flat[cells]]):
        flat[np.bincount(cells[label == lost]).argmax()] = True
    return small


def connected_regions(mask: Mask) -> tuple[Region, ...]:
    """The 8-connected parts of a mask, bool (h, w), as regions that saturate at their whole area."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    parts = (np.flatnonzero(labels == label).astype(np.int32) for label in range(1, count))
    return tuple(Region(pixels, float(len(pixels))) for pixels in parts)


def level_edges(patches: Floats) -> npt.NDArray[np.float32]:
    """Borders between the 65,536 levels: evenly spaced quantiles of all patch scores, float32 (65535,), ascending.

    Quantiles rather than equal steps: a few huge scores (a ratio with a tiny divisor) would leave equal steps with one
    level for everything else. `patches` is of any shape; NaN (ignored) is left out.
    """
    ordered = np.sort(patches[np.isfinite(patches)])
    where = np.linspace(0, len(ordered) - 1, LEVELS + 1)[1:-1]
    return np.interp(where, np.arange(len(ordered)), ordered).astype(np.float32)


def quantise(heat: Floats, edges: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The level of each score: an array of any shape to uint16 of the same shape, in the same order."""
    return np.searchsorted(edges, heat, side="right").astype(np.uint16)


def _zeros() -> npt.NDArray[np.float64]:
    return np.zeros(LEVELS)


@dataclass
class PixelTally:
    """Histograms over levels, float64 (65536,) each, that any number of images are added to.

    Attributes:
        clean, defective: pixels.
        overlap, saturated: share of a region that is found at each level, summed over regions.
        components, annotated: how many regions those sums are over.
    """

    clean: npt.NDArray[np.float64] = field(default_factory=_zeros)
    defective: npt.NDArray[np.float64] = field(default_factory=_zeros)
    overlap: npt.NDArray[np.float64] = field(default_factory=_zeros)
    saturated: npt.NDArray[np.float64] = field(default_factory=_zeros)
    components: int = 0
    annotated: int = 0

    def add(self, levels: npt.NDArray[np.uint16], judged: Mask, truth: Truth) -> None:
        """Add one image: its levels uint16 (h, w), which pixels count bool (h, w), and what is defective in it."""
        flat = levels.reshape(-1)
        self.clean += np.bincount(levels[judged], minlength=LEVELS)
        for region in truth.components:
            counts = np.bincount(flat[region.pixels], minlength=LEVELS)
            self.clean -= counts
            self.defective += counts
            _add_overlap(self.overlap, flat, region)
        for region in truth.annotated:
            _add_overlap(self.saturated, flat, region)
        self.components += len(truth.components)
        self.annotated += len(truth.annotated)

    def auroc(self) -> float | None:
        """Pixel AUROC; None without both clean and defective pixels."""
        if not (self.clean.any() and self.defective.any()):
            return None
        low, high = np.flatnonzero(self.clean), np.flatnonzero(self.defective)
        labels, levels = _labelled(low, high)
        return float(roc_auc_score(labels, levels, sample_weight=np.concatenate([self.clean[low], self.defective[high]])))

    def aupro(self, limit: float = PRO_LIMIT) -> float | None:
        """Area under per-region overlap against false-positive rate up to `limit`, divided by it; None if undefined.

        Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section on PRO: every connected region weighs
        the same, whatever its area.
        """
        return _area(self.clean, self.overlap, self.components, limit)

    def auspro(self, limit: float = SPRO_LIMIT) -> float | None:
        """The same for saturated overlap: a region counts as found whole once its saturation area is.

        Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
        Localization", IJCV 2022.
        """
        return _area(self.clean, self.saturated, self.annotated, limit)


def merge(tallies: Iterable[PixelTally]) -> PixelTally:
    """The tally of all images of several tallies."""
    total = PixelTally()
    for tally in tallies:
        total.clean += tally.clean
        total.defective += tally.defective
        total.overlap += tally.overlap
        total.saturated += tally.saturated
        total.components += tally.components
        total.annotated += tally.annotated
    return total


def _add_overlap(histogram: npt.NDArray[np.float64], levels: npt.NDArray[np.uint16], region: Region) -> None:
    """Spread a region's overlap over levels: its highest pixels share the full mark, those beyond saturation add none."""
    found = np.sort(levels[region.pixels])[::-1]
    share = np.clip(region.saturation - np.arange(len(found)), 0, 1)
    np.add.at(histogram, found, share / share.sum())


def _area(clean: npt.NDArray[np.float64], overlap: npt.NDArray[np.float64], regions: int, limit: float) -> float | None:
    if regions == 0 or not clean.any():
        return None
    rate = np.concatenate([[0.0], np.cumsum(clean[::-1]) / clean.sum()])
    mean = np.concatenate([[0.0], np.cumsum(overlap[::-1]) / regions])
    inside = rate <= limit
    rates = np.append(rate[inside], limit)
    means = np.append(mean[inside], np.interp(limit, rate, mean))
    return float(auc(rates, means) / limit)


def _labelled(good: npt.NDArray, bad: npt.NDArray) -> tuple[npt.NDArray[np.int64], npt.NDArray]:
    """Labels (0 good, 1 bad) and scores, as scikit-learn takes them."""
    return np.repeat([0, 1], [len(good), len(bad)]), np.concatenate([good, bad])
