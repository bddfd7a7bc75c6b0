"""What fp16 and int8 cost in scores and bring in time: `python -m benchmarks.precision --bundle B --data DIR`.

Every precision is made from the bundle's float32 graph, whether the bundle would offer it or not. Times are of the features
alone, on one thread, each runtime in turn image by image; the ratio is the median of these turns' ratios to ONNX Runtime in
float32. OpenVINO is timed beside it where it is installed. Scores are of the data's test images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from engines import console
from engines.atomic import write_file
from engines.bench import machine
from engines.bundle import Bundle, load_bundle
from train.__main__ import MADE
from train.data import Sample, open_dataset
from train.metrics import image_auroc
from train.precision import convert
from train.product import Console
from train.variants import calibration_inputs, find_images, open_graph

Floats = npt.NDArray[np.float32]
Extract = Callable[[Floats], Any]
_WARM_UP = 3


@dataclass(frozen=True)
class Times:
    """Time of the features of one image, in one runtime: milliseconds, and the median ratio to ONNX Runtime in float32."""

    runtime: str
    precision: str
    p50_ms: float
    fastest_ms: float
    ratio: float


@dataclass(frozen=True)
class Scores:
    """What a precision does to scores: AUROC in percent, differences in spreads of normal scores, flipped decisions."""

    precision: str
    image_auroc: float
    mean_difference: float
    deviation: float
    good_at_most: float
    flips: int
    images: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="precision", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path, help="product that it was fitted on, with test images")
    parser.add_argument("--repeats", default=60, type=console.positive_int, help="timed images (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="10 timed images, every eighth test image")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    bundle = load_bundle(arguments.bundle)
    bank, _ = find_images(bundle, arguments.data, None, Console(console.say, console.warn, console.progress))
    samples = open_dataset(arguments.data).test[:: 8 if arguments.quick else 1]
    inputs = list(calibration_inputs(bundle, bank))
    graphs = {"fp32": bundle.graph("fp32")} | {name: convert(bundle.graph("fp32"), name, inputs) for name in MADE}
    runtimes = {("ONNX Runtime", name): _onnxruntime(bundle, graph) for name, graph in graphs.items()} | _openvino(graphs)
    with console.progress("timing") as advance:
        times = _time(runtimes, inputs, 10 if arguments.quick else arguments.repeats, advance)
    console.table(
        f"features, {bundle.manifest.method.backbone}, one thread",
        ("runtime", "precision", "p50, ms", "fastest, ms", "ratio"),
        [(one.runtime, one.precision, f"{one.p50_ms:.1f}", f"{one.fastest_ms:.1f}", f"{one.ratio:.2f}") for one in times],
    )
    scores = _scores(bundle, graphs, samples)
    console.table(
        f"scores of {len(samples)} test images, differences in spreads of normal scores",
        ("precision", "image AUROC, %", "mean difference", "deviation", "good parts, at most", "flips"),
        [
            (one.precision, *(f"{value:.3f}" for value in dataclasses.astuple(one)[1:5]), f"{one.flips} of {one.images}")
            for one in scores
        ],
    )
    versions = f"ONNX Runtime {onnxruntime.__version__}, OpenVINO {_openvino_version()}"
    console.say(f"on {machine()}, {versions}")
    if arguments.json is not None:
        figures = {"times": [*map(dataclasses.asdict, times)], "scores": [*map(dataclasses.asdict, scores)]}
        document = {**figures, "machine": machine(), "versions": versions}
        write_file(arguments.json, (json.dumps(document, indent=1) + "\n").encode())
    return console.DONE


def _onnxruntime(bundle: Bundle, graph: bytes) -> Extract:
    return open_graph(bundle, graph, 1).extractor.extract


def _openvino(graphs: dict[str, bytes]) -> dict[tuple[str, str], Extract]:
    """Compiled for one thread; what it does with a float32 graph unless told otherwise may be bfloat16."""
    try:
        import openvino
    except ImportError:
        return {}
    core = openvino.Core()

    def compiled(graph: bytes, **hints: str) -> Extract:
        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", **hints}
        request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()
        return lambda tensor: request.infer({0: tensor})

    runtimes = {("OpenVINO", name): compiled(graphs[name], INFERENCE_PRECISION_HINT="f32") for name in ("fp32", "int8-cpu")}
    return runtimes | {("OpenVINO", "its default"): compiled(graphs["fp32"])}


def _openvino_version() -> str:
    try:
        import openvino
    except ImportError:
        return "not installed"
    return str(openvino.__version__)


def _time(
    runtimes: dict[tuple[str, str], Extract], inputs: Sequence[Floats], repeats: int, advance: Callable[[int, int], None]
) -> list[Times]:
    taken = {name: np.empty(repeats) for name in runtimes}
    for number in range(-_WARM_UP, repeats):
        for name, extract in runtimes.items():
            begun = time.perf_counter()
            extract(inputs[number % len(inputs)])
            if number >= 0:
                taken[name][number] = 1000 * (time.perf_counter() - begun)
        advance(max(number + 1, 0), repeats)
    reference = taken["ONNX Runtime", "fp32"]
    return [
        Times(runtime, precision, float(np.median(ms)), float(ms.min()), float(np.median(ms / reference)))
        for (runtime, precision), ms in taken.items()
    ]


def _scores(bundle: Bundle, graphs: dict[str, bytes], samples: Sequence[Sample]) -> list[Scores]:
    scorers = {name: open_graph(bundle, graph) for name, graph in graphs.items()}
    found = {name: np.empty(len(samples)) for name in scorers}
    with console.progress("scores") as advance:
        for number, sample in enumerate(samples):
            image = sample.image()
            for name, scorer in scorers.items():
                found[name][number] = scorer.score(image).value
            advance(number + 1, len(samples))
    good = np.array([sample.good for sample in samples])
    stated = bundle.manifest.threshold
    rows = []
    for name, values in found.items():
        difference = (values - found["fp32"]) / bundle.manifest.golden.spread
        auroc = image_auroc(values[good], values[~good])
        flips = 0 if stated is None else int(((values > stated.value) != (found["fp32"] > stated.value)).sum())
        rows.append(
            Scores(
                precision=name,
                image_auroc=float("nan") if auroc is None else 100 * auroc,
                mean_difference=float(difference.mean()),
                deviation=float(difference.std()),
                good_at_most=float(np.abs(difference[good]).max()),
                flips=flips,
                images=len(samples),
            )
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
