"""`python -m calibration adapt`: bring a bundle up to date with this station's good parts, and say what that changes."""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import Sequence
from pathlib import Path

from calibration import CalibrationError
from calibration.adapt import Adapter, Comparison, Side, check_out, compare, split_candidates, write_extended
from calibration.probes import GoodImage, Plan, score_good
from calibration.record import load_calibration
from engines import console
from engines.bundle import FP32, load_bundle
from engines.images import list_images
from engines.inspector import Inspector

_RATE = 0.05  # compared at, where the calibration was for none
_DEFECTS = 120  # of each kind


def add_adapt(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the door's parser."""
    parser = commands.add_parser("adapt", help="add this station's good parts to the bank, without training")
    parser.add_argument("--bundle", required=True, type=Path, help="the bundle that the station runs")
    parser.add_argument("--calibration", required=True, type=Path, help="this station's record: its threshold finds odd images")
    parser.add_argument(
        "--images", required=True, type=Path, help="folder of good parts of this station, not those calibrated on"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the new bundle; the old one stays as it is")
    parser.add_argument(
        "--accept", nargs="+", default=(), metavar="FILE", help="images that look anomalous and are good all the same"
    )
    parser.add_argument("--rows", type=console.positive_int, help="of the new bank (default: as many as it has)")
    parser.add_argument("--who", help="who vouches for the images (default: this account)")
    parser.add_argument("--seed", default=0, type=console.count, help="default: %(default)s")
    parser.add_argument("--threads", default=0, type=console.count, help="CPU threads; 0 is one a core")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Score, guard, extend, compare, write."""
    calibration = load_calibration(arguments.calibration)
    bundle = load_bundle(arguments.bundle)
    check_out(arguments.out, bundle)
    if calibration.bundle_digest != bundle.digest:
        raise CalibrationError(
            f"{arguments.calibration}: calibrated for bundle {calibration.bundle_digest[:12]}, {arguments.bundle} is"
            f" {bundle.digest[:12]}; calibrate this station with the bundle first"
        )
    if calibration.precision != FP32:
        console.warn(
            f"{arguments.calibration}: its threshold is for {calibration.precision}, expected {FP32}, in which the bank was"
            " made and images are judged here: a score close to it may be on the other side; look at the images left out"
        )
    with Inspector(bundle, threads=arguments.threads) as inspector:
        with console.progress("good images") as advance:
            images = score_good(inspector, list_images(arguments.images), advance)
        names = [Path(name).name for name in arguments.accept]
        normal, accepted, left_out = split_candidates(images, calibration.threshold, names)
        _say_split(images, accepted, left_out)
        with console.progress("embedding") as advance:
            chosen = [images[number] for number in sorted((*normal, *accepted))]
            adapter = Adapter(inspector, chosen, arguments.rows or len(bundle.bank.rows), arguments.seed, advance)
        with console.progress("banks without a fifth") as advance:
            scorers, scores = adapter.cross_fitted(advance)
        with console.progress("defects") as advance:
            plan = Plan(per_kind=_DEFECTS, seed=arguments.seed)
            rate = _RATE if calibration.rate is None else calibration.rate
            compared = compare(adapter, scorers, scores, calibration.threshold, rate, plan, advance)
        with console.progress("bank") as advance:
            digest = write_extended(
                arguments.out,
                adapter,
                scores,
                accepted=[images[number].path.name for number in accepted],
                left_out=[images[number].path.name for number in left_out],
                station=calibration.station,
                who=arguments.who or _account(),
                progress=advance,
            )
    _say(compared, len(chosen))
    console.say(f"the old threshold is {calibration.threshold:.6g}, {calibration.origin}")
    console.say(
        f"wrote {arguments.out} (digest {digest[:12]}) from {bundle.digest[:12]}, which stays as it is: to go back, run it"
        " again; the new one needs a calibration of its own, on images that are not in it"
    )
    return console.DONE


def _say_split(images: Sequence[GoodImage], accepted: Sequence[int], left_out: Sequence[int]) -> None:
    for number in accepted:
        console.say(f"accepted by name: {images[number].path.name}, score {images[number].score:.4g}")
    for number in left_out:
        console.warn(
            f"{images[number].path.name}, score {images[number].score:.4g}, looks anomalous and is left out;"
            f" if it is a good part, give --accept {images[number].path.name}"
        )


def _say(compared: Comparison, count: int) -> None:
    def cells(name: str, side: Side) -> tuple[str, ...]:
        size = side.size
        px = ("-" if value is None else f"{value:.3g}" for value in (size.a50, size.a90, size.a90_95))
        rate = f"{side.false_rejects} of {count} ({side.false_rejects / count:.1%})"
        return name, rate, f"{side.threshold:.4g}", f"{size.found} of {size.tried}", *px

    console.table(
        f"the same images and drawn defects, none judged by a bank that holds its image; sizes in px at a step of"
        f" {compared.contrast:g} grey levels",
        (
            "bank",
            "rejected at the old threshold",
            f"threshold for {compared.rate:.1%}",
            "defects found there",
            "a50",
            "a90",
            "a90/95",
        ),
        [cells("as it was", compared.before), cells("extended", compared.after)],
    )
    before, after = compared.before.size, compared.after.size
    if after.found * before.tried < before.found * after.tried:
        console.warn(
            f"the extended bank finds fewer of the defects, {after.found} of {after.tried} instead of {before.found} of"
            f" {before.tried}: look whether a bad part is among the images, or keep the old bundle"
        )
    for name, side in (("as it was", compared.before), ("extended", compared.after)):
        if side.size.reason is not None:
            console.say(f"bank {name}: {side.size.reason}")


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
