"""What must hold after a shift, held against the levels of the reject line and the rows of the journal."""

from __future__ import annotations

import bisect
import contextlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak_faults import Shift
from benchmarks.soak_plant import (
    DEADLINE_NS,
    HEARTBEAT_NS,
    JITTER_NS,
    MS,
    PULSE_NS,
    SEPARATION_NS,
    TRAVEL_NS,
    Plant,
    Triggered,
)
from edge.audit import audit
from edge.chain import EVENT, PART, open_for_reading
from edge.verdict import Outcome

_REACH_NS = TRAVEL_NS + PULSE_NS + SEPARATION_NS
Row = dict[str, Any]


@dataclass
class Findings:
    """What was found.

    Attributes:
        counts: by what was looked at, and what was let off by which rule.
        wrong: one line each.
        head: hash of the journal's newest row.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    head: str = ""


@dataclass
class Kept:
    """What the journal holds.

    Attributes:
        rows: of parts, by run and number.
        gaps: first and last part of each, by run.
        interrupted: the last part that had a row when a later start found a run cut off, by run.
    """

    rows: dict[tuple[str, int], list[Row]] = field(default_factory=lambda: defaultdict(list))
    gaps: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    last: dict[str, int] = field(default_factory=dict)
    interrupted: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class Window:
    """When a part is at the ejector, and whether it was passed in time."""

    start: int
    end: int
    passed: bool
    what: str
    triggered: Triggered | None
    told_ns: int = 0
    excuse: str = ""


def read_journal(path: Path) -> Kept:
    """All rows of parts and events."""
    kept = Kept()
    with contextlib.closing(open_for_reading(path)) as connection:
        for kind, body in connection.execute("SELECT kind, body FROM chain ORDER BY id"):
            row = json.loads(body)
            if kind == PART:
                kept.rows[row["run"], row["part"]].append(row)
                kept.last[row["run"]] = row["part"]
            elif kind == EVENT and row["event"] == "gap":
                kept.gaps[row["run"]].append((row["details"]["first"], row["details"]["last"]))
            elif kind == EVENT and row["event"] == "interrupted":
                kept.interrupted[row["details"]["run"]] = row["details"]["last_part"] or 0
    return kept


def check(shifts: list[Shift], path: Path, thresholds: Mapping[str, float]) -> Findings:
    """Hold everything against everything; `thresholds` by recipe."""
    found = Findings()
    report = audit(path)
    if report.broken is not None:
        found.wrong.append(f"the journal's chain: {report.broken}")
    found.counts["journal rows, chain whole"], found.head = report.rows, report.head.hash
    kept = read_journal(path)
    known = {(trig.run, trig.number) for shift in shifts for trig in shift.plant.triggered}
    for run, number in kept.rows.keys() - known:
        found.wrong.append(f"{run} part {number}: a row of a part that never triggered")
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    for (run, _), rows in kept.rows.items():
        outcomes[run][rows[-1]["outcome"]] += 1
    for run, counted in outcomes.items():
        if +report.runs[run].outcomes != counted:
            found.wrong.append(f"{run}: the audit counts {dict(report.runs[run].outcomes)}, the rows are {dict(counted)}")
    for shift in shifts:
        windows = [_judged(shift, triggered, kept, thresholds, found) for triggered in shift.plant.triggered]
        windows += [
            Window(start, start + PULSE_NS, False, f"thing {part.number}, which never triggered", None)
            for part in shift.plant.parts.values()
            if not part.triggers
            for start in [part.at_ns + part.exit_offset_ns * (not shift.plant.announced) + TRAVEL_NS]
        ]
        windows += [
            Window(
                at_ns + TRAVEL_NS, at_ns + TRAVEL_NS + PULSE_NS, False, f"a thing that came at {at_ns / MS} ms, unseen", None
            )
            for at_ns in shift.plant.unseen
        ]
        found.counts["things that came while vision, which announces them, was stopped"] += len(shift.plant.unseen)
        found.counts["things that never triggered"] += sum(not part.triggers for part in shift.plant.parts.values())
        _physics(shift.plant, sorted(windows, key=lambda window: window.start), found)
        _counts_agree(shift, kept, found)
    return found


def _judged(shift: Shift, triggered: Triggered, kept: Kept, thresholds: Mapping[str, float], found: Findings) -> Window:
    """One verdict, in the journal and to the rejector; and what it allows."""
    at_ns, run, number = triggered.at_ns, triggered.run, triggered.number
    name = f"{run or 'nobody'} part {number} (thing {triggered.part.number}) at {at_ns / MS:.3f} ms"
    window = Window(at_ns + TRAVEL_NS, at_ns + TRAVEL_NS + PULSE_NS, False, name, triggered)
    found.counts["triggers"] += 1
    if not run:
        found.counts["no row: triggered while no process lived"] += 1
        return window
    vision = shift.visions[run]
    rows = kept.rows.get((run, number), [])
    told = [] if vision.talk is None else vision.talk.told.get(number, [])
    if not rows:
        found.counts["no row: " + _no_row(shift, triggered, kept, found, name)] += 1
        if any(passed for passed, _ in told):
            found.wrong.append(f"{name}: passed without a row; told {told}")
        return window
    row = rows[-1]
    found.counts[f"rows: {row['outcome']}"] += 1
    _late_picture(triggered, row, told, found, name)
    if len(rows) > 2 or (len(rows) == 2 and row["outcome"] != Outcome.FAULT.value):
        found.wrong.append(f"{name}: {len(rows)} rows: {[(each['outcome'], each['reason']) for each in rows]}")
    found.counts["rows replaced by a FAULT"] += len(rows) == 2
    found.counts["FAULT written by the next start"] += "the station ended before" in row["reason"]
    if len(told) > 1:
        found.wrong.append(f"{name}: the rejector was told {told}, expected one verdict")
    passes = [when for passed, when in told if passed]
    if row["outcome"] != Outcome.PASS.value:
        if passes:
            found.wrong.append(f"{name}: the rejector was told PASS, the row says {row['outcome']}: {row['reason']}")
        return window
    _rightly_passed(shift, triggered, row, thresholds, found, name)
    if passes and not at_ns <= passes[0] <= at_ns + DEADLINE_NS:
        found.wrong.append(f"{name}: the rejector was told PASS {(passes[0] - at_ns) / MS:.3f} ms after the trigger")
    if not passes:
        found.counts["PASS rows of parts that were rejected: killed behind the row"] += 1
        if vision.ended != "killed":
            found.wrong.append(f"{name}: PASS in the journal, the rejector was not told; the run ended: {vision.ended}")
        return window
    window.passed, window.told_ns = True, passes[0]
    return window


def _late_picture(triggered: Triggered, row: Row, told: list[tuple[bool, int]], found: Findings, name: str) -> None:
    """No part passes whose picture came when the part was at the ejector already."""
    late_ns = triggered.part.given_ns - triggered.at_ns
    if late_ns <= TRAVEL_NS:
        return
    found.counts["rows of parts whose picture came when they were at the ejector already"] += 1
    if row["outcome"] == Outcome.PASS.value or any(passed for passed, _ in told):
        found.wrong.append(f"{name}: PASS, and its picture came {late_ns / MS:.3f} ms after the trigger; told {told}")


def _rightly_passed(
    shift: Shift, triggered: Triggered, row: Row, thresholds: Mapping[str, float], found: Findings, name: str
) -> None:
    """By a score below the threshold, of its own picture, by the recipe that was in force when it triggered."""
    score = row["score"]
    if not (isinstance(score, float) and math.isfinite(score) and score <= row["threshold"] == thresholds[row["recipe"]]):
        found.wrong.append(f"{name}: PASS with score {score}, threshold {row['threshold']}, recipe {row['recipe']}")
    recipe = [name for since, name in shift.visions[triggered.run].in_force if since <= triggered.at_ns][-1]
    if row["recipe"] != recipe:
        found.wrong.append(f"{name}: PASS by the recipe {row['recipe']}, {recipe} was in force when it triggered")
    if row["source"] != str(triggered.part.number) or score != triggered.part.treatment.score:
        found.wrong.append(f"{name}: PASS by the picture of thing {row['source']}, score {score}: {triggered.part.treatment}")


def _no_row(shift: Shift, triggered: Triggered, kept: Kept, found: Findings, name: str) -> str:
    """Why a part that triggered has no row."""
    run, number = triggered.run, triggered.number
    vision = shift.visions[run]
    if any(first <= number <= last for first, last in kept.gaps[run]):
        return "in a recorded gap"
    if vision.station is None:
        return "its station did not come to run: the journal was locked or full, or it was killed"
    if triggered.at_ns >= vision.ended_ns:
        return "triggered after its station ended"
    if run in kept.interrupted and number > kept.interrupted[run]:
        return "waited when its station was cut off"
    if not shift.plant.announced and number > vision.heard:
        return "vision did not take it: it was ending, or the rejector was killed or stopped"
    found.wrong.append(f"{name}: no row; the last one is {kept.last.get(run)}; the run ended: {vision.ended}")
    return "WRONG"


def _physics(plant: Plant, windows: list[Window], found: Findings) -> None:
    """Every window that must be covered is, and no other one is touched without an excuse."""
    rejects = [(at_ns, not active) for at_ns, active in plant.outputs["reject"]]
    times = [at_ns for at_ns, _ in rejects]
    plant.losses.sort()
    touched = []
    for window in windows:
        pieces = _pieces(rejects, times, window.start, window.end)
        opened = [(start, end) for start, end, rejected in pieces if not rejected]
        if not window.passed:
            found.counts["windows to be covered"] += 1
            _let_by(plant, window, opened, rejects, found)
            continue
        found.counts["windows of passed parts"] += 1
        if any(rejected for _, _, rejected in pieces):
            window.excuse = _excuse(plant, window)
            touched.append(window)
    groups = _groups(windows)
    for window in touched:
        excuse = window.excuse
        if not excuse:
            excuse = _company(window, groups[id(window)])
        if not excuse:
            levels = _around(rejects, window)
            found.wrong.append(f"{window.what}: passed at {window.told_ns / MS:.3f} ms and rejected; levels: {levels}")
        found.counts[f"passed and rejected: {excuse or 'WRONG'}"] += 1


def _company(window: Window, group: list[Window]) -> str:
    """Why a part goes with those that the ejector cannot tell it from."""
    others = [other for other in group if other is not window]
    if any(not other.passed or other.excuse for other in others):
        return "too close to a rejected one"
    out = len(group) > 1 and any(member.told_ns + JITTER_NS > group[0].start for member in group)  # when the first one opened
    return "too close to one that was rejected as a verdict of theirs was still out" if out else ""


def _let_by(
    plant: Plant, window: Window, opened: list[tuple[int, int]], rejects: list[tuple[int, bool]], found: Findings
) -> None:
    """Where the line let pass in a window that must be covered: only while the rejector's process stood still."""
    before = _minus(opened, [(since, opens) for since, _, opens in plant.still])
    beyond = _minus(before, [(opens, to) for _, to, opens in plant.still])
    if beyond:
        found.wrong.append(f"{window.what}: not rejected all through its window; levels: {_around(rejects, window)}")
    elif before != opened:
        found.counts["let by: the rejector stood still and a relay on its heartbeat had not opened"] += 1
    elif before:
        found.counts["rejected by a relay on the heartbeat alone: the rejector stood still"] += 1


