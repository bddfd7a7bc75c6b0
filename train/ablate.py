"""What the adaptation and LDKNN each bring: image AUROC of one product over makers of defects, or over few good images.

Every figure is a cell (weights, seed, number of good images) with a file of its own, so that hours of work can be
interrupted, and a second run only reads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from pydantic import Field, ValidationError

import engines
from engines.atomic import write_file
from engines.bundle import Record
from engines.ldknn import LDKNN, density, distance
from engines.pooling import Windows
from train import TrainError
from train.ablation_table import COMPARED, REB, SEARCHES, Row, auroc_plot, draw_curve, draw_makers
from train.adaptation import Request, adapt_product, check_request, forget
from train.backbones import BackboneSpec, backbone_spec
from train.data import Dataset, Sample, open_dataset
from train.features import embed_samples
from train.metrics import image_auroc
from train.normals import Normals, embed_normals, select_coreset
from train.product import Console, Product, Settings, choose_device, open_product
from train.schedule import preset
from train.select import PUBLISHED_K
from train.weights import Weights, find_weights, write_weights

_BATCH = 8  # test images embedded and searched for at a time


@dataclass(frozen=True)
class Study:
    """What is to be measured, and where results are kept.

    Attributes:
        settings: of the product; `seed` and `few_shot` are set for each cell, and `alpha` is 0 (NN) and 1 (LDKNN).
        request: of the adaptations; `maker`, `checkpoint` and `resume` are set for each cell.
        seeds: how many, from 0. A seed draws the held-out images, the coreset, the adaptation and the few images.
        out: folder for results; known cells in it are not computed again.
    """

    settings: Settings
    request: Request
    seeds: int
    out: Path


@dataclass(frozen=True)
class Cell:
    """One training: adapted with a maker (None: initial weights), by a seed, on a number of good images (None: all)."""

    maker: str | None
    seed: int
    few_shot: int | None = None

    @property
    def name(self) -> str:
        """For files and lines: `defectmaker-seed0`, `initial-5-shot-seed0`."""
        weights = "initial" if self.maker is None else self.maker
        few = "" if self.few_shot is None else f"-{self.few_shot}-shot"
        return f"{weights}{few}-seed{self.seed}"


class CellResult(Record):
    """A cell's file: image AUROC by both searches, 0 to 1, and under which key they were found.

    Attributes:
        in_bank: good images that the bank was made of; the others were held out.
        seconds: spent on this cell.
    """

    key: str
    in_bank: int
    nn: float = Field(ge=0, le=1)
    ldknn: float = Field(ge=0, le=1)
    seconds: float


@dataclass(frozen=True)
class _Work:
    """A study whose input has been found to be good, and what its cells' keys are made of."""

    study: Study
    dataset: Dataset
    initial: Weights | None
    initial_name: str
    described: dict[str, Any]
    good_files: list[list[object]]
    test_files: list[list[object]]
    saliency_files: list[list[object]]

    def weights_key(self, cell: Cell) -> str:
        """Digest of everything that a cell's weights depend on."""
        parts = [self.described["embedding"], self.good_files, asdict(cell), engines.__version__]
        if cell.maker is not None:
            parts += [self.described["adaptation"], self.saliency_files]
        return _digest(parts)

    def key(self, cell: Cell) -> str:
        """Digest of everything that a cell's figures depend on."""
        return _digest([self.weights_key(cell), self.described["search"], self.test_files])

    def result_file(self, cell: Cell) -> Path:
        """Where its figures are."""
        return self.study.out / "cells" / f"{cell.name}.json"

    def weights_file(self, cell: Cell) -> Path:
        """Where its adapted weights are; another key is another file."""
        return self.study.out / "weights" / f"{cell.name}-{self.weights_key(cell)[:12]}.safetensors"

    def row(self, cells: Iterable[Cell], results: dict[Cell, CellResult], search: str) -> Row:
        """The row of cells that differ in their seed alone."""
        cells = tuple(cells)
        maker, few_shot = cells[0].maker, cells[0].few_shot
        weights = self.initial_name if maker is None else COMPARED[maker]
        return Row(weights, maker, search, few_shot, tuple(getattr(results[cell], search) for cell in cells))


