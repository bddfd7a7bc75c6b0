"""Parts of a trigger line: each has its own frame, or none."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from edge.live import LiveCamera
from edge.sections import LiveSource
from edge.trigger import TriggeredCamera
from edge.verdict import Arrival, Frame, Missing
from tests.fake_device import FakeDevice
from tests.fakes import FakeClock, flat


class Source:
    """Triggers of a list; None is a wait in which none came."""

    def __init__(self, triggers: list[tuple[int, int] | None]) -> None:
        self.triggers: deque[tuple[int, int]] = deque()
        self._coming = deque(triggers)

    def next_trigger(self, timeout_s: float) -> tuple[int, int] | None:
        if self.triggers:
            return self.triggers.popleft()
        return self._coming.popleft()


class Camera:
    """Frames with these times; a negative one is that of a part without a picture."""

    healthy = True
    status = ""

    def __init__(self, captured_ns: list[int]) -> None:
        self._captured_ns = captured_ns
        self.closed = 0

    def frames(self) -> Iterator[Arrival]:
        for index, at_ns in enumerate(self._captured_ns, start=1):
            if at_ns < 0:
                yield Missing(index, -at_ns, str(index), "frozen")
            else:
                yield Frame(flat(index), index, at_ns, at_ns, str(index))

    def close(self) -> None:
        self.closed += 1


def seen(arrivals: Iterator[Arrival]) -> list[tuple[int, int, str, bool]]:
    return [(arrival.part, arrival.trigger_ns, arrival.source, isinstance(arrival, Frame)) for arrival in arrivals]


def test_each_part_takes_the_first_frame_after_its_trigger() -> None:
    camera = Camera([5, 12, 15, 21, 33])
    frames = TriggeredCamera(camera, Source([(1, 10), None, (2, 20), (3, 30), (4, 40)])).frames()
    assert seen(frames) == [(1, 10, "2", True), (2, 20, "4", True), (3, 30, "5", True)]


def test_a_part_whose_frame_came_after_the_next_trigger_has_none() -> None:
    source = Source([(3, 40), (4, 50)])
    source.triggers.extend([(1, 10), (2, 20)])
    frames = TriggeredCamera(Camera([25, 45]), source).frames()
    assert seen(frames) == [(1, 10, "1", False), (2, 20, "1", True), (3, 40, "2", True)]


def test_a_part_without_a_picture_keeps_its_reason() -> None:
    (arrival,) = TriggeredCamera(Camera([-15]), Source([(7, 10), (8, 20)])).frames()
    assert arrival == Missing(7, 10, "1", "frozen")


def test_a_bad_frame_of_before_the_trigger_is_not_the_parts() -> None:
    frames = TriggeredCamera(Camera([-5, -9, 12, -19, -20]), Source([(1, 10), (2, 20), (3, 30)])).frames()
    assert seen(frames) == [(1, 10, "3", True), (2, 20, "5", False)]


def test_it_is_as_healthy_as_its_camera() -> None:
    camera = Camera([])
    joined = TriggeredCamera(camera, Source([]))
    assert (joined.healthy, joined.status) == (True, "")
    camera.healthy, camera.status = False, "unplugged"
    assert (joined.healthy, joined.status) == (False, "unplugged")


def test_closing_closes_the_camera() -> None:
    camera = Camera([])
    TriggeredCamera(camera, Source([])).close()
    assert camera.closed == 1


def test_a_live_camera_gives_each_part_its_own_frame_and_a_part_that_it_was_lost_for_none() -> None:
    clock = FakeClock()
    device = FakeDevice(clock)
    live = LiveCamera(device, LiveSource(), clock, parts_by_trigger=True)
    source = Source([])
    frames = TriggeredCamera(live, source).frames()

    def trigger(part: int) -> None:
        source.triggers.append((part, clock.now_ns()))
        clock.advance_ms(5)

    device.feed(flat(11))  # before any part
    clock.advance_ms(20)
    trigger(1)
    device.feed(flat(12), flat(13))  # the station is slow to ask; the first after the trigger is the part's
    clock.advance_ms(20)
    device.feed(flat(14))
    assert grey_of(next(frames)) == 12
    device.hang()
    clock.advance_ms(2001)
    trigger(2)
    lost = next(frames)
    assert isinstance(lost, Missing)
    assert (lost.part, lost.reason) == (2, "camera fake: no new frame for 2 s")
    device.let_go()
    device.feed(flat(15))  # it was opened again
    clock.advance_ms(20)
    trigger(3)
    device.feed(flat(16))
    assert grey_of(next(frames)) == 16
    live.close()


def grey_of(arrival: Arrival) -> int:
    assert isinstance(arrival, Frame)
    return int(arrival.image[0, 0, 0])
