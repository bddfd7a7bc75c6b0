"""What every source of frames must do, and what each does besides."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest

from edge import StationError
from edge.camera import Camera, FolderCamera, OpenCVCamera, VideoCamera
from edge.clock import SystemClock
from edge.verdict import Arrival, Frame, Missing
from engines.images import Image
from tests.fakes import FakeCamera, FakeClock, flat, textured, write_pictures

MS = 10**6
RED, GREEN, BLUE = (220, 30, 40), (20, 200, 60), (30, 40, 210)
PICTURES = [flat(colour) for colour in (RED, GREEN, BLUE)]


class FakeCapture:
    """A `cv2.VideoCapture` of a live camera: gives what it is fed, in OpenCV's BGR, and says False in between.

    Attributes:
        idle: set while all that was fed has been taken, and the reader is back for more.
        released_by: names of the threads that released it.
    """

    def __init__(self) -> None:
        self._fed: queue.SimpleQueue[Image | Exception] = queue.SimpleQueue()
        self._go = threading.Event()
        self._go.set()
        self.idle = threading.Event()
        self._hung = threading.Event()
        self.released_by: list[str] = []

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def read(self) -> tuple[bool, Image | None]:
        if not self._go.is_set():
            self._hung.set()
            self._go.wait()
        try:
            fed = self._fed.get(timeout=0.002)
        except queue.Empty:
            self.idle.set()
            return False, None
        if isinstance(fed, Exception):
            raise fed
        return True, np.ascontiguousarray(fed[:, :, ::-1]) if fed.ndim == 3 else fed

    def release(self) -> None:
        self.released_by.append(threading.current_thread().name)

    def feed(self, *items: Image | Exception) -> None:
        """Give these; returns when the last has been taken and dealt with, or the reader failed."""
        self.idle.clear()
        for item in items:
            self._fed.put(item)
        if not isinstance(items[-1], Exception):
            assert self.idle.wait(30)

    def hang(self) -> None:
        """Let the next `read` block until `let_go`; returns when it does."""
        self._go.clear()
        assert self._hung.wait(30)

    def let_go(self) -> None:
        """Unblock."""
        self._go.set()


def live(capture: FakeCapture, timeout_ms: float = 30_000) -> OpenCVCamera:
    return OpenCVCamera(0, SystemClock(), timeout_ms=timeout_ms, open_capture=lambda device: cast("cv2.VideoCapture", capture))


def write_video(path: Path, pictures: list[Image], fps: float = 10) -> Path:
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (width, height))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@dataclass
class Source:
    """A camera over PICTURES, and what must be done before each part is asked for."""

    camera: Camera
    now_ns: Callable[[], int]
    before: Callable[[int], None] = lambda part: None

    def take(self, count: int) -> list[Arrival]:
        frames = self.camera.frames()
        arrivals = []
        for index in range(count):
            self.before(index)
            arrivals.append(next(frames))
        return arrivals


def folder_source(tmp_path: Path) -> Source:
    write_pictures(tmp_path / "parts", PICTURES)
    clock = FakeClock()
    return Source(FolderCamera(tmp_path / "parts", clock), clock.now_ns)


def beat_source(tmp_path: Path) -> Source:
    write_pictures(tmp_path / "parts", PICTURES)
    clock = FakeClock()
    return Source(FolderCamera(tmp_path / "parts", clock, period_ns=50 * MS), clock.now_ns)


def video_source(tmp_path: Path) -> Source:
    clock = FakeClock()
    return Source(VideoCamera(write_video(tmp_path / "parts.avi", PICTURES), clock), clock.now_ns)


def live_source(tmp_path: Path) -> Source:
    capture = FakeCapture()
    return Source(live(capture), SystemClock().now_ns, lambda index: capture.feed(PICTURES[index]))


def fake_source(tmp_path: Path) -> Source:
    clock = FakeClock()
    return Source(FakeCamera(clock, PICTURES), clock.now_ns)


@pytest.fixture(params=[folder_source, beat_source, video_source, live_source, fake_source])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    """Each kind of camera over the same three pictures."""
    made: Source = request.param(tmp_path)
    yield made
    made.camera.close()


def test_parts_are_numbered_from_one_in_order(source: Source) -> None:
    assert [arrival.part for arrival in source.take(3)] == [1, 2, 3]


def test_frames_are_the_pictures_in_rgb(source: Source) -> None:
    for arrival, colour in zip(source.take(3), (RED, GREEN, BLUE), strict=True):
        assert isinstance(arrival, Frame)
        assert arrival.image.shape == (64, 64, 3)
        assert arrival.image.dtype == np.uint8
        np.testing.assert_allclose(arrival.image.mean(axis=(0, 1)), colour, atol=6)  # a video is lossy


def test_frames_are_read_only(source: Source) -> None:
    (arrival,) = source.take(1)
    assert isinstance(arrival, Frame)
    with pytest.raises(ValueError, match="read-only"):
        arrival.image[0, 0, 0] = 1


def test_times_never_go_back_and_never_lie_ahead(source: Source) -> None:
    arrivals = source.take(3)
    times = [arrival.trigger_ns for arrival in arrivals]
    assert times == sorted(times)
    assert times[-1] <= source.now_ns()
    for arrival in arrivals:
        assert isinstance(arrival, Frame)
        assert arrival.captured_ns <= source.now_ns()


def test_a_person_can_tell_where_a_frame_came_from(source: Source) -> None:
    assert all(arrival.source for arrival in source.take(3))


def test_closing_twice_is_harmless(source: Source) -> None:
    source.take(1)
    source.camera.close()
    source.camera.close()


def test_closing_before_the_first_frame_is_harmless(source: Source) -> None:
    source.camera.close()


# a folder


def test_a_folder_is_replayed_in_natural_order_at_any_depth(tmp_path: Path) -> None:
    for name in ("a/10.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), flat(9))
    (tmp_path / "a" / "notes.txt").write_text("not a part")
    assert [arrival.source for arrival in FolderCamera(tmp_path, FakeClock()).frames()] == ["a/2.png", "a/10.png", "b/1.png"]


def test_a_file_that_cannot_be_read_is_a_part_without_a_picture(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, [*PICTURES, *PICTURES])
    paths[1].write_bytes(paths[1].read_bytes()[:-30])
    paths[2].write_bytes(b"not a picture")
    paths[3].write_bytes(b"")
    frames = FolderCamera(tmp_path, FakeClock()).frames()
    arrivals = [next(frames)]
    paths[4].unlink()  # gone between the listing and its turn
    arrivals += list(frames)
    assert [type(arrival) for arrival in arrivals] == [Frame, Missing, Missing, Missing, Missing, Frame]
    assert [arrival.part for arrival in arrivals] == [1, 2, 3, 4, 5, 6]
    for arrival, name, why in zip(arrivals[1:5], "2345", ("truncated", "not an image", "empty", "cannot be read"), strict=True):
        assert isinstance(arrival, Missing)
        assert f"{name}.png" in arrival.reason
        assert why in arrival.reason


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StationError, match="no images; expected PNG"):
        FolderCamera(tmp_path, FakeClock())
    with pytest.raises(StationError, match="no such folder"):
        FolderCamera(tmp_path / "none", FakeClock())


def replay(tmp_path: Path, clock: FakeClock, period_ns: int, station_ms: list[float]) -> list[int]:
    """Trigger times, from the first on, for a station that takes so long over each part."""
    write_pictures(tmp_path, [textured(seed) for seed in range(len(station_ms))])
    triggers = []
    for arrival, taken_ms in zip(FolderCamera(tmp_path, clock, period_ns).frames(), station_ms, strict=True):
        assert arrival.trigger_ns <= clock.now_ns()
        triggers.append(arrival.trigger_ns)
        clock.advance_ms(taken_ms)
    return [(trigger - triggers[0]) // MS for trigger in triggers]


def test_a_beat_is_kept_while_the_station_keeps_up(tmp_path: Path) -> None:
    clock = FakeClock()
    assert replay(tmp_path, clock, 100 * MS, [10, 99, 0, 50, 5]) == [0, 100, 200, 300, 400]
    assert clock.slept_until == [10**12 + beat * 100 * MS for beat in range(5)]


def test_a_beat_is_kept_when_the_station_does_not(tmp_path: Path) -> None:
    # the parts of a conveyor do not wait: they trigger on time, and it is their verdicts that come late
    assert replay(tmp_path, FakeClock(), 100 * MS, [350, 10, 10, 10, 10]) == [0, 100, 200, 300, 400]


def test_without_a_beat_each_part_waits_for_the_one_before(tmp_path: Path) -> None:
    clock = FakeClock()
    assert replay(tmp_path, clock, 0, [350, 10, 20, 0, 5]) == [0, 350, 360, 380, 380]
    assert clock.slept_until == []


# a video


def test_a_video_ends_with_its_last_frame(tmp_path: Path) -> None:
    camera = VideoCamera(write_video(tmp_path / "line.avi", PICTURES * 4), FakeClock())
    assert [arrival.source for arrival in camera.frames()] == [f"line.avi#{part}" for part in range(1, 13)]
    camera.close()


def test_a_video_keeps_a_beat_too(tmp_path: Path) -> None:
    clock = FakeClock()
    camera = VideoCamera(write_video(tmp_path / "line.avi", PICTURES), clock, period_ns=40 * MS)
    triggers = []
    for arrival in camera.frames():
        triggers.append((arrival.trigger_ns - 10**12) // MS)
        clock.advance_ms(500)
    assert triggers == [0, 40, 80]
    camera.close()


@pytest.mark.parametrize("name", ["notes.txt", "notes.avi", "notes", "part-01.png"])
def test_what_is_no_video_is_refused(tmp_path: Path, name: str) -> None:
    # OpenCV itself opens a long .txt as a film, and part-01.png with every part-NN.png beside it
    (tmp_path / name).write_text("\n".join(str(line) for line in range(20_000)))
    with pytest.raises(StationError, match=r"expected a folder of images or a (video )?file"):
        VideoCamera(tmp_path / name, FakeClock())


def test_one_picture_is_not_replayed_as_all_with_like_names(tmp_path: Path) -> None:
    first, *_ = write_pictures(tmp_path, PICTURES)
    with pytest.raises(StationError, match="expected a folder of images or a file that ends with"):
        VideoCamera(first, FakeClock())


def test_a_missing_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StationError, match="no such file"):
        VideoCamera(tmp_path / "none.avi", FakeClock())


def test_a_video_that_was_cut_gives_whole_numbers_of_frames_or_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "line.avi", [textured(seed) for seed in range(10)])
    data = path.read_bytes()
    counts = []
    for length in range(0, len(data), len(data) // 20):
        path.write_bytes(data[:length])
        try:
            camera = VideoCamera(path, FakeClock())
            arrivals = list(camera.frames())
        except StationError:
            counts.append(0)
            continue
        assert [arrival.part for arrival in arrivals] == list(range(1, len(arrivals) + 1))
        counts.append(len(arrivals))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] > 5


def test_a_video_whose_frames_are_not_8_bit_colour_is_refused(tmp_path: Path) -> None:
    camera = VideoCamera(write_video(tmp_path / "line.avi", PICTURES), FakeClock())
    camera._capture = cast("cv2.VideoCapture", FakeCapture())
    cast("FakeCapture", camera._capture)._fed.put(np.zeros((64, 64), np.uint8))
    with pytest.raises(StationError, match=r"frame is uint8 \(64, 64\), expected uint8 \(height, width, 3\)"):
        next(camera.frames())


# a live camera


def test_a_live_camera_gives_the_newest_frame_only() -> None:
    capture = FakeCapture()
    camera = live(capture)
    frames = camera.frames()
    capture.feed(flat(1))
    assert grey_of(next(frames)) == 1
    capture.feed(flat(2), flat(3), flat(4))  # while the station is busy
    assert grey_of(next(frames)) == 4
    capture.feed(flat(5))
    assert grey_of(next(frames)) == 5
    camera.close()


def test_a_deadline_counts_from_the_capture_not_from_the_taking() -> None:
    capture = FakeCapture()
    camera = live(capture)
    frames = camera.frames()
    before = SystemClock().now_ns()
    capture.feed(flat(1))
    fed = SystemClock().now_ns()
    arrival = next(frames)
    assert isinstance(arrival, Frame)
    assert before <= arrival.trigger_ns == arrival.captured_ns <= fed
    camera.close()


def test_a_frame_is_never_given_twice_and_silence_is_a_missing_part_then_the_end() -> None:
    capture = FakeCapture()
    camera = live(capture, timeout_ms=20)
    frames = camera.frames()
    capture.feed(flat(1))
    assert grey_of(next(frames)) == 1
    silent = list(itertools.islice(frames, 4))
    assert [type(arrival) for arrival in silent] == [Missing] * 4
    assert [arrival.part for arrival in silent] == [2, 3, 4, 5]
    assert all(isinstance(arrival, Missing) and arrival.reason == "no new frame for 0.02 s" for arrival in silent)
    with pytest.raises(StationError, match=r"camera 0: no frame for 0\.1 s; check the cable, then start again"):
        next(frames)
    camera.close()


def test_one_frame_ends_a_silence() -> None:
    capture = FakeCapture()
    camera = live(capture, timeout_ms=20)
    frames = camera.frames()
    for grey in (1, 2, 3):
        assert [type(next(frames)) for _ in range(4)] == [Missing] * 4
        capture.feed(flat(grey))
        assert grey_of(next(frames)) == grey
    camera.close()


def test_a_frozen_camera_gives_missing_parts_until_it_moves() -> None:
    capture = FakeCapture()
    camera = live(capture)
    frames = camera.frames()
    arrivals = []
    for grey in (1, 1, 1, 2, 1):
        capture.feed(flat(grey))
        arrivals.append(next(frames))
    assert [type(arrival) for arrival in arrivals] == [Frame, Missing, Missing, Frame, Frame]
    assert [arrival.part for arrival in arrivals] == [1, 2, 3, 4, 5]
    assert isinstance(arrivals[1], Missing)
    assert "frozen" in arrivals[1].reason
    camera.close()


def test_a_video_that_ends_before_its_header_says_ends_with_a_missing_part(tmp_path: Path) -> None:
    path = write_video(tmp_path / "line.avi", [textured(seed) for seed in range(30)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    camera = VideoCamera(path, FakeClock())
    *whole, last = list(camera.frames())
    assert 5 < len(whole) < 25
    assert all(isinstance(arrival, Frame) for arrival in whole)
    assert isinstance(last, Missing)
    assert last.part == len(whole) + 1
    assert f"ended after {len(whole)} of 30 frames" in last.reason


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (RuntimeError("driver gone"), "RuntimeError: driver gone"),
        (cv2.error("no such stream"), "error: no such stream"),
        (flat(1)[:, :, 0], r"frame is uint8 \(64, 64\), expected uint8"),  # grey
        (flat(1).astype(np.uint16), r"frame is uint16 \(64, 64, 3\), expected uint8"),  # would wrap round at 256
    ],
)
def test_a_driver_that_raises_is_a_lost_camera_with_its_reason(broken: Exception | Image, reason: str) -> None:
    capture = FakeCapture()
    camera = live(capture)
    frames = camera.frames()
    capture.feed(flat(7))
    assert grey_of(next(frames)) == 7
    capture._fed.put(broken)
    with pytest.raises(StationError, match=rf"camera 0: reading failed \(.*{reason}"):
        next(frames)
    camera.close()
    assert capture.released_by == ["camera 0"]


def test_the_thread_that_reads_is_the_one_that_releases() -> None:
    capture = FakeCapture()
    camera = live(capture)
    camera.close()
    assert capture.released_by == ["camera 0"]
    camera.close()
    assert capture.released_by == ["camera 0"]


def test_closing_comes_back_from_a_driver_that_hangs_and_leaves_it_alone() -> None:
    capture = FakeCapture()
    camera = live(capture, timeout_ms=20)
    capture.hang()
    camera.close()
    assert capture.released_by == []  # released under a read, OpenCV may crash
    capture.let_go()
    camera._thread.join(30)
    assert capture.released_by == ["camera 0"]


def test_a_camera_that_does_not_open_is_refused() -> None:
    capture = FakeCapture()
    capture.isOpened = lambda: False  # type: ignore[method-assign]
    with pytest.raises(StationError, match="camera 0: OpenCV cannot open it; check the cable, the number and the permissions"):
        live(capture)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(StationError, match="OpenCV cannot open it"):
        OpenCVCamera("/dev/no-such-camera", SystemClock())


def grey_of(arrival: Arrival) -> int:
    assert isinstance(arrival, Frame)
    return int(arrival.image[0, 0, 0])


def test_the_loop_beats_while_it_waits_for_a_frame_or_a_beat() -> None:
    beats: list[str] = []
    capture = FakeCapture()
    camera = OpenCVCamera(
        0,
        SystemClock(),
        timeout_ms=100,
        beat=lambda: beats.append(threading.current_thread().name),
        open_capture=lambda device: cast("cv2.VideoCapture", capture),
    )
    assert isinstance(next(camera.frames()), Missing)
    camera.close()
    waited = len(beats)
    assert waited >= 2
    SystemClock(lambda: beats.append(threading.current_thread().name)).sleep_until_ns(time.monotonic_ns() + 50 * MS)
    assert len(beats) >= waited + 2
    assert set(beats) == {threading.current_thread().name}
