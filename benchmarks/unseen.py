"""Which defects weights see, without a test image; above all, whether an adaptation helps with those it was not shown.

Judged on synthetic defects over good images that neither the bank nor the adaptation has seen, so no test image is spent on
choosing a schedule. DefectMaker's kinds are those that an adaptation with it has learnt; the others it has not: those of the
older makers, thin lines, soft shades, local blur, and parts of which a piece is gone, where the images show a part on a
background. Contrasts are low, 8 to 30 grey levels: all weights see bold defects.

`python -m benchmarks.unseen --data DIR --adapted FILE ...`, after `train adapt --seed S`: with the same `--seed` both hold out
the same images. Files that learnt from one of them are refused. Without `--adapted` it measures `--weights` alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import cv2
import numpy as np
import numpy.typing as npt

from calibration.defects import make_maker
from calibration.saliency import estimate_saliency
from engines import console
from engines.atomic import write_file
from engines.bench import machine
from engines.images import Image, pixel_digest
from engines.ldknn import LDKNN, density
from engines.pooling import Windows
from engines.preprocess import Preprocessor
from train import TrainError
from train.features import embed
from train.metrics import image_auroc
from train.normals import Normals, embed_normals, select_coreset
from train.product import Console, Product, Settings, open_product
from train.select import PUBLISHED_K
from train.weights import Weights, find_weights

_DRAWS = 2  # defects of each kind on each held-out image
_CONTRAST = (8.0, 30.0)  # grey levels
_BATCH = 8
_MAKERS = {"REB": "defectmaker", "CutPaste": "cutpaste-3way", "DRAEM": "draem"}
_PIECE = (0.03, 0.2)  # of the part's area, gone
_BACKGROUND_REACH = 0.05  # of the shorter side: how far the background is smoothed to go on where a piece is gone

Scores = dict[str, npt.NDArray[np.float64]]
Random = np.random.Generator


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="unseen", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a product, as for `train fit`")
    parser.add_argument("--weights", help="initial ones, as for `train fit`")
    parser.add_argument("--adapted", type=Path, nargs="+", default=(), metavar="FILE", help="of `train adapt`")
    parser.add_argument("--seed", default=0, type=console.count, help="that they were adapted with (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    settings = Settings(arguments.data, weights=arguments.weights, seed=arguments.seed)
    talk = Console(lambda line: None, console.warn, console.progress)
    product = open_product(settings, talk)
    if product.in_bank == len(product.samples):
        raise TrainError(f"{len(product.samples)} good images, of which none are held out; expected 20 or more")
    frames = [sample.image() for sample in product.samples[product.in_bank :]]
    adapted = _adapted(arguments.adapted, product, {pixel_digest(frame) for frame in frames})
    held_out = [product.preprocessor.resized(frame) for frame in frames]
    flawed = _flawed(held_out, arguments.seed)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, weights in {"initial": product.weights, **adapted}.items():
        figures[name] = _measure(dataclasses.replace(product, weights=weights), settings, held_out, flawed, talk)
    rows = [
        (name, search, *(f"{100 * value:.1f}" for value in (*groups.values(), fmean(groups.values()))))
        for name, searches in figures.items()
        for search, groups in searches.items()
    ]
    title = f"image AUROC, percent; {len(held_out)} held-out images, {_DRAWS} defects of each kind on each"
    console.table(title, ("weights", "search", *flawed, "mean"), rows)
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE


def _adapted(files: Sequence[Path], product: Product, held_out: set[str]) -> dict[str, Weights]:
    """Weights by the files' names, none of which has learnt from an image with one of the digests."""
    found: dict[str, Weights] = {}
    for path in files:
        if path.stem in found:
            raise TrainError(f"two files are called {path.stem}; rename one, or the table could not tell them apart")
        weights = find_weights(str(path), product.backbone)
        if weights is None or weights.adaptation is None:
            raise TrainError(f"{path}: no adapted weights; expected a file that `train adapt` wrote")
        learnt = len(held_out.intersection(weights.adaptation.images))
        if learnt > 0:
            raise TrainError(
                f"{path}: learnt from {learnt} of {len(held_out)} images that are held out here;"
                " give the --seed that it was made with"
            )
        found[path.stem] = weights
    return found


def _flawed(images: Sequence[Image], seed: int) -> dict[str, list[list[Image]]]:
    """By group, for each of its kinds, the flawed images: `_DRAWS` of every image."""
    draws = [(index, number) for index in range(len(images)) for number in range(_DRAWS)]
    masks = estimate_saliency(images).masks
    flawed: dict[str, list[list[Image]]] = {}
    for group, name in _MAKERS.items():
        maker = make_maker(name, images, masks)
        flawed[group] = [
            [maker.draw(i, kind, seed=seed, draw=n, contrast=_contrast(seed, i, n)).image for i, n in draws]
            for kind in maker.kinds
        ]
    for group, mar in (("line", _line), ("shade", _shade), ("blur", _blur)):
        flawed[group] = [[_marred(mar, images[i], seed, i, n) for i, n in draws]]
    if masks is not None:
        flawed["gone"] = [[_gone(images[i], masks[i], np.random.default_rng([seed, i, n, 2])) for i, n in draws]]
    return flawed


def _contrast(seed: int, index: int, number: int) -> float:
    return float(np.random.default_rng([seed, index, number]).uniform(*_CONTRAST))


def _marred(
    mar: Callable[[npt.NDArray[np.float32], float, Random], npt.NDArray[np.float32]],
    image: Image,
    seed: int,
    index: int,
    number: int,
) -> Image:
    changed = mar(image.astype(np.float32), _contrast(seed, index, number), np.random.default_rng([seed, index, number, 1]))
    return np.rint(changed).clip(0, 255).astype(np.uint8)


