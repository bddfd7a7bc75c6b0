"""Cameras that OpenCV opens: a stand-in for its V4L2, real streams, and the words of a CSI pipeline."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest

from edge import StationError
from edge.camera import Camera
from edge.camera_sections import CameraSource, CsiSource, Region, WhiteBalance
from edge.clock import SystemClock
from edge.device import DeviceLostError
from edge.live import LiveCamera
from edge.opencv_device import CsiDevice, StreamDevice, V4l2Device, csi_pipeline, has_gstreamer, opencv_device
from edge.verdict import Frame
from tests.fake_device import FakeCapture
from tests.fakes import FakeClock, flat, textured
from tests.test_camera import PICTURES, write_video

MS = 10**6


def v4l2(capture: FakeCapture, **settings: object) -> tuple[V4l2Device, CameraSource]:
    source = CameraSource.model_validate({"kind": "camera", "device": 0, **settings})
    device = V4l2Device(source, FakeClock(), lambda *arguments: cast("cv2.VideoCapture", capture))
    device.open()
    return device, source


def everything() -> FakeCapture:
    """A camera with all that can be set."""
    capture = FakeCapture()
    keys = (
        cv2.CAP_PROP_FRAME_WIDTH,
        cv2.CAP_PROP_FRAME_HEIGHT,
        cv2.CAP_PROP_FPS,
        cv2.CAP_PROP_AUTO_EXPOSURE,
        cv2.CAP_PROP_EXPOSURE,
        cv2.CAP_PROP_GAIN,
        cv2.CAP_PROP_AUTO_WB,
        cv2.CAP_PROP_WB_TEMPERATURE,
    )
    capture.properties = dict.fromkeys(keys, 3.0)
    return capture


ALL = {
    "width": 1280,
    "height": 720,
    "frame_rate": 30.0,
    "exposure_us": 5000.0,
    "gain": 16.0,
    "white_balance": {"kelvin": 4600.0},
}


def test_v4l2_is_asked_for_by_name_for_numbers_and_device_paths() -> None:
    for given in (0, "/dev/video2", "/dev/v4l/by-id/usb-camera-index0"):
        asked: list[tuple[object, ...]] = []

        def open_capture(*arguments: object) -> cv2.VideoCapture:
            asked.append(arguments)  # noqa: B023
            return cast("cv2.VideoCapture", FakeCapture())

        source = CameraSource(kind="camera", device=given)
        assert isinstance(opencv_device(source, FakeClock()), V4l2Device)
        V4l2Device(source, FakeClock(), open_capture).open()
        assert asked == [(given, cv2.CAP_V4L2)]
    for url in ("rtsp://camera/1", "http://camera/video", "line.avi"):
        assert isinstance(opencv_device(CameraSource(kind="camera", device=url), FakeClock()), StreamDevice)


def test_settings_are_set_in_the_drivers_units_and_read_back_in_ours() -> None:
    capture = everything()
    device, source = v4l2(capture, **ALL)
    settings = device.apply(source)
    assert capture.properties == {
        cv2.CAP_PROP_FRAME_WIDTH: 1280,
        cv2.CAP_PROP_FRAME_HEIGHT: 720,
        cv2.CAP_PROP_FPS: 30,
        cv2.CAP_PROP_AUTO_EXPOSURE: 1,  # V4L2's word for manual
        cv2.CAP_PROP_EXPOSURE: 50,  # units of 100 us
        cv2.CAP_PROP_GAIN: 16,
        cv2.CAP_PROP_AUTO_WB: 0,
        cv2.CAP_PROP_WB_TEMPERATURE: 4600,
    }
    assert [setting.fault for setting in settings] == [None] * 8
    assert "exposure_us 5000, read back 5000" in [str(setting) for setting in settings]


def test_what_is_left_out_is_left_alone() -> None:
    capture = everything()
    device, source = v4l2(capture)
    assert device.apply(source) == []
    assert set(capture.properties.values()) == {3.0}


@pytest.mark.parametrize(
    ("key", "coarse", "fault"),
    [
        (cv2.CAP_PROP_FRAME_WIDTH, 500, "width is 1500 after 1280 was set"),
        (cv2.CAP_PROP_FPS, 7, "frame_rate is 28 after 30 was set"),
        (cv2.CAP_PROP_FPS, 29.97, None),  # what cameras call 30
        (cv2.CAP_PROP_EXPOSURE, 40, "exposure_us is 4000 after 5000 was set"),
        (cv2.CAP_PROP_EXPOSURE, 51, None),  # 5100, one unit off
        (cv2.CAP_PROP_AUTO_EXPOSURE, 3, "automatic exposure is 0 after 1 was set"),
        (cv2.CAP_PROP_GAIN, 10, "gain is 20 after 16 was set"),
        (cv2.CAP_PROP_WB_TEMPERATURE, 50, None),
        (cv2.CAP_PROP_WB_TEMPERATURE, 1000, "white_balance.kelvin is 5000 after 4600 was set"),
    ],
)
def test_a_camera_with_steps_of_its_own_is_at_fault_beyond_one_of_them(key: int, coarse: float, fault: str | None) -> None:
    capture = everything()
    capture.coarse[key] = coarse
    device, source = v4l2(capture, **ALL)
    assert [setting.fault for setting in device.apply(source) if setting.fault] == ([] if fault is None else [fault])


def test_what_a_camera_does_not_have_is_named() -> None:
    device, source = v4l2(FakeCapture(), gain=3.0)
    (setting,) = device.apply(source)
    assert setting.fault == "gain is not offered by the camera after 3 was set"
    device, source = v4l2(everything(), white_balance={"red": 1.5})
    with pytest.raises(StationError, match="camera 0: red or blue cannot be set; give kelvin"):
        device.apply(source)


def test_a_buffers_own_time_is_taken_where_it_is_of_the_stations_clock() -> None:
    capture = FakeCapture()
    source = CameraSource(kind="camera", device=0)
    clock = FakeClock(10**12)
    device = V4l2Device(source, clock, lambda *arguments: cast("cv2.VideoCapture", capture))
    device.open()
    # 30 ms ago; a driver without times; wall-clock time; ahead by 1 ms; from before the camera was opened
    for stamp_ms, taken_ns in ((999_970, 999_970 * MS), (0, 10**12), (1.7e12, 10**12), (1_000_001, 10**12), (900_000, 10**12)):
        capture.properties[cv2.CAP_PROP_POS_MSEC] = stamp_ms
        capture.put(flat(9))
        grab = device.read()
        assert grab is not None
        assert grab.captured_ns == taken_ns
        clock = FakeClock(10**12)
        device._clock = clock


def test_a_region_is_cut_out_and_one_outside_the_frame_is_refused() -> None:
    picture = textured(1, (48, 64))
    capture = FakeCapture()
    device, _ = v4l2(capture, region={"x": 10, "y": 20, "width": 54, "height": 28})
    capture.put(picture)
    grab = device.read()
    assert grab is not None
    np.testing.assert_array_equal(grab.image, picture[20:48, 10:64])
    capture.put(textured(2, (47, 64)))
    with pytest.raises(StationError, match=r"region is 54 x 28 at \(10, 20\), expected inside the frame of 64 x 47"):
        device.read()


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (flat(1)[:, :, 0], r"frame is uint8 \(64, 64\), expected uint8"),  # grey
        (flat(1).astype(np.uint16), r"frame is uint16 \(64, 64, 3\), expected uint8"),  # would wrap round at 256
    ],
)
def test_pictures_that_are_not_8_bit_colour_are_refused(picture: np.ndarray, reason: str) -> None:  # type: ignore[type-arg]
    capture = FakeCapture()
    device, _ = v4l2(capture)
    capture.put(picture)
    with pytest.raises(StationError, match=reason):
        device.read()


def test_a_read_without_a_picture_waits_a_little_so_that_a_dead_driver_takes_no_core() -> None:
    capture = FakeCapture()
    clock = FakeClock()
    device = V4l2Device(CameraSource(kind="camera", device=0), clock, lambda *arguments: cast("cv2.VideoCapture", capture))
    device.open()
    assert device.read() is None
    assert clock.slept_until == [10**12 + 10 * MS]


def test_closing_releases_once() -> None:
    capture = FakeCapture()
    device, _ = v4l2(capture)
    device.close()
    device.close()
    assert capture.released_by == [threading.current_thread().name]


def test_a_camera_that_does_not_open_is_told_with_what_to_check() -> None:
    capture = FakeCapture()
    capture.opened = False
    with pytest.raises(DeviceLostError, match="camera 0: OpenCV cannot open it; check the cable"):
        v4l2(capture)


def test_a_device_that_is_not_there_refuses_the_start() -> None:
    source = CameraSource(kind="camera", device="/dev/no-such-camera")
    with pytest.raises(StationError, match="camera /dev/no-such-camera: OpenCV cannot open it"):
        LiveCamera(opencv_device(source, SystemClock()), source, SystemClock())


# streams


@pytest.mark.parametrize("key", ["exposure_us", "gain", "frame_rate", "width"])
def test_a_stream_is_set_in_the_camera_itself(tmp_path: Path, key: str) -> None:
    path = write_video(tmp_path / "line.avi", PICTURES)
    source = CameraSource.model_validate({"kind": "camera", "device": str(path), key: 5})
    with pytest.raises(StationError, match=f"{key} cannot be set; set it in the camera itself"):
        LiveCamera(opencv_device(source, SystemClock()), source, SystemClock())


def test_a_streams_password_is_shown_nowhere() -> None:
    source = CameraSource(kind="camera", device="rtsp://admin:secret@10.0.0.5:554/1?x=y")
    device = opencv_device(source, SystemClock())
    assert device.name == "rtsp://10.0.0.5:554/1?x=y"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a film of three pictures, by HTTP from this machine."""
    write_video(tmp_path / "line.avi", PICTURES)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/line.avi"
        server.shutdown()
        thread.join()


