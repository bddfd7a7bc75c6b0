"""Judge a bundle on labelled images: LDKNN and the baselines, overall and for each kind of defect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from engines import EngineError
from engines.bundle import Bundle, Input, Record
from engines.images import Image, pixel_digest, read_image
from engines.inspector import Inspector, anomaly_map
from engines.ldknn import Floats, Progress
from engines.pooling import Windows
from train import TrainError
from train.baselines import BASELINES, Neighbourhood
from train.data import Dataset, Sample
from train.metrics import (
    Mask,
    PixelTally,
    Region,
    Truth,
    best_f1,
    connected_regions,
    image_auroc,
    level_edges,
    merge,
    quantise,
    shrink_mask,
)

METHODS = ("ldknn", *BASELINES)
METRICS = ("image_auroc", "best_f1", "pixel_auroc", "aupro", "spro")
ALL = "all"
DEFECTS = "defects_config.json"

Figures = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of every test image by every method, and what they amount to.

    Attributes:
        samples: the n test images, in the data set's order.
        scores: method to image scores, float64 (n,).
        maps: method to patch scores, float32 (n, rows, columns), NaN where ignored.
        metrics: method to metric to kind (or `all`) to value, 0 to 1. A kind is compared with all good images. What is
            undefined (no masks, say) is absent.
        notes: what a reader of the figures should know about the data, a sentence each.
        precision: of the network that embedded the images.
    """

    samples: tuple[Sample, ...]
    scores: Mapping[str, npt.NDArray[np.float64]]
    maps: Mapping[str, npt.NDArray[np.float32]]
    metrics: Figures
    notes: tuple[str, ...]
    precision: str

    def of_kind(self, kind: str) -> npt.NDArray[np.bool_]:
        """Which images are of a kind, bool (n,); `all` is every defective one."""
        return np.array([not sample.good if kind == ALL else sample.kind == kind for sample in self.samples])

    def kinds(self) -> tuple[str, ...]:
        """The kinds of defect, sorted."""
        return tuple(sorted({sample.kind for sample in self.samples if not sample.good}))


class DefectEntry(Record):
    """One entry of MVTec LOCO's `defects_config.json`: when a region of a mask with this pixel value is found whole.

    The threshold is a share of the region's area if relative, else an area in source pixels.
    """

    defect_name: str
    pixel_value: int
    saturation_threshold: float = Field(gt=0)
    relative_saturation: bool

    def share(self, area_px: int) -> float:
        """The saturation area as a share of a region of `area_px` source pixels, above 0 and at most 1."""
        return min(self.saturation_threshold if self.relative_saturation else self.saturation_threshold / area_px, 1.0)


