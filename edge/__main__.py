"""The edge door: `python -m edge replay|run|check|lines|pulse|audit|export`. The only place that chooses implementations."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import os
import re
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2

from calibration.record import Calibration, load_calibration
from edge import StationError
from edge.audit import audit, export_csv, export_images
from edge.camera import Camera, FolderCamera, OpenCVCamera, VideoCamera
from edge.check import binding_faults, check_station, self_test
from edge.clock import SystemClock
from edge.config import ConfigError, DryRun, FolderSource, StationConfig, load_config, rejector_setup
from edge.evidence import Choice, EvidenceFolder
from edge.heads import HeadKeeper, read_heads
from edge.journal import SqliteJournal
from edge.lines import OUTPUTS, describe_line, open_lines
from edge.rejector import DryRunRejector, ProcessRejector, Rejector
from edge.schedule import Count
from edge.station import Station, Statistics
from edge.trigger import TriggeredCamera
from edge.verdict import Outcome, Verdict
from edge.worker import InspectorThread
from engines import __version__, console
from engines.bundle import Bundle, load_bundle
from engines.inspector import Inspector
from engines.options import add_running


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 a part was a FAULT, the check found faults or the journal is broken, 2 bad input, 130 interrupted.
    """
    cv2.setNumThreads(1)  # the cores belong to the network and the search
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
    check = commands.add_parser("check", help="say all that would keep a station from starting")
    check.add_argument("--config", required=True, type=Path, metavar="FILE")
    check.set_defaults(run=_check)
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
    audit_ = commands.add_parser("audit", help="say whether a journal is whole, and what it holds")
    audit_.add_argument("--journal", required=True, type=Path, metavar="FILE")
    kept = audit_.add_mutually_exclusive_group()
    kept.add_argument("--head", type=_sha256, metavar="HASH", help="of a row, kept elsewhere: shows an end that was cut off")
    kept.add_argument("--heads", type=Path, metavar="FILE", help="that the station kept (journal_heads)")
    audit_.set_defaults(run=_audit)
    export = commands.add_parser("export", help="copy verdicts to a CSV file, pictures to folders by outcome")
    export.add_argument("--journal", required=True, type=Path, metavar="FILE")
    export.add_argument("--csv", type=Path, metavar="OUT")
    export.add_argument("--images", type=Path, metavar="DIR")
    export.add_argument("--evidence", type=Path, metavar="DIR", help="default: evidence beside the journal")
    export.set_defaults(run=_export)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _replay(arguments: argparse.Namespace) -> int:
    if arguments.fps is not None and not arguments.realtime:
        raise StationError("--fps sets the beat of --realtime; add --realtime, or leave --fps out")
    calibration = load_calibration(arguments.calibration)
    config = StationConfig(
        station=calibration.station,
        camera=calibration.camera,
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
    return _inspect(config, calibration, DryRunRejector)


def _run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    return _inspect(config, load_calibration(config.calibration), lambda: ProcessRejector(rejector_setup(config)))


def _check(arguments: argparse.Namespace) -> int:
    try:
        config = load_config(arguments.config)
    except ConfigError as error:
        for fault in error.faults:
            console.say(f"FAULT  {fault}")
        return console.NO
    checks = check_station(config, lambda: _open_camera(config))
    for check in checks:
        console.say(f"{'FAULT' if check.faults else 'ok':5}  {check.name}: {check.found}")
        for fault in check.faults:
            console.say(f"       {fault}")
    faults = sum(len(check.faults) for check in checks)
    console.say(f"{config.station}: {'ready to start' if faults == 0 else f'would not start, faults: {faults}'}")
    return console.DONE if faults == 0 else console.NO


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


def _audit(arguments: argparse.Namespace) -> int:
    heads = [] if arguments.heads is None else read_heads(arguments.heads)
    report = audit(arguments.journal, heads, [] if arguments.head is None else [arguments.head])
    for run in report.runs.values():
        counts = ", ".join(f"{run.outcomes[outcome.value]} {outcome.value}" for outcome in Outcome)
        console.say(f"run {run.name}: {counts}{f', {run.missing} without a row' if run.missing > 0 else ''}; {run.ended}")
    for gap in report.gaps:
        console.say(f"gap: {gap}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items()))
    console.say(f"{report.rows} rows ({kinds}), head: row {report.head.row} {report.head.hash}")
    if report.broken is not None:
        console.say(f"BROKEN  {arguments.journal}: {report.broken}")
        return console.NO
    against = "" if arguments.head is None and arguments.heads is None else ", and so is every head that was kept"
    console.say(f"whole   {arguments.journal}: each row follows from the one before{against}")
    return console.DONE


def _export(arguments: argparse.Namespace) -> int:
    if arguments.csv is None and arguments.images is None:
        raise StationError("nothing to export; give --csv FILE, --images DIR, or both")
    good = True
    broken = audit(arguments.journal).broken
    if broken is not None:
        console.warn(f"{arguments.journal}: {broken}; rows before that are exported")
        good = False
    if arguments.csv is not None:
        console.say(f"wrote {arguments.csv}, {export_csv(arguments.journal, arguments.csv)} rows")
    if arguments.images is not None:
        folder = arguments.evidence or arguments.journal.parent / "evidence"
        copied = export_images(arguments.journal, folder, arguments.images)
        for name in copied.changed:
            console.warn(f"{folder / name}: not the picture that the journal has; not copied")
        console.say(f"copied {copied.copied} pictures to {arguments.images}; not there any more: {copied.gone}")
        good = good and not copied.changed
    return console.DONE if good else console.NO


def _sha256(text: str) -> str:
    if re.fullmatch("[0-9a-f]{64}", text) is None:
        raise argparse.ArgumentTypeError(f"{text}, expected 64 hexadecimal digits")
    return text


def _inspect(config: StationConfig, calibration: Calibration, open_rejector: Callable[[], Rejector]) -> int:
    """Refuse or run: nothing is judged before the bundle, the calibration and the self-test are in order."""
    bundle = load_bundle(config.bundle)

    def beat() -> None:  # while the station waits for a score or a frame, which it does once the rejector is there
        rejector.beat()

    with contextlib.ExitStack() as closing:  # from the last to the first, each even where another fails: the line first
        scorer = InspectorThread(lambda: _open_trusted(bundle, config, calibration), beat)
        closing.callback(scorer.close)
        camera = _open_camera(config, beat)
        closing.callback(camera.close)
        heads = HeadKeeper(config.journal_heads, console.say, console.warn)
        closing.callback(heads.close)
        run = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}"
        journal = SqliteJournal(config.journal, run, calibration, SystemClock(), timeout_ms=config.journal_timeout_ms)
        closing.callback(lambda: _close_journal(journal, heads))
        evidence = _open_evidence(config, run, journal, bundle)
        if evidence is not None:
            closing.callback(evidence.close)
        rejector = open_rejector()
        closing.callback(rejector.close)
        if isinstance(rejector, ProcessRejector) and not rejector.announced:
            camera = TriggeredCamera(camera, rejector)
        journal.event("started", {"version": __version__, "station": config.station, "calibration": calibration.model_dump()})
        heads.note(journal.head, due=True)
        console.say(
            f"{config.station} ready: threshold {calibration.threshold:.6g}, deadline {config.deadline_ms:g} ms,"
            f" {_describe(config, rejector)}"
        )
        station = Station(
            scorer=scorer,
            threshold=calibration.threshold,
            rejector=rejector,
            journal=journal,
            clock=SystemClock(),
            deadline_ms=config.deadline_ms,
            evidence=evidence,
        )

        def tell(verdict: Verdict) -> None:
            _print_verdict(verdict)
            heads.note(journal.head)

        begun = time.monotonic()
        try:
            station.run(camera, tell)
            if isinstance(rejector, ProcessRejector):
                rejector.drain()
            reason = "end of the source"
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise
        finally:
            did = _end_process(rejector)
            journal.event("stopped", {"parts": station.statistics.parts, "reason": reason, **did})
            _print_statistics(station.statistics, time.monotonic() - begun)
            if did:
                console.say("rejector: " + ", ".join(f"{name} {count}" for name, count in did["rejector"].items()))
    if evidence is not None:
        counts = evidence.counts
        lost = f"{counts.dropped} dropped, {counts.no_room} without room, {counts.failed} failed, {counts.deleted} deleted"
        console.say(f"wrote {counts.written} pictures to {evidence.folder}; {lost}")
    console.say(f"wrote {config.journal}")
    return console.NO if station.statistics.outcomes[Outcome.FAULT] > 0 else console.DONE


def _close_journal(journal: SqliteJournal, heads: HeadKeeper) -> None:
    journal.close()
    heads.note(journal.head, due=True)


def _open_evidence(config: StationConfig, run: str, journal: SqliteJournal, bundle: Bundle) -> EvidenceFolder | None:
    wanted = config.evidence
    if wanted is None:
        return None
    return EvidenceFolder(
        wanted.folder,
        run,
        journal,
        Choice(every=wanted.every, near=wanted.near_spreads * bundle.manifest.golden.spread),
        quota_bytes=round(wanted.quota_mb * 1e6),
        waiting=wanted.waiting,
        complain=console.warn,
    )


def _open_trusted(bundle: Bundle, config: StationConfig, calibration: Calibration) -> Inspector:
    inspector = Inspector(bundle, config.backend, precision=config.precision, threads=config.threads, search=config.search)
    faults = binding_faults(inspector, calibration, config.station, config.camera) or list(self_test(inspector).faults)
    if faults:
        inspector.close()
        raise StationError("; ".join(faults))
    return inspector


def _open_camera(config: StationConfig, beat: Callable[[], None] = lambda: None) -> Camera:
    source, clock = config.source, SystemClock(beat)
    if not isinstance(source, FolderSource):
        # a thread of the camera's sleeps by its clock, and only the deciding loop may beat
        return OpenCVCamera(source.device, SystemClock(), timeout_ms=source.timeout_ms, beat=beat)
    period_ns = 0 if source.fps is None else round(1e9 / source.fps)
    if source.path.is_dir():
        return FolderCamera(source.path, clock, period_ns)
    return VideoCamera(source.path, clock, period_ns)


def _describe(config: StationConfig, rejector: Rejector) -> str:
    lines = "dry run" if isinstance(config.rejector, DryRun) else f"lines by {config.rejector.driver}"
    if not isinstance(rejector, ProcessRejector):
        return lines
    got = f"real-time priority {rejector.priority}" if rejector.priority > 0 else "no real-time priority"
    return f"{lines}, rejector with {got}{', memory locked' if rejector.locked else ''}"


def _end_process(rejector: Rejector) -> dict[str, dict[str, int]]:
    """End the rejector's process and say what it did; empty where there is none."""
    if not isinstance(rejector, ProcessRejector):
        return {}
    rejector.close()
    return {"rejector": {count.name.lower(): rejector.counts[count] for count in Count if rejector.counts[count] > 0}}


def _print_verdict(verdict: Verdict) -> None:
    score = "-" if verdict.score is None or not math.isfinite(verdict.score) else f"{verdict.score:.6g}"
    line = f"part {verdict.part:5d}  {verdict.outcome.value:6}  {score:>9}  {verdict.latency_ms:7.1f} ms  {verdict.source}"
    console.say(line + (f"  ({verdict.reason})" if verdict.outcome is Outcome.FAULT else ""))


def _print_statistics(statistics: Statistics, seconds: float) -> None:
    outcomes = (Outcome.PASS, Outcome.REJECT, Outcome.FAULT)
    folders = sorted({folder for folder, _ in statistics.by_folder})
    rows = [(folder, *(statistics.by_folder[folder, outcome] for outcome in outcomes)) for folder in folders]
    if len(rows) > 1:
        rows.append(("all", *(statistics.outcomes[outcome] for outcome in outcomes)))
    console.table("verdicts", ("source", *(outcome.value for outcome in outcomes)), rows)
    quantiles = ", ".join(f"p{q} {statistics.latency_ms(q):.1f}" for q in (50, 95, 99))
    console.say(f"{statistics.parts} parts in {seconds:.1f} s; latency {quantiles} ms")


if __name__ == "__main__":
    sys.exit(main())
