"""How fast an image could be at all: the work of each stage, and the time that a device's peak rates leave no way below.

`python -m benchmarks.roofline` runs each backbone once on shapes alone, counts operations and bytes of every layer, and
sums, layer by layer, the longer of computing and of moving the bytes (Williams, Waterman and Patterson, "Roofline",
Commun. ACM 52(4), 2009). Jetsons' rates are those of NVIDIA's data sheets; this processor's are measured here, by a matrix
product and a copy in NumPy, and what ONNX Runtime takes is set against them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import sched_getaffinity
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from engines import console
from engines.atomic import write_file
from engines.bench import machine
from engines.ldknn import LDKNN
from engines.ort import OnnxRuntimeExtractor
from train.backbones import BACKBONES, build
from train.export import to_onnx
from train.features import FeatureNet, grid_of

SIZE = (256, 256)
ROWS = (2048, 6000, 20_000)
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
# of engines/verdict_first.py, which a test compares: dimensions of the bound, and patches that are searched in any case
BOUND_DIMENSIONS, LEAST_SEARCHED = 78, 4 * 9
_GEMM = 512  # side of the matrices: done in a few ms, before another process takes the core
_COPY, _TRIES = 16 * 2**20, 200  # float32 numbers copied, more than a cache holds
_SEARCHES = (("every patch", False), ("verdict first", True))
_PATCHES, _DIM = 1024, 512  # of an image and an embedding, for the search

_aten = torch.ops.aten


@dataclass(frozen=True)
class Work:
    """What one layer does: operations (a multiplication and an addition are two), and numbers read and written once each."""

    stage: str
    operations: int
    weights: int
    activations: int

    def intensity(self, precision: str) -> float:
        """Operations a byte."""
        return self.operations / ((self.weights + self.activations) * BYTES[precision])


@dataclass(frozen=True)
class Device:
    """Peak rates.

    Attributes:
        rates: operations a second by precision, dense; a precision that was not measured or stated is left out.
        bandwidth: bytes a second between memory and processor.
        source: where they are from.
    """

    name: str
    rates: dict[str, float]
    bandwidth: float
    source: str

    def floor_ms(self, layers: Sequence[Work], precision: str) -> float:
        """Milliseconds that the layers cannot be below, one after the other, if each reads and writes memory once."""
        return 1000 * sum(max(self._seconds(layer, precision)) for layer in layers)

    def memory_share(self, layers: Sequence[Work], precision: str) -> float:
        """Share of the floor, 0 to 1, in layers that wait for memory."""
        times = [self._seconds(layer, precision) for layer in layers]
        return sum(moving for computing, moving in times if moving > computing) / sum(map(max, times))

    def _seconds(self, layer: Work, precision: str) -> tuple[float, float]:
        moved = (layer.weights + layer.activations) * BYTES[precision]
        return layer.operations / self.rates[precision], moved / self.bandwidth


def _jetson(name: str, int8_tops: float, cores: int, clock_ghz: float, bandwidth_gb: float, source: str) -> Device:
    """Dense rates: int8 on tensor cores as stated, half of it for fp16, and two operations a clock of each core for fp32."""
    rates = {"fp32": 2e9 * cores * clock_ghz, "fp16": int8_tops * 1e12 / 2, "int8": int8_tops * 1e12}
    return Device(name, rates, bandwidth_gb * 1e9, source)


JETSONS = (
    # 8 GB; 67 sparse, 33 dense; 1,024 cores at 1,020 MHz; 102 GB/s: each with MAXN_SUPER
    _jetson("Orin Nano", 33, 1024, 1.02, 102, "DS-11105-001 v1.5"),
    # 16 GB; 78 dense less 40 of the two deep-learning accelerators; 1,024 cores at 1,173 MHz with MAXN_SUPER
    _jetson("Orin NX", 38, 1024, 1.173, 102, "DS-10712-001 v1.5"),
    # 64 GB; 170 sparse of the GPU alone, and sparsity doubles; 2,048 cores at 1.3 GHz
    _jetson("AGX Orin", 85, 2048, 1.3, 204.8, "DS-10662-001 v1.8"),
    # T5000; 1,035 sparse, and sparsity doubles; 2,560 cores at 1.57 GHz
    _jetson("Thor", 517, 2560, 1.57, 273, "TB-12572-001"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="roofline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default=0, type=console.count, help="CPU threads; 0 is one a core")
    parser.add_argument("--repeats", default=20, type=console.positive_int, help="timed runs (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="time resnet18 alone, three times")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    threads = arguments.threads or len(sched_getaffinity(0))
    repeats = 3 if arguments.quick else arguments.repeats
    here = measure(threads)
    layers = {name: count(_network(name), SIZE) for name in BACKBONES}
    timed = ("resnet18",) if arguments.quick else tuple(BACKBONES)
    taken: dict[str, float] = {}
    with console.progress("ONNX Runtime") as advance:
        for number, name in enumerate(timed, 1):
            taken[name] = _network_ms(name, threads, repeats)
            advance(number, len(timed))
    columns = ("stage", "G operations", "M weights", "M activations", "a byte, fp16")
    for name, work in layers.items():
        console.table(f"{name}, work of one image of {SIZE[1]} x {SIZE[0]}", columns, _work_rows(work))
    names = [device.name for device in JETSONS]
    title = "floor of preprocessing and network, ms, and the share of it in layers that wait for memory"
    console.table(title, ("backbone", *names), [row for name, work in layers.items() for row in _floor_rows(name, work)])
    search = {rows: _search_ms(rows, threads, repeats) for rows in (ROWS[:1] if arguments.quick else ROWS)}
    title = f"floor of LDKNN with products in fp16, ms, {_DIM} dimensions"
    console.table(title, ("rows, search", *names), [row for rows in ROWS for row in _search_rows(rows)])
    console.table("this CPU, fp32, ms", ("", "floor", "measured", "times"), _here_rows(here, layers, taken, search))
    devices = (*JETSONS, here)
    rates = "; ".join(
        f"{device.name}: {', '.join(f'{name} {rate / 1e12:.3g}' for name, rate in device.rates.items())} T/s dense,"
        f" {device.bandwidth / 1e9:.4g} GB/s ({device.source})"
        for device in devices
    )
    console.say(rates)
    console.say(f"on {machine()}; {threads} threads")
    if arguments.json is not None:
        document = {
            "floor_ms": {
                name: {device.name: {key: device.floor_ms(work, key) for key in device.rates} for device in devices}
                for name, work in layers.items()
            },
            "measured_ms": taken,
            "search_ms": search,
        }
        write_file(arguments.json, (json.dumps(document, indent=1) + "\n").encode())
    return console.DONE


class _Counter(TorchDispatchMode):
    """Records the work of every layer that runs below it."""

    def __init__(self, height: int) -> None:
        super().__init__()
        self.layers: list[Work] = []
        self.neck = False
        self._height = height

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = func.overloadpacket
        if kind is _aten.convolution:
            weight: Tensor = args[1]
            # each output is a sum over one group's inputs and the window: what a weight holds for one output channel
            self._add(out, 2 * out.numel() * weight[0].numel(), weight.numel(), args[0].numel() + out.numel())
        elif kind is _aten.max_pool2d_with_indices:
            self._add(out[0], 0, 0, args[0].numel() + out[0].numel())
        elif kind is _aten.upsample_bilinear2d:
            self._add(out, 0, 0, args[0].numel() + out.numel())
        elif kind is _aten.add:
            self._add(out, 0, 0, args[1].numel())  # of a shortcut; the other summand is still at hand
        return out

    def _add(self, out: Tensor, operations: int, weights: int, activations: int) -> None:
        stage = "neck" if self.neck else f"1/{self._height // out.shape[2]}"
        self.layers.append(Work(stage, operations, weights, activations))


def count(network: nn.Module, size: tuple[int, int]) -> list[Work]:
    """The layers of a network for one image of (height, width), in order, with preprocessing first.

    Batch norm is taken as folded into the convolution before it, and what works number by number as done on the way: compilers
    do both. Stages are named after the resolution that a layer writes; `neck` is what follows the backbone.
    """
    pixels = 3 * size[0] * size[1]
    counter = _Counter(size[0])
    network = network.to("meta")
    backbone = getattr(network, "backbone", None)
    if backbone is not None:
        backbone.register_forward_hook(lambda module, given, out: setattr(counter, "neck", True))
    with torch.no_grad(), counter:
        network(torch.empty(1, 3, *size, device="meta"))
    return [Work("preprocess", 2 * pixels, 0, 2 * pixels), *counter.layers]


def search_work(queries: int, rows: int, dim: int, *, verdict_first: bool) -> list[Work]:
    """LDKNN of one image: every patch searched, or the bound of every patch and the least that is searched after it."""
    if not verdict_first:
        return [Work("LDKNN", 2 * queries * rows * dim, rows * dim, queries * dim)]
    bound = BOUND_DIMENSIONS + 2  # with the residual and the constant
    return [
        Work("project", 2 * queries * dim * BOUND_DIMENSIONS, dim * BOUND_DIMENSIONS, queries * (dim + bound)),
        Work("bound", 2 * queries * rows * bound, rows * bound, queries * bound),
        Work("search", 2 * LEAST_SEARCHED * rows * dim, rows * dim, LEAST_SEARCHED * dim),
    ]


def measure(threads: int) -> Device:
    """What this processor reaches: float32 matrix products, and copies that read and write, on so many threads at a time.

    Each thread's fastest counts, so that another process that takes a core does not lower the peak.
    """

    def product(seed: int) -> float:
        one, other = np.random.default_rng(seed).random((2, _GEMM, _GEMM), np.float32)
        out = np.empty_like(one)
        return 2 * _GEMM**3 / _best_s(lambda: np.matmul(one, other, out=out), _TRIES)

    def copy(seed: int) -> float:
        given = np.full(_COPY, seed, np.float32)
        copied = np.zeros_like(given)
        return 2 * given.nbytes / _best_s(lambda: np.copyto(copied, given), _TRIES)

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        rate, bandwidth = (sum(pool.map(work, range(threads))) for work in (product, copy))
    return Device("this CPU", {"fp32": rate}, bandwidth, "measured")


def _best_s(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _network(name: str) -> FeatureNet:
    """Untrained: the work does not depend on the weights."""
    return FeatureNet(build(BACKBONES[name], None, 0), BACKBONES[name])


def _network_ms(name: str, threads: int, repeats: int) -> float:
    """The fastest run in ONNX Runtime: a floor is compared with what a busy machine did not disturb."""
    rows, columns = grid_of(SIZE)
    network = _network(name)
    extractor = OnnxRuntimeExtractor(
        to_onnx(network, SIZE), input_shape=(1, 3, *SIZE), output_shape=(rows * columns, network.dim), threads=threads
    )
    image = np.random.default_rng(0).standard_normal((1, 3, *SIZE), np.float32)
    extractor.extract(image)
    return 1000 * _best_s(lambda: extractor.extract(image), repeats)


def _search_ms(rows: int, threads: int, repeats: int) -> float:
    """The fastest search of every patch of an image, in numbers drawn at random: its time hardly depends on them."""
    rng = np.random.default_rng(0)
    queries, bank = (rng.standard_normal((number, _DIM), np.float32) for number in (_PATCHES, rows))
    search = LDKNN(bank, np.zeros(rows, np.float32), alpha=0, threads=threads)
    search.score(queries)
    return 1000 * _best_s(lambda: search.score(queries), repeats)


def _work_rows(layers: Sequence[Work]) -> list[tuple[str, ...]]:
    stages = dict.fromkeys(layer.stage for layer in layers)
    rows = [(stage, *_amounts([layer for layer in layers if layer.stage == stage])) for stage in stages]
    return [*rows, ("all", *_amounts(layers))]


def _amounts(layers: Sequence[Work]) -> tuple[str, ...]:
    operations, weights, activations = (
        sum(getattr(layer, name) for layer in layers) for name in ("operations", "weights", "activations")
    )
    whole = Work("", operations, weights, activations)
    return f"{operations / 1e9:.3f}", f"{weights / 1e6:.2f}", f"{activations / 1e6:.2f}", f"{whole.intensity('fp16'):.0f}"


def _floor_rows(name: str, layers: Sequence[Work]) -> list[tuple[str, ...]]:
    return [
        (
            f"{name} {precision}",
            *(f"{one.floor_ms(layers, precision):.3f}, {one.memory_share(layers, precision):.0%}" for one in JETSONS),
        )
        for precision in BYTES
    ]


def _search_rows(rows: int) -> list[tuple[str, ...]]:
    found = []
    for name, verdict_first in _SEARCHES:
        work = search_work(_PATCHES, rows, _DIM, verdict_first=verdict_first)
        found.append((f"{rows:,}, {name}", *(f"{device.floor_ms(work, 'fp16'):.3f}" for device in JETSONS)))
    return found


def _here_rows(
    here: Device, layers: dict[str, list[Work]], taken: dict[str, float], search: dict[int, float]
) -> list[tuple[str, ...]]:
    """Floor, measured time and their ratio, of what was timed."""
    rows = [_compared(name, here.floor_ms(work, "fp32"), taken.get(name)) for name, work in layers.items()]
    for size in ROWS:
        for name, verdict_first in _SEARCHES:
            floor = here.floor_ms(search_work(_PATCHES, size, _DIM, verdict_first=verdict_first), "fp32")
            rows.append(_compared(f"{size:,} rows, {name}", floor, None if verdict_first else search.get(size)))
    return rows


def _compared(name: str, floor: float, taken: float | None) -> tuple[str, ...]:
    return name, f"{floor:.2f}", *(("", "") if taken is None else (f"{taken:.2f}", f"{taken / floor:.1f}"))


if __name__ == "__main__":
    sys.exit(main())
