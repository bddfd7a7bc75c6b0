"""When the line rejects: whole traces worked out by hand, and rules that hold for every order of events.

Times are in ms here: a part travels 100 ms, its window is 10 ms long, its verdict is due 80 ms after the trigger, and vision
is lost after 50 ms of silence.
"""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge import StationError
from edge.schedule import Count, Outputs, Schedule
from edge.travel import Settings

MS = 10**6
START = 1000  # ms; a station's clock does not begin at 0
TRAVEL, PULSE, SEPARATION, DEADLINE, HEARTBEAT = 100, 10, 5, 80, 50
SETTINGS = Settings(
    travel=TRAVEL * MS,
    pulse=PULSE * MS,
    separation=SEPARATION * MS,
    deadline_ns=DEADLINE * MS,
    heartbeat_ns=HEARTBEAT * MS,
    announced=False,
)


class Line:
    """Turns a schedule's clock event by event, as its process does, and keeps every change of level.

    Attributes:
        trace: (ms since the start, rejects) at each change, from the first level on.
        ready, fault: the same of the other outputs.
    """

    def __init__(self, settings: Settings = SETTINGS, beats: bool = True) -> None:
        self.schedule = Schedule(settings)
        self.beats = beats
        self.now = 0
        self._next_beat = 0
        first = self.schedule.outputs
        self.trace, self.ready, self.fault = [(0, first.reject)], [(0, first.ready)], [(0, first.fault)]
        self.at(0)

    @property
    def ns(self) -> int:
        return (START + self.now) * MS

    def at(self, ms: int) -> Schedule:
        """Go to a time, stopping wherever the schedule asks to, and say a heartbeat every 20 ms."""
        while True:
            due = ms
            if (next_ns := self.schedule.next_ns) is not None:
                due = min(due, max(self.now, -(-next_ns // MS) - START))
            if self.beats:
                due = min(due, self._next_beat)
            self.now = due
            self.schedule.advance(self.ns)
            if self.beats and due == self._next_beat:
                self._next_beat += 20
                self.schedule.heartbeat(self.ns, True)
            self.look()
            if due == ms and not (self.beats and self._next_beat == ms):
                return self.schedule

    def look(self) -> None:
        outputs = self.schedule.outputs
        for kept, level in ((self.trace, outputs.reject), (self.ready, outputs.ready), (self.fault, outputs.fault)):
            if kept[-1][1] != level:
                kept.append((self.now, level))

    def part(self, ms: int, verdict_ms: int | None = None, passed: bool = True) -> int:
        """A part triggers, and has its verdict later."""
        number = self.at(ms).trigger(self.ns, self.ns)
        if verdict_ms is not None:
            self.verdict(verdict_ms, number, passed)
        return number

    def verdict(self, ms: int, number: int, passed: bool = True) -> None:
        self.at(ms).verdict(self.ns, number, passed)
        self.look()

    def counted(self) -> dict[str, int]:
        return {count.name: number for count, number in self.schedule.counts.items() if number}


def test_a_part_without_a_verdict_is_rejected_in_its_window() -> None:
    line = Line()
    line.part(30)
    line.at(500)
    assert line.trace == [(0, False), (130, True), (140, False)]
    assert line.counted() == {"TRIGGERED": 1, "REJECTED": 1, "NO_VERDICT": 1}


def test_only_a_pass_cancels_a_window() -> None:
    line = Line()
    line.part(0, 10, passed=True)
    line.part(40, 50, passed=False)
    line.part(80, 90, passed=True)
    line.at(500)
    assert line.trace == [(0, False), (140, True), (150, False)]
    assert line.counted() == {"TRIGGERED": 3, "PASSED": 2, "REJECTED": 1}
    assert line.ready == [(0, False), (0, True)]
    assert line.fault == [(0, False)]


def test_several_parts_in_flight_have_their_verdicts_in_any_time_but_in_order() -> None:
    line = Line()
    first, second, third = line.part(0), line.part(30), line.part(60)
    for number, passed in ((first, False), (second, True), (third, False)):
        line.verdict(70, number, passed)
    line.at(500)
    assert line.trace == [(0, False), (100, True), (110, False), (160, True), (170, False)]


@pytest.mark.parametrize(("after", "passes"), [(0, True), (79, True), (80, True), (81, False), (99, False), (100, False)])
def test_the_deadline_to_the_millisecond(after: int, passes: bool) -> None:
    line = Line()
    number = line.part(7)
    line.verdict(7 + after, number)
    line.at(500)
    assert line.trace == ([(0, False)] if passes else [(0, False), (107, True), (117, False)])
    assert line.schedule.counts[Count.LATE] == (not passes)


def test_windows_that_overlap_or_touch_are_one_pulse() -> None:
    line = Line()
    for ms in (0, 6, 16):  # the second overlaps the first, the third touches the second
        line.part(ms)
    line.at(500)
    assert line.trace == [(0, False), (100, True), (126, False)]
    assert line.counted() == {"TRIGGERED": 3, "REJECTED": 3, "NO_VERDICT": 3}


@pytest.mark.parametrize(
    ("gap", "trace"),
    [(5, [(0, False), (100, True), (125, False)]), (6, [(0, False), (100, True), (110, False)])],
)
def test_a_passed_part_too_close_behind_a_rejected_one_goes_with_it(gap: int, trace: list[tuple[int, bool]]) -> None:
    line = Line()
    rejected, passed = line.part(0), line.part(PULSE + gap)
    line.verdict(40, rejected, False)
    line.verdict(40, passed, True)
    line.at(500)
    assert line.trace == trace
    assert line.schedule.counts[Count.NEIGHBOURS] == (gap == 5)


def test_a_passed_part_too_close_before_a_rejected_one_goes_with_it() -> None:
    line = Line()
    passed, rejected = line.part(0), line.part(12)
    line.verdict(40, passed, True)
    line.verdict(40, rejected, False)
    line.at(500)
    assert line.trace == [(0, False), (100, True), (122, False)]
    assert line.counted() == {"TRIGGERED": 2, "REJECTED": 2, "NEIGHBOURS": 1}


def test_neighbours_of_neighbours_go_too_and_a_whole_group_that_passed_does_not() -> None:
    line = Line()
    numbers = [line.part(ms) for ms in (0, 12, 24, 36)] + [line.part(ms) for ms in (60, 72)]
    for number in numbers:
        line.verdict(75, number, number != numbers[3])
    line.at(500)
    assert line.trace == [(0, False), (100, True), (146, False)]
    assert line.counted() == {"TRIGGERED": 6, "REJECTED": 4, "NEIGHBOURS": 3, "PASSED": 2}


def test_a_verdict_that_is_still_out_counts_as_a_reject_for_the_neighbour() -> None:
    line = Line(dataclasses.replace(SETTINGS, deadline_ns=100 * MS))
    passed, undecided = line.part(0), line.part(14)
    line.verdict(40, passed, True)
    line.verdict(105, undecided, True)  # in time for itself, too late for the one before it
    line.at(500)
    assert line.trace == [(0, False), (100, True), (124, False)]
    assert line.counted() == {"TRIGGERED": 2, "REJECTED": 2, "NEIGHBOURS": 2}


def test_a_reject_after_a_pass_holds_and_a_pass_after_a_reject_does_not() -> None:
    line = Line()
    first, second = line.part(0), line.part(40)
    line.verdict(45, first, True)
    line.verdict(46, first, False)
    line.verdict(50, second, False)
    line.verdict(51, second, True)
    line.at(500)
    assert line.trace == [(0, False), (100, True), (110, False), (140, True), (150, False)]
    assert line.counted() == {"TRIGGERED": 2, "REJECTED": 2, "DUPLICATE": 2, "REVOKED": 1}


def test_verdicts_out_of_order_and_for_parts_that_are_none_never_pass() -> None:
    line = Line()
    first, second = line.part(0), line.part(40)
    line.verdict(45, second, True)
    line.verdict(46, first, True)
    for number in (0, -1, 77):
        line.verdict(50, number, True)
    line.at(60)
    assert line.part(61) == 3
    line.verdict(70, 3, True)  # the bogus 77 came before it
    line.at(500)
    assert line.trace == [(0, False), (100, True), (110, False), (161, True), (171, False)]
    assert line.counted() == {"TRIGGERED": 3, "OUT_OF_ORDER": 2, "UNKNOWN": 3, "PASSED": 1, "REJECTED": 2}


def test_lost_vision_rejects_all_that_is_in_flight_and_ready_drops() -> None:
    line = Line()
    line.part(10, 15, passed=True)
    line.at(30)
    line.beats = False  # the last one came at 20
    line.part(40)
    line.at(500)
    assert line.ready == [(0, False), (0, True), (70, False)]
    assert line.trace == [(0, False), (110, True), (120, False), (140, True), (150, False)]
    assert line.counted() == {"TRIGGERED": 2, "REJECTED": 2, "NO_VERDICT": 1, "REVOKED": 1, "VISION_LOST": 1}


def test_vision_that_comes_back_passes_only_what_triggers_from_then_on() -> None:
    line = Line(beats=False)
    before = line.part(10)
    line.at(20).heartbeat(line.ns, True)
    line.look()
    after = line.part(30)
    line.verdict(40, before, True)
    line.verdict(40, after, True)
    line.at(65).heartbeat(line.ns, True)
    line.at(114).heartbeat(line.ns, True)
    line.at(500)
    assert line.ready == [(0, False), (20, True), (164, False)]
    assert line.trace == [(0, False), (110, True), (120, False)]
    assert line.counted() == {"TRIGGERED": 2, "LATE": 1, "REJECTED": 1, "PASSED": 1, "VISION_LOST": 1}


def test_where_vision_announces_the_parts_its_loss_rejects_all_the_time() -> None:
    line = Line(dataclasses.replace(SETTINGS, announced=True))
    line.at(200).announce(line.ns, 1, line.ns - 5 * MS)
    line.verdict(210, 1, True)
    line.beats = False  # the last one came at 200
    line.at(300).heartbeat(line.ns, True)
    line.beats, line._next_beat = True, 320
    line.at(600)
    # what was under way, unseen, when vision came is past the ejector, and clear of it, 115 ms later
    assert line.trace == [(0, True), (115, False), (250, True), (415, False)]


def not_ready(line: Line, ms: int, until: int) -> None:
    """Vision is alive, and says from `ms` to `until` that its station is not ready."""
    line.at(ms)
    line.beats = False
    for now in range(ms, until, 20):
        line.at(now).heartbeat(line.ns, False)
        line.look()
    line.at(until).heartbeat(line.ns, True)
    line.look()
    line.beats, line._next_beat = True, until + 20


def test_while_the_station_is_not_ready_no_part_of_a_trigger_line_gets_its_pass_and_those_that_have_it_keep_it() -> None:
    line = Line()
    passed, undecided = line.part(0, 10, passed=True), line.part(30)
    not_ready(line, 40, 80)
    line.verdict(90, undecided, True)
    line.part(100, 110, passed=True)
    line.at(500)
    assert passed == 1
    assert line.ready == [(0, False), (0, True), (40, False), (80, True)]
    assert line.trace == [(0, False), (130, True), (140, False)]
    assert line.counted() == {"TRIGGERED": 3, "NOT_READY": 1, "LATE": 1, "REJECTED": 1, "PASSED": 2}


def test_a_part_that_triggers_while_the_station_is_not_ready_never_passes() -> None:
    line = Line()
    not_ready(line, 20, 30)
    line.beats = False
    line.at(40).heartbeat(line.ns, False)
    number = line.schedule.trigger(line.ns, line.ns)
    line.at(45).heartbeat(line.ns, True)
    line.beats, line._next_beat = True, 60
    line.verdict(50, number, True)
    line.at(500)
    assert line.trace == [(0, False), (140, True), (150, False)]


def test_a_pass_that_comes_while_the_station_is_not_ready_is_none() -> None:
    line = Line()
    number = line.part(20)
    line.at(30).heartbeat(line.ns, False)
    line.verdict(31, number, True)
    line.at(500)
    assert line.trace == [(0, False), (120, True), (130, False)]


def test_where_vision_announces_the_parts_a_station_that_is_not_ready_rejects_all_the_time() -> None:
    line = Line(dataclasses.replace(SETTINGS, announced=True))
    line.at(200).announce(line.ns, 1, line.ns)
    line.verdict(210, 1, True)
    not_ready(line, 250, 290)
    line.at(330).announce(line.ns, 2, line.ns)
    line.verdict(340, 2, True)
    line.at(600)
    # part 1 has its PASS, but beside it may be one that nobody saw: all is rejected until 290 + 115
    assert line.trace == [(0, True), (115, False), (250, True), (405, False)]
    assert line.counted() == {"TRIGGERED": 2, "REVOKED": 1, "REJECTED": 1, "PASSED": 1, "NOT_READY": 1}


def test_an_announced_part_close_behind_one_that_nobody_saw_goes_with_it() -> None:
    line = Line(dataclasses.replace(SETTINGS, announced=True))
    for number, ms in ((1, 14), (2, 15)):  # what came just before vision did is clear of the ejector at 115
        line.at(ms).announce(line.ns, number, line.ns)
    line.verdict(30, 1, True)
    line.verdict(30, 2, True)
    line.at(500)
    assert line.schedule.counts[Count.NEIGHBOURS] == 2  # the second touches the first
    assert line.trace == [(0, True), (125, False)]


def test_parts_under_way_when_the_lines_are_taken_are_rejected() -> None:
    line = Line(beats=False)
    line.schedule.begin(line.ns)
    line.look()
    line.beats = True
    line.part(50, 60, passed=True)
    line.at(500)
    assert line.trace == [(0, False), (0, True), (115, False)]
    assert line.counted() == {"TRIGGERED": 1, "PASSED": 1}


def test_parts_under_way_when_the_lines_are_taken_are_rejected_however_slow_the_conveyor() -> None:
    line = Line(Settings(20, 4, 1, 80 * MS, 50 * MS, encoder=True, announced=False))
    line.schedule.begin(line.ns)
    line.look()
    line.at(10_000).encode(line.ns, 24)
    line.look()
    line.at(20_000).encode(line.ns, 1)
    line.look()
    assert line.trace == [(0, False), (0, True), (20_000, False)]


def test_a_reject_may_come_ahead_of_its_turn() -> None:
    line = Line()
    first, second = line.part(0), line.part(40)
    line.verdict(45, second, False)
    line.verdict(46, first, True)
    line.at(500)
    assert line.trace == [(0, False), (140, True), (150, False)]
    assert line.counted() == {"TRIGGERED": 2, "PASSED": 1, "REJECTED": 1}


def test_announcements_that_cannot_be_right_are_rejected() -> None:
    line = Line(dataclasses.replace(SETTINGS, announced=True))
    line.at(210).announce(line.ns, 5, line.ns)
    line.schedule.announce(line.ns, 5, line.ns)  # twice
    line.at(240).announce(line.ns, 6, line.ns + 40 * MS)  # in the future: from now on
    line.verdict(245, 5, True)
    line.verdict(245, 6, True)
    line.at(500)
    assert line.trace == [(0, True), (115, False), (310, True), (320, False), (340, True), (350, False)]
    assert line.schedule.counts[Count.BAD_TRIGGER] == 2


def test_a_stamp_of_another_clock_does_not_put_the_window_off() -> None:
    line = Line()
    line.at(10).trigger(line.ns, 10**18)
    line.at(500)
    assert line.trace == [(0, False), (110, True), (120, False)]


def test_a_part_that_is_told_of_when_it_is_past_stops_the_line() -> None:
    line = Line()
    line.at(200).trigger(line.ns, line.ns - 106 * MS)  # 4 of 10 ms are left
    line.at(300)
    assert line.trace == [(0, False), (200, True)]
    assert line.fault == [(0, False), (200, True)]
    assert line.ready[-1] == (200, False)
    assert line.schedule.stopped == "part 1 was at the ejector before the line could reject it"


def test_a_part_that_is_told_of_late_is_rejected_for_the_rest_of_its_window() -> None:
    line = Line()
    line.at(200).trigger(line.ns, line.ns - 104 * MS)
    line.at(300)
    assert line.trace == [(0, False), (200, True), (206, False)]
    assert line.schedule.stopped == ""


def test_a_confirmed_reject_is_no_fault_and_an_unconfirmed_one_stops_the_line() -> None:
    line = Line(dataclasses.replace(SETTINGS, confirm_ns=20 * MS))
    line.part(0, 10, passed=False)
    line.part(40, 50, passed=False)
    line.part(75, 80, passed=True)
    line.at(104).confirm(line.ns, line.ns)
    line.at(500)
    assert line.fault == [(0, False), (170, True)]  # the second one's window ends at 150
    assert line.trace == [(0, False), (100, True), (110, False), (140, True), (150, False), (170, True)]
    assert line.schedule.stopped == "part 2 was rejected and the confirm sensor did not see it"
    assert line.schedule.outputs == Outputs(reject=True, ready=False, fault=True)


def test_a_stop_is_for_good() -> None:
    line = Line(dataclasses.replace(SETTINGS, confirm_ns=20 * MS))
    line.part(0)
    line.at(200)
    number = line.part(210)
    line.verdict(220, number, True)
    line.at(600)
    assert line.trace[-1] == (line.fault[-1][0], True)
    assert line.schedule.outputs == Outputs(reject=True, ready=False, fault=True)


def test_confirmations_that_belong_to_no_reject_are_counted() -> None:
    line = Line(dataclasses.replace(SETTINGS, confirm_ns=20 * MS))
    line.part(0, 10, passed=True)
    line.part(50, 60, passed=False)
    line.at(105).confirm(line.ns, line.ns)  # the passed part fell off
    line.at(155).confirm(line.ns, line.ns)
    line.at(156).confirm(line.ns, line.ns)
    line.at(500)
    assert line.schedule.counts[Count.STRAY_CONFIRM] == 2
    assert line.schedule.stopped == ""


def test_the_exit_sensor_rejects_what_never_triggered_and_counts_what_is_gone() -> None:
    line = Line(dataclasses.replace(SETTINGS, exit=60 * MS, tolerance=3 * MS))
    line.part(0, 10, passed=True)
    line.at(57).exit(line.ns, line.ns)  # the first, 3 ms early
    line.part(60, 70, passed=True)
    line.at(85).exit(line.ns, line.ns)  # nobody's: the second is due at 120
    line.at(500)  # the second was taken off
    assert line.trace == [(0, False), (125, True), (135, False)]
    assert line.counted() == {"TRIGGERED": 2, "PASSED": 2, "UNTRIGGERED": 1, "NOT_SEEN": 1, "REJECTED": 1, "NO_VERDICT": 1}


def test_travel_by_an_encoder_waits_for_the_conveyor() -> None:
    line = Line(Settings(20, 4, 0, 80 * MS, 50 * MS, encoder=True, announced=False))

    def turn(ms: int, pulses: int) -> None:
        line.at(ms).encode(line.ns, pulses)
        line.look()

    line.part(0)
    turn(10, 19)
    line.at(300)  # the conveyor stands
    turn(310, 1)
    turn(320, 3)
    line.at(500)
    turn(510, 1)
    assert line.trace == [(0, False), (310, True), (510, False)]


def test_a_clock_that_goes_back_stands_still() -> None:
    line = Line()
    number = line.part(30)
    line.schedule.verdict(line.ns - 25 * MS, number, True)
    line.schedule.advance(0)
    line.at(500)
    assert line.trace == [(0, False)]
    assert line.schedule.counts[Count.CLOCK_BACK] == 2


def test_a_clock_that_goes_back_does_not_make_a_late_pass_come_in_time() -> None:
    line = Line()
    number = line.part(30)
    line.at(115).verdict(line.ns - 60 * MS, number, True)
    line.at(500)
    assert line.trace == [(0, False), (130, True), (140, False)]
    assert line.schedule.counts[Count.LATE] == 1


@pytest.mark.parametrize(("gap_ns", "together"), [(SEPARATION * MS, 1), (SEPARATION * MS + 1, 0)])
def test_the_separation_to_the_nanosecond(gap_ns: int, together: int) -> None:
    line = Line()
    line.at(50).trigger(line.ns, line.ns - 20 * MS)
    line.schedule.trigger(line.ns, line.ns - 20 * MS + PULSE * MS + gap_ns)
    line.verdict(60, 1, False)
    line.verdict(60, 2, True)
    line.at(500)
    assert line.schedule.counts[Count.NEIGHBOURS] == together


def test_a_pass_at_the_moment_when_the_window_opens_is_late() -> None:
    line = Line(dataclasses.replace(SETTINGS, deadline_ns=TRAVEL * MS))
    line.verdict(100, line.part(0), True)
    line.at(500)
    assert line.trace == [(0, False), (100, True), (110, False)]
    assert line.schedule.counts[Count.LATE] == 1


def test_a_confirmation_from_before_the_window_is_none() -> None:
    line = Line(dataclasses.replace(SETTINGS, confirm_ns=20 * MS))
    line.part(0, 10, passed=False)
    line.at(104).confirm(line.ns, line.ns - 5 * MS)
    line.at(500)
    assert line.schedule.counts[Count.STRAY_CONFIRM] == 1
    assert line.schedule.counts[Count.UNCONFIRMED] == 1


def test_a_clock_that_jumps_over_a_window_stops_the_line() -> None:
    schedule = Schedule(SETTINGS)
    schedule.heartbeat(START * MS, True)
    schedule.trigger(START * MS, START * MS)
    schedule.advance((START + 5000) * MS)
    assert schedule.outputs == Outputs(reject=True, ready=False, fault=True)
    assert schedule.counts[Count.MISSED] == 1


def test_memory_stays_flat() -> None:
    line = Line()
    for ms in range(0, 20_000, 40):
        line.part(ms, ms + 10)
    line.at(20_200)
    assert len(line.schedule._parts) <= 1
    assert line.counted() == {"TRIGGERED": 500, "PASSED": 500}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"travel": 0}, "travel is 0, expected above 0"),
        ({"pulse": -1}, "pulse is -1"),
        ({"heartbeat_ns": 0}, "heartbeat_ns is 0"),
        ({"separation": -1}, "separation and tolerance must be 0 or more"),
        ({"confirm_ns": 0}, "the confirm window above 0"),
        ({"deadline_ns": 101 * MS}, "the deadline of 101 ms is after the part's arrival at the ejector, 100 ms"),
        ({"encoder": True, "announced": True}, "travel in encoder pulses needs a trigger line"),
        ({"exit": 98 * MS, "tolerance": 3 * MS}, "move the sensor or lower its tolerance"),
    ],
)
def test_what_cannot_work_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(StationError, match=message):
        dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]


