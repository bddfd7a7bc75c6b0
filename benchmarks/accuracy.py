"""Accuracy of LDKNN beside its baselines, on every product of a folder: `python -m benchmarks.accuracy --data DIR`.

Each product is fitted with several seeds (they draw the held-out images and the coreset's projection) and evaluated with
the same bundle for every method. Printed: mean and range over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines import EngineError, console
from engines.atomic import write_file
from engines.bench import machine
from engines.bundle import load_bundle
from train.data import Dataset, open_dataset
from train.evaluate import evaluate
from train.fit import fit
from train.product import Console, Settings

_METRICS = ("image_auroc", "best_f1", "pixel_auroc", "aupro")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("REB_DATA"), help="folder of products (default: REB_DATA)")
    parser.add_argument("--products", nargs="*", help="names below it (default: all)")
    parser.add_argument("--weights", help="as for `train fit`")
    parser.add_argument("--coreset", default=0.02, type=float, help="as for `train fit` (default: %(default)s)")
    parser.add_argument("--seeds", default=3, type=console.positive_int, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.data is None:
        raise EngineError("no data: give --data DIR, a folder of products, or set REB_DATA")
    names = arguments.products or sorted(path.name for path in arguments.data.iterdir() if path.is_dir())
    seeds = range(1 if arguments.quick else arguments.seeds)
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in names:
        dataset = open_dataset(arguments.data / name)
        for seed in seeds:
            _collect(
                figures.setdefault(name, {}),
                Settings(dataset.root, weights=arguments.weights, coreset=arguments.coreset, seed=seed),
                dataset,
            )
        rows = [(method, *(_span(values.get(metric, [])) for metric in _METRICS)) for method, values in figures[name].items()]
        console.table(f"{dataset.summary()}; {len(seeds)} seeds, percent", ("method", *_METRICS), rows)
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE


def _collect(figures: dict[str, dict[str, list[float]]], settings: Settings, dataset: Dataset) -> None:
    quiet = Console(lambda line: None, console.warn, console.progress)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        fit(settings, bundle, quiet)
        with console.progress(f"{dataset.root.name}, seed {settings.seed}") as advance:
            evaluation = evaluate(load_bundle(bundle), dataset, progress=advance)
    for method, metrics in evaluation.metrics.items():
        for metric, kinds in metrics.items():
            if "all" in kinds:
                figures.setdefault(method, {}).setdefault(metric, []).append(100 * kinds["all"])


def _span(values: list[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    sys.exit(main())
