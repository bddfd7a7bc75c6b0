"""Another recipe's timing: parts in flight keep the one that they triggered with, and mixed timings lose no part.

Times are in ms, as in test_reject_schedule.py: travel 100, window 10, separation 5, deadline 80.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import StationError
from edge.schedule import Count
from edge.travel import RETIMED, Settings
from tests.test_reject_schedule import MS, SETTINGS, Line


def timing(travel: int, pulse: int = 10, separation: int = 5, deadline: int = 80) -> Settings:
    return dataclasses.replace(
        SETTINGS, travel=travel * MS, pulse=pulse * MS, separation=separation * MS, deadline_ns=deadline * MS
    )


def test_parts_in_flight_keep_the_travel_and_the_window_that_they_triggered_with() -> None:
    line = Line()
    line.part(0)
    line.at(50).retime(line.ns, timing(travel=200, pulse=20))
    line.part(60)
    line.at(500)
    assert line.trace == [(0, False), (100, True), (110, False), (260, True), (280, False)]


def test_a_part_that_triggered_later_may_come_first() -> None:
    line = Line()
    line.part(0)
    line.at(5).retime(line.ns, timing(travel=30, pulse=2, deadline=20))
    line.part(10, 15, passed=False)
    line.at(500)
    assert line.trace == [(0, False), (40, True), (42, False), (100, True), (110, False)]


@pytest.mark.parametrize(("after", "passes"), [(80, True), (81, False)])
def test_a_part_keeps_its_deadline_when_the_next_recipe_has_a_longer_one(after: int, passes: bool) -> None:
    line = Line()
    number = line.part(0)
    line.at(10).retime(line.ns, timing(travel=100, deadline=99))
    line.verdict(after, number)
    assert line.at(500).counts[Count.PASSED] == passes


@pytest.mark.parametrize(("after", "passes"), [(80, True), (81, False), (99, False)])
def test_and_when_the_next_recipe_has_a_shorter_one(after: int, passes: bool) -> None:
    line = Line()
    number = line.part(0)
    line.at(10).retime(line.ns, timing(travel=100, deadline=1))
    line.verdict(after, number)
    assert line.at(500).counts[Count.PASSED] == passes


def test_of_two_timings_the_larger_separation_holds() -> None:
    for first, second in ((5, 30), (30, 5)):
        line = Line(timing(travel=100, separation=first))
        passed = line.part(0, 1)
        line.at(2).retime(line.ns, timing(travel=100, separation=second))
        line.part(30, 31, passed=False)  # 20 ms after the end of the first one's window
        line.at(500)
        assert passed == 1
        assert line.trace == [(0, False), (100, True), (140, False)]
        assert line.counted()["NEIGHBOURS"] == 1


def test_a_long_window_reaches_over_a_short_one_that_lies_in_it() -> None:
    line = Line(timing(travel=100, pulse=60))
    line.part(0, 1)  # passes, window 100 to 160
    line.at(2).retime(line.ns, timing(travel=100, pulse=2))
    line.part(10, 11)  # passes, window 110 to 112
    line.part(63, 64, passed=False)  # window 163 to 165, too close to the first
    line.at(500)
    assert line.trace == [(0, False), (100, True), (165, False)]
    assert line.counted()["NEIGHBOURS"] == 2


@pytest.mark.parametrize(
    "changed", [{"heartbeat_ns": 7}, {"announced": True}, {"confirm_ns": 9}, {"tolerance": 3}, {"exit": 4}]
)
def test_what_belongs_to_the_machine_cannot_change(changed: dict[str, int]) -> None:
    line = Line()
    with pytest.raises(StationError, match=f"{next(iter(changed))} cannot change while it runs; start the station again"):
        line.schedule.retime(line.ns, dataclasses.replace(SETTINGS, **changed))
    assert line.schedule.settings == SETTINGS


def test_every_field_of_a_recipe_has_a_number_and_the_last_is_sent_last() -> None:
    assert list(RETIMED.values()) == sorted(set(RETIMED.values()))
    assert {*RETIMED} <= {field.name for field in dataclasses.fields(Settings)}


parts = st.tuples(
    st.integers(0, 20), st.booleans(), st.none() | st.tuples(st.integers(100, 160), st.integers(1, 40), st.integers(0, 20))
)


@given(st.lists(parts, min_size=1, max_size=6))
def test_with_any_mix_of_timings_a_reject_is_covered_and_a_pass_that_stands_alone_is_not_touched(
    events: list[tuple[int, bool, tuple[int, int, int] | None]],
) -> None:
    line, now = Line(), 0
    travel, pulse, separation = 100, 10, 5
    windows: list[tuple[int, int, int, bool]] = []
    for after, passed, change in events:
        now = min(now + after, 90)  # all trigger before the first window opens, so that all is known then
        if change is not None:
            travel, pulse, separation = change
            line.at(now).retime(line.ns, timing(travel, pulse, separation))
        line.part(now, now, passed=passed)
        windows.append((now + travel, now + travel + pulse, separation, passed))
    line.at(1000)

    # the rule, written down a second time: who lies within the larger separation of whom, through others
    groups: list[list[tuple[int, int, int, bool]]] = []
    for window in windows:
        near = [
            group
            for group in groups
            if any(max(window[0], one[0]) - min(window[1], one[1]) <= max(window[2], one[2]) for one in group)
        ]
        groups = [group for group in groups if group not in near] + [[window, *(one for group in near for one in group)]]
    expected = {
        ms
        for group in groups
        if not all(passed for *_, passed in group)
        for ms in range(min(one[0] for one in group), max(one[1] for one in group))
    }
    edges = [*line.trace, (1000, False)]
    rejected = {ms for (since, level), (until, _) in pairwise(edges) if level for ms in range(since, until)}
    assert rejected == expected
