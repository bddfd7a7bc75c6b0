"""The engines door: `python -m engines info|verify|score|bench`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from engines import EngineError, console
from engines.atomic import write_file
from engines.bench import bench
from engines.bundle import PRECISIONS, Adaptation, Bundle, Choice, load_bundle
from engines.extractors import backends
from engines.images import encode_png, list_images, read_image
from engines.inspector import Inspector, anomaly_map, overlay
from engines.verify import allowed_difference, verify_golden


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 the golden images disagree, 2 bad usage or input, 130 interrupted."""
    cv2.setNumThreads(1)  # the cores belong to the network and the search
    parser = argparse.ArgumentParser(prog="engines", description="Look into a bundle, prove it, score images with it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = _command(commands, "info", _info, "what a bundle is and where it comes from", backend=False)
    info.add_argument("--json", action="store_true", help="print the manifest instead")
    _command(commands, "verify", _verify, "re-run the golden images on this machine; exit 1 if any decision flips")
    score = _command(commands, "score", _score, "print a score for each image")
    score.add_argument("images", nargs="+", type=Path, help="image files or folders")
    score.add_argument("--json", action="store_true", help="print JSON lines")
    score.add_argument("--heatmaps", type=Path, metavar="DIR", help="write an overlay for each image")
    timing = _command(commands, "bench", _bench, "time each stage on this machine")
    timing.add_argument("--repeats", default=100, type=console.positive_int, help="default: %(default)s")
    timing.add_argument("--json", type=Path, metavar="FILE", help="write the figures too")
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _command(commands, name: str, function, text: str, *, backend: bool = True) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--bundle", required=True, type=Path, help="folder that `train fit` wrote")
    if backend:
        parser.add_argument("--backend", default="onnxruntime", choices=backends(), help="default: %(default)s")
        parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="default: %(default)s")
        parser.add_argument("--threads", default=0, type=console.count, help="CPU threads; 0 is one a core")
    parser.set_defaults(run=function)
    return parser


def _open(arguments: argparse.Namespace) -> Inspector:
    bundle = load_bundle(arguments.bundle)
    return Inspector(bundle, arguments.backend, precision=arguments.precision, threads=arguments.threads)


def _info(arguments: argparse.Namespace) -> int:
    bundle = load_bundle(arguments.bundle)
    if arguments.json:
        sys.stdout.write(bundle.manifest.model_dump_json(indent=1) + "\n")
        return console.DONE
    console.table(f"bundle {bundle.path}", ("", "value"), _info_rows(bundle))
    return console.DONE


def _info_rows(bundle: Bundle) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    spec, method, made = manifest.input, manifest.method, manifest.provenance
    uses = [image.use for image in made.images]
    threshold = manifest.threshold
    return [
        ("digest", bundle.digest),
        ("recipe", made.recipe),
        ("made", made.created),
        ("input (width x height)", f"{spec.size[1]} x {spec.size[0]}"),
        ("region (x,y,width,height)", ",".join(map(str, spec.roi)) if spec.roi else "whole frame"),
        ("mask", "no" if bundle.mask is None else f"{bundle.mask.mean():.1%} of the frame ignored"),
        ("mm per pixel", "not told" if spec.mm_per_pixel is None else f"{spec.mm_per_pixel:g}"),
        ("backbone, weights", f"{method.backbone}, {made.weights}"),
        *_adaptation_rows(made.adaptation),
        ("bank", f"{len(bundle.bank.rows)} rows x {method.dim} of {made.patches} patches"),
        (
            "LDKNN",
            f"{method.density} density, K {method.k}, alpha {method.alpha:g}, {method.metric}, {method.pooling} pooling",
        ),
        ("alpha chosen on", _choice_row(made.choice)),
        ("images", f"{uses.count('bank')} in the bank, {uses.count('held-out')} held out"),
        (
            "provisional threshold",
            "none: too few images" if threshold is None else f"{threshold.value:.6g} from {threshold.n} held-out normals",
        ),
        ("spread of normal scores", f"{manifest.golden.spread:.6g}"),
        ("golden images", f"{manifest.golden.images}, export differs by {manifest.golden.max_difference:.1e} of the spread"),
        *(_variant_row(*variant.cells()) for variant in manifest.variants),
    ]


def _variant_row(precision: str, images: str, difference: str, flips: str, verdict: str) -> tuple[str, str]:
    measured = f"scores differ by {difference} of the spread at most and {flips} decisions flip, on {images} images"
    return f"precision {precision}", f"{verdict}; {measured}"


