"""`python -m calibration capability`: what a station can see, in words, tables, curves and a map."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from calibration.capability import ALL, Capability, check_holds, in_words, save_capability, summarise
from calibration.capability_map import draw_map
from calibration.capability_page import render
from calibration.probes import GoodImage, Plan, draw_probes, find_part, judged_region, score_good
from calibration.record import load_calibration
from engines import EngineError, console
from engines.atomic import check_place, write_file
from engines.bundle import Bundle, load_bundle
from engines.images import encode_png, list_images, read_image
from engines.options import add_running, open_inspector

RECORD, PAGE, MAP = "capability.json", "capability.html", "smallest-defect.png"


def add_capability(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the door's parser."""
    parser = commands.add_parser("capability", help="how large a defect must be to be found, before there is a bad part")
    parser.add_argument("--bundle", required=True, type=Path, help="the bundle that the station runs")
    parser.add_argument("--calibration", required=True, type=Path, help="record of `calibration fit`: its threshold decides")
    parser.add_argument("--images", required=True, type=Path, help="folder of good parts, taken at this station")
    parser.add_argument("--out", required=True, type=Path, help=f"folder to write {PAGE}, {MAP} and {RECORD} to")
    plan = Plan()
    parser.add_argument(
        "--defects", default=plan.per_kind, type=console.positive_int, help="of each kind (default: %(default)s)"
    )
    parser.add_argument(
        "--contrast",
        default=plan.contrast,
        type=console.positive_float,
        metavar="LEVELS",
        help="step of brightness across the outline that sizes are stated at, grey levels (default: %(default)s)",
    )
    parser.add_argument(
        "--sizes",
        nargs=2,
        type=console.positive_float,
        metavar=("SMALLEST", "LARGEST"),
        help="of the defects, square roots of areas in source pixels (default: from hardly visible to a third of the image)",
    )
    parser.add_argument("--saliency", type=Path, metavar="DIR", help="masks that show the part (default: estimated)")
    parser.add_argument("--seed", default=plan.seed, type=console.count, help="default: %(default)s")
    add_running(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw, score, fit, write, and say what was found."""
    if arguments.out.exists() and not arguments.out.is_dir():
        raise EngineError(f"{arguments.out}: a file, expected a folder for the report")
    check_place(arguments.out / PAGE)
    sizes = None if arguments.sizes is None else (arguments.sizes[0], arguments.sizes[1])
    plan = Plan(arguments.defects, arguments.contrast, sizes, arguments.seed)
    calibration = load_calibration(arguments.calibration)
    bundle = load_bundle(arguments.bundle)
    paths = list_images(arguments.images)
    with open_inspector(bundle, arguments) as inspector:
        check_holds(inspector, calibration)
        with console.progress("good images") as advance:
            images = score_good(inspector, paths, advance)
        with console.progress("where the part is") as advance:
            part = find_part(bundle, images, arguments.saliency, advance)
        console.say(f"where defects are drawn: {part.source}, {part.reason}")
        with console.progress("defects") as advance:
            probes = draw_probes(
                inspector.bundle,
                lambda _, frame: inspector.score(frame).value,
                images,
                part,
                calibration.threshold,
                plan,
                advance,
            )
        with console.progress("curves") as advance:
            capability = summarise(inspector, calibration, images, part, probes, plan, advance)
    mm = bundle.manifest.input.mm_per_pixel
    _write(arguments.out, bundle, images, capability, mm)
    _say(capability, calibration.shown, mm)
    console.say(f"judged at threshold {calibration.threshold:.6g}, {calibration.origin}")
    console.say(f"wrote {arguments.out / PAGE}, {MAP} and {RECORD}")
    return console.DONE


def _say(capability: Capability, shown: str, mm_per_pixel: float | None) -> None:
    columns = ("found", "a50", "a90", "a90/95")
    for first, rows in (("kind", capability.kinds), ("region", capability.regions)):
        console.table(
            f"size in px at a contrast of {capability.contrast:g} grey levels, threshold {shown}",
            (first, *columns),
            [
                (
                    name,
                    f"{one.found} of {one.tried}",
                    *("-" if px is None else f"{px:.3g}" for px in (one.a50, one.a90, one.a90_95)),
                )
                for name, one in rows.items()
            ],
        )
    for name, one in capability.kinds.items():
        console.say(in_words(name, one, mm_per_pixel))
    count, rejected = len(capability.images), capability.false_rejects
    console.say(f"rejects {rejected} of {count} good images ({rejected / count:.1%}) at the same threshold")
    if capability.kinds[ALL].a90 is None:
        console.warn("no size can be stated for all kinds together; read the reasons above before this station is trusted")


def _write(out: Path, bundle: Bundle, images: tuple[GoodImage, ...], capability: Capability, mm: float | None) -> None:
    typical = int(np.argsort([image.score for image in images])[len(images) // 2])
    region = judged_region(bundle, read_image(images[typical].path))
    title = f"smallest defect, px, found with 90 % probability; contrast {capability.contrast:g} grey levels"
    picture = encode_png(draw_map(region, capability.map, title))
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / MAP, picture)
    write_file(out / PAGE, render(capability, picture, mm))
    save_capability(out / RECORD, capability)
