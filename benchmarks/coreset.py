"""Coreset selection beside anomalib's, on the same real embeddings in the same run.

`python -m benchmarks.coreset --data DIR` embeds good images of a product and selects with each method, in turn and each
time in a process of its own: time, peak memory above that of the process with the array in it, and, in the full feature
space, how far the farthest patch is from the nearest row taken (the covering radius) and how far a patch is on average.
`pip install anomalib` first, or `--alone`. Linux: the peak is read from /proc.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch

from engines import console
from engines.atomic import write_file
from engines.bank import PROJECTION_DIM, coreset_size, k_centre
from engines.bench import machine
from engines.ldknn import LDKNN, Floats
from train import TrainError
from train.data import open_dataset
from train.normals import embed_normals
from train.product import Console, Settings, open_product

PEER, THIS = "anomalib", "this"
_WARM_UP = 2000  # rows that a library is loaded and warmed up with
_STATUS = Path("/proc/self/status")

Rows = npt.NDArray[np.int64]
Figures = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Run:
    """One selection: the rows taken, int64 (m,), the time it took, and the most memory it held above the array."""

    rows: Rows
    seconds: float
    peak_mib: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="coreset", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a product, as for `train fit`")
    parser.add_argument("--weights", help="as for `train fit`")
    parser.add_argument("--coreset", default=0.02, type=float, help="as for `train fit` (default: %(default)s)")
    parser.add_argument("--images", type=console.positive_int, help="good ones, of both splits (default: 60; quick: 20)")
    parser.add_argument("--seeds", type=console.positive_int, help="default: 3; quick: 1")
    parser.add_argument("--alone", action="store_true", help="without anomalib, which is slow on large arrays")
    parser.add_argument("--quick", action="store_true", help="few images, one seed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.alone and importlib.util.find_spec("anomalib") is None:
        raise TrainError("anomalib is not installed, which this benchmark compares with; pip install anomalib, or --alone")
    if not _STATUS.exists():
        raise TrainError(f"no {_STATUS}, which peak memory is read from; run this on Linux")
    images = arguments.images if arguments.images is not None else 20 if arguments.quick else 60
    seeds = arguments.seeds if arguments.seeds is not None else 1 if arguments.quick else 3
    features = _embedded(arguments, images)
    count = coreset_size(arguments.coreset, len(features))
    figures = _compare((THIS,) if arguments.alone else (PEER, THIS), features, count, seeds)
    projected_mib = len(features) * PROJECTION_DIM * 4 / 2**20
    title = f"{len(features):,} patches of {images} images, {features.shape[1]} dimensions, to {count:,} rows; seeds: {seeds}"
    columns = ("selection", "time, s", "memory, MiB", f"of n x {PROJECTION_DIM} float32", "covering radius", "mean distance")
    console.table(title, columns, table(figures, projected_mib))
    console.say("means of the seeds; covering radius from seed to seed: " + "; ".join(map(" ".join, spans(figures).items())))
    peers = "" if arguments.alone else f"; anomalib {version('anomalib')}, torch {torch.__version__}"
    console.say(f"on {machine()}{peers}; threads: {torch.get_num_threads()}")
    if arguments.json is not None:
        document = {"patches": len(features), "rows": count, "projected_mib": projected_mib, "runs": figures}
        write_file(arguments.json, (json.dumps(document, indent=1) + "\n").encode())
    return console.DONE


def _compare(methods: Sequence[str], features: Floats, count: int, seeds: int) -> Figures:
    """A dictionary of figures for each method and seed. The methods take turns: a busy machine is busy for both."""
    figures: Figures = {method: [] for method in methods}
    with tempfile.TemporaryDirectory() as folder, console.progress("selections") as advance:
        array = Path(folder) / "features.npy"
        np.save(array, features)
        for seed in range(seeds):
            for method in methods:
                run = select(method, array, count, seed)
                radius, mean = covering(features, run.rows)
                costs = {"seconds": run.seconds, "peak_mib": run.peak_mib}
                figures[method].append({**costs, "radius": radius, "mean_distance": mean})
                advance(sum(map(len, figures.values())), seeds * len(methods))
    return figures


def _embedded(arguments: argparse.Namespace, images: int) -> Floats:
    """Patches of good images, spread over both splits: float32 (n, d)."""
    talk = Console(lambda line: None, console.warn, console.progress)
    product = open_product(Settings(arguments.data, weights=arguments.weights), talk)
    good = [*product.samples, *(sample for sample in open_dataset(arguments.data, None).test if sample.good)]
    if images > len(good):
        raise TrainError(f"{len(good)} good images, expected {images} or more; ask for fewer with --images")
    chosen = tuple(good[index] for index in np.linspace(0, len(good) - 1, images).astype(int))
    return embed_normals(replace(product, samples=chosen, in_bank=images), 0, talk).features


def select(method: str, array: Path, count: int, seed: int) -> Run:
    """Select `count` rows of the array in a process of its own, so that no other method's memory is counted.

    Raises:
        TrainError: the process did not survive it, or cannot import anomalib.
    """
    # no bar of anomalib's; and huge pages, which NumPy asks for by itself: without them the kernel takes most of
    # anomalib's time, and at some sizes glibc holds many times its memory
    os.environ.update(TQDM_DISABLE="1", THP_MEM_ALLOC_ENABLE="1")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, method, array, count, seed).result()
        except BrokenProcessPool:
            raise TrainError(f"{method} was ended from outside, most likely for its memory; ask for fewer --images") from None


def _measure(method: str, array: Path, count: int, seed: int) -> Run:
    features = np.load(array, allow_pickle=False)
    work = {THIS: _this, PEER: _peer}[method]()
    work(features[:_WARM_UP], min(100, len(features)), seed)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before = _status_mib("VmRSS")
    started = time.perf_counter()
    rows = work(features, count, seed)
    seconds = time.perf_counter() - started
    return Run(rows, seconds, _status_mib("VmHWM") - before)


def _this() -> Callable[[Floats, int, int], Rows]:
    return lambda features, count, seed: k_centre(features, count, np.random.default_rng(seed))


def _peer() -> Callable[[Floats, int, int], Rows]:
    warnings.simplefilter("ignore")  # those of anomalib's own imports
    try:
        module = importlib.import_module("anomalib.models.components.sampling.k_center_greedy")
    except (ImportError, RuntimeError) as error:  # torchvision raises the latter where it does not fit torch
        raise TrainError(
            f"anomalib cannot be imported ({error}); pip install anomalib with the torchvision of this torch"
        ) from None

    def work(features: Floats, count: int, seed: int) -> Rows:
        torch.manual_seed(seed)
        np.random.seed(seed)  # its projection draws from both
        # it takes int(n * ratio) rows: half a row more keeps rounding from losing one
        sampler = module.KCenterGreedy(torch.from_numpy(features), (count + 0.5) / len(features))
        return np.asarray(sampler.select_coreset_idxs(), np.int64)

    return work


def _status_mib(key: str) -> float:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def covering(features: Floats, rows: Rows) -> tuple[float, float]:
    """Euclidean distance of the patches, float32 (n, d), to the nearest of the rows taken: the largest and the mean."""
    squared, _ = LDKNN(features[rows], np.zeros(len(rows), np.float32), alpha=0).search(features)
    distance = np.sqrt(squared, dtype=np.float64)
    return float(distance.max()), float(distance.mean())


def table(figures: Figures, projected_mib: float) -> list[tuple[str, ...]]:
    """The printed rows: each method's means, and anomalib's over this one's."""
    means = {method: {name: fmean(run[name] for run in runs) for name in runs[0]} for method, runs in figures.items()}
    rows: list[tuple[str, ...]] = []
    for method, mean in means.items():
        costs = (f"{mean['seconds']:.2f}", f"{mean['peak_mib']:.0f}", f"{mean['peak_mib'] / projected_mib:.2f}")
        rows.append((method, *costs, f"{mean['radius']:.3f}", f"{mean['mean_distance']:.3f}"))
    if len(means) > 1:
        ratio = {name: means[PEER][name] / mean for name, mean in means[THIS].items()}
        costs = (f"{ratio['seconds']:.1f}", f"{ratio['peak_mib']:.1f}", "")
        rows.append(("ratio", *costs, f"{ratio['radius']:.3f}", f"{ratio['mean_distance']:.3f}"))
    return rows


def spans(figures: Figures) -> dict[str, str]:
    """Each method's lowest and highest covering radius."""
    radii = {method: [run["radius"] for run in runs] for method, runs in figures.items()}
    return {method: f"{min(values):.3f} to {max(values):.3f}" for method, values in radii.items()}


if __name__ == "__main__":
    sys.exit(main())
