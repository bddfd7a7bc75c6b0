"""Synthetic defects of controlled size and contrast on a station's own good images, scored as parts are.

Defects lie where the part is, each place of it equally likely, and only on images that pass without one: what is found is
then found for the defect. Of one image and its neighbours in a shuffled order a maker is built at a time, so memory does not
grow with the images, and images of several sizes are no trouble: the neighbours that crops are cut from are resized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from calibration.contrast import outline_step
from calibration.defects import KINDS, make_maker
from calibration.maker import REB, Mask
from calibration.pictures import Fresh, finite
from calibration.saliency import Saliency, estimate_saliency, read_saliency
from engines.bundle import Bundle
from engines.images import Image, read_image
from engines.inspector import Inspector
from engines.ldknn import Progress
from engines.preprocess import Preprocessor, Roi

SMALLEST_PX = 2.0  # defect that a maker draws
LARGEST = 1 / 3  # of an image's shorter side, likewise
_SIZES = (1 / 64, 1 / 3)  # of the square root of the typical image's area
_CONTRASTS = (1 / 4, 2.0)  # of the contrast that sizes are stated at
_HALF = 128  # of a pixel's 255: it is the defect's; one that covers no pixel by half has those that it covers most
_SOURCES = 3  # further images that a defect's fill is cut from


Judge = Callable[[int, Image], float]  # the number of the image that a defect is on, and the frame with it, to a score


@dataclass(frozen=True)
class Plan:
    """What is to be drawn.

    Attributes:
        per_kind: defects of each kind.
        contrast: grey levels that sizes will be stated at; drawn are changes of a quarter of it to twice as many.
        sizes_px: smallest and largest defect, square roots of their areas in source pixels; None takes a range for the images.
        seed: fixes everything that is random.
    """

    per_kind: int = 240
    contrast: float = 30.0
    sizes_px: tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least, most = REB.visible / _CONTRASTS[0], 255 / _CONTRASTS[1]
        if not least <= self.contrast <= most:
            raise CalibrationError(f"contrast {self.contrast:g} grey levels, expected {least:g} to {most:g}")
        if self.per_kind < 1 or self.seed < 0:
            raise CalibrationError(f"{self.per_kind} defects of a kind and seed {self.seed}, expected 1 or more and 0 or more")
        if self.sizes_px is not None and not SMALLEST_PX <= self.sizes_px[0] < self.sizes_px[1]:
            low, high = self.sizes_px
            raise CalibrationError(f"sizes {low:g} to {high:g} px, expected {SMALLEST_PX:g} or more, and the larger one second")


@dataclass(frozen=True)
class GoodImage:
    """A good image of the station, with its score and its size (height, width) within the judged region."""

    path: Path
    pixels: str
    score: float
    size: tuple[int, int]


@dataclass(frozen=True)
class Probe:
    """A drawn defect: where, how large, how strong, and the score of the image with it.

    Attributes:
        kind: of DefectMaker's.
        image: index of the good image.
        x, y: its centre, 0 to 1 over the judged region.
        size_px: square root of the area that it changed, source pixels.
        contrast: step across the outline of that area at the network's size, grey levels; see `outline_step`.
        change: mean absolute change over that area, grey levels.
        score: of the image with the defect.
    """

    kind: str
    image: int
    x: float
    y: float
    size_px: float
    contrast: float
    change: float
    score: float


def score_good(inspector: Inspector, paths: Sequence[Path], progress: Progress | None = None) -> tuple[GoodImage, ...]:
    """Score good images that the bundle has not learnt from.

    Raises:
        CalibrationError: no image, one that the bundle was made with, the same picture twice, or a score that is not finite.
        EngineError: an image that cannot be read or scored.
    """
    if not paths:
        raise CalibrationError("no good images; expected a folder of good parts of this station")
    fresh = Fresh(inspector.bundle, "so defects on it are found too easily; give other good images")
    found = []
    for number, path in enumerate(paths, 1):
        image = read_image(path)
        pixels = fresh.take(path, image)
        height, width = judged_region(inspector.bundle, image).shape[:2]
        found.append(GoodImage(path, pixels, finite(inspector.score(image).value, path), (height, width)))
        if progress is not None:
            progress(number, len(paths))
    return tuple(found)


def find_part(bundle: Bundle, images: Sequence[GoodImage], folder: Path | None, progress: Progress | None = None) -> Saliency:
    """Where the part is in each image's judged region, at the network's size: from mask files, or estimated.

    Raises:
        CalibrationError: masks that are missing or cannot be used.
    """
    resized = bundle.preprocessor().resized
    if folder is not None:
        return read_saliency(folder, [image.path.name for image in images], resized)
    return estimate_saliency([resized(read_image(image.path)) for image in images], progress)


def draw_probes(
    bundle: Bundle,
    score: Judge,
    images: Sequence[GoodImage],
    part: Saliency,
    threshold: float,
    plan: Plan,
    progress: Progress | None = None,
) -> list[Probe]:
    """Draw defects on the images that pass, and score them.

    Sizes and contrasts are log-uniform and independent, stratified within each kind.

    Args:
        bundle: says what of an image is judged.
        score: judges a frame with a defect.
        images: of `score_good`.
        part: of `find_part`, for the same images.
        threshold: an image with a higher score does not pass, and gets no defect.
        plan: what to draw.
        progress: called with (defects done, defects in all).

    Returns:
        The defects in the order in which they were scored, image by image.

    Raises:
        CalibrationError: no image passes, sizes that do not fit the images, or a score that is not finite.
    """
    passing = np.array([number for number, image in enumerate(images) if image.score <= threshold])
    if len(passing) == 0:
        raise CalibrationError(
            f"none of {len(images)} good images passes at threshold {threshold:g}; calibrate this station again"
        )
    rng = np.random.default_rng([plan.seed, 5])
    order = rng.permutation(passing)
    sizes = plan.sizes_px if plan.sizes_px is not None else usual_sizes([image.size for image in images])
    contrasts = plan.contrast * _CONTRASTS[0], plan.contrast * _CONTRASTS[1]
    wanted: dict[int, list[tuple[str, int, float, float]]] = {}
    number = 0
    for kind in KINDS:
        drawn = zip(_spread(rng, sizes, plan.per_kind), _spread(rng, contrasts, plan.per_kind), strict=True)
        for size, contrast in drawn:
            wanted.setdefault(number % len(order), []).append((kind, number, size, contrast))
            number += 1
    probes: list[Probe] = []
    for place, defects in wanted.items():
        canvas = _Canvas(bundle, images, part, [int(order[(place + i) % len(order)]) for i in range(_SOURCES + 1)])
        for kind, draw, size, contrast in defects:
            probes.append(canvas.probe(score, kind, plan.seed, draw, size, contrast))
            if progress is not None:
                progress(len(probes), number)
    return probes


def measured_contrast(preprocessor: Preprocessor, frame: Image, defect: Mask) -> float:
    """The step across a defect's outline as the network sees it, grey levels.

    Args:
        preprocessor: of the bundle.
        frame: uint8 RGB (H, W, 3).
        defect: bool (H, W), of the frame's size.
    """
    white = np.repeat(defect[:, :, None].astype(np.uint8) * np.uint8(255), 3, axis=2)
    covered = preprocessor.resized(white)[..., 0]
    return outline_step(preprocessor.resized(frame), covered >= max(1, min(_HALF, int(covered.max()))))


def usual_sizes(images: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The range of sizes (pixels) to draw on images of these (height, width): from hardly visible to a third of the image."""
    side = float(np.median([np.sqrt(height * width) for height, width in images]))
    return max(SMALLEST_PX, _SIZES[0] * side), _SIZES[1] * side