def _minus(pieces: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of some intervals lies outside others."""
    for since, to in others:
        halves = [half for start, end in pieces for half in ((start, min(end, since)), (max(start, to), end))]
        pieces = [(start, end) for start, end in halves if start < end] if since < to else pieces
    return pieces


def _around(levels: list[tuple[int, bool]], window: Window) -> list[tuple[float, bool]]:
    """Changes of the line's level about a window, in ms after its start."""
    return [((at_ns - window.start) / MS, level) for at_ns, level in levels if abs(at_ns - window.start) < 2 * TRAVEL_NS]


def _excuse(plant: Plant, window: Window) -> str:
    """Why a passed part may have been rejected, its neighbours apart."""
    assert window.triggered is not None
    at_ns, start, end = window.triggered.at_ns, window.start, window.end
    unready, stopped = _intervals(plant.outputs["ready"], False), _intervals(plant.outputs["fault"], True)
    index = bisect.bisect_left(plant.losses, at_ns - HEARTBEAT_NS - 2 * JITTER_NS)
    lost = index < len(plant.losses) and plant.losses[index] <= end
    down_ns = next((low for low, high in unready if low <= at_ns < high), None)  # a loss that it does not know of itself
    lost = lost or (down_ns is not None and any(down_ns - 2 * HEARTBEAT_NS <= loss <= down_ns for loss in plant.losses))
    rules = {
        "vision or the rejector was lost": lost or any(since <= end and at_ns <= to for since, to, _ in plant.still),
        "under way when the lines were taken": any(taken < end and start < taken + _REACH_NS for taken in plant.taken),
        "announced, and the station was not ready": plant.announced
        and any(low < end and start < high + _REACH_NS for low, high in unready),
        "triggered as the station became ready": any(low <= at_ns < high <= at_ns + 2 * JITTER_NS for low, high in unready),
        "its PASS came to the rejector after the deadline": window.told_ns + JITTER_NS > at_ns + DEADLINE_NS,
        "the rejector had stopped for good": any(low <= end and at_ns <= high for low, high in stopped),
    }
    return next((rule for rule, holds in rules.items() if holds), "")


def _intervals(levels: list[tuple[int, bool]], wanted: bool) -> list[tuple[int, int]]:
    ends = [at_ns for at_ns, _ in levels[1:]] + [2**62]
    return [(start, end) for (start, level), end in zip(levels, ends, strict=True) if level is wanted]


def _pieces(levels: list[tuple[int, bool]], times: list[int], start: int, end: int) -> list[tuple[int, int, bool]]:
    """(from, to, level) of a trace between two times."""
    first = max(0, bisect.bisect_right(times, start) - 1)
    last = bisect.bisect_left(times, end)
    bounds = [(max(start, at_ns), level) for at_ns, level in levels[first:last]]
    ends = [at_ns for at_ns, _ in bounds[1:]] + [end]
    return [(at_ns, to, level) for (at_ns, level), to in zip(bounds, ends, strict=True) if at_ns < to]


def _groups(windows: list[Window]) -> dict[int, list[Window]]:
    """Windows that the ejector cannot tell apart, for each."""
    groups: dict[int, list[Window]] = {}
    group: list[Window] = []
    end = 0
    for window in windows:
        if group and window.start > end + SEPARATION_NS:
            group = []
        end = max(end, window.end) if group else window.end
        group.append(window)
        groups[id(window)] = group
    return groups


def _counts_agree(shift: Shift, kept: Kept, found: Findings) -> None:
    """Of runs that ended in order: what the station counted is what triggered."""
    triggers: Counter[str] = Counter()
    for triggered in shift.plant.triggered:
        heard = shift.plant.announced or not triggered.run or triggered.number <= shift.visions[triggered.run].heard
        triggers[triggered.run] += heard
    for run, vision in shift.visions.items():
        found.counts[f"runs: {vision.ended if vision.ended in ('stopped', 'killed') else 'ended by an error'}"] += 1
        if vision.ended == "stopped" and vision.station is not None:
            counted = vision.station.statistics.parts
            if counted != triggers[run]:
                found.wrong.append(f"{run}: {counted} parts counted, {triggers[run]} triggered")
