"""A station that is told to end while parts wait for their turn: each gets its row, and rejects, whatever makes the parts."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from edge.presence_camera import AheadCamera
from edge.station import Station
from edge.trigger import LineTriggers, SoftwareTriggers, TimerTriggers, Triggers
from edge.triggered_camera import TriggeredCamera
from edge.verdict import Arrival, Frame, Missing, Outcome, Verdict
from tests.fakes import FakeClock, FakeJournal, FakeRejector, FakeScorer, flat, judge_of

DEADLINE_MS = 100.0
PICTURE = flat(1, (16, 16))
Beat = Callable[[], None]


class Silent:
    """A camera that is there and gives no picture; each wait for one takes 40 ms."""

    healthy, status = True, ""

    def __init__(self, clock: FakeClock, beat: Beat) -> None:
        self._clock = clock
        self._beat = beat

    def frames(self) -> Iterator[Arrival]:
        while True:
            self._clock.advance_ms(40)
            self._beat()
        yield

    def close(self) -> None:
        pass


class Line:
    """The owner of a trigger line that saw three parts."""

    def __init__(self, clock: FakeClock) -> None:
        self._seen = deque((part, clock.now_ns() + part) for part in (1, 2, 3))

    def next_trigger(self, timeout_s: float) -> tuple[int, int] | None:
        return self._seen.popleft() if self._seen else None

    def told_until(self, at_ns: int, timeout_s: float) -> bool:
        return True


def by_line(clock: FakeClock, beat: Beat) -> Triggers:
    return LineTriggers(Line(clock), beat)


def by_software(clock: FakeClock, beat: Beat) -> Triggers:
    triggers = SoftwareTriggers(clock, beat)
    for _ in range(3):
        triggers.trigger()
    return triggers


def by_timer(clock: FakeClock, beat: Beat) -> Triggers:
    triggers = TimerTriggers(clock, 30_000_000)
    clock.advance_ms(30)
    return triggers


@pytest.mark.parametrize("make", [by_line, by_software, by_timer])
def test_parts_that_wait_for_a_picture_when_the_station_ends_are_faults_with_a_row(make: Callable[..., Triggers]) -> None:
    clock = FakeClock()
    beats: list[int] = []

    def turn() -> None:
        beats.append(1)
        if len(beats) == 2:
            station.stop("SIGTERM")
        station.turn()

    camera = TriggeredCamera(Silent(clock, turn), make(clock, turn))
    station, verdicts = station_of(clock, waiting=lambda: camera.waiting, rest=camera.rest)
    station.run(camera, verdicts.append)
    assert [(verdict.part, verdict.outcome) for verdict in verdicts[:3]] == [(part, Outcome.FAULT) for part in (1, 2, 3)]
    assert "told to end (SIGTERM)" in verdicts[0].reason
    assert station.reason == "SIGTERM"


def test_parts_in_view_that_wait_when_the_station_ends_are_faults_with_a_row() -> None:
    clock = FakeClock()
    came = threading.Event()

    class Three:
        healthy, status = True, ""

        def __init__(self, go: Beat) -> None:
            self._go = go

        def frames(self) -> Iterator[Arrival]:
            for part in (1, 2, 3):
                yield Frame(PICTURE, part, clock.now_ns(), clock.now_ns(), f"#{part}")
            came.set()
            closed.wait()
            self._go()

        def close(self) -> None:
            closed.set()

    closed = threading.Event()

    def turn() -> None:
        assert came.wait(20)
        station.stop("SIGTERM")
        clock.advance_ms(DEADLINE_MS + 1)
        station.turn()

    camera = AheadCamera(Three, turn, waiting=2)
    station, verdicts = station_of(clock, waiting=lambda: len(camera.pending()), rest=camera.rest)
    station.run(camera, verdicts.append)
    assert [(verdict.part, verdict.outcome) for verdict in verdicts] == [(part, Outcome.FAULT) for part in (1, 2, 3)]
    assert "told to end (SIGTERM)" in verdicts[0].reason
    assert "faster than the station serves them" in verdicts[2].reason
    camera.close()


def station_of(
    clock: FakeClock, *, waiting: Callable[[], int], rest: Callable[[str], Iterator[Missing]]
) -> tuple[Station, list[Verdict]]:
    station = Station(
        judge=judge_of(FakeScorer(clock, []), 2.5),
        rejector=FakeRejector(),
        journal=FakeJournal(clock),
        clock=clock,
        deadline_ms=DEADLINE_MS,
        waiting=waiting,
        rest=rest,
    )
    return station, []