def judged_region(bundle: Bundle, frame: npt.NDArray) -> npt.NDArray:
    """The judged region of a frame or of a mask of its size: a view."""
    if bundle.manifest.input.roi is None:
        return frame
    roi = Roi(*bundle.manifest.input.roi)
    return frame[roi.y : roi.y + roi.height, roi.x : roi.x + roi.width]


class _Canvas:
    """One image to draw on, and a few others that fills are cut from."""

    def __init__(self, bundle: Bundle, images: Sequence[GoodImage], part: Saliency, chosen: Sequence[int]) -> None:
        self._bundle, self._number = bundle, chosen[0]
        self._preprocessor = bundle.preprocessor()
        self._path = images[chosen[0]].path
        self._frame = read_image(self._path)
        height, width = images[chosen[0]].size
        regions, masks = [], []
        for number in dict.fromkeys(chosen):  # fewer images than sources: each once
            region = np.ascontiguousarray(judged_region(bundle, read_image(images[number].path)))
            if region.shape[:2] != (height, width):
                shrinks = region.shape[0] * region.shape[1] > height * width
                how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
                region = np.asarray(cv2.resize(region, (width, height), interpolation=how), dtype=np.uint8)
            regions.append(region)
            masks.append(_place(bundle, None if part.masks is None else part.masks[number], (height, width)))
        self._maker = make_maker("defectmaker", regions, masks)
        self._largest = LARGEST * min(height, width)

    def probe(self, score: Judge, kind: str, seed: int, draw: int, size_px: float, contrast: float) -> Probe:
        """Draw one defect and score the frame with it."""
        size_px = min(max(size_px, SMALLEST_PX), self._largest)
        defect = self._maker.draw(0, kind, seed=seed, draw=draw, size_px=size_px, contrast=contrast)
        frame = self._frame.copy()
        judged_region(self._bundle, frame)[...] = defect.image
        rows, columns = np.nonzero(defect.changed)
        height, width = defect.changed.shape
        changed = np.zeros(frame.shape[:2], bool)
        judged_region(self._bundle, changed)[...] = defect.changed
        return Probe(
            kind=kind,
            image=self._number,
            x=float((columns.mean() + 0.5) / width),
            y=float((rows.mean() + 0.5) / height),
            size_px=float(defect.parameters["size_px"]),
            contrast=measured_contrast(self._preprocessor, frame, changed),
            change=float(defect.parameters["contrast"]),
            score=finite(score(self._number, frame), self._path),
        )


def _place(bundle: Bundle, part: Mask | None, size: tuple[int, int]) -> Mask:
    """Where a defect may be centred in the judged region, bool (H, W): on the part, and not where nothing is judged."""
    judged = np.ones(size, bool) if bundle.mask is None else ~judged_region(bundle, bundle.mask)
    if part is None:
        return judged
    on_part = cv2.resize(part.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
    both = judged & on_part
    return np.asarray(both if both.any() else judged)


def _spread(rng: np.random.Generator, limits: tuple[float, float], count: int) -> npt.NDArray[np.float64]:
    """Log-uniform numbers in shuffled strata: float64 (count,)."""
    low, high = np.log(limits)
    return np.asarray(np.exp(low + (high - low) * rng.permutation((np.arange(count) + rng.random(count)) / count)))