def compare_makers(study: Study, console: Console) -> tuple[Row, ...]:
    """NN and LDKNN with the initial weights and with those adapted by every maker compared.

    Writes `ablation.json` and `ablation.png` to the study's folder.

    Raises:
        InspectionError: input or settings that cannot be used, or adaptations that failed.
    """
    work = _prepare(study, (), console)
    makers = (None, *COMPARED)
    seeds = range(study.seeds)
    results = _results(work, [Cell(maker, seed) for seed in seeds for maker in makers], console)
    rows = tuple(work.row((Cell(maker, seed) for seed in seeds), results, search) for maker in makers for search in SEARCHES)
    _write(work, rows, "ablation", "points: seeds, bars: their mean", draw_makers)
    return rows


def few_shot_curve(study: Study, counts: Sequence[int], console: Console) -> tuple[Row, ...]:
    """NN and LDKNN on few good images, with the initial weights and with those adapted by DefectMaker.

    Writes `few_shot.json` and `few_shot.png` to the study's folder. The images are drawn as `Settings.few_shot` has it:
    from 20 on, some of them are held out of the bank.

    Raises:
        InspectionError: as `compare_makers`, or a count that the product does not have.
    """
    counts = sorted(set(counts))
    work = _prepare(study, counts, console)
    makers, seeds = (None, REB), range(study.seeds)
    results = _results(work, [Cell(maker, seed, n) for seed in seeds for n in counts for maker in makers], console)
    rows = tuple(
        work.row((Cell(maker, seed, count) for seed in seeds), results, search)
        for maker in makers
        for search in SEARCHES
        for count in counts
    )
    _write(work, rows, "few_shot", "lines: mean of the seeds, bands: their range", draw_curve)
    return rows


