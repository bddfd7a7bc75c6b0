"""The engines door: `python -m engines info|verify|score|bench`."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from engines import EngineError, console
from engines.atomic import write_file
from engines.bench import ALONE, bench
from engines.build import build_engine
from engines.bundle import Adaptation, Bundle, Choice, load_bundle
from engines.extractors import backends
from engines.images import encode_png, list_images, read_image
from engines.inspector import Inspector, anomaly_map, overlay
from engines.options import add_running, open_inspector
from engines.search import SEARCHES
from engines.verify import GoldenResult, allowed_difference, verify_golden


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
    build = _command(
        commands,
        "build",
        _build,
        "compile the bundle for this machine's GPU; exit 1 if it scores wrongly",
        backend=False,
    )
    build.add_argument("--backend", default="tensorrt", choices=("tensorrt", "tensorrt-rtx"), help="default: %(default)s")
    build.add_argument("--precision", default="fp16", choices=("fp32", "fp16", "int8"), help="default: %(default)s")
    build.add_argument(
        "--workspace-mb", type=console.positive_int, metavar="MB", help="memory to try kernels with (default: TensorRT's own)"
    )
    build.add_argument("--timing-cache", type=Path, metavar="FILE", help="makes TensorRT's next build faster")
    timing = _command(commands, "bench", _bench, "time each stage on this machine")
    timing.add_argument("--repeats", default=100, type=console.positive_int, help="default: %(default)s")
    timing.add_argument("--every", action="store_true", help="time all there is here, whatever is chosen above")
    timing.add_argument("--json", type=Path, metavar="FILE", help="write the figures too")
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _command(commands, name: str, function, text: str, *, backend: bool = True) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--bundle", required=True, type=Path, help="folder that `train fit` wrote")
    if backend:
        add_running(parser)
    parser.set_defaults(run=function)
    return parser


def _open(arguments: argparse.Namespace) -> Inspector:
    return open_inspector(load_bundle(arguments.bundle), arguments)


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
        *(
            (
                "extended",
                f"{one.when}, {one.who}: {len(one.images)} images of station {one.station}, {one.new_rows} of {one.rows} rows,"
                f" from bundle {one.parent[:12]}",
            )
            for one in made.extensions
        ),
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


def _build(arguments: argparse.Namespace) -> int:
    bundle = load_bundle(arguments.bundle)
    console.say(f"building {arguments.precision} with {arguments.backend}: this takes minutes on a small GPU")
    with console.progress("golden images") as advance:
        result = build_engine(
            bundle,
            arguments.backend,
            arguments.precision,
            workspace_mb=arguments.workspace_mb,
            timing_cache=arguments.timing_cache,
            progress=advance,
        )
    record = result.record
    console.say(f"built in {record.seconds:.0f} s for {record.target.gpu}, {record.target.backend} {record.target.version}")
    _show_golden(result.golden)
    if result.folder is None:
        console.say("not installed; build it in another precision")
        return console.NO
    console.say(f"wrote {result.folder}")
    return console.DONE


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
    _show_golden(result)
    return console.DONE if result.passed else console.NO


def _show_golden(result: GoldenResult) -> None:
    rows = [
        (row.name, f"{row.expected:.6g}", f"{row.got:.6g}", f"{row.difference:.1e}", "FLIP" if row.flipped else "")
        for row in result.rows
    ]
    console.table("golden images", ("image", "expected", "got", "difference / spread", "decision"), rows)
    console.say(f"{'passed' if result.passed else 'FAILED'}: {result}")


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
                console.err.print(console.one_line(f"error: {named}"), markup=False)
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
    if arguments.every:
        return _bench_every(arguments)
    with _open(arguments) as inspector, console.progress("timing") as advance:
        result = bench(inspector, arguments.repeats, advance)
    rows = [(stage, *(f"{figures[name]:.2f}" for name in ("p50", "p95", "p99"))) for stage, figures in result.stages_ms.items()]
    console.table(f"{result.title}", ("stage, ms", "p50", "p95", "p99"), rows)
    sizes = [(f"{one.rows:,}", f"{one.p50:.2f}", f"{one.p95:.2f}") for one in result.search]
    console.table("LDKNN on the CPU by size of bank, ms", ("rows", "p50", "p95"), sizes)
    console.say(f"{result.images_per_second:.1f} images per second; total is {result.ratio:.2f} times the features alone")
    if result.watts is not None:
        console.say(f"{result.watts:.1f} W while it scored")
    console.say(f"on {result.machine}")
    _write_figures(arguments.json, result.as_dict())
    return console.DONE


def _bench_every(arguments: argparse.Namespace) -> int:
    """Time every backend, precision and place of the search that this machine and the bundle have, and say what they lack."""
    bundle = load_bundle(arguments.bundle)
    results, missing = [], {}
    for backend, precision, search in itertools.product(backends(), bundle.graphs, SEARCHES):
        name = f"{backend} {precision}, search on the {search.upper()}"
        try:
            opened = Inspector(bundle, backend, precision=precision, threads=arguments.threads, search=search)
        except EngineError as error:
            missing[name] = str(error)
            continue
        with opened as inspector, console.progress(name) as advance:
            results.append(bench(inspector, arguments.repeats, advance))
    for name, reason in missing.items():
        console.say(f"{name}: not timed: {reason}")
    rows = [
        (
            f"{one.backend} {one.precision}",
            one.searched_on.upper(),
            f"{one.stages_ms[ALONE]['p50']:.2f}",
            *(f"{one.stages_ms['total'][quantile]:.2f}" for quantile in ("p50", "p95", "p99")),
            f"{one.images_per_second:.1f}",
            "" if one.watts is None else f"{one.watts:.1f}",
        )
        for one in results
    ]
    columns = ("network", "search on", "features p50, ms", "total p50, ms", "p95", "p99", "images/s", "W")
    console.table(f"{len(bundle.bank.rows)} bank rows", columns, rows)
    console.say(f"on {results[0].machine}" if results else "nothing could be timed")
    _write_figures(arguments.json, {"timed": [one.as_dict() for one in results], "missing": missing})
    return console.DONE if results else console.NO


def _write_figures(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        write_file(path, (json.dumps(figures, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
