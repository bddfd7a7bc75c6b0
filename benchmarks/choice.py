"""Is the density that `fit` chooses right? Every choice against the best setting in hindsight, on real test images.

`python -m benchmarks.choice --data DIR --out DIR`, with a folder of products in a known layout. A cell is a product, a seed
(which draws held-out images, or the few good ones), a number of good images and a way in which all images are changed: blur,
gamma, crop. In each cell banks of several sizes are made, and in each bank every setting is tried twice: on the synthetic
defects that `fit` chooses by, and on the test images. The table then says what each rule of choosing gains over plain nearest
neighbour and what it loses against the best fixed setting, found by looking at the test images. Cells are kept in --out, so
it can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from engines import EngineError, console
from engines.atomic import write_file
from engines.bank import coreset_size
from engines.bench import machine
from engines.bundle import Record, Tried
from engines.images import Image, encode_png
from engines.ldknn import Floats, nearest
from engines.pooling import Windows
from train import TrainError
from train.data import Dataset, Sample, open_dataset
from train.features import embed_samples
from train.measured import MeasuredDensity
from train.metrics import image_auroc
from train.normals import Normals, embed_normals, other_images, search_others, select_rows
from train.others import Indices, Nearest
from train.pictures import find_part, read_pictures
from train.product import Console, Settings, open_product
from train.select import ALPHAS, PUBLISHED_ALPHA, PUBLISHED_K, choose, compare
from train.trial import Defects, Trial, hold_trials

_K = (1, 3, 9, 45)
_BEYOND = 1.25  # an alpha that is tried here alone
_CORESETS = (0.01, 0.02, 0.05)
_BATCH = 8

Change = Callable[[Image], Image]
Key = tuple[str, float]  # density, alpha


def _blur(image: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.8 * min(image.shape[:2]) / 256), np.uint8)


def _gamma(image: Image) -> Image:
    return np.asarray(cv2.LUT(image, np.rint(255 * (np.arange(256) / 255) ** 1.4).astype(np.uint8)), np.uint8)


def _crop(image: Image) -> Image:
    high, wide = (round(0.08 * side) for side in image.shape[:2])
    return np.ascontiguousarray(image[high:-high, wide:-wide])


CHANGES: dict[str, Change | None] = {"none": None, "blur": _blur, "gamma": _gamma, "crop": _crop}


class Setting(Record):
    """One density and alpha: AUROC on the test images, 0 to 1, and on the synthetic defects as `fit` compares."""

    density: str
    test: float
    tried: Tried


class BankResult(Record):
    """All settings of one bank: `coreset` of the patches of `images` good images."""

    coreset: float
    images: int
    settings: tuple[Setting, ...]

    def of(self, density: str) -> list[Setting]:
        """The settings with a density, alpha ascending."""
        return [setting for setting in self.settings if setting.density == density]

    def at(self, density: str, alpha: float) -> Setting:
        """One setting."""
        return next(setting for setting in self.of(density) if setting.tried.alpha == alpha)


_Cell = TypeAdapter(tuple[BankResult, ...])


@dataclass(frozen=True)
class Cell:
    """What is drawn and changed; `count` of 0 is all good images but the held-out ones."""

    product: str
    seed: int
    count: int
    change: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.product}-{self.change}-seed{self.seed}-{self.count or 'all'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="choice", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of products, each as for `train evaluate`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where cells are kept")
    parser.add_argument("--products", nargs="+", help="default: all folders in DATA")
    parser.add_argument("--weights", help="as for `train fit`")
    parser.add_argument("--coresets", nargs="+", type=float, default=_CORESETS, help="parts of the patches")
    parser.add_argument("--counts", nargs="+", type=int, default=(10, 20, 50), help="of few good images, beside all")
    parser.add_argument("--seeds", type=console.positive_int, default=3, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="one seed, all images, unchanged")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    names = arguments.products or sorted(path.name for path in arguments.data.iterdir() if path.is_dir())
    results: dict[str, list[BankResult]] = defaultdict(list)
    cells = list(_cells(arguments, names))
    for number, cell in enumerate(cells, 1):
        path = arguments.out / f"{cell.name}.json"
        console.say(f"{number} of {len(cells)}: {cell.name}" + (", known" if path.exists() else ""))
        if not path.exists():
            found = measure(arguments.data / cell.product, cell, arguments.coresets, arguments.weights)
            write_file(path, _Cell.dump_json(found, indent=1))
        results[cell.product] += _read(path)
    figures = {name: {rule: summary(banks, rule) for rule in RULES} for name, banks in results.items()}
    for name, banks in results.items():
        rows = [
            (rule, *(f"{100 * value:+.2f}" for value in gains), *(f"{100 * value:.2f}" for value in regrets))
            for rule, (*gains, mean, worst) in figures[name].items()
            for regrets in [(mean, worst)]
        ]
        title = f"{name}, {len(banks)} banks: image AUROC on the test images, points"
        console.table(title, ("rule", "over plain NN", "at worst", "behind the best", "at worst"), rows)
    console.say(
        f"published: K {PUBLISHED_K}. best, least: the best alpha on synthetic defects, and the least not clearly behind it."
        f" Behind the best: of the measured density and K {', '.join(map(str, _K))}, alpha 0 to {_BEYOND:g}, in hindsight"
    )
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE


def _cells(arguments: argparse.Namespace, names: Iterable[str]) -> Iterable[Cell]:
    """All good images with every seed, and changed; few ones with every seed. Products with too few images have no few."""
    for name in names:
        train = len(open_dataset(arguments.data / name).train)
        for seed in range(1 if arguments.quick else arguments.seeds):
            yield Cell(name, seed, 0, "none")
            if not arguments.quick:
                yield from (Cell(name, seed, count, "none") for count in arguments.counts if count < 0.9 * train)
        if not arguments.quick:
            yield from (Cell(name, 0, 0, change) for change in CHANGES if change != "none")


def _read(path: Path) -> tuple[BankResult, ...]:
    try:
        return _Cell.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise EngineError(f"{path}: not a cell of this benchmark ({str(error).splitlines()[0]}); delete it") from None


# --- rules: from what is known of the synthetic defects, which setting is taken


def _fixed(density: str, alpha: float) -> Callable[[BankResult], Setting]:
    return lambda bank: bank.at(density, alpha)


def _chosen(bank: BankResult) -> Setting:
    """As `fit` chooses."""
    settings = bank.of("measured")
    return settings[choose([setting.tried for setting in settings])]


def _likeliest(density: str) -> Callable[[BankResult], Setting]:
    """The best on the synthetic defects."""
    return lambda bank: max(bank.of(density), key=lambda setting: setting.tried.auroc)


def _least(density: str) -> Callable[[BankResult], Setting]:
    """The smallest alpha that is behind the best by no more than the error of that."""
    return lambda bank: next(one for one in bank.of(density) if one.tried.behind <= one.tried.error)


_PUBLISHED = f"K {PUBLISHED_K}"
RULES: dict[str, Callable[[BankResult], Setting]] = {
    "plain NN": _fixed("measured", 0.0),
    "published, alpha 1": _fixed(_PUBLISHED, PUBLISHED_ALPHA),
    "published, alpha 0.5": _fixed(_PUBLISHED, 0.5),
    "published, best": _likeliest(_PUBLISHED),
    "published, least": _least(_PUBLISHED),
    "measured, alpha 1": _fixed("measured", 1.0),
    "measured, best": _likeliest("measured"),
    "measured, least": _least("measured"),
    "as fit chooses": _chosen,
}


def summary(banks: Sequence[BankResult], rule: str) -> tuple[float, float, float, float]:
    """Gain over plain nearest neighbour, mean and least, and loss against the best, mean and greatest."""
    taken = np.array([RULES[rule](bank).test for bank in banks])
    gain = taken - np.array([bank.at("measured", 0.0).test for bank in banks])
    regret = np.array([max(setting.test for setting in bank.settings) for bank in banks]) - taken
    return float(gain.mean()), float(gain.min()), float(regret.mean()), float(regret.max())


# --- measuring a cell


def measure(product: Path, cell: Cell, coresets: Sequence[float], weights: str | None) -> tuple[BankResult, ...]:
    """Try every setting in banks of every size. Raises InspectionError."""
    dataset = open_dataset(product)
    if not any(sample.good for sample in dataset.test) or all(sample.good for sample in dataset.test):
        raise TrainError(f"{product}: expected good and defective test images")
    with tempfile.TemporaryDirectory() as folder:
        change = CHANGES[cell.change]
        if change is not None:
            dataset = _changed(dataset, change, Path(folder))
        settings = Settings(dataset.root, weights=weights, few_shot=cell.count or None, seed=cell.seed)
        talk = Console(lambda line: None, console.warn, console.progress)
        normals = embed_normals(open_product(settings, talk), cell.seed, talk)
        return _banks(normals, dataset.test, coresets, settings, talk)


def _changed(dataset: Dataset, change: Change, folder: Path) -> Dataset:
    """A copy of a product's good and test images, changed."""
    for sample in (*dataset.train, *dataset.test):
        kind = "good" if sample.good else sample.kind
        path = folder / ("test" if sample in dataset.test else "train") / kind / f"{sample.path.stem}.png"
        write_file(path, encode_png(change(sample.image())))
    return open_dataset(folder)


