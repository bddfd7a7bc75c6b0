"""The search on a GPU beside torch's, in the same run: `python -m benchmarks.ldknn_cuda`.

Times the twin (a copy of the embeddings in, image scores and maps out), and torch on the same GPU with the embeddings there
already: `cdist` and its minimum, and the half-precision product and its minimum, which alone finds wrong rows. The share is
that of the rate at which torch multiplies large half-precision matrices. The embeddings are drawn: clusters in a few of 512
dimensions, as real ones have; on rows that are harder to tell apart more queries are compared with every row.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines import EngineError, console
from engines.atomic import write_file
from engines.bench import machine
from engines.cuda import Gpu
from engines.ldknn import LDKNN, Floats
from engines.ldknn_cuda import CudaLDKNN

_ROWS = (2048, 6000, 20_000)
_IMAGES = (1, 8)
_GRID, _DIM = (32, 32), 512
_LARGE = 8192  # side of the matrices that the rate is taken on
_WARM_UP = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="ldknn_cuda", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest bank and few repeats")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        raise EngineError("torch sees no NVIDIA GPU on this machine, which this benchmark times; run it where one is")
    sizes, repeats = (_ROWS[:1], 10) if arguments.quick else (_ROWS, 100)
    one = torch.randn(_LARGE, _LARGE, device="cuda", dtype=torch.half)
    rate = 2 * _LARGE**3 / (_median_ms(lambda: one @ one, 20) / 1000)
    figures = [_compare(rows, images, repeats) for rows in sizes for images in _IMAGES]
    for row in figures:
        row["share"] = 2 * row["queries"] * row["rows"] * _DIM / (row["twin"] / 1000) / rate
    columns = ("rows", "images", "this twin, ms", "torch cdist + min, ms", "torch half product + min, ms", "share of half rate")
    table = [
        (row["rows"], row["images"], *(f"{row[name]:.3f}" for name in ("twin", "cdist", "half")), f"{row['share']:.0%}")
        for row in figures
    ]
    console.table(f"{_GRID[0] * _GRID[1]} patches of an image, {_DIM} dimensions; medians of {repeats}", columns, table)
    console.say(f"half-precision products: {rate / 1e12:.1f} TFLOP/s; scores were those of the NumPy search each time")
    console.say(f"on {torch.cuda.get_device_name()}, {machine()}; torch {torch.__version__}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps({"half_flops": rate, "rows": figures}, indent=1) + "\n").encode())
    return console.DONE


def _compare(count: int, images: int, repeats: int) -> dict[str, Any]:
    """Median times in milliseconds against a bank of so many rows."""
    rng = np.random.default_rng([count, images])
    spread = np.geomspace(3, 0.01, _DIM)
    centres = (rng.normal(size=(40, _DIM)) * spread).astype(np.float32)
    rows, queries = (_drawn(rng, centres, size) for size in (count, images * _GRID[0] * _GRID[1]))
    search = LDKNN(rows, rng.random(count).astype(np.float32), alpha=1.0)
    bank, embeddings = (torch.from_numpy(of).cuda() for of in (rows, queries))
    half_bank, half_norms = bank.half().T.contiguous(), bank.square().sum(dim=1)
    with Gpu() as gpu, CudaLDKNN(search, np.ones(_GRID, bool), gpu=gpu) as twin:
        _check(twin.images(queries)[1].ravel(), search.score(queries))
        return {
            "rows": count,
            "images": images,
            "queries": len(queries),
            "twin": _median_ms(lambda: twin.images(queries), repeats),
            "cdist": _median_ms(lambda: torch.cdist(embeddings, bank).min(dim=1), repeats),
            "half": _median_ms(lambda: (half_norms - 2 * (embeddings.half() @ half_bank)).min(dim=1), repeats),
        }


def _drawn(rng: np.random.Generator, centres: Floats, count: int) -> Floats:
    """Embeddings float32 (count, d) about centres."""
    noise = rng.standard_normal((count, centres.shape[1]), np.float32)
    return np.asarray(centres[rng.integers(len(centres), size=count)] + np.float32(0.3) * noise)


def _check(got: Floats, expected: Floats) -> None:
    """Raise EngineError where more than near ties tell the twin's patch scores from the search's."""
    apart = np.abs(got - expected) > 1e-3 * np.maximum(np.abs(expected), 1)
    if np.count_nonzero(apart) > len(got) // 1000:
        raise EngineError(f"{np.count_nonzero(apart)} of {len(got)} patch scores are not those of the NumPy search")


def _median_ms(work: Callable[[], Any], repeats: int) -> float:
    """Median time of a call, the GPU waited for."""
    times = []
    for number in range(-_WARM_UP, repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if number >= 0:
            times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


if __name__ == "__main__":
    sys.exit(main())