def test_a_stream_by_http_is_read_and_opened_again_when_it_ends(served: str) -> None:
    source = CameraSource(kind="camera", device=served)
    clock = FakeClock()  # which does not wait between the tries
    camera: Camera = LiveCamera(opencv_device(source, clock), source, clock, parts_by_trigger=False)
    frames = camera.frames()
    greens = 0
    for arrival in frames:  # whatever is newest, on and on
        assert isinstance(arrival, Frame)
        greens += bool(np.abs(arrival.image.mean(axis=(0, 1)) - PICTURES[1].mean(axis=(0, 1))).max() < 6)
        if arrival.part == 7:
            break
    camera.close()


def test_the_end_of_a_stream_is_a_lost_camera(tmp_path: Path) -> None:
    source = CameraSource(kind="camera", device=str(write_video(tmp_path / "line.avi", PICTURES)))
    device = StreamDevice(source, SystemClock())
    device.open()
    for _ in PICTURES:
        assert device.read() is not None
    with pytest.raises(DeviceLostError, match="the stream ended"):
        device.read()
    device.close()


# CSI

CSI = CsiSource(kind="csi", width=1920, height=1080, frame_rate=30)


def test_a_csi_pipeline_has_mode_and_nothing_else_unless_given() -> None:
    assert csi_pipeline(CSI) == (
        "nvarguscamerasrc sensor-id=0"
        " ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=30/1,format=NV12 ! nvvidconv ! video/x-raw,format=BGRx"
        " ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )


def test_a_csi_pipeline_fixes_exposure_gain_and_white_balance() -> None:
    source = CSI.model_copy(
        update={"sensor": 1, "exposure_us": 800.5, "gain": 2.5, "white_balance": WhiteBalance(), "frame_rate": 29.97}
    )
    pipeline = csi_pipeline(source)
    head = (
        'nvarguscamerasrc sensor-id=1 exposuretimerange="800500 800500" gainrange="2.5 2.5" ispdigitalgainrange="1 1"'
        " aelock=true wbmode=0 awblock=true ! "
    )
    assert pipeline.startswith(head)
    assert "framerate=2997/100," in pipeline


def test_a_white_balance_that_a_csi_camera_cannot_have_is_refused() -> None:
    with pytest.raises(StationError, match=r"camera csi-0: kelvin, red or blue cannot be set; write white_balance: \{\}"):
        csi_pipeline(CSI.model_copy(update={"white_balance": WhiteBalance(kelvin=5000)}))


def test_gstreamer_is_read_off_opencvs_build_information() -> None:
    assert has_gstreamer("  Video I/O:\n    GStreamer:                   YES (1.20.3)\n")
    assert not has_gstreamer("  Video I/O:\n    GStreamer:                   NO\n")
    assert not has_gstreamer("  Video I/O:\n")


def test_csi_without_gstreamer_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "    GStreamer:                   NO\n")
    with pytest.raises(StationError, match=r"camera csi-0: this OpenCV \(.*\) has no GStreamer.*apt install python3-opencv"):
        LiveCamera(CsiDevice(CSI, SystemClock()), CSI, SystemClock())


def test_csi_opens_its_pipeline_by_gstreamer_and_reads_mode_and_rate_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "    GStreamer:                   YES (1.20.3)\n")
    asked: list[tuple[object, ...]] = []
    capture = FakeCapture()
    capture.properties = {cv2.CAP_PROP_FRAME_WIDTH: 1920, cv2.CAP_PROP_FRAME_HEIGHT: 1080, cv2.CAP_PROP_FPS: 60}

    def open_capture(*arguments: object) -> cv2.VideoCapture:
        asked.append(arguments)
        return cast("cv2.VideoCapture", capture)

    source = CSI.model_copy(update={"exposure_us": 800, "gain": 2, "region": Region(width=10, height=10)})
    device = CsiDevice(source, FakeClock(), open_capture)
    device.open()
    assert asked == [(csi_pipeline(source), cv2.CAP_GSTREAMER)]
    settings = device.apply(source)
    assert [setting.fault for setting in settings] == [None, None, "frame_rate is 60 after 30 was set", None, None]
    assert str(settings[3]) == "exposure_us 800, set, cannot be read back"
