"""The capture thread: what it holds, what it says of the camera, and how it opens a lost one again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import pytest

from edge import StationError
from edge.camera_sections import CameraSource, LiveSource, Region
from edge.clock import SystemClock
from edge.device import DeviceLostError, Setting, TornFrameError
from edge.live import LiveCamera
from edge.opencv_device import V4l2Device
from edge.verdict import Arrival, Frame, Missing
from engines.images import Image
from tests.fake_aravis import gige, trigger
from tests.fake_device import FakeCapture, FakeDevice
from tests.fakes import FakeClock, flat, textured

MS = 10**6
PATIENT = {"timeout_ms": 30_000, "stale_ms": 30_000}  # a busy machine fails nothing


class AskedError(Exception):
    """Somebody waited for a picture as long as the test lets it."""


@dataclass
class Rig:
    """A live camera that a test feeds."""

    camera: LiveCamera
    feed: Callable[..., None]

    def __post_init__(self) -> None:
        self.frames = self.camera.frames()

    def give(self, picture: Image) -> Arrival:
        """Feed one picture and take what the station gets."""
        self.feed(picture)
        return next(self.frames)


def device_rig(closing: contextlib.ExitStack) -> Rig:
    device = FakeDevice(SystemClock())
    return Rig(LiveCamera(device, LiveSource(**PATIENT), SystemClock()), device.feed)


def v4l2_rig(closing: contextlib.ExitStack) -> Rig:
    capture = FakeCapture()
    source = CameraSource(kind="camera", device=0, **PATIENT)
    device = V4l2Device(source, SystemClock(), lambda *arguments: cast("cv2.VideoCapture", capture))
    return Rig(LiveCamera(device, source, SystemClock()), capture.feed)


def gige_rig(closing: contextlib.ExitStack) -> Rig:
    fake = closing.enter_context(gige())
    device = fake.device()
    camera = LiveCamera(device, fake.source(), SystemClock())

    def feed(picture: Image) -> None:
        fake.show(picture)
        trigger(device)

    return Rig(camera, feed)


@pytest.fixture(params=[device_rig, v4l2_rig])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Over the fake device, and over a stand-in for OpenCV's capture."""
    with contextlib.ExitStack() as closing:
        made: Rig = request.param(closing)
        closing.callback(made.camera.close)
        yield made


any_rig = pytest.mark.parametrize("rig", [device_rig, v4l2_rig, gige_rig], indirect=True)


def grey_of(arrival: Arrival) -> int:
    assert isinstance(arrival, Frame)
    return int(arrival.image[0, 0, 0])


def reason_of(arrival: Arrival) -> str:
    assert isinstance(arrival, Missing)
    return arrival.reason


def test_the_station_gets_the_newest_picture_only(rig: Rig) -> None:
    assert grey_of(rig.give(flat(11))) == 11
    rig.feed(flat(12), flat(13), flat(14))  # while the station is busy
    assert grey_of(next(rig.frames)) == 14
    assert grey_of(rig.give(flat(15))) == 15


def test_a_deadline_counts_from_the_capture_not_from_the_taking(rig: Rig) -> None:
    before = SystemClock().now_ns()
    rig.feed(flat(11))
    fed = SystemClock().now_ns()
    arrival = next(rig.frames)
    assert isinstance(arrival, Frame)
    assert before <= arrival.trigger_ns == arrival.captured_ns <= fed


@any_rig
def test_a_frozen_camera_gives_missing_parts_until_it_moves(rig: Rig) -> None:
    arrivals = [rig.give(flat(grey)) for grey in (11, 11, 11, 12, 11)]
    assert [type(arrival) for arrival in arrivals] == [Frame, Missing, Missing, Frame, Frame]
    assert [arrival.part for arrival in arrivals] == [1, 2, 3, 4, 5]
    assert "frozen" in reason_of(arrivals[1])


