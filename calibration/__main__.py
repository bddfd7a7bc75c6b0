"""The calibration door: `python -m calibration COMMAND`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from calibration import CalibrationError, records_door, station_door
from calibration.adapt_door import add_adapt
from calibration.capability_door import add_capability
from calibration.fit import GROUPINGS, beyond_provisional, bound_to, find_images, make_calibration, score_images
from calibration.history import check_whole, history_path, write
from calibration.propose import check_needs, propose
from calibration.scores import Scored, read_scores, split
from calibration.threshold import check_enough
from calibration.threshold_door import add_wishes, show_comparison, wishes_of
from engines import EngineError, console
from engines.atomic import check_place
from engines.bundle import load_bundle
from engines.inspector import Inspector
from engines.options import add_running, open_inspector

_SHOWN = 3  # highest scores, and largest groups, for a person to look at
_NAMED = 4  # pictures of a group
_GIVE_BAD = "give pictures of some with --bad, or scores with the label bad"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 the history is not whole, 2 bad usage or input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="calibration", description="Take a station's threshold from its good parts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands.add_parser("fit", help="take a threshold from good parts, and bad ones if there are any"))
    records_door.add_commands(commands, console.account)
    station_door.add_commands(commands, console.account)
    add_capability(commands)
    add_adapt(commands)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _add_fit(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("--bundle", required=True, type=Path, help="the bundle that the station runs")
    source = fit.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="DIR", help="folder of good parts, taken at this station")
    source.add_argument("--scores", type=Path, metavar="CSV", help="or scores: part,score and perhaps group,label")
    fit.add_argument("--bad", type=Path, metavar="DIR", help="folder of bad parts, taken at this station")
    fit.add_argument(
        "--groups",
        default="detect",
        choices=GROUPINGS,
        help="pictures of the same part: those that look alike, those in the same folder, or none (default: %(default)s)",
    )
    fit.add_argument("--station", required=True, help="name of the station, as in its configuration")
    fit.add_argument("--camera", default="camera-1", help="name of the camera (default: %(default)s)")
    add_wishes(fit)
    fit.add_argument("--why", default="", help="reason, for the history")
    fit.add_argument("--out", required=True, type=Path, help="record to write, a .json file; its history is kept beside it")
    add_running(fit)
    fit.set_defaults(run=_fit)


def _fit(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    if out.is_dir():
        raise EngineError(f"{out}: a folder, expected the path of the record to write, such as line-3.json")
    for name in ("station", "camera"):
        if not getattr(arguments, name).strip():
            raise CalibrationError(f"--{name} is empty, expected its name as in the station's configuration")
    check_place(out)
    wishes = wishes_of(arguments)
    check_whole(out)
    bundle = load_bundle(arguments.bundle)
    good = [] if arguments.images is None else find_images(arguments.images, arguments.groups)
    if arguments.images is not None:  # before minutes of work
        check_needs(arguments.method, wishes, bad=arguments.bad is not None, give_bad=_GIVE_BAD)
        if arguments.method == "conformal":
            check_enough(len(good), wishes.rate)
    with open_inspector(bundle, arguments) as inspector:
        scored = _scored(arguments, inspector, good)
        good_parts, bad_parts = split(scored)
        comparison = propose(good_parts, wishes, bad_parts, give_bad=_GIVE_BAD)
        _show_scores(scored)
        _show_groups(scored)
        show_comparison(comparison)
        proposal = comparison.of(arguments.method)
        warnings = (*proposal.warnings, *beyond_provisional(inspector, proposal))
        calibration = make_calibration(
            inspector,
            proposal,
            wishes,
            station=arguments.station,
            camera=arguments.camera,
            who=console.account(),
            why=arguments.why,
        )
    for warning in warnings:
        console.warn(warning)
    calibration = write(out, calibration, wishes=wishes, parts=scored, warnings=warnings)
    unit = "good images" if proposal.pictures == proposal.good else f"good parts on {proposal.pictures} images"
    console.say(f"threshold {calibration.threshold:.6g} from {proposal.good} {unit}, {proposal.method}")
    if proposal.method == "conformal":
        console.say(
            f"a further good part is rejected with probability {wishes.rate:g} or less, on average over calibrations like this"
            " one, as long as parts and light stay as they were in these images"
        )
    for line in proposal.consequences():
        console.say(line)
    console.say(
        f"wrote {out} for station {calibration.station}, bundle {calibration.bundle_digest[:12]}, and {history_path(out)}"
    )
    return console.DONE


def _scored(arguments: argparse.Namespace, inspector: Inspector, good: Sequence[Path]) -> list[Scored]:
    """Pictures of good and bad parts, scored here, or the scores handed over."""
    if arguments.scores is not None:
        if arguments.bad is not None:
            raise CalibrationError("--bad beside --scores, expected bad parts in the same file; give them the label bad")
        scored, left_out = read_scores(arguments.scores, bound_to(inspector))
        if left_out > 0:
            console.warn(f"rows without a label, left out because nobody confirmed these parts: {left_out}")
        if not any(one.good for one in scored):
            raise CalibrationError(f"{arguments.scores}: no good parts in it; confirm some, with the label good")
        return scored
    with console.progress("scoring good parts") as advance:
        scored = score_images(inspector, good, arguments.images, grouping=arguments.groups, progress=advance)
    if arguments.bad is None:
        return scored
    bad = find_images(arguments.bad, arguments.groups)
    if not bad:
        raise CalibrationError(f"{arguments.bad}: no images there, expected bad parts")
    with console.progress("scoring bad parts") as advance:
        return scored + score_images(
            inspector, bad, arguments.bad, good=False, grouping=arguments.groups, progress=advance, known=scored
        )


def _show_scores(scored: Sequence[Scored]) -> None:
    highest = sorted(((one.score, one.name) for one in scored if one.good), reverse=True)[:_SHOWN]
    named = ", ".join(f"{name} {score:.4g}" for score, name in highest)
    console.say(f"highest scores: {named}; is each of these really a good part?")


def _show_groups(scored: Sequence[Scored]) -> None:
    """Name the largest groups, for a person to see whether they are what they are taken for."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for one in scored:
        if one.group is not None:
            groups.setdefault((one.good, one.group), []).append(one.name)
    largest = sorted(groups.values(), key=len, reverse=True)[:_SHOWN]
    if largest:
        named = "; ".join(", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "") for names in largest)
        console.say(f"taken for the same part, {len(groups)} in all: {named}; give --groups none if they are different parts")


if __name__ == "__main__":
    sys.exit(main())
