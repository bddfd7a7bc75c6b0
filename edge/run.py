"""Joins the pieces of a station as its configuration says, runs it, and takes it apart in order. It chooses implementations."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from calibration.history import history_fault
from calibration.record import Calibration
from edge.camera import Camera, FolderCamera, VideoCamera
from edge.camera_sections import AnyLive, CsiSource, FolderSource, GenicamSource
from edge.changeover import Changeover, InForce, start
from edge.clock import SystemClock
from edge.config import rejector_setup
from edge.device import Device
from edge.disk import DiskSpace
from edge.genicam import GenicamDevice
from edge.hold import Hold
from edge.intake import Intake, looks_aside
from edge.journal import SqliteJournal
from edge.kept import Kept
from edge.live import LiveCamera
from edge.opencv_device import CsiDevice, opencv_device
from edge.recipes import Loaded, Shelf, open_recipe
from edge.rejector import ProcessRejector, Rejector
from edge.reload import Reload, read_reload
from edge.schedule import Count
from edge.screen import Screen
from edge.sections import DryRun, Gpio, LineTrigger, SoftwareTrigger, StationConfig, TimerTrigger
from edge.service import Service
from edge.states import State, Transition
from edge.station import Condition, Station
from edge.statistics import PERCENTS, Statistics
from edge.systemd import Notifier
from edge.truth import newest_label
from edge.verdict import Outcome, Verdict
from edge.watchers import Watchers
from engines import __version__, console


def run_station(
    recipes: Mapping[str, StationConfig], open_rejector: Callable[[StationConfig], Rejector], service: Path | None = None
) -> int:
    """Refuse or run: nothing is judged before the bundle, the calibration and the self-test are in order.

    Args:
        recipes: the station as it is set up for each; the first one is started with unless another one was chosen since.
        open_rejector: takes the lines.
        service: the configuration's file where SIGTERM ends the station in order, SIGHUP has the file read again, and the
            recipe that was chosen last is remembered.
    """
    first = next(iter(recipes.values()))
    notifier, hold = Notifier(), Hold()
    line: Rejector | None = None

    def beat() -> None:  # while the journal waits; parts that come meanwhile are announced all the same
        if line is not None:
            line.beat()
        notifier.turn()

    def turn() -> None:  # while the station waits for a score or a part
        station.turn()
        notifier.turn()
        screen.turn(time.monotonic_ns())

    # from the last to the first, each even where another fails: the line first; signals are heeded until all is closed
    with contextlib.ExitStack() as outer, contextlib.ExitStack() as closing:
        outer.callback(notifier.close)
        shelf = closing.enter_context(contextlib.closing(Shelf(lambda config: open_recipe(config, turn), first.keep_loaded)))
        in_force, rolled_back, doubts = _load(recipes, shelf, None if service is None else first.active)
        config = in_force.loaded.config
        camera = open_camera(config) if looks_aside(config) else open_camera(config, turn)
        closing.callback(camera.close)
        live = camera if isinstance(camera, LiveCamera) else None
        run = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}"
        clock = SystemClock(beat)
        kept = Kept(config, run, in_force.loaded.spread, console.say, console.warn)
        closing.callback(kept.close_heads)
        journal = SqliteJournal(config.journal, run, clock, timeout_ms=config.journal_timeout_ms, station=config.station)
        closing.callback(lambda: _close_journal(journal, kept))
        kept.open_evidence(journal)
        closing.callback(kept.close_evidence)
        line = rejector = closing.enter_context(contextlib.closing(open_rejector(config)))
        intake = closing.enter_context(contextlib.closing(Intake(config, camera, rejector, turn, journal.later)))
        line = intake.rejector
        _note_start(journal, kept, in_force, rolled_back, doubts)
        station = Station(
            judge=in_force.loaded.judge,
            rejector=intake.rejector,
            journal=journal,
            clock=clock,
            deadline_ms=config.deadline_ms,
            evidence=kept.evidence,
            conditions=[Condition("disk", DiskSpace(config.journal.parent, clock).fault), Condition("hold", hold.fault)],
            waiting=intake.waiting,
            rest=intake.rest,
            on_state=lambda transition: _tell_state(
                transition, notifier, station, intake, config.station, _describe(config, rejector)
            ),
        )
        watchers = Watchers(config, station, clock, later=journal.later, say=console.say, complain=console.warn)
        changeover = _changing(recipes, shelf, in_force, station, live, rejector, kept, journal, watchers)
        screen = outer.enter_context(contextlib.closing(Screen(station.status, _print_verdict)))
        if service is not None:
            heed = Service(
                station, notifier, *_reloading(service, station, changeover, kept, journal), console.say, console.warn
            )
            outer.enter_context(heed.signals())
        intake.serve(
            lambda: _status(config, station, intake),
            change_recipe=lambda name, who, why: str(changeover.change(name, who=who, why=why)),
            roll_back=lambda who, why: str(changeover.roll_back(who=who, why=why)),
            halt=_noted(station, "halt", hold.halt),
            resume=_noted(station, "resume", hold.resume),
            reset_drift=watchers.reset_drift,
            challenge=watchers.challenge,
        )

        def tell(verdict: Verdict) -> None:
            screen.verdict(verdict, time.monotonic_ns())
            intake.tell(verdict)
            kept.heads.note(journal.head)
            notifier.turn()
            watchers.tell(verdict)

        watchers.start(in_force.loaded, f"the start by {console.account()}", beat)
        _run(station, intake, tell, rejector, journal, notifier, screen, config.triggered.kind)
    kept.report()
    console.say(f"wrote {config.journal}")
    return console.NO if station.statistics.outcomes[Outcome.FAULT] > 0 and not station.stopping else console.DONE


def _status(config: StationConfig, station: Station, intake: Intake) -> dict[str, object]:
    about: dict[str, object] = {"station": config.station, "trigger": config.triggered.kind, "intake": intake.counts()}
    return {**about, **station.status()}


def _noted(station: Station, name: str, act: Callable[[], None]) -> Callable[[str, str], None]:
    """For somebody and for a reason, at once; the journal has it from between the next two parts."""

    def done_by(who: str, why: str) -> None:
        act()
        station.post(lambda: station.note(name, {"who": who, "why": why}))

    return done_by


def _load(recipes: Mapping[str, StationConfig], shelf: Shelf, path: Path | None) -> tuple[InForce, str, list[dict[str, str]]]:
    """What is judged by from the start, why it was rolled back to, and what to note of the records' histories.

    Beside it as many other recipes are loaded as there is room for.
    """
    in_force, rolled_back = start(recipes, shelf, path)
    others = [config for name, config in recipes.items() if name != in_force.loaded.config.recipe]
    shelf.fill(others, lambda config, error: console.warn(f"recipe {config.recipe} cannot be changed to as it is: {error}"))
    return in_force, rolled_back, _doubt(in_force.loaded.config, recipes)


def _doubt(in_force: StationConfig, recipes: Mapping[str, StationConfig]) -> list[dict[str, str]]:
    """Records whose history is not whole. They are in force all the same: what parts are judged by is whole."""
    records = {in_force.calibration: in_force.recipe}
    for config in recipes.values():
        records.setdefault(config.calibration, config.recipe)
    found = [
        {"recipe": name, "record": str(record), "fault": fault}
        for record, name in records.items()
        if (fault := history_fault(record))
    ]
    for doubt in found:
        console.warn(f"recipe {doubt['recipe']}: the calibration's history is not whole: {doubt['fault']}")
    return found


def _note_start(
    journal: SqliteJournal, kept: Kept, in_force: InForce, rolled_back: str, doubts: Sequence[Mapping[str, str]]
) -> None:
    loaded, chosen = in_force.loaded, in_force.active.chosen.model_dump(mode="json")
    details = {"version": __version__, "station": loaded.config.station, "calibration": loaded.calibration.model_dump()}
    journal.event("started", {**details, "chosen": chosen, "labels": newest_label(loaded.config.journal)})
    if rolled_back:
        console.warn(rolled_back)
        journal.event("recipe-rolled-back", {"reason": rolled_back})
    for doubt in doubts:
        journal.event("calibration-history", doubt)
    kept.heads.note(journal.head, due=True)


def _changing(
    recipes: Mapping[str, StationConfig],
    shelf: Shelf,
    in_force: InForce,
    station: Station,
    live: LiveCamera | None,
    rejector: Rejector,
    kept: Kept,
    journal: SqliteJournal,
    watchers: Watchers,
) -> Changeover:
    """What changes the recipe: camera, timing of the line, judge, deadline, what counts as a near miss and what is watched."""

    def switch(loaded: Loaded) -> None:
        source = loaded.config.source
        if live is not None and not isinstance(source, FolderSource):  # first: what it refuses is as if nothing was asked
            live.change(make_device(source), source)
        rejector.retime(rejector_setup(loaded.config).settings)
        station.change(loaded.judge)
        station.set_deadline(loaded.config.deadline_ms)
        kept.near(loaded.spread)
        watchers.change(loaded)

    wiring = in_force.loaded.config.rejector
    by_lines = isinstance(wiring, Gpio) and len(wiring.recipe_lines) > 0
    changeover = Changeover(
        recipes=recipes,
        shelf=shelf,
        in_force=in_force,
        path=in_force.loaded.config.active,
        loop=station,
        journal=journal,
        switch=switch,
        codes=rejector.codes if by_lines and isinstance(rejector, ProcessRejector) else None,
        code_at_start=by_lines and isinstance(wiring, Gpio) and wiring.recipe_strobe is None,
    )
    station.require(Condition("recipe", changeover.fault))
    return changeover


def _run(
    station: Station,
    intake: Intake,
    tell: Callable[[Verdict], None],
    rejector: Rejector,
    journal: SqliteJournal,
    notifier: Notifier,
    screen: Screen,
    trigger: str,
) -> None:
    """Run to the end, whichever that is; then end the rejector's process, and journal and say what was done."""
    begun = time.monotonic()
    try:
        station.run(intake.camera, tell)
        notifier.stopping()
        # told to end where it announces the parts, it rejects at once what may come unseen
        if isinstance(rejector, ProcessRejector) and not (rejector.announced and station.stopping):
            rejector.drain()
        reason = station.reason
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise
    finally:
        did = _end_process(rejector)
        intake.close()
        came = intake.counts()
        journal.event("stopped", {"parts": station.statistics.parts, "reason": reason, "intake": came, **did})
        screen.close()
        _print_statistics(station.statistics, station.judge_with.calibration, time.monotonic() - begun)
        _print_counts({f"trigger by {trigger}": came, **did})


