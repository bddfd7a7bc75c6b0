"""Parts that come into view while another one is judged are not overlooked, and the line hears of them at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edge import StationError
from edge.announcing import AnnouncingRejector
from edge.presence import Presence, learn_empty
from edge.presence_camera import AheadCamera, PresenceCamera
from edge.trigger import Trigger
from edge.verdict import Arrival, Frame, Missing, Outcome, Verdict
from tests.fakes import FakeClock, FakeRejector, flat

EMPTY = flat(90)


def with_part(place: int = 20) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = flat(90)
    image[20:44, place : place + 24] = 200
    return image


def presence() -> Presence:
    return Presence(learn_empty([EMPTY] * 10, None, 0.02))


class Frames:
    """A camera of these pictures, and what it raises in the end."""

    def __init__(self, images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], error: Exception | None = None) -> None:
        self._images = images
        self._error = error
        self.closed = 0

    def frames(self) -> Iterator[Arrival]:
        for number, image in enumerate(self._images, start=1):
            yield Frame(image, number, 10 * number, 10 * number, f"#{number}")
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed += 1


def test_parts_are_numbered_by_themselves_and_each_frame_beats() -> None:
    beats: list[int] = []
    camera = Frames([EMPTY, with_part(), with_part(), EMPTY, with_part(), EMPTY])
    watching = PresenceCamera(camera, presence(), FakeClock(), lambda: beats.append(1))
    assert [(arrival.part, arrival.trigger_ns) for arrival in watching.frames()] == [(1, 20), (2, 50)]
    assert len(beats) == 6
    watching.close()
    assert camera.closed == 1


def test_a_part_that_was_entering_at_the_end_is_a_fault_also_where_the_camera_was_lost() -> None:
    left = Missing(1, 77, "presence", "the frames ended before the part was fully in view")
    assert list(PresenceCamera(Frames([EMPTY, with_part(0)]), presence(), FakeClock(77)).frames()) == [left]
    frames = PresenceCamera(Frames([EMPTY, with_part(0)], StationError("cable")), presence(), FakeClock(77)).frames()
    assert next(frames) == left
    with pytest.raises(StationError, match="cable"):
        next(frames)


class Script:
    """A camera that gives arrivals when told to."""

    def __init__(self, go: Callable[[], None]) -> None:
        self._go = go
        self._steps = threading.Semaphore(0)
        self._arrivals: list[Arrival | Exception] = []
        self.closed = 0

    def give(self, *arrivals: Arrival | Exception) -> None:
        self._arrivals.extend(arrivals)
        for _ in arrivals:
            self._steps.release()

    def frames(self) -> Iterator[Arrival]:
        while True:
            self._steps.acquire()
            self._go()
            arrival = self._arrivals.pop(0)
            if isinstance(arrival, Exception):
                raise arrival
            yield arrival

    def close(self) -> None:
        self.closed += 1
        self._steps.release()


def part(number: int) -> Frame:
    return Frame(EMPTY, number, 10 * number, 10 * number, f"#{number}")


def ahead(waiting: int = 2, beat: Callable[[], None] = lambda: None) -> tuple[AheadCamera, Script]:
    made: list[Script] = []

    def make(go: Callable[[], None]) -> Script:
        made.append(Script(go))
        return made[0]

    camera = AheadCamera(make, beat, waiting)
    return camera, made[0]


def test_parts_wait_their_turn_and_those_above_the_bound_are_faults_that_keep_no_picture() -> None:
    camera, script = ahead(waiting=2)
    script.give(*[part(number) for number in range(1, 6)], StationError("cable"))
    arrivals = []
    with pytest.raises(StationError, match="cable"):
        camera._thread.join(timeout=20)
        assert camera.pending() == [Trigger(number, 10 * number) for number in range(1, 6)]
        for arrival in camera.frames():
            arrivals.append(arrival)
    assert [(arrival.part, isinstance(arrival, Frame)) for arrival in arrivals] == [
        (1, True), (2, True), (3, False), (4, False), (5, False),
    ]  # fmt: skip
    assert isinstance(arrivals[2], Missing)
    assert arrivals[2].reason == "parts come faster than the station serves them: 2 waited already"
    assert camera.counts == {"triggered": 5, "overflow": 3}
    camera.close()
    camera.close()


def test_there_is_room_again_once_a_part_was_taken() -> None:
    camera, script = ahead(waiting=1)
    frames = camera.frames()
    for number in range(1, 5):
        script.give(part(number))
        arrival = next(frames)
        assert (arrival.part, isinstance(arrival, Frame)) == (number, True)
    camera.close()
    assert not camera._thread.is_alive()
    assert script.closed == 1


def test_whatever_a_camera_raises_ends_the_run() -> None:
    camera, script = ahead()
    script.give(RuntimeError("driver"))
    with pytest.raises(StationError, match=r"looking for parts failed \(RuntimeError: driver\)"):
        list(camera.frames())
    camera.close()


def test_waiting_for_a_part_beats() -> None:
    def beat() -> None:
        raise StationError("the rejector is not there")

    camera, _ = ahead(beat=beat)
    with pytest.raises(StationError, match="the rejector is not there"):
        next(camera.frames())
    camera.close()


class Line(FakeRejector):
    """Remembers what it was told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[object] = []

    def beat(self) -> None:
        self.told.append("beat")

    def announce(self, part: int, trigger_ns: int) -> None:
        self.told.append((part, trigger_ns))


class Waiting:
    """Parts that wait."""

    def __init__(self) -> None:
        self.parts: list[Trigger] = []

    def pending(self) -> list[Trigger]:
        return self.parts


def test_the_line_hears_of_a_part_at_the_next_beat_and_once() -> None:
    line, waiting = Line(), Waiting()
    rejector = AnnouncingRejector(line, waiting)
    rejector.announce(1, 10)
    waiting.parts = [Trigger(2, 20), Trigger(3, 30, fault="overflow")]
    rejector.beat()
    rejector.beat()
    rejector.announce(2, 20)
    rejector.announce(3, 30)
    rejector.announce(4, 40)
    assert line.told == [(1, 10), "beat", (2, 20), (3, 30), "beat", (4, 40)]
    verdict = Verdict(1, Outcome.PASS, 1.0, 2.0, 3.0, "", "", "conformal")
    rejector.apply(verdict)
    assert not line.rejecting
    rejector.close()
    assert line.rejecting
