"""Triggers: none is lost, whatever they come from; and each takes its own picture, or none."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge.camera
from edge import StationError
from edge.agreement import Address
from edge.camera_sections import LiveSource
from edge.commands import Handlers
from edge.control import ControlServer
from edge.intake import read_triggers
from edge.live import LiveCamera
from edge.part_ref import QueuedReferences, ReferencedCamera, Refusals
from edge.presence import Presence
from edge.presence_camera import AheadCamera, PresenceCamera
from edge.trigger import BacklogError, LineTriggers, SoftwareTriggers, TimerTriggers, Trigger, Triggers
from edge.triggered_camera import TriggeredCamera
from edge.verdict import Arrival, Frame, Missing
from tests.fake_device import FakeDevice
from tests.fakes import FakeClock, flat

LIMIT = 3
PERIOD_NS = 100_000_000


class Line:
    """A trigger line's owner; `coming` are what it hears next, None a wait in which none came."""

    def __init__(self, coming: list[tuple[int, int] | None] | None = None) -> None:
        self.coming = deque(coming or [])
        self.heard: deque[tuple[int, int]] = deque()
        self.failure: StationError | None = None

    def next_trigger(self, timeout_s: float) -> tuple[int, int] | None:
        if self.failure is not None:
            raise self.failure
        if self.heard:
            return self.heard.popleft()
        return self.coming.popleft() if self.coming and timeout_s > 0 else None

    def told_until(self, at_ns: int, timeout_s: float) -> bool:
        return True


