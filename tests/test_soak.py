"""Thousands of parts while everything fails, on a simulated clock; and that what would be a danger is found there."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import soak as door
from benchmarks import soak_station
from benchmarks.soak import memory_folder, soak
from benchmarks.soak_check import Findings, Window, _excuse, check
from benchmarks.soak_faults import RATES, Shift, make_shift
from benchmarks.soak_plant import MS, PULSE_NS, TRAVEL_NS, Part, Treatment, Triggered
from benchmarks.soak_station import Vision
from edge import intake as intake_module
from edge import station as station_module
from edge.announcing import AnnouncingRejector
from edge.intake import join_triggers
from edge.rejector import Rejector
from edge.schedule import Schedule
from edge.station import Station
from edge.trigger import LineTriggers, TimerTriggers
from edge.triggered_camera import TriggeredCamera
from edge.verdict import Arrival, Outcome, Verdict
from edge.watchdog import Deadline


@pytest.fixture(scope="module")
def soaked() -> list[door.Soak]:
    """2,000 parts for each of several seeds."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        return [soak(2000, seed, Path(folder) / f"{seed}.db") for seed in (1, 2, 3, 4)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where an fsync costs nothing."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        yield Path(name)


def test_nothing_is_wrong_whatever_fails(soaked: list[door.Soak]) -> None:
    assert [found for done in soaked for found in done.found.wrong] == []


def test_every_fault_was_injected_and_every_kind_of_end_came(soaked: list[door.Soak]) -> None:
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for done in soaked:
        faults.update(done.faults)
        counts.update(done.found.counts)
    assert faults.keys() == RATES.keys()
    assert [fault for fault, count in faults.items() if count == 0] == []
    for looked_at in (
        "rows: PASS",
        "rows: REJECT",
        "rows: FAULT",
        "FAULT written by the next start",
        "rows replaced by a FAULT",
    ):
        assert counts[looked_at] > 0, looked_at
    assert min(counts[f"runs: {ended}"] for ended in ("stopped", "killed", "ended by an error")) > 0
    assert counts["windows of passed parts"] > 3000
    assert counts["windows to be covered"] > 1000


def test_a_seed_is_a_run(folder: Path) -> None:
    first, again, other = (soak(300, seed, folder / f"{number}.db") for number, seed in enumerate((5, 5, 6)))
    assert first.head == again.head != other.head
    assert first.found == again.found
    assert first.faults == again.faults


def wrong(found: Findings, what: str) -> bool:
    return any(what in line for line in found.wrong)


def found(folder: Path, monkeypatch: pytest.MonkeyPatch, *often: str, make: type[Vision] = Vision) -> Findings:
    """Of a short soak in which some faults come often."""
    for fault in often:
        monkeypatch.setitem(RATES, fault, 1 / 40)
    return soak(750, 1, folder / "journal.db", make=make).found


def held_against_the_rules(shift: Shift, end_ns: int) -> Findings:
    """What was found once all happened that was laid."""
    shift.live(end_ns, door.CALIBRATIONS)
    return check([shift], shift.path, {record.recipe: record.threshold for record in door.CALIBRATIONS})


class PassesOnTimeout(Station):
    """A detector that finds nothing in time has found no defect."""

    def _decide(self, arrival: Arrival, deadline: Deadline) -> Verdict:
        verdict = super()._decide(arrival, deadline)
        late = verdict.outcome is Outcome.FAULT and "no score by the deadline" in verdict.reason
        return dataclasses.replace(verdict, outcome=Outcome.PASS, score=0.0, reason="") if late else verdict


class PassesOnTimeoutVision(Vision):
    make = PassesOnTimeout


def test_a_station_that_passes_on_timeout_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong(found(folder, monkeypatch, "slow inference", make=PassesOnTimeoutVision), "PASS by the picture of")


def test_a_station_that_forgets_the_deadline_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "passed", lambda deadline, now_ns: False)
    assert wrong(found(folder, monkeypatch, "inference that answers late"), "ms after the trigger")


def test_a_station_that_passes_a_score_of_no_number_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def naive(score: float, threshold: float) -> tuple[Outcome, str]:
        return (Outcome.REJECT if score > threshold else Outcome.PASS), ""

    monkeypatch.setattr(station_module, "compare", naive)
    assert wrong(found(folder, monkeypatch, "score NaN or infinite"), "PASS with score None")


def test_a_station_that_forgets_the_parts_that_wait_when_it_fails_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Station, "_give_up", lambda station, reason: None)
    assert wrong(found(folder, monkeypatch, "kill -9 of the rejector", "burst of triggers"), "no row")


def test_a_schedule_that_waits_for_a_verdict_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Schedule, "_doomed", lambda schedule, part: part.judged and not part.passed)
    assert wrong(found(folder, monkeypatch, "SIGSTOP of vision"), "not rejected all through its window")


def test_a_schedule_that_forgets_what_was_under_way_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Schedule, "_distrust", lambda schedule: None)
    assert wrong(found(folder, monkeypatch, "kill -9 of the rejector"), "not rejected all through its window")


def test_a_schedule_that_rejects_neighbours_beyond_the_separation_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Schedule, "_shares_a_reject", lambda schedule, index: index > 0 and bool(schedule._parts[index - 1].fate)
    )
    assert wrong(found(folder, monkeypatch), "and rejected")