@any_rig
def test_black_and_saturated_pictures_are_missing_parts(rig: Rig) -> None:
    assert isinstance(rig.give(textured(1)), Frame)
    assert reason_of(rig.give(flat(0))).startswith("black")
    assert reason_of(rig.give(flat(255))).startswith("saturated")
    assert isinstance(rig.give(textured(3)), Frame)
    assert rig.camera.healthy


def test_a_picture_of_another_size_is_a_missing_part(rig: Rig) -> None:
    assert isinstance(rig.give(textured(1)), Frame)
    assert reason_of(rig.give(textured(2, (64, 32)))).startswith("frame of 32 x 64 pixels, expected 64 x 64")
    assert isinstance(rig.give(textured(3)), Frame)
    assert rig.camera.healthy


# over the fake device, on a clock that the test turns


@pytest.fixture
def clock() -> FakeClock:
    """Turned by the test, and by the thread while it waits to open again."""
    return FakeClock()


@contextlib.contextmanager
def opened(device: FakeDevice, clock: FakeClock, source: LiveSource | None = None, **options: bool) -> Iterator[Rig]:
    """A rig whose waiting ends with AskedError after a few beats."""
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats % 3 == 0:
            raise AskedError

    camera = LiveCamera(device, source or LiveSource(), clock, beat=beat, **options)
    try:
        yield Rig(camera, device.feed)
    finally:
        camera.close()