def _line(image: npt.NDArray[np.float32], contrast: float, rng: Random) -> npt.NDArray[np.float32]:
    """A dark line, one or two pixels wide, that wanders like a crack."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.float32)
    here, angle = rng.uniform((0.1 * width, 0.1 * height), (0.9 * width, 0.9 * height)), rng.uniform(0, 2 * math.pi)
    thickness = int(rng.integers(1, 3))
    for _ in range(int(rng.integers(8, 30))):
        angle += rng.normal(0, 0.4)
        there = here + 6 * np.array([math.cos(angle), math.sin(angle)])
        start, stop = np.round(16 * np.stack([here, there])).astype(int).tolist()
        cv2.line(mask, start, stop, 1.0, thickness, cv2.LINE_AA, 4)
        here = there
    return image - contrast * mask[..., None]


def _spot(size: tuple[int, int], rng: Random) -> npt.NDArray[np.float32]:
    """A soft spot, 0 to 1, deviation 12 to 50 pixels along each of its axes."""
    height, width = size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    x, y = columns - rng.uniform(0.1, 0.9) * width, rows - rng.uniform(0.1, 0.9) * height
    turn, (along, across) = rng.uniform(0, math.pi), rng.uniform(12, 50, 2)
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    return np.asarray(np.exp(-((u / along) ** 2 + (v / across) ** 2) / 2)[..., None], np.float32)


def _shade(image: npt.NDArray[np.float32], contrast: float, rng: Random) -> npt.NDArray[np.float32]:
    """A soft spot, brighter or darker."""
    return image + contrast * rng.choice((-1, 1)) * _spot(image.shape[:2], rng)


def _blur(image: npt.NDArray[np.float32], contrast: float, rng: Random) -> npt.NDArray[np.float32]:
    """A soft spot without fine detail: the higher the contrast asked for, the coarser what is left."""
    weight = _spot(image.shape[:2], rng)
    return image + weight * (cv2.GaussianBlur(image, (0, 0), 1 + contrast / 8) - image)


def _gone(image: Image, part: npt.NDArray[np.bool_], rng: Random) -> Image:
    """The part without a piece, cut off straight, or round from its edge; a plain background goes on there.

    A background with a pattern does not: there the filled piece shows by itself.
    """
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * math.pi)
        depth = -(columns * math.cos(angle) + rows * math.sin(angle))
    else:
        edge = np.argwhere(part & ~(cv2.erode(part.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0))
        centre = edge[rng.integers(len(edge))]
        depth = np.hypot(rows - centre[0], columns - centre[1])
    reach = _BACKGROUND_REACH * min(image.shape[:2])
    # a mask ends a little within the part: what is gone is gone with its outline
    beside = cv2.dilate(part.astype(np.uint8), np.ones((2 * round(reach / 3) + 1,) * 2, np.uint8)) > 0
    cut = beside & (depth <= np.quantile(depth[part], rng.uniform(*_PIECE)))
    weight = cv2.GaussianBlur((~beside).astype(np.float32), (0, 0), reach)[..., None]
    background = cv2.GaussianBlur(np.where(beside[..., None], 0, image).astype(np.float32), (0, 0), reach)
    smooth = np.where(weight > 0.01, background / np.maximum(weight, 0.01), image[~beside].mean(axis=0))
    grain = (image - smooth)[~beside]
    filled = smooth + grain[rng.integers(len(grain), size=cut.shape)]
    blend = cv2.GaussianBlur(cut.astype(np.float32), (0, 0), 0.8)[..., None]
    return np.rint(image + blend * (filled - image)).clip(0, 255).astype(np.uint8)


def _measure(
    product: Product, settings: Settings, good: Sequence[Image], flawed: dict[str, list[list[Image]]], talk: Console
) -> dict[str, dict[str, float]]:
    """Image AUROC by search and group: the mean over the group's kinds."""
    normals = embed_normals(product, settings.seed, talk)
    bank = select_coreset(normals, settings, talk)
    with console.progress("density") as advance:
        dense = density(bank, normals.bank_features, PUBLISHED_K, metric=settings.metric, progress=advance)
    search = LDKNN(normals.bank_features[bank], dense, alpha=1.0, metric=settings.metric)
    clean = _scores(normals, search, dense, good)
    figures: dict[str, dict[str, float]] = {name: {} for name in clean}
    with console.progress("defects") as advance:
        for number, (group, kinds) in enumerate(flawed.items(), 1):
            scored = [_scores(normals, search, dense, images) for images in kinds]
            for name, groups in figures.items():
                groups[group] = fmean(image_auroc(clean[name], scores[name]) for scores in scored)
            advance(number, len(flawed))
    return figures


def _scores(normals: Normals, search: LDKNN, dense: npt.NDArray[np.float32], images: Sequence[Image]) -> Scores:
    """Image scores float64 (n,) by nearest neighbour and by LDKNN, squared distances both."""
    judged, as_input = normals.judged, Preprocessor(normals.preprocessor.size)  # the images have that size already
    windows = Windows(judged)
    found: dict[str, list[float]] = {"nn": [], "ldknn": []}
    for start in range(0, len(images), _BATCH):
        batch = np.concatenate([as_input(image) for image in images[start : start + _BATCH]])
        features = embed(normals.network, batch, normals.device).reshape(len(batch), -1, normals.network.dim)
        for patches in features[:, judged.ravel()]:
            squared, row = search.search(patches)
            for name, values in (("nn", squared), ("ldknn", squared - dense[row])):
                laid_out = np.zeros(judged.shape, np.float32)
                laid_out[judged] = values
                found[name].append(float(windows.pool(laid_out)))
    return {name: np.array(values) for name, values in found.items()}


if __name__ == "__main__":
    sys.exit(main())
