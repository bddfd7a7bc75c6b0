"""Joins the pieces of a station as its configuration says, runs it, and takes it apart in order. It chooses implementations."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import time
from collections.abc import Callable, Mapping

from calibration.record import Calibration
from edge import StationError
from edge.camera import Camera, FolderCamera, OpenCVCamera, VideoCamera
from edge.check import binding_faults, self_test
from edge.clock import SystemClock
from edge.evidence import Choice, EvidenceFolder
from edge.heads import HeadKeeper
from edge.intake import Intake, looks_aside
from edge.journal import SqliteJournal
from edge.rejector import ProcessRejector, Rejector
from edge.schedule import Count
from edge.sections import DryRun, FolderSource, StationConfig
from edge.station import Station, Statistics
from edge.truth import newest_label
from edge.verdict import Outcome, Verdict
from edge.worker import InspectorThread
from engines import __version__, console
from engines.bundle import Bundle, load_bundle
from engines.inspector import Inspector


def run_station(config: StationConfig, calibration: Calibration, open_rejector: Callable[[], Rejector]) -> int:
    """Refuse or run: nothing is judged before the bundle, the calibration and the self-test are in order."""
    bundle = load_bundle(config.bundle)

    def beat() -> None:  # while the station waits for a score or a frame, which it does once the rejector is there
        intake.rejector.beat()

    with contextlib.ExitStack() as closing:  # from the last to the first, each even where another fails: the line first
        scorer = InspectorThread(lambda: _open_trusted(bundle, config, calibration), beat)
        closing.callback(scorer.close)
        camera = open_camera(config) if looks_aside(config) else open_camera(config, beat)
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
        intake = Intake(config, camera, rejector, beat, journal.later)
        closing.callback(intake.close)
        journal.event("started", _begins(config, calibration))
        heads.note(journal.head, due=True)
        console.say(
            f"{config.station} ready: threshold {calibration.threshold:.6g}, deadline {config.deadline_ms:g} ms,"
            f" {_describe(config, rejector)}"
        )
        station = Station(
            scorer=scorer,
            threshold=calibration.threshold,
            rejector=intake.rejector,
            journal=journal,
            clock=SystemClock(),
            deadline_ms=config.deadline_ms,
            evidence=evidence,
        )
        intake.serve(lambda: _status(config, calibration, station, intake))

        def tell(verdict: Verdict) -> None:
            _print_verdict(verdict)
            intake.tell(verdict)
            heads.note(journal.head)

        begun = time.monotonic()
        try:
            station.run(intake.camera, tell)
            if isinstance(rejector, ProcessRejector):
                rejector.drain()
            reason = "end of the source"
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise
        finally:
            did = _end_process(rejector)
            intake.close()
            came = intake.counts()
            journal.event("stopped", {"parts": station.statistics.parts, "reason": reason, "intake": came, **did})
            _print_statistics(station.statistics, time.monotonic() - begun)
            _print_counts({f"trigger by {config.triggered.kind}": came, **did})
    if evidence is not None:
        _print_evidence(evidence)
    console.say(f"wrote {config.journal}")
    return console.NO if station.statistics.outcomes[Outcome.FAULT] > 0 else console.DONE


def _status(config: StationConfig, calibration: Calibration, station: Station, intake: Intake) -> dict[str, object]:
    outcomes = {outcome.value: station.statistics.outcomes[outcome] for outcome in Outcome}
    parts = {"station": config.station, "recipe": calibration.recipe, "parts": sum(outcomes.values()), "outcomes": outcomes}
    return {**parts, "trigger": config.triggered.kind, "intake": intake.counts()}


def _begins(config: StationConfig, calibration: Calibration) -> dict[str, object]:
    labels = newest_label(config.journal)
    return {"version": __version__, "station": config.station, "calibration": calibration.model_dump(), "labels": labels}


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


def open_camera(config: StationConfig, beat: Callable[[], None] = lambda: None) -> Camera:
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


def _print_counts(counts: Mapping[str, Mapping[str, int]]) -> None:
    for of, by_name in counts.items():
        if by_name:
            console.say(f"{of}: " + ", ".join(f"{name} {count}" for name, count in by_name.items()))


def _print_evidence(evidence: EvidenceFolder) -> None:
    counts = evidence.counts
    lost = f"{counts.dropped} dropped, {counts.no_room} without room, {counts.failed} failed, {counts.deleted} deleted"
    console.say(f"wrote {counts.written} pictures to {evidence.folder}; {lost}")


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