def test_a_torn_picture_is_a_missing_part_with_its_time(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.give(flat(11))
        rig.feed(TornFrameError("missing packets", clock.now_ns()))
        arrival = next(rig.frames)
        assert reason_of(arrival) == "torn: missing packets"
        assert arrival.trigger_ns == clock.now_ns()
        assert grey_of(rig.give(flat(12))) == 12


def test_a_picture_that_grew_old_in_the_slot_is_not_judged(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock, LiveSource(stale_ms=500)) as rig:
        rig.give(flat(11))
        rig.feed(flat(12))
        clock.advance_ms(501)
        assert reason_of(next(rig.frames)) == "stale: the newest frame is 501 ms old, allowed are 500 ms"
        rig.feed(flat(13))
        clock.advance_ms(500)
        assert grey_of(next(rig.frames)) == 13


def test_it_is_not_healthy_before_the_first_picture(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        assert (rig.camera.healthy, rig.camera.status) == (False, "camera fake: no frame yet")
        rig.give(flat(11))
        assert (rig.camera.healthy, rig.camera.status) == (True, "")


def test_a_driver_that_hangs_is_not_healthy_though_its_thread_cannot_say_so(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.give(flat(11))
        device.hang()
        clock.advance_ms(2000)
        assert rig.camera.healthy
        clock.advance_ms(1)
        assert (rig.camera.healthy, rig.camera.status) == (False, "camera fake: no new frame for 2 s")
        device.let_go()


def test_silence_opens_the_camera_again_and_no_part_comes_meanwhile(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.give(flat(11))
        clock.advance_ms(2001)
        device.turn()
        assert (len(device.opened_ns), len(device.closed_by)) == (2, 1)
        assert not rig.camera.healthy
        with pytest.raises(AskedError):
            next(rig.camera.frames())


def test_a_camera_that_comes_back_delivers_and_is_healthy_again_and_parts_are_numbered_on(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.give(flat(11))
        rig.feed(DeviceLostError("unplugged"))
        assert (rig.camera.healthy, rig.camera.status) == (False, "camera fake: no frame yet")  # open again
        arrival = rig.give(flat(12))
        assert (grey_of(arrival), arrival.part) == (12, 2)
        assert (rig.camera.healthy, rig.camera.status) == (True, "")
        assert rig.camera.counts == {"opened": 2}


def test_tries_back_off_from_half_a_second_doubling_to_ten(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.give(flat(11))
        start = clock.now_ns()
        device.refusals = [DeviceLostError("not there")] * 7
        rig.feed(DeviceLostError("unplugged"))
        waits = np.diff([start, *device.opened_ns[1:]]) / 1e9
        assert waits.tolist() == [0.5, 1, 2, 4, 8, 10, 10, 10]
        rig.give(flat(12))  # and delivering begins anew
        again = clock.now_ns()
        rig.feed(DeviceLostError("unplugged"))
        assert device.opened_ns[-1] - again == 500 * MS


def test_what_a_lost_camera_last_said_is_its_status(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.give(flat(11))
        device.refusals = [DeviceLostError("camera fake: not there")]
        gone = threading.Event()
        seen: list[tuple[bool, str]] = []
        sleep = clock.sleep_until_ns

        def look(when_ns: int) -> None:
            seen.append((rig.camera.healthy, rig.camera.status))
            sleep(when_ns)
            gone.set()

        clock.sleep_until_ns = look  # type: ignore[method-assign]
        rig.feed(DeviceLostError("unplugged"))
        assert gone.wait(30)
        assert seen[0] == (False, "camera fake: unplugged")
        assert seen[-1] == (False, "camera fake: not there")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (RuntimeError("driver gone"), "RuntimeError: driver gone"),
        (cv2.error("no such stream"), "error: no such stream"),
        (StationError("frame is uint8 (64, 64), expected colour"), "frame is uint8 (64, 64), expected colour"),
    ],
)
def test_whatever_a_driver_raises_after_it_worked_is_a_lost_camera(clock: FakeClock, broken: Exception, reason: str) -> None:
    device = FakeDevice(clock)
    statuses: list[str] = []
    with opened(device, clock) as rig:
        rig.give(flat(11))
        sleep = clock.sleep_until_ns
        clock.sleep_until_ns = lambda when_ns: (statuses.append(rig.camera.status), sleep(when_ns))[1]  # type: ignore[method-assign,func-returns-value]
        rig.feed(broken)
        assert statuses[0] == f"camera fake: {reason}"
        assert grey_of(rig.give(flat(12))) == 12


def test_pictures_that_never_could_be_used_end_the_run(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        device.put(StationError("frame is uint16; set 8-bit colour"))
        with pytest.raises(StationError, match="frame is uint16; set 8-bit colour"):
            next(rig.frames)
        assert (rig.camera.healthy, rig.camera.status) == (False, "frame is uint16; set 8-bit colour")


def test_a_camera_that_is_frozen_for_good_or_in_another_mode_counts_as_lost(clock: FakeClock) -> None:
    for wrong in (flat(11), textured(1, (32, 32))):
        device = FakeDevice(clock)
        with opened(device, clock) as rig:
            rig.give(flat(11))
            clock.advance_ms(1999)
            rig.feed(wrong)
            assert len(device.opened_ns) == 1
            clock.advance_ms(2)
            rig.feed(wrong)
            assert len(device.opened_ns) == 2
            assert not rig.camera.healthy


def test_a_dark_scene_is_no_lost_camera(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.give(flat(11))
        for grey in (1, 2, 3, 4):
            clock.advance_ms(1500)
            rig.feed(flat(grey))
        assert rig.camera.healthy
        assert len(device.opened_ns) == 1


def test_pictures_in_another_mode_do_not_make_a_lost_camera_healthy(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.give(flat(11))
        rig.feed(DeviceLostError("unplugged"), textured(1, (32, 32)))
        assert not rig.camera.healthy
        assert "frame of 32 x 32 pixels, expected 64 x 64" in rig.camera.status
        with pytest.raises(AskedError):
            next(rig.camera.frames())
        assert grey_of(rig.give(flat(12))) == 12


def test_settings_that_were_not_taken_refuse_the_start_with_both_values(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    device.settings = [Setting("exposure_us", 800, 1000, 100), Setting("gain", 4, 4), Setting("mode", "a", "b")]
    with pytest.raises(StationError) as caught:
        LiveCamera(device, LiveSource(), clock)
    assert str(caught.value) == (
        "camera fake: exposure_us is 1000 after 800 was set; mode is b after a was set; change the configuration"
    )
    assert device.closed_by == ["camera fake"]


def test_settings_within_the_devices_step_or_that_cannot_be_read_are_no_faults(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    device.settings = [Setting("exposure_us", 800, 850, 100), Setting("gain", 4, None)]
    with opened(device, clock) as rig:
        assert [str(setting) for setting in rig.camera.settings] == [
            "exposure_us 800, read back 850",
            "gain 4, set, cannot be read back",
        ]


@pytest.mark.parametrize("got", [float("nan"), -1.0])
def test_a_value_that_is_no_number_is_not_what_was_set(got: float) -> None:
    assert Setting("gain", 4, got, 0.5).fault is not None


def test_a_camera_that_comes_back_with_other_settings_stays_lost(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.give(flat(11))
        device.settings = [Setting("exposure_us", 800, 1000, 100)]
        lost = threading.Event()
        sleep = clock.sleep_until_ns
        statuses: set[str] = set()

        def look(when_ns: int) -> None:
            statuses.add(rig.camera.status)
            sleep(when_ns)
            if len(device.opened_ns) >= 3:
                device.settings = []
                lost.set()

        clock.sleep_until_ns = look  # type: ignore[method-assign]
        device.put(DeviceLostError("unplugged"))
        assert lost.wait(30)
        assert any("exposure_us is 1000 after 800 was set" in status for status in statuses)
        assert grey_of(rig.give(flat(12))) == 12
        assert rig.camera.healthy


def test_a_camera_that_does_not_open_at_the_start_is_refused(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    device.refusals = [DeviceLostError("camera fake: not there; check the cable")]
    with pytest.raises(StationError, match="camera fake: not there; check the cable"):
        LiveCamera(device, LiveSource(), clock)
    assert len(device.opened_ns) == 1


def test_a_refused_start_leaves_no_thread_behind(clock: FakeClock) -> None:
    # OpenCV aborts a process that ends while another thread is inside it
    device = FakeDevice(clock)
    device.refusals = [DeviceLostError("not there")]
    released = threading.Event()
    close = device.close

    def slow_close() -> None:
        released.wait(0.2)
        close()

    device.close = slow_close  # type: ignore[method-assign]
    with pytest.raises(StationError):
        LiveCamera(device, LiveSource(), clock)
    assert device.closed_by == ["camera fake"]


def test_a_driver_that_fails_to_let_go_does_not_end_the_run(clock: FakeClock) -> None:
    device = FakeDevice(clock)

    def close() -> None:
        raise RuntimeError("device gone")

    device.close = close  # type: ignore[method-assign]
    with opened(device, clock) as rig:
        rig.give(flat(11))
        rig.feed(DeviceLostError("unplugged"))
        assert grey_of(rig.give(flat(12))) == 12


# triggers


def test_a_camera_that_waits_for_its_signal_may_be_silent(clock: FakeClock) -> None:
    device = FakeDevice(clock, triggered=True)
    with opened(device, clock) as rig:
        assert rig.camera.healthy  # it was opened, and its settings read back
        for _ in range(5):
            clock.advance_ms(1900)
            device.turn()
        assert rig.camera.healthy
        assert len(device.opened_ns) == 1


def test_with_a_trigger_line_pictures_are_held_in_order(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock, parts_by_trigger=True) as rig:
        rig.feed(*(flat(grey) for grey in range(11, 23)))
        gone = next(rig.frames)
        assert reason_of(gone) == "camera fake: its picture was let go, 8 later ones came before the station asked"
        assert [grey_of(next(rig.frames)) for _ in range(8)] == [15, 16, 17, 18, 19, 20, 21, 22]  # the newest eight


def test_with_a_trigger_line_a_part_that_asks_a_lost_camera_is_missing(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock, parts_by_trigger=True) as rig:
        rig.give(flat(11))
        device.hang()
        clock.advance_ms(2001)
        arrivals = [next(rig.frames), next(rig.frames)]
        assert [arrival.part for arrival in arrivals] == [2, 3]
        assert {reason_of(arrival) for arrival in arrivals} == {"camera fake: no new frame for 2 s"}
        device.let_go()


def test_with_a_trigger_line_a_signal_without_a_picture_is_a_missing_part_after_the_time_limit(clock: FakeClock) -> None:
    device = FakeDevice(clock, triggered=True)
    camera = LiveCamera(device, LiveSource(), clock, beat=lambda: clock.advance_ms(500), parts_by_trigger=True)
    begun = clock.now_ns()
    assert reason_of(next(camera.frames())) == "camera fake: no new frame for 2 s"
    assert clock.now_ns() - begun == 2000 * MS
    camera.close()


def test_waiting_beats_in_the_waiting_thread(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    names: list[str] = []

    def beat() -> None:
        names.append(threading.current_thread().name)
        if len(names) == 5:
            raise AskedError

    camera = LiveCamera(device, LiveSource(), clock, beat=beat)
    with pytest.raises(AskedError):
        next(camera.frames())
    camera.close()
    assert names == [threading.current_thread().name] * 5


# rotation and region


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (0, 47)), (180, (31, 47)), (270, (31, 0))])
def test_pictures_are_turned_clockwise(clock: FakeClock, rotation: int, corner: tuple[int, int]) -> None:
    picture = textured(1, (32, 48) if rotation in (0, 180) else (48, 32))
    picture[0, 0] = (1, 2, 3)
    picture[:, :, 0] |= 4
    picture[0, 0] = (1, 2, 3)
    with opened(FakeDevice(clock), clock, LiveSource(rotation=rotation)) as rig:  # type: ignore[arg-type]
        arrival = rig.give(picture)
    assert isinstance(arrival, Frame)
    assert arrival.image.shape == (32, 48, 3)
    assert arrival.image.flags.c_contiguous
    np.testing.assert_array_equal(np.argwhere((arrival.image == (1, 2, 3)).all(axis=2)), [corner])


def test_the_size_of_a_region_is_expected_from_the_first_picture_on_turned_as_it_is(clock: FakeClock) -> None:
    source = LiveSource(region=Region(width=32, height=48), rotation=90)
    with opened(FakeDevice(clock), clock, source) as rig:
        rig.feed(textured(1, (32, 48)))
        assert "frame of 32 x 48 pixels, expected 48 x 32" in rig.camera.status
        assert isinstance(rig.give(textured(2, (48, 32))), Frame)


# the end


def test_the_thread_that_reads_is_the_one_that_closes(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.camera.close()
        assert device.closed_by == ["camera fake"]


def test_closing_ends_the_wait_for_a_picture(clock: FakeClock) -> None:
    def beat() -> None:
        camera.close()

    camera = LiveCamera(FakeDevice(clock), LiveSource(), clock, beat=beat)
    assert list(camera.frames()) == []


def test_closing_comes_back_from_a_driver_that_hangs_and_leaves_it_alone(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock, LiveSource(timeout_ms=20)) as rig:
        device.hang()
        rig.camera.close()
        assert device.closed_by == []  # released under a read, OpenCV may crash
        device.let_go()
        rig.camera._thread.join(30)
        assert device.closed_by == ["camera fake"]


def test_closing_does_not_wait_for_the_next_try(clock: FakeClock) -> None:
    device = FakeDevice(clock)
    with opened(device, clock) as rig:
        rig.give(flat(11))
        waits, stopped = threading.Event(), threading.Event()
        slept: list[int] = []

        def wait(when_ns: int) -> None:
            slept.append(when_ns)
            waits.set()
            stopped.wait(30)

        clock.sleep_until_ns = wait  # type: ignore[method-assign]
        device.put(DeviceLostError("unplugged"))
        assert waits.wait(30)
        rig.camera._stopping = True
        stopped.set()
        rig.camera._thread.join(30)
        assert len(slept) == 1  # one slice, and not the half second
        assert len(device.opened_ns) == 1