def _choice_row(choice: Choice | None) -> str:
    if choice is None:
        return "nothing: it was given, or there was too little to choose on"
    tried = ", ".join(f"{one.alpha:g}: {100 * one.auroc:.1f}" for one in choice.tried)
    return f"{choice.defects} synthetic defects over {choice.images} images; AUROC in percent by alpha: {tried}"


def _adaptation_rows(record: Adaptation | None) -> list[tuple[str, str]]:
    if record is None:
        return [("adaptation", "none")]
    return [
        ("adaptation", f"preset {record.preset}, maker {record.maker}, {record.seconds / 60:.1f} min"),
        ("right answers", f"{record.right:.0%} of {sum(map(sum, record.confusion))} on {record.confusion_on} images"),
    ]


def _verify(arguments: argparse.Namespace) -> int:
    with _open(arguments) as inspector, console.progress("golden images") as advance:
        manifest = inspector.bundle.manifest
        result = verify_golden(
            inspector,
            inspector.bundle.golden(),
            manifest.threshold,
            manifest.golden.spread,
            advance,
            tolerance=allowed_difference(manifest, inspector.extractor.precision),
        )
    rows = [
        (row.name, f"{row.expected:.6g}", f"{row.got:.6g}", f"{row.difference:.1e}", "FLIP" if row.flipped else "")
        for row in result.rows
    ]
    console.table("golden images", ("image", "expected", "got", "difference / spread", "decision"), rows)
    console.say(f"{'passed' if result.passed else 'FAILED'}: {result}")
    return console.DONE if result.passed else console.NO


def _score(arguments: argparse.Namespace) -> int:
    paths = [path for given in arguments.images for path in (list_images(given) if given.is_dir() else [given])]
    if not paths:
        raise EngineError(f"no images in {', '.join(map(str, arguments.images))}; expected PNG, JPEG, BMP, TIFF or WebP files")
    with _open(arguments) as inspector:
        low, high = _colour_range(inspector)
        broken = 0
        for path in paths:
            try:
                image = read_image(path)
                score = inspector.score(image)
            except EngineError as error:
                named = str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}"
                console.err.print(f"error: {named}", markup=False)
                broken += 1
                continue
            if not math.isfinite(score.value):
                raise EngineError(f"{path}: score is {score.value}, expected a finite number; run `engines verify`")
            if arguments.json:
                sys.stdout.write(json.dumps({"image": str(path), "score": score.value}) + "\n")
            else:
                console.say(f"{score.value:12.6g}  {path}")
            if arguments.heatmaps is not None:
                shown = inspector.preprocessor.resized(image)
                heat = anomaly_map(inspector.map(score), inspector.preprocessor.size)
                picture = overlay(shown, heat, low, high)
                # the folders' names tell images of one name apart; a root or a drive leaves no trace in them
                name = "-".join(part for part in path.parts if part not in (path.anchor, "..")) + ".png"
                write_file(arguments.heatmaps / name, encode_png(np.hstack([shown, picture])))
    return console.BAD_INPUT if broken > 0 else console.DONE


def _colour_range(inspector: Inspector) -> tuple[float, float]:
    """Score range of the colours: from the provisional threshold up by ten spreads, the same for every image."""
    manifest = inspector.bundle.manifest
    low = manifest.threshold.value if manifest.threshold is not None else float(inspector.bundle.golden().scores.min())
    return low, low + 10 * manifest.golden.spread


def _bench(arguments: argparse.Namespace) -> int:
    with _open(arguments) as inspector, console.progress("timing") as advance:
        result = bench(inspector, arguments.repeats, advance)
    rows = [(stage, *(f"{figures[name]:.2f}" for name in ("p50", "p95", "p99"))) for stage, figures in result.stages_ms.items()]
    console.table(f"{result.title}", ("stage, ms", "p50", "p95", "p99"), rows)
    sizes = [(f"{one.rows:,}", f"{one.p50:.2f}", f"{one.p95:.2f}") for one in result.search]
    console.table("LDKNN by size of bank, ms", ("rows", "p50", "p95"), sizes)
    console.say(f"{result.images_per_second:.1f} images per second; total is {result.ratio:.2f} times the features alone")
    console.say(f"on {result.machine}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(result.as_dict(), indent=1) + "\n").encode())
    return console.DONE


if __name__ == "__main__":
    sys.exit(main())