def _tell_state(
    transition: Transition, notifier: Notifier, station: Station, intake: Intake, name: str, described: str
) -> None:
    notifier.status(f"{transition.after.value}: {transition.reason}")
    if transition.after is State.READY:
        judge = station.judge_with
        limits = f"threshold {judge.threshold:.6g}, {judge.calibration.origin}; deadline {station.deadline_ms:g} ms"
        console.say(f"{name} ready: {limits}, {described}")
        notifier.ready()
        intake.begin()
    elif transition.after is State.INITIALIZED and station.faults:
        console.warn(f"not ready, every part is rejected: {station.reason}")


def _close_journal(journal: SqliteJournal, kept: Kept) -> None:
    journal.close()
    kept.heads.note(journal.head, due=True)


def _reloading(
    path: Path, station: Station, changeover: Changeover, kept: Kept, journal: SqliteJournal
) -> tuple[Callable[[], Reload], Callable[[Reload], None]]:
    """What reads a configuration again and changes the recipe to what it became, and what makes the rest the station's."""

    def read() -> Reload:
        fresh = read_reload(path, changeover.in_force.loaded)
        changeover.reconfigure(fresh.recipes, who="configuration", why="read again")
        return fresh

    def apply(fresh: Reload) -> None:
        kept.change(next(iter(fresh.recipes.values())), journal)
        station.set_evidence(kept.evidence)

    return read, apply


