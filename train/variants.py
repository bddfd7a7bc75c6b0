"""Further precisions of a bundle's feature graph: made, held against float32, and kept where no decision changes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.bundle import Bundle, Precision, Variant, check_replaceable, load_bundle, write_bundle
from engines.images import pixel_digest
from engines.inspector import Scorer
from engines.ort import OnnxRuntimeExtractor
from train import TrainError
from train.data import Sample, open_dataset
from train.gate import compare, gate_images, judge
from train.precision import convert
from train.product import Console

_CALIBRATED_ON = 32  # bank images that ranges are measured on
_TIMED = 11
_STAND_INS = 8  # bank images that stand in as good ones where none is held out


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    path: Path
    digest: str
    variants: tuple[Variant, ...]


def export(
    path: Path, data: Path, out: Path, precisions: Sequence[Precision], console: Console, layout: str | None = None
) -> Exported:
    """Write a bundle again, with its feature graph in further precisions; variants that it had are made anew or dropped.

    Args:
        path: the bundle.
        data: folder of the good images that it was fitted on; they are known by their pixels.
        out: folder to write; may be the bundle itself.
        precisions: to make.
        console: where to talk.
        layout: of the data.

    Raises:
        InspectionError: an image that the bundle was made with is not there, or a graph that cannot be converted; nothing
            is written then.
    """
    check_replaceable(out)
    bundle = load_bundle(path)
    bank, held_out = find_images(bundle, data, layout, console)
    graphs, variants = make_variants(bundle, bank, held_out, precisions, console)
    manifest = bundle.manifest
    digest = write_bundle(
        out,
        spec=manifest.input,
        method=manifest.method,
        threshold=manifest.threshold,
        golden_check=manifest.golden,
        provenance=manifest.provenance,
        features=bundle.graph("fp32"),
        bank=bundle.bank,
        mask=bundle.mask,
        golden=bundle.golden(),
        variants=variants,
        graphs={variant.precision: graphs[variant.precision] for variant in variants if variant.offered},
    )
    return Exported(out, digest, variants)


def make_variants(
    bundle: Bundle, bank: Sequence[Sample], held_out: Sequence[Sample], precisions: Sequence[Precision], console: Console
) -> tuple[dict[Precision, bytes], tuple[Variant, ...]]:
    """Graphs in further precisions, offered or not, and what the gate says of them.

    Args:
        bundle: holds the float32 graph.
        bank, held_out: its good images.
        precisions: to make.
        console: where to talk.
    """
    manifest = bundle.manifest
    threshold, spread, seed = manifest.threshold, manifest.golden.spread, manifest.provenance.seed
    reference = open_graph(bundle, bundle.graph("fp32"))
    with console.progress("images near the threshold") as advance:
        images = gate_images(
            bundle.golden(),
            held_out or bank[:_STAND_INS],
            lambda image: reference.score(image).value,
            threshold=threshold.value if threshold is not None else None,
            spread=spread,
            where=_judged_pixels(bundle),
            seed=seed,
            progress=advance,
        )
    with console.progress("scores in fp32") as advance:
        expected = []
        for number, candidate in enumerate(images, start=1):
            expected.append(reference.score(candidate.image).value)
            advance(number, len(images))
    graphs: dict[Precision, bytes] = {}
    variants = []
    for precision in precisions:
        graphs[precision] = convert(bundle.graph("fp32"), precision, calibration_inputs(bundle, bank))
        scorer = open_graph(bundle, graphs[precision])
        with console.progress(f"scores in {precision}") as advance:
            rows = compare(scorer, images, expected, threshold, spread, advance)
        ratio = None
        if precision == "int8-cpu":  # which has no purpose but to be faster on such a machine
            tensor = scorer.preprocessor(images[0].image)
            alone = open_graph(bundle, graphs[precision], 1), open_graph(bundle, bundle.graph("fp32"), 1)
            ratio = time_ratio(*alone, tensor)
        variants.append(judge(precision, rows, decided=threshold is not None, ratio=ratio))
    return graphs, tuple(variants)


def calibration_inputs(bundle: Bundle, bank: Sequence[Sample]) -> Iterator[npt.NDArray[np.float32]]:
    """Network inputs of bank images, spaced evenly: float32 (1, 3, h, w) each."""
    preprocessor = bundle.preprocessor()
    for index in np.unique(np.linspace(0, len(bank) - 1, min(_CALIBRATED_ON, len(bank))).round().astype(int)):
        yield preprocessor(bank[index].image())


def open_graph(bundle: Bundle, graph: bytes, threads: int = 0) -> Scorer:
    """The bundle's scorer with another feature graph, in ONNX Runtime on the CPU. Raises EngineError."""
    method = bundle.manifest.method
    extractor = OnnxRuntimeExtractor(
        graph,
        input_shape=(1, 3, *bundle.manifest.input.size),
        output_shape=(method.grid[0] * method.grid[1], method.dim),
        threads=threads,
    )
    return Scorer(method, bundle.preprocessor(), bundle.bank, extractor)


def time_ratio(scorer: Scorer, reference: Scorer, tensor: npt.NDArray[np.float32]) -> float:
    """Median ratio of the features' times, taken in turns; `tensor` is float32 (1, 3, h, w)."""
    ratios = []
    for _ in range(_TIMED):
        begun = time.perf_counter()
        scorer.extractor.extract(tensor)
        between = time.perf_counter()
        reference.extractor.extract(tensor)
        ratios.append((between - begun) / (time.perf_counter() - between))
    return float(np.median(ratios))


def _judged_pixels(bundle: Bundle) -> npt.NDArray[np.bool_] | None:
    """Which pixels of a frame are judged, bool (H, W); None for all."""
    spec = bundle.manifest.input
    if spec.frame_size is None or (spec.roi is None and bundle.mask is None):
        return None
    x, y, width, height = spec.roi or (0, 0, spec.frame_size[1], spec.frame_size[0])
    judged = np.zeros(spec.frame_size, bool)
    judged[y : y + height, x : x + width] = True
    return judged if bundle.mask is None else judged & ~bundle.mask


def find_images(
    bundle: Bundle, data: Path, layout: str | None, console: Console
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The bank's images and those held out, in the order of the provenance; by pixels, whatever they are called now."""
    dataset = open_dataset(data, layout)
    samples = dataset.train + dataset.validation
    found: dict[str, Sample] = {}
    with console.progress("images") as advance:
        for number, sample in enumerate(samples, start=1):
            try:
                found.setdefault(pixel_digest(sample.image()), sample)
            except EngineError as error:
                console.warn(str(error))  # the bundle was not made with what cannot be read
            advance(number, len(samples))
    records = bundle.manifest.provenance.images
    missing = [record.name for record in records if record.pixels not in found]
    if missing:
        raise TrainError(
            f"{data}: {len(missing)} of {len(records)} images that {bundle.path} was made with are not there, pixel for pixel"
            f" ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); give the folder that it was fitted on"
        )
    bank, held_out = (tuple(found[record.pixels] for record in records if record.use == use) for use in ("bank", "held-out"))
    return bank, held_out