class Counted(SoftwareTriggers):
    """Says when a trigger came, so that tests need not wait for time to pass."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, waiting=LIMIT)
        self.came = threading.Semaphore(0)

    def trigger(self, part_ref: str | None = None, *, wait: bool = False) -> int:
        part = super().trigger(part_ref, wait=wait)
        self.came.release()
        return part


class Source(Protocol):
    """Triggers of one kind, and how to make one come."""

    clock: FakeClock
    triggers: Triggers
    refs: bool

    def fire(self, part_ref: str) -> None:
        """One comes, 100 ms after the one before."""


class BySoftware:
    refs = True

    def __init__(self, closing: contextlib.ExitStack) -> None:
        self.clock = FakeClock()
        self.triggers = Counted(self.clock)

    def fire(self, part_ref: str) -> None:
        self.clock.advance_ms(100)
        self.send(part_ref)
        assert self.triggers.came.acquire(timeout=20)

    def send(self, part_ref: str) -> None:
        self.triggers.trigger(part_ref)


class ByHttp(BySoftware):
    def __init__(self, closing: contextlib.ExitStack) -> None:
        super().__init__(closing)
        handlers = Handlers(status=dict, trigger=self.triggers.trigger)
        self.server = ControlServer(Address("127.0.0.1", 0), handlers)
        closing.callback(self.server.close)

    def send(self, part_ref: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        connection.request("POST", "/trigger", json.dumps({"part_ref": part_ref}), {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()


class ByStdin(BySoftware):
    def __init__(self, closing: contextlib.ExitStack) -> None:
        super().__init__(closing)
        theirs, self.ours = os.pipe()
        reader = read_triggers(theirs, self.triggers, Refusals(lambda name, details: None, self.clock))
        closing.callback(lambda: [os.close(theirs), os.close(self.ours)])
        closing.callback(reader.close)

    def send(self, part_ref: str) -> None:
        os.write(self.ours, f"{part_ref}\n".encode())


class ByLine:
    refs = False

    def __init__(self, closing: contextlib.ExitStack) -> None:
        self.clock = FakeClock()
        self.line = Line()
        self.fired = 0
        self.triggers = LineTriggers(self.line, waiting=LIMIT)

    def fire(self, part_ref: str) -> None:
        self.clock.advance_ms(100)
        self.fired += 1
        self.line.heard.append((self.fired, self.clock.now_ns()))


class ByTimer:
    refs = False

    def __init__(self, closing: contextlib.ExitStack) -> None:
        self.clock = FakeClock()
        self.triggers = TimerTriggers(self.clock, PERIOD_NS)

    def fire(self, part_ref: str) -> None:
        self.clock.advance_ms(100)


@pytest.fixture(params=[BySoftware, ByHttp, ByStdin, ByLine, ByTimer])
def source(request: pytest.FixtureRequest) -> Iterator[Source]:
    """Each kind of trigger there is, over the real adapter."""
    make: Callable[[contextlib.ExitStack], Source] = request.param
    with contextlib.ExitStack() as closing:
        yield make(closing)


def take_all(triggers: Triggers) -> list[Trigger]:
    taken = []
    while (trigger := triggers.next(0)) is not None:
        taken.append(trigger)
    return taken


def test_parts_are_numbered_and_stamped_in_order(source: Source) -> None:
    begun_ns = source.clock.now_ns()
    for number in range(1, 4):
        source.fire(f"S-{number}")
        part_ref = f"S-{number}" if source.refs else None
        assert source.triggers.next(0) == Trigger(number, begun_ns + number * PERIOD_NS, part_ref)
    assert source.triggers.next(0) is None
    assert source.triggers.counts == {"triggered": 3}


def test_none_is_lost_where_they_come_too_fast_and_those_are_faults(source: Source) -> None:
    fired = LIMIT + 4
    for number in range(1, fired + 1):
        source.fire(f"S-{number}")
    assert [trigger.part for trigger in source.triggers.pending()] == list(range(1, fired + 1))
    taken = take_all(source.triggers)
    assert [trigger.part for trigger in taken] == list(range(1, fired + 1))
    if source.refs:
        assert [trigger.part_ref for trigger in taken] == [f"S-{number}" for number in range(1, fired + 1)]
    good = [trigger.part for trigger in taken if not trigger.fault]
    # of a queue the first ones are judged, of a timer the one that is not missed yet
    assert good == ([fired] if isinstance(source.triggers, TimerTriggers) else [1, 2, 3])
    counts = source.triggers.counts
    assert counts["triggered"] == fired
    assert counts["overflow"] + counts["missed"] == fired - len(good)


def test_those_that_wait_can_be_had_after_closing_and_no_more_come(source: Source) -> None:
    source.fire("S-1")
    source.fire("S-2")
    source.triggers.close()
    source.triggers.close()
    assert not source.triggers.ended
    source.clock.advance_ms(1000)
    assert [trigger.part for trigger in take_all(source.triggers)] == [1, 2]
    assert source.triggers.ended


def test_looking_at_those_that_wait_takes_none(source: Source) -> None:
    source.fire("S-1")
    assert source.triggers.pending() == source.triggers.pending() != []
    assert [trigger.part for trigger in take_all(source.triggers)] == [1]
    assert source.triggers.pending() == []


def test_there_is_room_again_once_one_was_taken() -> None:
    triggers = SoftwareTriggers(FakeClock(), waiting=1)
    triggers.trigger("a")
    triggers.trigger("b")
    assert not triggers.next(0).fault  # type: ignore[union-attr]
    triggers.trigger("c")
    assert [(trigger.part_ref, bool(trigger.fault)) for trigger in take_all(triggers)] == [("b", True), ("c", False)]


def test_a_trigger_after_the_run_is_no_part() -> None:
    triggers = SoftwareTriggers(FakeClock())
    triggers.close()
    with pytest.raises(StationError, match="the run is over"):
        triggers.trigger()
    assert triggers.counts == {}


def test_far_too_many_are_refused_and_whoever_can_wait_waits() -> None:
    triggers = SoftwareTriggers(FakeClock(), waiting=1)
    for _ in range(1000):
        triggers.trigger()
    with pytest.raises(BacklogError, match=r"1000 triggers wait; .* is no part"):
        triggers.trigger()
    writer = threading.Thread(target=lambda: triggers.trigger("late", wait=True))
    writer.start()
    assert triggers.next(0) is not None  # makes room
    writer.join(timeout=20)
    assert not writer.is_alive()
    assert triggers.pending()[-1].part_ref == "late"
    assert triggers.counts["triggered"] == 1001


def test_waiting_for_a_trigger_beats() -> None:
    class LostError(Exception):
        pass

    beats: list[int] = []

    def beat() -> None:
        beats.append(1)
        if len(beats) == 3:
            raise LostError

    with pytest.raises(LostError):
        SoftwareTriggers(FakeClock(), beat).next(60)


def test_the_end_of_standard_input_ends_the_run_after_its_last_line() -> None:
    theirs, ours = os.pipe()
    triggers = Counted(FakeClock())
    notes: list[object] = []
    os.write(ours, b"LOT 7\r\n\n  \nbad\x07ref\nlast")
    os.close(ours)
    reader = read_triggers(theirs, triggers, Refusals(lambda name, details: notes.append(details), FakeClock()))
    for _ in range(5):
        assert triggers.came.acquire(timeout=20)
    reader.close()
    os.close(theirs)
    triggers.close()
    assert [trigger.part_ref for trigger in take_all(triggers)] == ["LOT 7", None, None, None, "last"]
    assert triggers.ended
    assert notes == [
        {
            "source": "standard input",
            "reason": "a part's reference with the character U+0007, expected printable ones",
            "refused": 1,
        }
    ]


@given(st.lists(st.integers(0, 350), max_size=30))
def test_a_timers_parts_stay_on_the_grid_however_late_they_are_taken(waits_ms: list[int]) -> None:
    clock = FakeClock()
    begun_ns = clock.now_ns()
    triggers = TimerTriggers(clock, PERIOD_NS)
    taken: list[Trigger] = []
    for wait_ms in waits_ms:
        trigger = triggers.next(1.0)
        assert trigger is not None
        late_ns = clock.now_ns() - trigger.at_ns
        assert late_ns >= 0
        assert bool(trigger.fault) == (late_ns >= PERIOD_NS)
        taken.append(trigger)
        clock.advance_ms(wait_ms)
    assert [(trigger.part, trigger.at_ns) for trigger in taken] == [
        (number, begun_ns + number * PERIOD_NS) for number in range(1, len(waits_ms) + 1)
    ]
    assert triggers.counts["missed"] == sum(bool(trigger.fault) for trigger in taken)


def test_a_timer_says_how_late_a_missed_part_was() -> None:
    clock = FakeClock()
    triggers = TimerTriggers(clock, PERIOD_NS)
    clock.advance_ms(250)
    first, second = triggers.next(0), triggers.next(0)
    assert first is not None
    assert second is not None
    assert first.fault == "the station came to it 150.0 ms late, after the next part was due"
    assert second.fault == ""


class Camera:
    """Frames with these times; a negative one is that of a part without a picture."""

    healthy = True
    status = ""

    def __init__(self, captured_ns: list[int], error: StationError | None = None) -> None:
        self._captured_ns = captured_ns
        self._error = error
        self.closed = 0

    def frames(self) -> Iterator[Arrival]:
        for index, at_ns in enumerate(self._captured_ns, start=1):
            if at_ns < 0:
                yield Missing(index, -at_ns, str(index), "frozen")
            else:
                yield Frame(flat(index), index, at_ns, at_ns, str(index))
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed += 1


def seen(arrivals: Iterator[Arrival]) -> list[tuple[int, int, str, bool]]:
    return [(arrival.part, arrival.trigger_ns, arrival.source, isinstance(arrival, Frame)) for arrival in arrivals]


def lined(captured_ns: list[int], coming: list[tuple[int, int] | None]) -> TriggeredCamera:
    return TriggeredCamera(Camera(captured_ns), LineTriggers(Line(coming)))


def test_each_part_takes_the_first_frame_after_its_trigger() -> None:
    frames = lined([5, 12, 15, 21, 33], [(1, 10), None, (2, 20), None, (3, 30), None, (4, 40)]).frames()
    assert seen(frames) == [(1, 10, "2", True), (2, 20, "4", True), (3, 30, "5", True), (4, 40, "trigger", False)]


def test_a_part_whose_frame_came_after_the_next_trigger_has_none() -> None:
    line = Line([(3, 40), None, (4, 50)])
    line.heard.extend([(1, 10), (2, 20)])
    frames = TriggeredCamera(Camera([25, 45]), LineTriggers(line)).frames()
    assert seen(frames) == [(1, 10, "1", False), (2, 20, "1", True), (3, 40, "2", True), (4, 50, "trigger", False)]


def test_a_trigger_that_its_owner_tells_of_late_counts_as_the_next_one() -> None:
    asked: list[int] = []

    class HeldUp(Line):
        def told_until(self, at_ns: int, timeout_s: float) -> bool:
            asked.append(at_ns)
            if len(asked) == 2:
                self.heard.append((2, 20))
            return len(asked) > 1

    frames = TriggeredCamera(Camera([25, 45]), LineTriggers(HeldUp([(1, 10)]))).frames()
    assert seen(itertools.islice(frames, 2)) == [(1, 10, "1", False), (2, 20, "1", True)]
    assert asked[:2] == [25, 25]


def test_a_trigger_that_came_while_the_frame_was_waited_for_counts_as_the_next_one() -> None:
    line = Line([(1, 10), None, (3, 30)])

    class Waiting(Camera):
        def frames(self) -> Iterator[Arrival]:
            line.heard.append((2, 20))
            yield Frame(flat(1), 1, 25, 25, "1")

    arrivals = list(TriggeredCamera(Waiting([]), LineTriggers(line)).frames())
    assert [(arrival.part, isinstance(arrival, Frame)) for arrival in arrivals] == [(1, False), (2, True), (3, False)]


def test_a_part_without_a_picture_keeps_its_reason_and_its_reference() -> None:
    triggers = SoftwareTriggers(FakeClock(10))
    triggers.trigger("S-7")
    triggers.close()
    (arrival,) = TriggeredCamera(Camera([-15]), triggers).frames()
    assert arrival == Missing(1, 10, "1", "frozen", "S-7")


def test_a_part_that_came_too_fast_takes_no_frame_from_the_others() -> None:
    triggers = SoftwareTriggers(FakeClock(10), waiting=1)
    for part_ref in ("a", "b"):
        triggers.trigger(part_ref)
    triggers.close()
    first, second = TriggeredCamera(Camera([11, 12]), triggers, replayed=True).frames()
    assert (first.source, first.part_ref) == ("1", "a")
    assert second == Missing(2, 10, "trigger", "triggers come faster than the station serves them: 1 parts waited already", "b")


def test_a_part_that_came_too_fast_is_a_fault_though_a_live_camera_has_its_frame() -> None:
    clock = FakeClock(10)
    triggers = SoftwareTriggers(clock, waiting=1)
    for _ in range(2):
        triggers.trigger()
        clock.sleep_until_ns(20)
    triggers.close()
    frames = TriggeredCamera(Camera([12, 25, 30]), triggers).frames()
    assert seen(frames) == [(1, 10, "1", True), (2, 20, "trigger", False)]


@pytest.mark.parametrize("replayed", [False, True])
def test_parts_that_triggered_before_the_camera_was_lost_are_faults_and_then_the_run_ends(replayed: bool) -> None:
    triggers = SoftwareTriggers(FakeClock(10))
    for _ in range(3):
        triggers.trigger()
    frames = TriggeredCamera(Camera([], StationError("cable")), triggers, replayed=replayed).frames()
    arrivals = []
    with pytest.raises(StationError, match="cable"):
        for arrival in frames:
            arrivals.append(arrival)
    assert [(arrival.part, arrival.reason) for arrival in arrivals if isinstance(arrival, Missing)] == [
        (number, "no picture: cable") for number in (1, 2, 3)
    ]
    with pytest.raises(StationError, match="the run is over"):
        triggers.trigger()


def test_a_replay_gives_each_part_its_next_picture_though_all_triggered_at_once() -> None:
    triggers = SoftwareTriggers(FakeClock(50))
    for number in range(1, 5):
        triggers.trigger(f"S-{number}")
    arrivals = list(TriggeredCamera(Camera([5, 60, -70]), triggers, replayed=True).frames())
    assert seen(iter(arrivals)) == [(1, 50, "1", True), (2, 50, "2", True), (3, 50, "3", False), (4, 50, "trigger", False)]
    assert [arrival.part_ref for arrival in arrivals] == ["S-1", "S-2", "S-3", "S-4"]
    assert [arrival.captured_ns for arrival in arrivals if isinstance(arrival, Frame)] == [50, 60]  # never before its trigger


def test_a_replay_without_pictures_left_ends_by_itself() -> None:
    clock = FakeClock()
    frames = TriggeredCamera(Camera([5, 6]), TimerTriggers(clock, PERIOD_NS), replayed=True).frames()
    assert [(arrival.part, isinstance(arrival, Frame)) for arrival in frames] == [(1, True), (2, True)]


def test_the_end_of_the_triggers_ends_the_run() -> None:
    triggers = SoftwareTriggers(FakeClock())
    triggers.trigger()
    triggers.close()
    for replayed in (False, True):
        assert len(list(TriggeredCamera(Camera([10**13] * 9), triggers, replayed=replayed).frames())) == (not replayed)


def test_a_lost_rejector_ends_the_run() -> None:
    line = Line()
    line.failure = StationError("gone")
    with pytest.raises(StationError, match="gone"):
        list(TriggeredCamera(Camera([5]), LineTriggers(line)).frames())


def test_a_bad_frame_of_before_the_trigger_is_not_the_parts() -> None:
    frames = lined([-5, -9, 12, -19, -20], [(1, 10), None, (2, 20), None]).frames()
    assert seen(itertools.islice(frames, 2)) == [(1, 10, "3", True), (2, 20, "5", False)]


@pytest.mark.parametrize(
    "join",
    [
        lambda camera: TriggeredCamera(camera, LineTriggers(Line())),
        lambda camera: ReferencedCamera(camera, QueuedReferences(FakeClock(), min_age_ns=0, max_age_ns=1)),
        lambda camera: PresenceCamera(camera, cast("Presence", None), FakeClock()),
        lambda camera: AheadCamera(lambda go: camera),
    ],
    ids=["triggered", "referenced", "presence", "ahead"],
)
def test_whatever_is_joined_to_a_camera_is_as_healthy_as_the_camera(join: Callable[[Camera], edge.camera.Camera]) -> None:
    camera = Camera([])
    with contextlib.closing(join(camera)) as joined:
        assert (joined.healthy, joined.status) == (True, "")
        camera.healthy, camera.status = False, "unplugged"
        assert (joined.healthy, joined.status) == (False, "unplugged")


def test_closing_closes_the_camera() -> None:
    camera = Camera([])
    TriggeredCamera(camera, LineTriggers(Line())).close()
    assert camera.closed == 1


def test_a_live_camera_gives_each_part_its_own_frame_and_a_part_that_it_was_lost_for_none() -> None:
    clock = FakeClock()
    device = FakeDevice(clock)
    live = LiveCamera(device, LiveSource(), clock, parts_by_trigger=True)
    line = Line()
    frames = TriggeredCamera(live, LineTriggers(line)).frames()

    def trigger(part: int) -> None:
        line.heard.append((part, clock.now_ns()))
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


def test_a_part_whose_picture_was_let_go_while_the_station_was_busy_gets_no_later_one() -> None:
    clock = FakeClock()
    device = FakeDevice(clock)
    live = LiveCamera(device, LiveSource(), clock, parts_by_trigger=True)
    line = Line()
    frames = TriggeredCamera(live, LineTriggers(line)).frames()
    for grey in range(11, 23):  # nobody asks; the station is busy, and two parts trigger just before the second and the third
        if grey in (12, 13):
            line.heard.append((grey - 11, clock.now_ns()))
        clock.advance_ms(5)
        device.feed(flat(grey))
    clock.advance_ms(5)
    line.heard.append((3, clock.now_ns()))
    device.feed(flat(23))
    for part in (1, 2):
        lost = next(frames)
        assert isinstance(lost, Missing)
        assert lost.part == part
        assert lost.reason == "camera fake: its picture was let go, 8 later ones came before the station asked"
    assert grey_of(next(frames)) == 23
    live.close()


def grey_of(arrival: Arrival) -> int:
    assert isinstance(arrival, Frame)
    return int(arrival.image[0, 0, 0])


class LostLine:
    """A rejector that told of two parts and is gone."""

    def __init__(self) -> None:
        self.heard = [(1, 10), (2, 20)]

    def next_trigger(self, timeout_s: float) -> tuple[int, int] | None:
        """What was heard, and then the loss."""
        if self.heard:
            return self.heard.pop(0)
        raise StationError("the rejector is not there")

    def told_until(self, at_ns: int, timeout_s: float) -> bool:
        raise StationError("the rejector is not there")


def lost() -> None:
    raise StationError("the rejector is not there")


def test_parts_that_a_lost_rejector_told_of_can_be_had_after_closing() -> None:
    triggers = LineTriggers(LostLine(), beat=lost)
    with pytest.raises(StationError, match="not there"):
        triggers.next(0.0)
    triggers.close()
    assert [trigger.part for trigger in triggers.pending()] == [1, 2]
    assert [trigger.part for trigger in (triggers.next(0.0), triggers.next(0.0)) if trigger is not None] == [1, 2]
    assert triggers.ended


def test_parts_by_software_can_be_had_after_closing_where_nothing_beats_any_more() -> None:
    triggers = SoftwareTriggers(FakeClock(), beat=lost)
    triggers.trigger("S-1")
    with pytest.raises(StationError, match="not there"):
        triggers.next(0.0)
    triggers.close()
    trigger = triggers.next(0.0)
    assert trigger is not None
    assert trigger.part_ref == "S-1"


def test_parts_that_the_rejector_could_not_tell_of_are_faults() -> None:
    line = Line()
    triggers = LineTriggers(line)
    line.heard += [(1, 10), (4, 40)]
    came = [triggers.next(0.0) for _ in range(4)]
    assert [(trigger.part, trigger.at_ns, bool(trigger.fault)) for trigger in came if trigger is not None] == [
        (1, 10, False),
        (2, 40, True),
        (3, 40, True),
        (4, 40, False),
    ]
    assert triggers.counts == {"triggered": 4, "untold": 2}