def score_images(
    normals: Normals, bank: npt.NDArray[np.int64], settings: Settings, samples: Sequence[Sample], console: Console
) -> tuple[dict[str, npt.NDArray[np.float64]], tuple[str, ...]]:
    """Score images by their nearest neighbour and by LDKNN, from one search each.

    Args:
        normals: the embedded product.
        bank: int64 (m,) the coreset, as rows of the features of the bank's images.
        settings: K and metric.
        samples: n images to score.
        console: where to show progress.

    Returns:
        Image scores by search, float64 (n,), and the images' pixel digests.

    Raises:
        InspectionError: an image that cannot be read or does not fit, or a score that is not finite.
    """
    with console.progress("density") as advance:
        dense = density(bank, normals.bank_features, _k(settings), metric=settings.metric, progress=advance)
    ldknn = LDKNN(normals.bank_features[bank], dense, alpha=1.0, metric=settings.metric)
    windows = Windows(normals.judged)
    scores = {search: np.empty(len(samples)) for search in SEARCHES}
    digests: list[str] = []
    with console.progress("test images") as advance:
        for start in range(0, len(samples), _BATCH):
            batch = samples[start : start + _BATCH]
            features, seen, _ = embed_samples(normals.network, normals.preprocessor, batch, normals.judged, normals.device)
            digests += seen
            squared, row = ldknn.search(features)
            near = distance(squared, settings.metric)
            for search, values in (("nn", near), ("ldknn", near - dense[row])):
                maps = np.zeros((len(batch), *normals.judged.shape), np.float32)
                maps[:, normals.judged] = values.reshape(len(batch), normals.patches)
                scores[search][start : start + len(batch)] = windows.pool(maps)
            advance(start + len(batch), len(samples))
    for values in scores.values():
        if not np.isfinite(values).all():
            first = samples[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise TrainError(f"{first.path}: the network gave numbers that are not finite; the weights do not suit the image")
    return scores, tuple(digests)


def _prepare(study: Study, counts: Sequence[int], console: Console) -> _Work:
    """Refuse what cannot be measured before any work, and find what the cells' keys are made of."""
    settings, request = study.settings, study.request
    if study.seeds < 1:
        raise TrainError(f"{study.seeds} seeds, expected 1 or more")
    if _k(settings) < 1:
        raise TrainError(f"K is {settings.k}, expected 1 or more")
    check_request(request)
    if request.saliency is not None and not request.saliency.is_dir():
        raise TrainError(f"{request.saliency}: no such folder; expected a folder of masks, one <image name>.png an image")
    spec, device = backbone_spec(settings.backbone), choose_device(settings.device)
    dataset = open_dataset(settings.data, settings.layout)
    console.say(f"data: {dataset.summary()}")
    _check_dataset(dataset, counts)
    try:
        (study.out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise TrainError(f"{study.out}: cannot hold results ({reason}); expected a new path or a folder") from None
    with console.progress("weights") as advance:
        initial = find_weights(settings.weights, spec, advance)
    masks = [] if request.saliency is None else sorted(path for path in request.saliency.iterdir() if path.is_file())
    return _Work(
        study,
        dataset,
        initial,
        _name_of(initial, spec),
        _described(study, dataset, initial, device),
        _files(sample.path for sample in dataset.train + dataset.validation),
        _files(sample.path for sample in dataset.test),
        _files(masks),
    )


def _check_dataset(dataset: Dataset, counts: Sequence[int]) -> None:
    good = sum(sample.good for sample in dataset.test)
    bad = len(dataset.test) - good
    if good == 0 or bad == 0:
        raise TrainError(
            f"{dataset.root}: {good} good and {bad} defective test images, expected 1 or more of each;"
            " put them in test/good and test/<defect>, or choose the layout that fits"
        )
    for count in counts:
        if not 1 <= count <= len(dataset.train):
            raise TrainError(f"few-shot with {count} images, expected 1 to {len(dataset.train)}: that many good ones there are")


def _name_of(initial: Weights | None, spec: BackboneSpec) -> str:
    """`ImageNet` for torchvision's checkpoint, known by the digits of its SHA-256; other weights by their file's name."""
    if initial is None:
        return "untrained"
    published = Path(spec.url).stem.rsplit("-", 1)[1]
    return "ImageNet" if initial.sha256.startswith(published) else Path(initial.source).stem


def _described(study: Study, dataset: Dataset, initial: Weights | None, device: torch.device) -> dict[str, Any]:
    """What the figures depend on beside the images, for the keys and for a reader.

    `auto` precision stands as asked: what it comes to is the machine's.
    """
    settings, request = study.settings, study.request
    return {
        "embedding": {
            "layout": dataset.layout,
            "backbone": settings.backbone,
            "weights_sha256": None if initial is None else initial.sha256,
            "size": settings.size,
            "roi": None if settings.roi is None else asdict(settings.roi),
            "mask": None if settings.mask is None else _files([settings.mask])[0],
            "device": device.type,
        },
        "adaptation": {
            **asdict(preset(request.preset)),
            "saliency": None if request.saliency is None else str(request.saliency.resolve()),
            "precision": request.precision,
        },
        "search": {"coreset": settings.coreset, "k": _k(settings), "metric": settings.metric},
    }


def _k(settings: Settings) -> int:
    """Neighbours of the density, which is the published one here: what is measured is the published method."""
    return PUBLISHED_K if settings.k is None else settings.k


def _files(paths: Iterable[Path]) -> list[list[object]]:
    """Path, size in bytes and time of change of each file: to digest pixels would take longer than many a cell."""
    found: list[list[object]] = []
    for path in paths:
        try:
            state = path.stat()
        except OSError as error:
            raise TrainError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
        found.append([str(path.resolve()), state.st_size, state.st_mtime_ns])
    return found


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _results(work: _Work, cells: Sequence[Cell], console: Console) -> dict[Cell, CellResult]:
    """Read the cells that are known and compute the others, each written as soon as it is known."""
    found = {cell: _read_result(work, cell, console) for cell in cells}
    results = {cell: result for cell, result in found.items() if result is not None}
    missing = [cell for cell in cells if cell not in results]
    console.say(f"{len(cells)} cells: {len(results)} known, {len(missing)} to do")
    quiet = _quiet(console)
    failed: list[str] = []
    for (seed, few_shot), group in itertools.groupby(missing, lambda cell: (cell.seed, cell.few_shot)):
        settings = dataclasses.replace(work.study.settings, seed=seed, few_shot=few_shot)
        product = open_product(settings, quiet)
        for cell in group:
            begun = time.monotonic()
            try:
                adapted = _adapted(work, product, cell, console, quiet)
            except TrainError as error:  # one that cannot be trained does not keep the others from being measured
                console.warn(f"{cell.name}: {error}")
                failed.append(cell.name)
                continue
            result = _measure(work, adapted, settings, cell, begun, quiet)
            write_file(work.result_file(cell), (result.model_dump_json(indent=1) + "\n").encode())
            results[cell] = result
            console.say(
                f"{cell.name}: NN {100 * result.nn:.2f}, LDKNN {100 * result.ldknn:.2f} in {result.seconds / 60:.1f} min"
                f" ({len(results)} of {len(cells)})"
            )
    if failed:
        raise TrainError(
            f"{len(failed)} of {len(cells)} cells could not be trained ({', '.join(failed)}); the others are kept:"
            " see the warnings above; another --preset or other --weights may train"
        )
    return results


def _read_result(work: _Work, cell: Cell, console: Console) -> CellResult | None:
    path = work.result_file(cell)
    if not path.is_file():
        return None
    try:
        result = CellResult.model_validate_json(path.read_bytes())
    except ValidationError:
        console.warn(f"{path}: damaged; it is computed again")
        return None
    if result.key != work.key(cell):
        console.warn(f"{path}: is of other images, weights or settings; it is computed again")
        return None
    return result


def _quiet(console: Console) -> Console:
    """For steps that are repeated in every cell: nothing said, each warning once."""
    told: set[str] = set()

    def warn(line: str) -> None:
        if line not in told:
            told.add(line)
            console.warn(line)

    return Console(lambda line: None, warn, console.progress)


def _adapted(work: _Work, product: Product, cell: Cell, console: Console, quiet: Console) -> Product:
    """The product with the cell's weights: the initial ones, ones adapted earlier, or ones adapted now."""
    if cell.maker is None:
        return product
    path = work.weights_file(cell)
    if path.is_file():
        try:
            return dataclasses.replace(product, weights=find_weights(str(path), product.backbone))
        except TrainError:
            console.warn(f"{path}: damaged; the adaptation is done again")
    checkpoint = path.with_suffix(".checkpoint")
    request = dataclasses.replace(work.study.request, maker=cell.maker, checkpoint=checkpoint, resume=checkpoint.exists())
    talk = dataclasses.replace(quiet, say=lambda line: console.say(f"{cell.name}: {line}"))
    weights = adapt_product(product, request, cell.seed, talk)
    write_weights(path, weights)
    forget(request)
    return dataclasses.replace(product, weights=weights)


def _measure(work: _Work, product: Product, settings: Settings, cell: Cell, begun: float, console: Console) -> CellResult:
    normals = embed_normals(product, settings.seed, console)
    bank = select_coreset(normals, settings, console)
    samples = work.dataset.test
    scores, digests = score_images(normals, bank, settings, samples, console)
    adaptation = normals.weights.adaptation if normals.weights is not None else None
    learnt_from = {*normals.digests[: normals.in_bank], *(adaptation.images if adaptation is not None else ())}
    leaked = len(learnt_from.intersection(digests))
    if leaked > 0:
        console.warn(f"{leaked} of {len(samples)} test images were trained on, pixel for pixel: their scores are too low")
    good = np.array([sample.good for sample in samples])
    return CellResult(
        key=work.key(cell),
        in_bank=normals.in_bank,
        seconds=time.monotonic() - begun,
        nn=image_auroc(scores["nn"][good], scores["nn"][~good]),
        ldknn=image_auroc(scores["ldknn"][good], scores["ldknn"][~good]),
    )


def _write(work: _Work, rows: Sequence[Row], stem: str, legend: str, draw: Callable[[Axes, Sequence[Row]], None]) -> None:
    dataset, initial = work.dataset, work.initial
    good = sum(sample.good for sample in dataset.test)
    document = {
        "data": str(dataset.root),
        "train": len(dataset.train),
        "test": {"good": good, "defective": len(dataset.test) - good},
        "initial": {"name": work.initial_name, "source": None if initial is None else initial.source},
        **work.described,
        "seeds": list(range(work.study.seeds)),
        "version": engines.__version__,
        "image_auroc": [row.as_dict() for row in rows],
    }
    write_file(work.study.out / f"{stem}.json", (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    seeds = "1 seed" if work.study.seeds == 1 else f"{work.study.seeds} seeds"
    title = (
        f"{dataset.root.resolve().name}: {work.study.settings.backbone}, preset {work.study.request.preset}, {seeds} ({legend})"
    )
    write_file(work.study.out / f"{stem}.png", auroc_plot(title, rows, draw))