class AnyOrder(RuleBasedStateMachine):
    """Every order of triggers, verdicts, heartbeats, losses and waits, beside the rules written down a second time."""

    @initialize(announced=st.booleans(), separation=st.sampled_from([0, 5, 30]))
    def begin(self, announced: bool, separation: int) -> None:
        changed = dataclasses.replace(SETTINGS, announced=announced, separation=separation * MS)
        self.line = Line(changed, beats=False)
        self.announced, self.separation = announced, separation
        self.triggers: dict[int, int] = {}
        self.asked: set[int] = set()  # parts that a verdict named
        self.hopeful: set[int] = set()  # triggered while vision was alive, and not lost since
        self.passes: set[int] = set()
        self.highest = 0  # number that a PASS named
        self.alive_until = -1
        self.ready_since: int | None = None

    def lost(self) -> None:
        """All whose window has not opened are rejected."""
        self.hopeful = set()
        self.ready_since = None
        self.passes = {number for number in self.passes if self.triggers[number] + TRAVEL <= self.line.now}

    def go(self, ms: int) -> None:
        target = self.line.now + ms
        if 0 <= self.alive_until <= target:
            self.line.at(max(self.line.now, self.alive_until))
            self.lost()
            self.alive_until = -1
        self.line.at(target)

    @rule(ms=st.integers(0, 60))
    def wait(self, ms: int) -> None:
        self.go(ms)

    @rule(ready=st.sampled_from([True, True, True, False]))
    def beat(self, ready: bool) -> None:
        self.line.schedule.heartbeat(self.line.ns, ready)
        self.line.look()
        self.alive_until = self.line.now + HEARTBEAT
        if not ready and self.announced:
            self.lost()
        elif not ready:  # those that passed keep it
            self.hopeful, self.ready_since = set(), None
        elif self.ready_since is None:
            self.ready_since = self.line.now

    @rule()
    def vision_dies(self) -> None:
        self.line.schedule.lose(self.line.ns)
        self.line.look()
        self.lost()
        self.alive_until = -1

    @rule(old=st.integers(0, 20))
    def part(self, old: int) -> None:
        at = max(0, self.line.now - old)
        number = len(self.triggers) + 1
        if self.announced:
            self.line.schedule.announce(self.line.ns, number, (START + at) * MS)
        else:
            assert self.line.schedule.trigger(self.line.ns, (START + at) * MS) == number
        self.triggers[number] = at
        if self.ready_since is not None:
            self.hopeful.add(number)

    @precondition(lambda self: self.triggers)
    @rule(back=st.integers(-1, 4), passed=st.booleans())
    def verdict(self, back: int, passed: bool) -> None:
        number = len(self.triggers) - back
        now = self.line.now
        self.line.schedule.verdict(self.line.ns, number, passed)
        in_order = number > self.highest
        if passed:
            self.highest = max(number, self.highest)
        if number not in self.triggers:
            return
        opened = self.triggers[number] + TRAVEL <= now
        first, in_time = number not in self.asked, now - self.triggers[number] <= DEADLINE
        self.asked.add(number)
        if passed and first and in_order and in_time and not opened and number in self.hopeful:
            self.passes.add(number)
        elif not passed and not opened:
            self.passes.discard(number)

    def covered(self, start: int, end: int) -> bool:
        """Whether the line rejects from `start` to `end`, which are past."""
        level = None
        for ms, rejects in self.line.trace:
            if ms <= start:
                level = rejects
            elif ms < end and not rejects:
                return False
        return bool(level)

    def touched(self, start: int, end: int) -> bool:
        level = False
        for ms, rejects in self.line.trace:
            if ms <= start:
                level = rejects
            elif ms < end and rejects:
                return True
        return level

    @invariant()
    def rules(self) -> None:
        if not hasattr(self, "line"):
            return
        now = self.line.now
        if self.line.schedule.stopped:
            assert self.line.trace[-1][1]
            return
        passes = self.passes
        past = {number: at + TRAVEL for number, at in self.triggers.items() if at + TRAVEL + PULSE <= now}
        for number, start in past.items():
            if number not in passes:
                assert self.covered(start, start + PULSE), (number, self.line.trace)
        assert self.line.schedule.outputs.ready == (self.ready_since is not None)
        if self.announced:  # while vision is lost everything is rejected, parts that passed too
            if not self.line.trace[-1][1]:
                assert self.ready_since is not None
                assert now >= self.ready_since + TRAVEL + PULSE + self.separation
            return
        windows = sorted(self.triggers.values())
        for number, start in past.items():
            if number in passes and self.touched(start, start + PULSE):
                others = [
                    other
                    for other, at in self.triggers.items()
                    if other not in passes and self._reachable(at, self.triggers[number], windows)
                ]
                assert others, (number, self.line.trace)
        touched = sum(number in passes and self.touched(start, start + PULSE) for number, start in past.items())
        assert touched <= self.line.schedule.counts[Count.NEIGHBOURS]

    def _reachable(self, one: int, other: int, windows: list[int]) -> bool:
        """Whether a chain of windows, none farther than the separation from the next, leads from one to the other."""
        low, high = min(one, other), max(one, other)
        chain = [at for at in windows if low <= at <= high]
        return all(b - a - PULSE <= self.separation for a, b in pairwise(chain))


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=60)
TestAnyOrder = AnyOrder.TestCase


def test_the_guide_tells_a_technician_of_each_count() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "guide.md").read_text(encoding="utf-8")
    table = guide.partition("| count | what it counts | what to do |")[2].partition("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall("`(\\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(count.name.lower() for count in Count)
