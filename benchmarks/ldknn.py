"""The nearest-neighbour search beside its peers, on the same real embeddings in the same run.

`python -m benchmarks.ldknn --data DIR` embeds good images of a product, takes banks from them, and times, in turns of a few
images: faiss's exact index, torch's `cdist`, scikit-learn's brute force, the map (every patch's nearest row and score),
and the image score, which searches exactly only where it can matter. It checks that all find the same rows up to ties and
that the image score is the highest window of the map. `pip install faiss-cpu` first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import NearestNeighbors

from engines import console
from engines.atomic import write_file
from engines.bank import k_centre
from engines.bench import machine
from engines.grouped import Grouped
from engines.ldknn import LDKNN, Floats, density
from engines.pooling import Windows
from engines.verdict_first import VerdictFirst
from train import TrainError
from train.data import open_dataset
from train.features import embed_samples
from train.normals import embed_normals
from train.product import Console, Settings, open_product

_ROWS = (2048, 6000, 20_000)
_IMAGES = 60  # good images that banks are taken from
_K = 9
_PEER = "faiss IndexFlatL2"
_TURN = 10  # images that one method searches before the next one's turn: threads that spin after it are another's time
_AGREED = 1e-4  # of the distance, by which two rows may differ and still be a tie in float32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="ldknn", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a product with test images, as for `train fit`")
    parser.add_argument("--weights", help="as for `train fit`")
    parser.add_argument("--alpha", default=1.0, type=float, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="the smallest bank and few images")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        raise TrainError("faiss is not installed, which this benchmark compares with; pip install faiss-cpu") from None
    sizes, repeats = (_ROWS[:1], 8) if arguments.quick else (_ROWS, 40)
    features, queries, judged = _embedded(arguments, repeats)
    if len(features) < sizes[-1]:
        raise TrainError(f"{len(features)} good patches, expected {sizes[-1]} or more; give more images")
    with console.progress("coreset") as advance:
        coreset = k_centre(features, sizes[-1], np.random.default_rng(0), advance)
    with console.progress("density") as advance:
        dense = density(coreset, features, _K, progress=advance)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    shares: dict[int, float] = {}
    for count in sizes:
        rows = np.ascontiguousarray(features[coreset[:count]])
        figures[str(count)] = _compare(rows, dense[:count], queries, judged, arguments.alpha, faiss)
        shares[count] = _left(LDKNN(rows, dense[:count], alpha=arguments.alpha), queries)
    console.say(
        "pairs of a patch and a row that no group rules out: "
        + ", ".join(f"{share:.0%} of {count:,} rows" for count, share in shares.items())
    )
    table = [
        (count, method, f"{took['p50']:.1f}", f"{took['p95']:.1f}", f"{methods[_PEER]['p50'] / took['p50']:.2f}")
        for count, methods in figures.items()
        for method, took in methods.items()
    ]
    title = (
        f"{queries.shape[1]} patches of an image, {queries.shape[2]} dimensions, alpha {arguments.alpha:g}; {repeats} images"
    )
    console.table(title, ("bank rows", "search", "p50, ms", "p95, ms", "times as fast as faiss"), table)
    console.say("all found the same rows up to ties, and the image score was the highest window of the map each time")
    console.say(f"on {machine()}; faiss {faiss.__version__}, torch {torch.__version__}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE


def _embedded(arguments: argparse.Namespace, repeats: int) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Good patches float32 (n, d), and those of test images, float32 (images, patches, d)."""
    talk = Console(lambda line: None, console.warn, console.progress)
    normals = embed_normals(open_product(Settings(arguments.data, weights=arguments.weights, few_shot=_IMAGES), talk), 0, talk)
    test = open_dataset(arguments.data, None).test
    if not test:
        raise TrainError(f"{arguments.data}: no test images; expected test/good and test/<defect>")
    chosen = [test[index] for index in np.linspace(0, len(test) - 1, repeats).astype(int)]
    with console.progress("test images") as advance:
        features, _, _ = embed_samples(normals.network, normals.preprocessor, chosen, normals.judged, normals.device, advance)
    return normals.bank_features, features.reshape(repeats, normals.patches, -1), normals.judged


def _compare(
    rows: Floats, dense: Floats, queries: Floats, judged: npt.NDArray[np.bool_], alpha: float, faiss: Any
) -> dict[str, dict[str, float]]:
    """Times in milliseconds by method, p50 and p95. The methods take turns, so that a busy machine is busy for all."""
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    brute = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(rows)
    bank = torch.from_numpy(rows)
    search = LDKNN(rows, dense, alpha=alpha)
    first = VerdictFirst(search, judged)
    methods: dict[str, Callable[[Floats], Any]] = {
        _PEER: lambda image: index.search(image, 1)[1][:, 0],
        "torch cdist": lambda image: torch.cdist(torch.from_numpy(image), bank).min(dim=1).indices.numpy(),
        "scikit-learn brute": lambda image: brute.kneighbors(image, return_distance=False)[:, 0],
        "this, the map": first.patches,
        "this, the image score": first.score,
    }
    taken: dict[str, list[float]] = {method: [] for method in methods}
    with console.progress(f"{len(rows)} rows") as advance:
        for start in range(0, len(queries), _TURN):
            images = queries[start : start + _TURN]
            found: list[dict[str, Any]] = [{} for _ in images]
            for method, work in methods.items():
                work(images[0])  # its own data back into the cache, for each alike
                for image, answers in zip(images, found, strict=True):
                    started = time.perf_counter()
                    answers[method] = work(image)
                    taken[method].append(1000 * (time.perf_counter() - started))
            for image, answers in zip(images, found, strict=True):
                _check(image, rows, search, judged, answers)
            advance(start + len(images), len(queries))
    return {
        method: {"p50": float(np.percentile(times, 50)), "p95": float(np.percentile(times, 95))}
        for method, times in taken.items()
    }


def _left(search: LDKNN, queries: Floats) -> float:
    """Mean share of the groups of rows that a patch's nearest row may be in, 0 to 1."""
    grouped = Grouped(search)
    return float(np.mean([grouped.left(image).mean() for image in queries]))


def _check(image: Floats, rows: Floats, search: LDKNN, judged: npt.NDArray[np.bool_], found: dict[str, Any]) -> None:
    """Raise TrainError where a method found a row that is farther than the nearest, or another image score."""
    squared, _ = search.search(image)
    for method, row in found.items():
        if method.startswith("this"):
            continue
        farther = np.square(image - rows[row]).sum(axis=1) - squared
        if (farther > _AGREED * (squared + 1)).any():
            raise TrainError(f"{method} found rows that are farther, by up to {farther.max():.3g}")
    patches = np.zeros(judged.shape, np.float32)
    patches[judged] = found["this, the map"]
    expected = float(Windows(judged).pool(patches))
    if found["this, the image score"] != expected:
        raise TrainError(f"the image score is {found['this, the image score']}, the map's highest window {expected}")


if __name__ == "__main__":
    sys.exit(main())
