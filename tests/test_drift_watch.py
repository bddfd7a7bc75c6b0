"""The station's watch on drift: what is taken in, what stops it, and that a person or a new reference alone silences it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

from calibration.drift import CHANNELS
from calibration.record import Calibration
from calibration.reference import Reference, make_reference
from edge import StationError
from edge.drift import DriftWatch
from edge.verdict import Outcome, Verdict
from edge.watch_sections import DriftSection
from tests.fakes import tiny_calibration

LEVELS = np.array([1.0, 100, 80, 35, 30, 50, 50])
SPREADS = np.array([0.1, 2, 3, 0.3, 0.3, 0.5, 0.5])
CALIBRATION = tiny_calibration(10.0)


def rows(count: int, seed: int, **moved: float) -> np.ndarray:
    """Good parts, float64 (count, 7); `moved` shifts channels by name."""
    shift = np.array([moved.get(channel.name, 0.0) for channel in CHANNELS])
    return LEVELS + shift + SPREADS * np.random.default_rng(seed).normal(size=(count, 7))


def reference(seed: int = 0, calibration: Calibration = CALIBRATION) -> Reference:
    parts = [(f"{number}.png", tuple(row)) for number, row in enumerate(rows(100, seed).tolist())]
    return make_reference(calibration, parts, who="Ada")


def verdict(row: np.ndarray, outcome: Outcome = Outcome.PASS, part: int = 1) -> Verdict:
    return Verdict(part, outcome, float(row[0]), 10.0, 1.0, "", "cam", "conformal", appearance=row[1:])


class Watched:
    """A watch, and what it said."""

    def __init__(self, **settings: object) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.said: list[str] = []
        self.watch = DriftWatch(DriftSection.model_validate(settings), note=self.note, complain=self.said.append)
        self.watch.watch(reference(), CALIBRATION)

    def note(self, name: str, details: Mapping[str, object]) -> None:
        self.events.append((name, dict(details)))

    def passed(self, parts: np.ndarray) -> None:
        for number, row in enumerate(parts, start=1):
            self.watch.observe(verdict(row, part=number))

    def rejected(self, count: int) -> None:
        for _ in range(count):
            self.watch.observe(verdict(LEVELS, Outcome.REJECT))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def test_parts_like_the_calibrations_keep_the_station_ready() -> None:
    station = Watched()
    station.passed(rows(500, seed=1))
    assert (station.watch.fault(), station.events, station.said) == ("", [], [])


def test_a_lens_that_comes_loose_is_said_once_and_then_stops_the_station() -> None:
    station = Watched()
    station.passed(rows(60, seed=1, sharpness=-12))
    assert station.names == ["drift-warning", "drift-alarm"]
    assert station.events[1][1]["kinds"] == ["focus"]
    assert station.events[1][1]["calibration"] == CALIBRATION.digest
    assert station.watch.fault().startswith("focus drifted: sharpness")
    assert "POST /drift/reset" in station.watch.fault()
    assert len(station.said) == 2


def test_to_warn_alone_lets_the_station_go_on_and_says_so() -> None:
    station = Watched(on_alarm="warn")
    station.passed(rows(200, seed=1, sharpness=-12))
    assert station.watch.fault() == ""
    assert station.names == ["drift-warning", "drift-alarm"]
    assert station.said[1].endswith("judged on all the same, as on_alarm says")


def test_where_an_alarm_is_only_said_rejects_in_a_row_are_said_all_the_same() -> None:
    station = Watched(on_alarm="warn")
    station.passed(rows(60, seed=1, sharpness=-12))
    station.rejected(19)
    assert station.names.count("drift-alarm") == 1
    station.rejected(2)
    assert station.names.count("drift-alarm") == 2
    assert "20 parts were rejected one after the other" in station.said[-1]
    station.passed(rows(5, seed=2))
    station.rejected(20)  # again, after parts that passed
    assert station.names.count("drift-alarm") == 3


def test_what_did_not_pass_says_nothing_about_drift() -> None:
    station = Watched(reject_run=0)
    for row in rows(200, seed=1, sharpness=-12):
        station.watch.observe(verdict(row, Outcome.REJECT))
        station.watch.observe(verdict(row, Outcome.FAULT))
    assert station.events == []


@pytest.mark.parametrize(
    "broken",
    [
        dataclasses.replace(verdict(LEVELS), appearance=None),
        dataclasses.replace(verdict(LEVELS), appearance=LEVELS),
        dataclasses.replace(verdict(LEVELS), score=None),
        dataclasses.replace(verdict(LEVELS), appearance=np.full(6, np.nan)),
    ],
)
def test_a_part_that_passed_and_cannot_be_watched_is_an_alarm(broken: Verdict) -> None:
    station = Watched()
    station.watch.observe(broken)
    assert station.watch.fault()
    assert station.names == ["drift-alarm"]


def test_so_many_rejects_in_a_row_stop_the_station_and_one_less_does_not() -> None:
    station = Watched(reject_run=5)
    station.rejected(4)
    station.watch.observe(verdict(LEVELS, Outcome.FAULT))  # neither one more nor an end of the row
    assert station.watch.fault() == ""
    station.rejected(1)
    assert station.watch.fault().startswith("5 parts were rejected one after the other")


def test_a_part_that_passes_ends_a_row_of_rejects() -> None:
    station = Watched(reject_run=5)
    for _ in range(3):
        station.rejected(4)
        station.passed(rows(1, seed=1))
    assert station.watch.fault() == ""


def test_a_person_resets_it_by_name_and_what_still_drifts_is_an_alarm_again() -> None:
    station = Watched()
    station.passed(rows(60, seed=1, sharpness=-12))
    station.watch.reset("Ada", "lens was loose")
    assert station.watch.fault() == ""
    name, details = station.events[-1]
    assert (name, details["who"], details["why"]) == ("drift-reset", "Ada", "lens was loose")
    assert str(details["alarm"]).startswith("focus drifted")
    station.passed(rows(60, seed=2, sharpness=-12))
    assert station.watch.fault()


def test_after_a_reset_drifted_parts_are_not_taken_for_good_ones() -> None:
    reset, fresh = Watched(), Watched()
    reset.passed(rows(300, seed=1, brightness=4.5))  # below what matters: learnt, and no alarm
    reset.watch.reset("Ada", "")
    for station in (reset, fresh):
        station.events.clear()
        station.passed(rows(60, seed=3, brightness=12))
    assert reset.events == fresh.events


def test_an_alarm_comes_back_with_its_calibration_and_goes_with_a_new_reference() -> None:
    station = Watched()
    station.passed(rows(60, seed=1, sharpness=-12))
    other = tiny_calibration(9.0)
    station.watch.watch(reference(1, other), other)
    assert station.watch.fault() == ""
    station.watch.watch(reference(), CALIBRATION)
    assert station.watch.fault()
    station.watch.watch(reference(2), CALIBRATION)
    assert station.watch.fault() == ""


def test_without_a_reference_nothing_is_taken_for_watched() -> None:
    with pytest.raises(StationError, match="run `edge calibrate`"):
        Watched().watch.watch(None, CALIBRATION)


def test_a_warning_is_said_again_where_it_was_quiet_for_long() -> None:
    station = Watched(warning_parts=100, alarm_parts=1e8)
    station.passed(rows(12, seed=1, sharpness=-6))
    first = station.names.count("drift-warning")
    station.passed(rows(400, seed=2))
    station.passed(rows(12, seed=3, sharpness=-6))
    assert (first, station.names.count("drift-warning"), "drift-alarm" in station.names) == (1, 2, False)