def evaluate(
    bundle: Bundle,
    dataset: Dataset,
    *,
    backend: str = "onnxruntime",
    precision: str = "fp32",
    threads: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Score every test image with every method, and compute the figures.

    Args:
        bundle: what is judged; K, metric and pooling are its own, for the baselines too.
        dataset: its test images, good and defective.
        backend, precision, threads: see `make_extractor`.
        progress: called with (done, total); the unit is about one patch searched for in the bank.

    Raises:
        TrainError: no good or no defective test image, a mask that does not fit its image, a `defects_config.json`
            that cannot be used, or a score that is not finite.
        EngineError: an image or mask that cannot be read, or a backend that cannot be used.
    """
    _check(dataset)
    method = bundle.manifest.method
    samples = dataset.test
    saturation = _read_saturation(dataset)
    rows = bundle.bank.rows
    patches = method.grid[0] * method.grid[1]
    total = len(rows) + len(samples) * (patches + len(METHODS))

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    bank = Neighbourhood(rows, method.k, metric=method.metric, progress=lambda done, _: report(done))
    scores = {name: np.empty(len(samples)) for name in METHODS}
    maps = {name: np.empty((len(samples), *method.grid), np.float32) for name in METHODS}
    truths: list[Truth | None] = []
    learnt_from, trained_on = bundle.learnt_from(), 0
    with Inspector(bundle, backend, precision=precision, threads=threads) as inspector:
        judged = _judged_pixels(inspector)
        for number, sample in enumerate(samples):
            image = sample.image()
            trained_on += pixel_digest(image) in learnt_from
            for name, (value, patch_map) in _score(inspector, bank, sample, image).items():
                scores[name][number], maps[name][number] = value, patch_map
            truths.append(_truth(sample, image, bundle.manifest.input, judged, saturation))
            report(len(rows) + (number + 1) * patches)
    figures: Figures = {}
    for number, name in enumerate(METHODS, start=1):
        figures[name] = _figures(samples, scores[name], maps[name], truths, judged)
        report(total - (len(METHODS) - number) * len(samples))
    return Evaluation(samples, scores, maps, figures, _notes(dataset, truths, saturation, trained_on), precision)


def to_json(evaluation: Evaluation) -> str:
    """The figures as JSON: {method: {metric: {kind or "all": value}}}."""
    return json.dumps(evaluation.metrics, indent=1, allow_nan=False) + "\n"


def judged_region(array: npt.NDArray, spec: Input) -> npt.NDArray:
    """The part of an image or mask, (H, W) or (H, W, 3), that a bundle judges."""
    if spec.roi is None:
        return array
    x, y, width, height = spec.roi
    return array[y : y + height, x : x + width]


def _check(dataset: Dataset) -> None:
    good = sum(sample.good for sample in dataset.test)
    bad = len(dataset.test) - good
    if good == 0 or bad == 0:
        raise TrainError(
            f"{dataset.root}: {good} good and {bad} defective test images, expected 1 or more of each;"
            " put them in test/good and test/<defect>, or choose the layout that fits"
        )
    if any(sample.kind == ALL for sample in dataset.test):
        raise TrainError(f"{dataset.root}: a defect is called '{ALL}', which stands for every kind; rename its folder")


def _judged_pixels(inspector: Inspector) -> Mask:
    """Which pixels of the network's input count, bool (h, w)."""
    ignored = inspector.preprocessor.ignored
    return np.ones(inspector.preprocessor.size, bool) if ignored is None else ~ignored


def _score(inspector: Inspector, bank: Neighbourhood, sample: Sample, image: Image) -> dict[str, tuple[float, Floats]]:
    """Embed one image and score it with every method: image score and patch map, float32 (rows, columns)."""
    method = inspector.bundle.manifest.method
    judged = inspector.preprocessor.judged_patches(method.grid)
    try:
        embeddings = inspector.extractor.extract(inspector.preprocessor(image))
    except EngineError as error:
        raise TrainError(f"{sample.path}: {error}") from None
    if not np.isfinite(embeddings).all():
        raise TrainError(f"{sample.path}: the network gave numbers that are not finite; check the backend, or train again")
    score = inspector.judge(embeddings)
    scored = {"ldknn": (score.value, inspector.map(score))}
    windows = Windows(judged, method.pooling)
    for name, values in bank.scores(embeddings).items():
        patches = values.reshape(method.grid)
        scored[name] = (float(windows.pool(patches)), np.where(judged, patches, np.float32(np.nan)))
    return scored


def _truth(
    sample: Sample, image: Image, spec: Input, judged: Mask, saturation: Mapping[int, DefectEntry] | None
) -> Truth | None:
    """What is defective in an image at network resolution; None where nobody has drawn it."""
    if sample.good:
        return Truth()
    if not sample.masks:
        return None
    drawn = [_read_drawn(path, image) for path in sample.masks]
    whole = np.asarray(np.any(drawn, axis=0))
    components = connected_regions(shrink_mask(judged_region(whole, spec), spec.size) & judged)
    if saturation is None:
        return Truth(components)
    regions = (_annotated(path, values, spec, judged, saturation) for path, values in zip(sample.masks, drawn, strict=True))
    return Truth(components, tuple(region for region in regions if region is not None))


def _read_drawn(path: Path, image: Image) -> npt.NDArray[np.uint8]:
    """A mask file's pixel values, uint8 (H, W), as large as its image."""
    values = read_image(path).max(axis=2)
    if values.shape != image.shape[:2]:
        raise TrainError(
            f"{path}: mask of {values.shape[1]} x {values.shape[0]} pixels, expected its image's"
            f" {image.shape[1]} x {image.shape[0]}; replace the mask"
        )
    return np.asarray(values)


def _annotated(
    path: Path, values: npt.NDArray[np.uint8], spec: Input, judged: Mask, saturation: Mapping[int, DefectEntry]
) -> Region | None:
    """One mask file of LOCO as one region; None where it lies outside what is judged."""
    drawn = values > 0
    pixels = np.flatnonzero(shrink_mask(judged_region(drawn, spec), spec.size) & judged).astype(np.int32)
    if len(pixels) == 0:
        return None
    share = 1.0
    if saturation:
        value = int(values.max())
        if value not in saturation:
            raise TrainError(f"{path}: pixel value {value} is not in {DEFECTS} (has {sorted(saturation)}); correct one of them")
        share = saturation[value].share(int(np.count_nonzero(drawn)))
    return Region(pixels, share * len(pixels))


def _read_saturation(dataset: Dataset) -> dict[int, DefectEntry] | None:
    """LOCO's saturation by pixel value; empty where the file is absent, None in other layouts."""
    if dataset.layout != "loco":
        return None
    path = dataset.root / DEFECTS
    if not path.is_file():
        return {}
    try:
        entries = TypeAdapter(list[DefectEntry]).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TrainError(f"{path}: {where}: {first['msg']}; expected MVTec LOCO's list of defects") from None
    return {entry.pixel_value: entry for entry in entries}


def _figures(
    samples: tuple[Sample, ...],
    scores: npt.NDArray[np.float64],
    maps: npt.NDArray[np.float32],
    truths: list[Truth | None],
    judged: Mask,
) -> dict[str, dict[str, float]]:
    """One method's figures: metric to kind to value, what is undefined left out."""
    tallies = _tally(samples, maps, truths, judged)
    good = np.array([sample.good for sample in samples])
    of_kind = {kind: np.array([sample.kind == kind for sample in samples]) for kind in sorted(tallies) if kind != "good"}
    groups = {ALL: (~good, merge(tallies.values()))}
    groups |= {kind: (chosen, merge([tallies["good"], tallies[kind]])) for kind, chosen in of_kind.items()}
    found: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    for kind, (chosen, tally) in groups.items():
        values: dict[str, float | None] = {
            "image_auroc": image_auroc(scores[good], scores[chosen]),
            "best_f1": best_f1(scores[good], scores[chosen]),
            "pixel_auroc": tally.auroc(),
            "aupro": tally.aupro(),
            "spro": tally.auspro(),
        }
        for metric, value in values.items():
            if value is not None:
                found[metric][kind] = value
    return {metric: values for metric, values in found.items() if values}


def _tally(
    samples: tuple[Sample, ...], maps: npt.NDArray[np.float32], truths: list[Truth | None], judged: Mask
) -> dict[str, PixelTally]:
    """Pixel histograms of each kind, good images among them. Images whose defects nobody has drawn count nowhere."""
    tallies = {kind: PixelTally() for kind in {sample.kind for sample in samples}}
    if all(truth is None or not truth.components for truth in truths):
        return tallies
    edges = level_edges(maps)
    for sample, patches, truth in zip(samples, maps, truths, strict=True):
        if truth is not None:
            levels = quantise(anomaly_map(patches, judged.shape), edges)
            tallies[sample.kind].add(levels, judged, truth)
    return tallies


def _notes(
    dataset: Dataset, truths: list[Truth | None], saturation: Mapping[int, DefectEntry] | None, trained_on: int
) -> tuple[str, ...]:
    bad = [truth for sample, truth in zip(dataset.test, truths, strict=True) if not sample.good]
    unmarked = sum(truth is None for truth in bad)
    unseen = sum(truth is not None and not truth.components for truth in bad)
    notes = []
    if trained_on > 0:
        notes.append(
            f"Test images that are in the bank, pixel for pixel: {trained_on} of {len(dataset.test)};"
            " their scores are too low to be believed."
        )
    if unmarked > 0:
        notes.append(f"Defective images without a mask: {unmarked} of {len(bad)}; pixel figures leave them out.")
    if unseen > 0:
        notes.append(f"Defective images with no defect in the judged pixels: {unseen} of {len(bad)}.")
    if saturation is not None and not saturation:
        notes.append(f"No {DEFECTS} in the data folder: in sPRO each region saturates at its whole area.")
    return tuple(notes)
