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
from benchmarks.soak_check import Findings
from benchmarks.soak_faults import RATES
from benchmarks.soak_station import Vision
from edge import station as station_module
from edge.schedule import Schedule
from edge.station import Station
from edge.triggered_camera import TriggeredCamera
from edge.verdict import Arrival, Outcome, Verdict
from edge.watchdog import Deadline


@pytest.fixture(scope="module")
def soaked() -> list[door.Soak]:
    """2,000 parts for each of several seeds."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        return [soak(2000, seed, Path(folder) / f"{seed}.db") for seed in (1, 2, 3)]


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
    return soak(500, 1, folder / "journal.db", make=make).found


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
    def slipping(camera: Any, triggers: Any) -> TriggeredCamera:
        return TriggeredCamera(camera, triggers, replayed=True)

    monkeypatch.setattr(soak_station, "TriggeredCamera", slipping)
    assert wrong(found(folder, monkeypatch, "frame lost"), "PASS by the picture of")


def test_the_door_prints_its_tables_and_ends_with_1_where_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main(["--parts", "100", "--seed", "3", "--json", str(tmp_path / "figures.json")]) == 0
    assert "faults injected into 100 parts, seed 3" in capsys.readouterr().out
    monkeypatch.setattr(Schedule, "_doomed", lambda schedule, part: part.judged and not part.passed)
    assert door.main(["--parts", "400", "--seed", "3"]) == 1
    assert "WRONG  " in capsys.readouterr().out
