"""What every source of frames must do, and what each does besides."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest

from edge import StationError
from edge.camera import Camera, FolderCamera, VideoCamera
from edge.camera_sections import CameraSource, LiveSource
from edge.clock import SystemClock
from edge.live import LiveCamera
from edge.opencv_device import V4l2Device, opencv_device
from edge.verdict import Arrival, Frame, Missing
from engines.images import Image
from tests.fake_aravis import gige, trigger
from tests.fake_device import FakeCapture, FakeDevice
from tests.fakes import FakeCamera, FakeClock, flat, textured, write_pictures

MS = 10**6
PATIENT = {"timeout_ms": 30_000, "stale_ms": 30_000}  # a busy machine fails nothing
RED, GREEN, BLUE = (220, 30, 40), (20, 200, 60), (30, 40, 210)
PICTURES = [flat(colour) for colour in (RED, GREEN, BLUE)]


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


def folder_source(tmp_path: Path, closing: contextlib.ExitStack) -> Source:
    write_pictures(tmp_path / "parts", PICTURES)
    clock = FakeClock()
    return Source(FolderCamera(tmp_path / "parts", clock), clock.now_ns)


def beat_source(tmp_path: Path, closing: contextlib.ExitStack) -> Source:
    write_pictures(tmp_path / "parts", PICTURES)
    clock = FakeClock()
    return Source(FolderCamera(tmp_path / "parts", clock, period_ns=50 * MS), clock.now_ns)


def video_source(tmp_path: Path, closing: contextlib.ExitStack) -> Source:
    clock = FakeClock()
    return Source(VideoCamera(write_video(tmp_path / "parts.avi", PICTURES), clock), clock.now_ns)


def device_source(tmp_path: Path, closing: contextlib.ExitStack) -> Source:
    device = FakeDevice(SystemClock())
    camera = LiveCamera(device, LiveSource(**PATIENT), SystemClock())
    return Source(camera, SystemClock().now_ns, lambda index: device.feed(PICTURES[index]))


def v4l2_source(tmp_path: Path, closing: contextlib.ExitStack) -> Source:
    capture = FakeCapture()
    source = CameraSource(kind="camera", device=0, **PATIENT)
    device = V4l2Device(source, SystemClock(), lambda *arguments: cast("cv2.VideoCapture", capture))
    return Source(LiveCamera(device, source, SystemClock()), SystemClock().now_ns, lambda index: capture.feed(PICTURES[index]))


def film_source(tmp_path: Path, closing: contextlib.ExitStack) -> Source:
    source = CameraSource(kind="camera", device=str(write_video(tmp_path / "parts.avi", PICTURES)), **PATIENT)
    camera = LiveCamera(opencv_device(source, SystemClock()), source, SystemClock(), parts_by_trigger=True)
    with camera._news:  # its few pictures are held until they are asked for
        assert camera._news.wait_for(lambda: len(camera._held) == len(PICTURES), 30)
    return Source(camera, SystemClock().now_ns)


def gige_source(tmp_path: Path, closing: contextlib.ExitStack) -> Source:
    fake = closing.enter_context(gige())
    device = fake.device()
    camera = LiveCamera(device, fake.source(), SystemClock())
    fake.show(*PICTURES)
    return Source(camera, SystemClock().now_ns, lambda index: trigger(device))


def fake_source(tmp_path: Path, closing: contextlib.ExitStack) -> Source:
    clock = FakeClock()
    return Source(FakeCamera(clock, PICTURES), clock.now_ns)


Make = Callable[[Path, contextlib.ExitStack], Source]
REPLAYS: list[Make] = [folder_source, beat_source, video_source, fake_source]
LIVE: list[Make] = [device_source, v4l2_source, film_source, gige_source]


@pytest.fixture(params=[*REPLAYS, *LIVE])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    """Each kind of camera over the same three pictures."""
    with contextlib.ExitStack() as closing:
        made: Source = request.param(tmp_path, closing)
        closing.callback(made.camera.close)
        yield made


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


@pytest.mark.parametrize("make", [*REPLAYS, device_source, v4l2_source, gige_source])  # a film ends at once
def test_while_pictures_come_a_camera_is_healthy(make: Make, tmp_path: Path) -> None:
    with contextlib.ExitStack() as closing:
        source = make(tmp_path, closing)
        closing.callback(source.camera.close)
        source.take(1)
        assert (source.camera.healthy, source.camera.status) == (True, "")


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
    capture = FakeCapture()
    capture.put(np.zeros((64, 64), np.uint8))
    camera._capture = cast("cv2.VideoCapture", capture)
    with pytest.raises(StationError, match=r"frame is uint8 \(64, 64\), expected uint8 \(height, width, 3\)"):
        next(camera.frames())


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