def test_a_journal_that_drops_a_row_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = itertools.count(1)
    keep = soak_station.Journal.verdict

    def drop(journal: soak_station.Journal, verdict: Verdict) -> None:
        if next(counter) != 100:
            keep(journal, verdict)

    monkeypatch.setattr(soak_station.Journal, "verdict", drop)
    assert wrong(found(folder, monkeypatch), "no row; the last one is")


def test_a_camera_whose_pictures_slip_by_a_part_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slipping(camera: Any, triggers: Any, rejector: Any) -> tuple[TriggeredCamera, Rejector]:
        return join_triggers(camera, triggers, rejector, replayed=True)

    monkeypatch.setattr(soak_station, "join_triggers", slipping)
    assert wrong(found(folder, monkeypatch, "frame lost"), "PASS by the picture of")


def test_a_line_that_hears_of_a_part_only_with_its_picture_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def triggers_alone(rejector: Rejector, source: Any) -> AnnouncingRejector:
        return AnnouncingRejector(rejector, source._triggers)

    monkeypatch.setattr(intake_module, "AnnouncingRejector", triggers_alone)
    often = "picture later than the deadline", "SIGTERM of vision"  # each start draws for how long it waits for a picture
    assert wrong(found(folder, monkeypatch, *often), "not rejected all through its window")


def test_a_line_that_does_not_hear_of_a_timers_parts_that_wait_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimerTriggers, "pending", lambda triggers: [])
    often = "picture later than the deadline", "SIGTERM of vision"  # each start draws for how long it waits for a picture
    assert wrong(found(folder, monkeypatch, *often), "not rejected all through its window")


@pytest.mark.parametrize("settles", [True, False])
def test_a_station_that_takes_a_picture_before_it_knows_of_its_part_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settles: bool
) -> None:
    if not settles:
        monkeypatch.setattr(LineTriggers, "settle", lambda triggers, at_ns: None)
    shift = make_shift(0, 1, folder / "journal.db")
    at_ns = shift.plant.now_ns + 800 * MS
    shift.lay(Part(1, at_ns, Treatment(frame="lost")))
    shift.lay_fault("SIGSTOP of the rejector", at_ns + 2 * MS)  # which owns the line and tells of the second part later
    shift.lay(Part(2, at_ns + 40 * MS, Treatment()))
    assert wrong(held_against_the_rules(shift, at_ns + 1000 * MS), "PASS by the picture of") is not settles


def test_a_part_that_passes_by_a_recipe_that_came_after_it_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Station, "_may_pass", lambda station, arrival: station.state.passes)
    assert wrong(found(folder, monkeypatch, "change of recipe"), "was in force when it triggered")


def test_a_rejector_that_stopped_excuses_no_part_after_the_next_start(folder: Path) -> None:
    shift = make_shift(0, 0, folder / "journal.db")
    plant = shift.plant
    plant.close()
    second = 10**9
    for since_s, stopped in ((10, True), (20, False)):
        plant.outputs["fault"].append((plant.now_ns + since_s * second, stopped))
    plant.outputs["ready"].append((plant.now_ns, True))
    excuses = []
    for at_s in (5, 12, 60):
        at_ns = plant.now_ns + at_s * second
        triggered = Triggered(at_ns, Part(1, at_ns, Treatment()))
        excuses.append(_excuse(plant, Window(at_ns + TRAVEL_NS, at_ns + TRAVEL_NS + PULSE_NS, True, "a part", triggered)))
    assert excuses == ["", "the rejector had stopped for good", ""]


def test_rows_that_the_last_run_could_not_write_are_told_by_one_more_start(folder: Path) -> None:
    shift = make_shift(0, 1, folder / "journal.db")
    at_ns = shift.plant.now_ns + 800 * MS
    for fault in ("disk full", "SIGSTOP of the rejector"):
        shift.lay_fault(fault, at_ns)
    shift.lay(Part(1, at_ns + 8 * MS, Treatment()))
    shift.lay(Part(2, at_ns + 16 * MS, Treatment(), bounce_ns=2 * MS))
    found = held_against_the_rules(shift, at_ns + 1016 * MS)
    assert found.wrong == []
    assert found.counts["FAULT written by the next start"] > 0


def test_a_part_that_a_full_disk_and_a_lock_kept_from_its_row_is_behind_what_the_next_start_says(folder: Path) -> None:
    shift = make_shift(2, 6, folder / "journal.db")
    at_ns = shift.plant.now_ns + 800 * MS
    for fault, later_ms in (("camera lost", 0), ("camera lost", 0), ("disk full", 60), ("journal locked", 460)):
        shift.lay_fault(fault, at_ns + later_ms * MS)
    assert held_against_the_rules(shift, at_ns + 1460 * MS).wrong == []


def test_the_door_prints_its_tables_and_ends_with_1_where_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main(["--parts", "100", "--seed", "3", "--json", str(tmp_path / "figures.json")]) == 0
    assert "faults injected into 100 parts, seed 3" in capsys.readouterr().out
    monkeypatch.setattr(Schedule, "_doomed", lambda schedule, part: part.judged and not part.passed)
    assert door.main(["--parts", "400", "--seed", "3"]) == 1
    assert "WRONG  " in capsys.readouterr().out
