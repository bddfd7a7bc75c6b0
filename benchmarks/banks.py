"""Would another bank of the same size do better? k-centre beside other ways to choose rows, on real test images.

`python -m benchmarks.banks --data DIR`, with a folder of products. Every bank has the same number of rows, its densities are
measured as `fit` measures them, and the table has image AUROC with plain nearest neighbour and with alpha 1.

    k-centre     greedy k-centre, as `fit` selects
    random       rows drawn at random
    k-means      centroids of mini-batch k-means (Sculley, "Web-scale k-means clustering", WWW 2010)
    half         half of the rows by k-centre, half at random: denser where patches are dense
    shared       k-centre of twice as many rows, less those that fewest patches of other images lie at: no outliers
    by place     k-centre in each of 16 parts of the grid by itself, equally many rows in each
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from engines import console
from engines.atomic import write_file
from engines.bank import coreset_size, k_centre
from engines.bench import machine
from engines.ldknn import LDKNN, Floats, nearest
from engines.pooling import Windows
from train.data import Sample, open_dataset
from train.features import embed_samples
from train.measured import MeasuredDensity
from train.metrics import image_auroc
from train.normals import Normals, embed_normals
from train.others import Indices, OtherImages
from train.product import Console, Settings, open_product
from train.select import PUBLISHED_K

_PLACES = 4  # parts of the grid along a side
_BATCH = 8

Random = np.random.Generator
Figures = dict[str, dict[str, list[float]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="banks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of products, each as for `train evaluate`")
    parser.add_argument("--products", nargs="+", help="default: all folders in DATA")
    parser.add_argument("--weights", help="as for `train fit`")
    parser.add_argument("--coreset", type=float, default=0.02, help="as for `train fit` (default: %(default)s)")
    parser.add_argument("--images", type=console.positive_int, default=100, help="good ones at most (default: %(default)s)")
    parser.add_argument("--seeds", type=console.positive_int, default=3, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    names = arguments.products or sorted(path.name for path in arguments.data.iterdir() if path.is_dir())
    talk = Console(lambda line: None, console.warn, console.progress)
    every: dict[str, Figures] = {}
    for name in names:
        dataset = open_dataset(arguments.data / name)
        figures: Figures = {}
        for seed in range(1 if arguments.quick else arguments.seeds):
            count = min(arguments.images, len(dataset.train))
            settings = Settings(dataset.root, weights=arguments.weights, few_shot=count, seed=seed)
            normals = embed_normals(open_product(settings, talk), seed, talk)
            test = _embedded(normals, dataset.test, talk)
            bad = np.array([not sample.good for sample in dataset.test])
            rows = coreset_size(arguments.coreset, len(normals.bank_features))
            with talk.progress(f"{name}, seed {seed}") as advance:
                for number, (bank, select) in enumerate(BANKS.items(), 1):
                    for search, value in _measure(normals, *select(normals, rows, seed), test, bad).items():
                        figures.setdefault(bank, {}).setdefault(search, []).append(value)
                    advance(number, len(BANKS))
        every[name] = figures
        table = [(bank, *(_span(values) for values in of.values())) for bank, of in figures.items()]
        title = f"{name}: {rows:,} rows of {normals.in_bank} images; image AUROC, percent"
        console.table(title, ("bank", "NN", "alpha 1"), table)
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(every, indent=1) + "\n").encode())
    return console.DONE


def _span(values: Sequence[float]) -> str:
    percent = [100 * value for value in values]
    return f"{fmean(percent):.1f}" + (f" ({min(percent):.1f} to {max(percent):.1f})" if len(percent) > 1 else "")


def _embedded(normals: Normals, samples: Sequence[Sample], talk: Console) -> Floats:
    with talk.progress("test images") as advance:
        return embed_samples(normals.network, normals.preprocessor, samples, normals.judged, normals.device, advance)[0]


def _measure(normals: Normals, rows: Floats, image: Indices, test: Floats, bad: np.ndarray) -> dict[str, float]:
    """Image AUROC by search. Rows of image -1 are of no image, and judge all of them."""
    features, patches = normals.bank_features, normals.patches
    (good,) = OtherImages(rows, image).search(features, np.repeat(np.arange(normals.in_bank), patches), (len(rows),))
    # one more than K, less the nearest: the row itself (of a centroid, its nearest patch)
    published = nearest(rows, features, PUBLISHED_K + 1)[0][:, 1:].mean(axis=1)
    dense = MeasuredDensity(published, good.squared, good.row, normals.in_bank).density()
    squared, row = LDKNN(rows, dense, alpha=1.0).search(test)
    windows = Windows(normals.judged)
    found = {}
    for name, values in (("NN", squared), ("alpha 1", squared - dense[row])):
        maps = np.zeros((len(bad), *normals.judged.shape), np.float32)
        maps[:, normals.judged] = values.reshape(len(bad), patches)
        scores = windows.pool(maps)
        found[name] = image_auroc(scores[~bad], scores[bad])
    return found


# --- banks: float32 (m, d) rows, and int64 (m,) the image that each is of


def _of(normals: Normals, index: Indices) -> tuple[Floats, Indices]:
    return normals.bank_features[index], index // normals.patches


def _k_centre(normals: Normals, count: int, seed: int) -> tuple[Floats, Indices]:
    return _of(normals, k_centre(normals.bank_features, count, np.random.default_rng([seed, 1])))


def _random(normals: Normals, count: int, seed: int) -> tuple[Floats, Indices]:
    return _of(normals, np.random.default_rng([seed, 1]).choice(len(normals.bank_features), count, replace=False))


def _k_means(normals: Normals, count: int, seed: int) -> tuple[Floats, Indices]:
    kept = MiniBatchKMeans(count, init="random", n_init=1, batch_size=4 * count, max_iter=5, random_state=seed)
    kept.fit(normals.bank_features)
    image = np.full(count, -1)
    image[0] = -2  # of no image, and of more than one
    return np.asarray(kept.cluster_centers_, np.float32), image


def _half(normals: Normals, count: int, seed: int) -> tuple[Floats, Indices]:
    covered = k_centre(normals.bank_features, count - count // 2, np.random.default_rng([seed, 1]))
    left = np.setdiff1d(np.arange(len(normals.bank_features)), covered)
    return _of(normals, np.concatenate([covered, np.random.default_rng([seed, 2]).choice(left, count // 2, replace=False)]))


def _shared(normals: Normals, count: int, seed: int) -> tuple[Floats, Indices]:
    index = k_centre(normals.bank_features, min(2 * count, len(normals.bank_features)), np.random.default_rng([seed, 1]))
    rows, image = _of(normals, index)
    (found,) = OtherImages(rows, image).search(
        normals.bank_features, np.repeat(np.arange(normals.in_bank), normals.patches), (len(rows),)
    )
    chosen = np.argsort(-np.bincount(found.row, minlength=len(rows)), kind="stable")[:count]
    return rows[np.sort(chosen)], image[np.sort(chosen)]


def _by_place(normals: Normals, count: int, seed: int) -> tuple[Floats, Indices]:
    high, wide = normals.judged.shape
    down, across = np.mgrid[:high, :wide]
    place = (down * _PLACES // high * _PLACES + across * _PLACES // wide)[normals.judged]
    index = []
    for number in np.unique(place):
        members = np.flatnonzero(np.tile(place == number, normals.in_bank))
        share = max(1, round(count * len(members) / len(normals.bank_features)))
        index.append(members[k_centre(normals.bank_features[members], share, np.random.default_rng([seed, 1]))])
    return _of(normals, np.concatenate(index))


BANKS: dict[str, Callable[[Normals, int, int], tuple[Floats, Indices]]] = {
    "k-centre": _k_centre,
    "random": _random,
    "k-means": _k_means,
    "half": _half,
    "shared": _shared,
    "by place": _by_place,
}


if __name__ == "__main__":
    sys.exit(main())