def _banks(
    normals: Normals, test: Sequence[Sample], coresets: Sequence[float], settings: Settings, talk: Console
) -> tuple[BankResult, ...]:
    features = normals.bank_features
    sizes = tuple(sorted({coreset_size(amount, len(features)) for amount in coresets}))
    coreset = select_rows(normals, sizes[-1], settings.seed, talk)
    bank = other_images(normals, coreset)
    if bank is None:
        raise TrainError(f"{normals.in_bank} good images, expected 2 or more")
    good = [one.first(len(features)) for one in search_others(normals, bank, sizes, talk)]
    with talk.progress("neighbours") as advance:
        squared, index = nearest(features[coreset], features, max(_K), exclude=coreset, progress=advance)
    images, _ = read_pictures(replace(normals, samples=normals.samples[: normals.in_bank]), talk)
    part = find_part(normals, slice(0, normals.in_bank), None, images, talk)
    defects = Defects(images, part.masks, settings.seed)
    with talk.progress("defects") as advance:
        trials = hold_trials(normals, bank, good, sizes, defects, settings.metric, advance)
    found: list[list[Nearest]] = []
    with talk.progress("test images") as advance:
        for start in range(0, len(test), _BATCH):
            batch = test[start : start + _BATCH]
            patches, _, _ = embed_samples(normals.network, normals.preprocessor, batch, normals.judged, normals.device)
            found.append(bank.search(patches, np.full(len(patches), -1), sizes))
            advance(start + len(batch), len(test))
    bad = np.array([not sample.good for sample in test])
    return tuple(
        BankResult(
            coreset=rows / len(features),
            images=normals.in_bank,
            settings=_settings(
                trials[number],
                _densities(trials[number], squared[:rows], index[:rows] // normals.patches, normals.in_bank),
                Nearest(
                    np.concatenate([one[number].squared for one in found]), np.concatenate([one[number].row for one in found])
                ),
                bad,
                settings.seed,
            ),
        )
        for number, rows in enumerate(sizes)
    )


Densities = dict[str, Callable[[int | None], Floats]]


def _densities(trial: Trial, squared: Floats, image: Indices, images: int) -> Densities:
    """Each density of a bank's rows, without what the image of a number says of it, or with all: None."""
    published: Densities = {f"K {k}": _published(squared, image, k) for k in _K}
    measured = MeasuredDensity(published[_PUBLISHED](None), trial.good.squared, trial.good.row, images)
    return {"measured": measured.density, "measured, more": measured.density, **published}


def _published(squared: Floats, image: Indices, k: int) -> Callable[[int | None], Floats]:
    """The mean of the K nearest neighbours that are not of an image; of those that there are, where they are fewer."""

    def density(without: int | None) -> Floats:
        if without is None:
            return np.asarray(squared[:, :k].mean(axis=1), np.float32)
        counted = image != without
        counted &= counted.cumsum(axis=1) <= k
        return np.asarray((squared * counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1), np.float32)

    return density


def _settings(trial: Trial, densities: Densities, test: Nearest, bad: npt.NDArray[np.bool_], seed: int) -> tuple[Setting, ...]:
    settings = []
    windows = Windows(trial.judged)
    for name, density in densities.items():
        dense = density(None)
        alphas = {"measured": ALPHAS, "measured, more": (_BEYOND,)}.get(name, (*ALPHAS, _BEYOND))
        tried = compare(trial.wins(density, alphas), trial.drawn, alphas, seed)
        for alpha, one in zip(alphas, tried, strict=True):
            maps = np.zeros((len(bad), *trial.judged.shape), np.float32)
            maps[:, trial.judged] = (test.squared - np.float32(alpha) * dense[test.row]).reshape(len(bad), -1)
            scores = windows.pool(maps)
            settings.append(Setting(density=name, test=image_auroc(scores[~bad], scores[bad]), tried=one))
    return tuple(settings)


if __name__ == "__main__":
    sys.exit(main())
