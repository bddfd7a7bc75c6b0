"""The calibration door: `python -m calibration fit`, `capability` and `adapt`."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from calibration.adapt_door import add_adapt
from calibration.capability_door import add_capability
from calibration.fit import fit_calibration
from calibration.record import save_calibration
from calibration.threshold import check_enough
from engines import EngineError, console
from engines.bundle import load_bundle
from engines.images import list_images
from engines.options import add_running, open_inspector

_SHOWN = 3  # highest scores, for a person to look at
_FAR = 3.0  # spreads of normal scores above the provisional threshold


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 2 bad usage or input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="calibration", description="Take a station's threshold from its good parts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit = commands.add_parser("fit", help="conformal threshold from a folder of good images")
    fit.add_argument("--bundle", required=True, type=Path, help="the bundle that the station runs")
    fit.add_argument("--images", required=True, type=Path, help="folder of good parts, taken at this station")
    fit.add_argument("--station", required=True, help="name of the station, as in its configuration")
    fit.add_argument("--camera", default="camera-1", help="name of the camera (default: %(default)s)")
    fit.add_argument("--false-reject", default=0.01, type=float, metavar="RATE", help="rate to bound (default: %(default)s)")
    fit.add_argument("--out", required=True, type=Path, help="record to write, a .json file")
    add_running(fit)
    fit.set_defaults(run=_fit)
    add_capability(commands)
    add_adapt(commands)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _fit(arguments: argparse.Namespace) -> int:
    if arguments.out.is_dir():
        raise EngineError(f"{arguments.out}: a folder, expected the path of the record to write, such as line-3.json")
    paths = list_images(arguments.images)
    check_enough(len(paths), arguments.false_reject)
    scores: list[tuple[float, str]] = []
    bundle = load_bundle(arguments.bundle)
    with (
        open_inspector(bundle, arguments) as inspector,
        console.progress("scoring") as advance,
    ):
        calibration = fit_calibration(
            inspector,
            paths,
            station=arguments.station,
            camera=arguments.camera,
            rate=arguments.false_reject,
            who=_account(),
            progress=advance,
            scored=lambda path, score: scores.append((score, path.name)),
        )
        manifest = inspector.bundle.manifest
    highest = ", ".join(f"{name} {score:.4g}" for score, name in sorted(scores, reverse=True)[:_SHOWN])
    console.say(f"highest scores: {highest}; is each of these really a good part?")
    provisional = manifest.threshold
    if provisional is not None and calibration.threshold > provisional.value + _FAR * manifest.golden.spread:
        console.warn(
            f"the threshold {calibration.threshold:.4g} is far above the bundle's provisional {provisional.value:.4g}"
            f" (normal scores spread by {manifest.golden.spread:.2g}): a part in these images is not good, or product, light,"
            " lens or focus differ from training; defects will pass until that is put right"
        )
    save_calibration(arguments.out, calibration)
    console.say(
        f"threshold {calibration.threshold:.6g} from {calibration.n} good images: a further good part is rejected with"
        f" probability {calibration.rate:g} or less, as long as parts and light stay as they were in these images"
    )
    console.say(f"wrote {arguments.out} for station {calibration.station}, bundle {calibration.bundle_digest[:12]}")
    return console.DONE


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


if __name__ == "__main__":
    sys.exit(main())
