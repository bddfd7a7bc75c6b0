"""The edge door: `python -m edge COMMAND`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2

from calibration.record import load_calibration
from edge import StationError, calibrate, journal_door, label, record
from edge.camera import Camera
from edge.camera_sections import BLACK, SATURATED, FolderSource, LiveSource
from edge.check import check_station
from edge.choosing import RecipeRefusedError, Wish, wish_for
from edge.clock import SystemClock
from edge.config import ConfigError, UnreadableConfigError, load_config, load_recipes, rejector_setup
from edge.explain import explain
from edge.frame_check import FrameCheck
from edge.lines import OUTPUTS, describe_line, open_lines
from edge.live import LiveCamera
from edge.presence import learn_empty
from edge.preview import WAIT_S, genicam_devices, measure, video_devices, watch
from edge.rejector import DryRunRejector, ProcessRejector
from edge.run import open_camera, run_station
from edge.sections import DryRun, PresenceTrigger, StationConfig
from edge.verdict import Missing
from engines import console
from engines.atomic import write_file
from engines.images import Image, encode_png
from engines.options import add_running


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 a part was a FAULT, the check found faults, a recipe is refused or the journal is broken, 2 bad input,
        130 interrupted.
    """
    cv2.setNumThreads(1)  # the cores belong to the network and the search
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # a camera that does not open is told in our words
    parser = argparse.ArgumentParser(prog="edge", description="Judge every part that passes a camera.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    replay = commands.add_parser("replay", help="judge the images of a folder or a video, in order")
    replay.add_argument("--bundle", required=True, type=Path)
    replay.add_argument("--calibration", required=True, type=Path)
    replay.add_argument("--images", required=True, type=Path, metavar="DIR|VIDEO")
    replay.add_argument("--fps", type=console.positive_float, help="triggers a second with --realtime (default: 10)")
    replay.add_argument("--realtime", action="store_true", help="trigger on that beat, whether the station keeps up or not")
    replay.add_argument("--deadline-ms", default=1000.0, type=console.positive_float, help="default: %(default)g")
    replay.add_argument("--journal", type=Path, metavar="FILE", help="default: journal.db beside the calibration")
    add_running(replay)
    replay.set_defaults(run=_replay)
    run = commands.add_parser("run", help="run the station that a configuration describes")
    run.add_argument("--config", required=True, type=Path, metavar="FILE")
    run.set_defaults(run=_run)
    check = commands.add_parser("check", help="explain what a configuration would do, and all that would keep it from starting")
    check.add_argument("--config", required=True, type=Path, metavar="FILE")
    check.set_defaults(run=_check)
    _add_camera(commands)
    empty = commands.add_parser("empty", help="learn the scene without a part, for a trigger of kind presence")
    empty.add_argument("--config", required=True, type=Path, metavar="FILE")
    empty.add_argument("--out", required=True, type=Path, metavar="FILE")
    empty.add_argument("--frames", default=50, type=console.positive_int, help="default: %(default)d")
    empty.set_defaults(run=_empty)
    _add_recipe(commands)
    lines = commands.add_parser("lines", help="show each line's level, and edges as they come")
    lines.add_argument("--config", required=True, type=Path, metavar="FILE")
    lines.add_argument("--seconds", type=console.positive_float, help="end after this time (default: at Ctrl-C)")
    lines.set_defaults(run=_lines)
    pulse = commands.add_parser("pulse", help="energise one output once, to try its wiring")
    pulse.add_argument("--config", required=True, type=Path, metavar="FILE")
    pulse.add_argument("--line", required=True, choices=OUTPUTS)
    pulse.add_argument("--ms", type=console.positive_float, default=200.0, help="how long (default: %(default)g)")
    pulse.add_argument("--yes", action="store_true", help="the conveyor is stopped and nobody's hands are near the ejector")
    pulse.set_defaults(run=_pulse)
    journal_door.add_to(commands)
    record.add_to(commands)
    calibrate.add_to(commands)
    label.add_to(commands)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _add_camera(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    camera = commands.add_parser("camera", help="list cameras, or write a frame with its focus and exposure")
    camera.add_argument("--config", type=Path, metavar="FILE")
    what = camera.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="V4L2 and GenICam cameras that are there")
    what.add_argument("--preview", type=_png, metavar="OUT.png", help="write a frame of the configuration's source")
    seconds = f"watch for this long and write the last frame (default: the first, within {WAIT_S:g} s)"
    camera.add_argument("--seconds", type=console.positive_float, help=seconds)
    camera.set_defaults(run=_camera)


def _add_recipe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    recipe = commands.add_parser("recipe", help="change to another recipe, or back to the choice before")
    recipe.add_argument("--config", required=True, type=Path, metavar="FILE")
    recipe.add_argument("name", nargs="?", metavar="NAME")
    recipe.add_argument(
        "--rollback", action="store_true", help="to the choice before the one in force, with the very files it had"
    )
    recipe.add_argument("--who", help="for the journal (default: the user's name)")
    recipe.add_argument("--why", default="asked for by command", help="for the journal (default: %(default)s)")
    recipe.set_defaults(run=_recipe)


def _replay(arguments: argparse.Namespace) -> int:
    if arguments.fps is not None and not arguments.realtime:
        raise StationError("--fps sets the beat of --realtime; add --realtime, or leave --fps out")
    calibration = load_calibration(arguments.calibration)
    config = StationConfig(
        station=calibration.station,
        camera=calibration.camera,
        recipe=calibration.recipe,
        bundle=arguments.bundle,
        calibration=arguments.calibration,
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        search=arguments.search,
        deadline_ms=arguments.deadline_ms,
        source=FolderSource(kind="replay", path=arguments.images, fps=(arguments.fps or 10) if arguments.realtime else None),
        rejector=DryRun(kind="dry-run"),
        journal=arguments.journal or arguments.calibration.parent / "journal.db",
    )
    return run_station({config.recipe: config}, lambda _config: DryRunRejector())


def _run(arguments: argparse.Namespace) -> int:
    return run_station(load_recipes(arguments.config), _take_lines, service=arguments.config)


def _take_lines(config: StationConfig) -> ProcessRejector:
    return ProcessRejector(rejector_setup(config))


def _check(arguments: argparse.Namespace) -> int:
    try:
        recipes = load_recipes(arguments.config)
    except UnreadableConfigError:  # there is nothing to answer for
        raise
    except ConfigError as error:
        for fault in error.faults:
            console.say(f"FAULT  {fault}")
        return console.NO
    config = next(iter(recipes.values()))
    for topic in explain(recipes):
        console.say(topic.title)
        for line in topic.lines:
            console.say(f"  {line}")
    console.say("What was looked at")
    checks = check_station(recipes, open_camera)
    for check in checks:
        console.say(f"{'FAULT' if check.faults else 'WARN' if check.warnings else 'ok':5}  {check.name}: {check.found}")
        for line in (*check.faults, *check.warnings):
            console.say(f"       {line}")
    faults = sum(len(check.faults) for check in checks)
    warnings = sum(len(check.warnings) for check in checks)
    ends = "ready to start" if faults == 0 else f"would not start, faults: {faults}"
    console.say(f"{config.station}: {ends}{f', warnings: {warnings}' if warnings > 0 else ''}")
    return console.DONE if faults == 0 else console.NO


def _camera(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list_cameras()
    if arguments.config is None:
        raise StationError("--preview needs the station's configuration; add --config FILE")
    return _preview(load_config(arguments.config), arguments.preview, arguments.seconds)


def _preview(config: StationConfig, path: Path, seconds: float | None) -> int:
    """Write a frame, also one that the station would not judge, and say why it would not."""
    opened: list[Camera] = []

    def open_source(beat: Callable[[], None]) -> Camera:
        shown = config.source
        if not isinstance(shown, FolderSource):
            shown = shown.model_copy(update={"black_level": None, "saturated_level": None})
        free = config.model_copy(update={"source": shown, "rejector": DryRun(kind="dry-run")})  # no trigger line is waited for
        opened.append(open_camera(free, beat))
        return opened[0]

    watched = watch(open_source, SystemClock(), seconds)
    camera, source = opened[0], config.source
    if isinstance(camera, LiveCamera):
        for setting in camera.settings:
            console.say(str(setting))
    for reason, count in watched.faults.items():
        console.warn(f"{count} frames were none: {reason}")
    if watched.last is None:
        waited = f"{WAIT_S if seconds is None else seconds:g} s"
        console.say(f"no frame in {waited}: {camera.status or 'it may wait for a trigger'}")
        return console.NO
    image = watched.last.image
    limits = LiveSource() if isinstance(source, FolderSource) else source
    black = BLACK if limits.black_level is None else limits.black_level
    saturated = SATURATED if limits.saturated_level is None else limits.saturated_level
    figures = measure(image, black, saturated)
    write_file(path, encode_png(image))
    console.say(f"{watched.last.source}: {figures.size[0]} x {figures.size[1]} pixels, written to {path}")
    console.say(f"focus {figures.focus:.1f} (variance of the Laplacian, grey levels squared; the larger the sharper)")
    shares = f"{figures.saturated:.2f} % saturated (a channel at {saturated} or more)"
    console.say(f"exposure: mean {figures.mean:.1f} of 255, {shares}, {figures.black:.2f} % black (all at {black} or less)")
    if watched.rate is not None:
        console.say(f"{watched.frames} frames in {watched.seconds:.2f} s, {watched.rate:.2f} a second")
    if isinstance(camera, LiveCamera) and camera.counts:
        console.say(", ".join(f"{name} {count}" for name, count in camera.counts.items()))
    fault = FrameCheck(None, limits.black_level, limits.saturated_level).fault(image)
    if fault is not None:
        console.say(f"FAULT  {fault.reason}")
    return console.NO if fault is not None or watched.faults else console.DONE


def _list_cameras() -> int:
    found = [("camera", *device) for device in video_devices()]
    try:
        found += [("genicam", *device) for device in genicam_devices()]
    except StationError as error:
        console.warn(str(error))
    for kind, device, name in found:
        console.say(f"kind: {kind}, device: {device}  ({name})")
    if not found:
        console.say("no camera found; check cable, power and permissions (CSI sensors are not listed: v4l2-ctl --list-devices)")
    return console.DONE if found else console.NO


def _empty(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    wanted = config.trigger
    if not isinstance(wanted, PresenceTrigger):
        raise StationError(f"{arguments.config}: the trigger is of kind {config.triggered.kind}, expected presence")
    with contextlib.closing(open_camera(config)) as camera:
        scene = learn_empty(_images(camera, arguments.frames), wanted.region, wanted.share)
    scene.save(arguments.out)
    least = math.ceil(wanted.share * scene.mean.size)
    console.say(
        f"learnt {scene.frames} frames, region {list(scene.region)}; a part changes {least} of {scene.mean.size} cells at least"
    )
    console.say(f"wrote {arguments.out}")
    return console.DONE


def _images(camera: Camera, count: int) -> Iterator[Image]:
    for number, arrival in enumerate(itertools.islice(camera.frames(), count), start=1):
        if isinstance(arrival, Missing):
            raise StationError(f"frame {number} of the empty scene: {arrival.reason}")
        yield arrival.image


def _recipe(arguments: argparse.Namespace) -> int:
    if (arguments.name is None) != arguments.rollback:
        raise StationError("expected the name of a recipe or --rollback, and one of the two alone")
    wish = Wish(arguments.name, arguments.who or console.account(), arguments.why)
    try:
        console.say(wish_for(load_recipes(arguments.config), wish))
    except RecipeRefusedError as error:
        console.warn(str(error))
        return console.NO
    return console.DONE


def _lines(arguments: argparse.Namespace) -> int:
    setup = rejector_setup(load_config(arguments.config))
    end = math.inf if arguments.seconds is None else time.monotonic() + arguments.seconds
    with contextlib.closing(open_lines(setup.driver, setup.lines)) as lines:
        for spec in setup.lines:
            console.say(f"{describe_line(spec)}: {'active' if lines.get(spec.name) else 'inactive'}")
        while (left := end - time.monotonic()) > 0:
            select.select(lines.filenos(), [], [], min(left, 1.0))
            for edge in lines.edges():
                console.say(f"{edge.at_ns / 1e9:.6f} s  {edge.name} {'active' if edge.active else 'inactive'}")
    return console.DONE


def _pulse(arguments: argparse.Namespace) -> int:
    setup = rejector_setup(load_config(arguments.config))
    if arguments.line not in [spec.name for spec in setup.lines]:
        raise StationError(f"line '{arguments.line}' is not in the configuration; add it below rejector.lines")
    if not arguments.yes:
        raise StationError(f"this moves what is wired to '{arguments.line}'; stop the conveyor, keep clear, then add --yes")
    with contextlib.closing(open_lines(setup.driver, setup.lines)) as lines:
        lines.set(arguments.line, True)
        time.sleep(arguments.ms / 1e3)
        lines.set(arguments.line, False)
    console.say(f"{arguments.line} was energised for {arguments.ms:g} ms ({setup.driver}), and is de-energised now")
    return console.DONE


def _png(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text}, expected a name that ends with .png")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