def open_camera(config: StationConfig, beat: Callable[[], None] = lambda: None) -> Camera:
    source = config.source
    if not isinstance(source, FolderSource):
        by_trigger = isinstance(config.triggered, (LineTrigger, SoftwareTrigger, TimerTrigger))
        return open_live(source, beat, parts_by_trigger=by_trigger)
    clock = SystemClock(beat)
    period_ns = 0 if source.fps is None else round(1e9 / source.fps)
    if source.path.is_dir():
        return FolderCamera(source.path, clock, period_ns)
    return VideoCamera(source.path, clock, period_ns)


def open_live(source: AnyLive, beat: Callable[[], None], *, parts_by_trigger: bool = False) -> LiveCamera:
    return LiveCamera(make_device(source), source, SystemClock(), beat=beat, parts_by_trigger=parts_by_trigger)


def make_device(source: AnyLive) -> Device:
    """The camera that a section describes, not open yet."""
    clock = SystemClock()  # a thread of the camera's sleeps by it, and only the deciding loop may beat
    if isinstance(source, CsiSource):
        return CsiDevice(source, clock)
    if isinstance(source, GenicamSource):
        return GenicamDevice(source, clock)
    return opencv_device(source, clock)


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


def _print_verdict(verdict: Verdict) -> None:
    score = "-" if verdict.score is None or not math.isfinite(verdict.score) else f"{verdict.score:.6g}"
    line = f"part {verdict.part:5d}  {verdict.outcome.value:6}  {score:>9}  {verdict.latency_ms:7.1f} ms  {verdict.source}"
    console.say(line + (f"  ({verdict.reason})" if verdict.outcome is Outcome.FAULT else ""))


def _print_statistics(statistics: Statistics, calibration: Calibration, seconds: float) -> None:
    outcomes = (Outcome.PASS, Outcome.REJECT, Outcome.FAULT)
    folders = sorted({folder for folder, _ in statistics.by_folder})
    rows = [(folder, *(statistics.by_folder[folder, outcome] for outcome in outcomes)) for folder in folders]
    if len(rows) > 1:
        rows.append(("all", *(statistics.outcomes[outcome] for outcome in outcomes)))
    if rows:
        console.table("verdicts", ("source", *(outcome.value for outcome in outcomes)), rows)
    quantiles = ", ".join(f"p{q} {statistics.latency_ms(q):.1f}" for q in PERCENTS)
    console.say(f"{statistics.parts} parts in {seconds:.1f} s{f'; latency {quantiles} ms' if rows else ''}")
    stages = [
        f"{name} {statistics.stage_ms(name, 50):.1f}/{statistics.stage_ms(name, 99):.1f}" for name in statistics.stages_ms
    ]
    if stages:
        console.say(f"of it, p50/p99 ms: {', '.join(stages)}")
    console.say(f"judged at threshold {calibration.threshold:.6g}, {calibration.origin}")
