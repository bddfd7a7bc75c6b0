"""Cameras that OpenCV opens: V4L2 by number or path, streams by URL, and a Jetson's CSI port through GStreamer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import cv2
import numpy as np
import numpy.typing as npt

from edge import StationError
from edge.camera_sections import CameraSource, CsiSource, LiveSource, Region
from edge.clock import Clock
from edge.device import DeviceLostError, Grab, Setting
from engines.images import Image

_PAUSE_NS = 10_000_000  # after a read without a picture, so that a dead driver does not take a core
_OLDEST_NS = 5_000_000_000  # a buffer's time further back is of another clock
_MANUAL_EXPOSURE = 1  # V4L2_EXPOSURE_MANUAL
_EXPOSURE_UNIT_US = 100  # of V4L2_CID_EXPOSURE_ABSOLUTE
_KELVIN_STEP = 10  # of most USB cameras
_RATE_STEP = 0.02  # 29.97 is what cameras call 30

Open = Callable[..., cv2.VideoCapture]


class CaptureDevice:
    """What the kinds share: a `cv2.VideoCapture`, read by the thread that opened it."""

    triggered = False

    def __init__(self, name: str, region: Region | None, clock: Clock, open_capture: Open) -> None:
        self.name = name
        self._region = region
        self._clock = clock
        self._open_capture = open_capture
        self._capture: cv2.VideoCapture | None = None

    def read(self) -> Grab | None:
        """The next picture; None after a read that gave none. Raises StationError: not 8-bit colour, or region outside."""
        assert self._capture is not None
        read, image = self._capture.read()
        arrived_ns = self._clock.now_ns()
        if not read:
            self._empty(arrived_ns)
            return None
        return Grab(_cut(rgb(image), self._region), self._taken_ns(arrived_ns))

    def counts(self) -> dict[str, int]:
        """OpenCV counts nothing."""
        return {}

    def close(self) -> None:
        """Release the device; may be called twice."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _connect(self, what: int | str, *arguments: object) -> None:
        self._capture = self._open_capture(what, *arguments)
        if not self._capture.isOpened():
            raise DeviceLostError(f"camera {self.name}: OpenCV cannot open it; check the cable, the number and the permissions")

    def _empty(self, now_ns: int) -> None:
        self._clock.sleep_until_ns(now_ns + _PAUSE_NS)

    def _taken_ns(self, arrived_ns: int) -> int:
        return arrived_ns

    def _put(self, name: str, key: int, wanted: float, *, unit: float = 1, step: float = 0) -> Setting:
        """Set one property and read it back, both in units of the driver."""
        assert self._capture is not None
        taken = self._capture.set(key, wanted / unit)
        got = self._get(key)
        if not taken and got in (-1, 0):
            return Setting(name, wanted, "not offered by the camera")
        return Setting(name, wanted, got * unit, step)

    def _get(self, key: int) -> float:
        assert self._capture is not None
        return float(self._capture.get(key))


class V4l2Device(CaptureDevice):
    """A USB camera or another V4L2 device."""

    def __init__(self, source: CameraSource, clock: Clock, open_capture: Open = cv2.VideoCapture) -> None:
        super().__init__(str(source.device), source.region, clock, open_capture)
        self._source = source

    def open(self) -> None:
        """Connect by V4L2, since through another backend settings would be lost."""
        self._connect(self._source.device, cv2.CAP_V4L2)

    def apply(self, source: LiveSource) -> Sequence[Setting]:
        """Set mode, rate, exposure, gain and white balance. Raises StationError for what V4L2 does not have."""
        settings = []
        if self._source.width is not None:
            settings.append(self._put("width", cv2.CAP_PROP_FRAME_WIDTH, self._source.width))
        if self._source.height is not None:
            settings.append(self._put("height", cv2.CAP_PROP_FRAME_HEIGHT, self._source.height))
        if source.frame_rate is not None:
            step = _RATE_STEP * source.frame_rate
            settings.append(self._put("frame_rate", cv2.CAP_PROP_FPS, source.frame_rate, step=step))
        if source.exposure_us is not None:
            settings.append(self._put("automatic exposure", cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL_EXPOSURE))
            unit = _EXPOSURE_UNIT_US
            settings.append(self._put("exposure_us", cv2.CAP_PROP_EXPOSURE, source.exposure_us, unit=unit, step=unit))
        if source.gain is not None:
            settings.append(self._put("gain", cv2.CAP_PROP_GAIN, source.gain, step=0.5))
        if source.white_balance is not None:
            _refuse(self.name, "red or blue", source.white_balance.red, source.white_balance.blue, instead="give kelvin")
            settings.append(self._put("automatic white balance", cv2.CAP_PROP_AUTO_WB, 0))
            kelvin = source.white_balance.kelvin
            if kelvin is not None:
                settings.append(self._put("white_balance.kelvin", cv2.CAP_PROP_WB_TEMPERATURE, kelvin, step=_KELVIN_STEP))
        return settings

    def _taken_ns(self, arrived_ns: int) -> int:
        """The driver's time of the buffer: monotonic, when its first data came, right after the exposure's end."""
        taken_ns = round(self._get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        return taken_ns if 0 <= arrived_ns - taken_ns <= _OLDEST_NS else arrived_ns


class StreamDevice(CaptureDevice):
    """A network camera, or a film, by URL or path. It is as its own pages set it: nothing can be set from here."""

    def __init__(self, source: CameraSource, clock: Clock, open_capture: Open = cv2.VideoCapture) -> None:
        super().__init__(_without_password(str(source.device)), source.region, clock, open_capture)
        self._source = source

    def open(self) -> None:
        """Connect, with the time limits that OpenCV offers."""
        limit_ms = round(self._source.timeout_ms)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit_ms]
        self._connect(str(self._source.device), cv2.CAP_FFMPEG, limits)

    def apply(self, source: LiveSource) -> Sequence[Setting]:
        """Nothing to set. Raises StationError where something should be."""
        mode = self._source
        for key, value in (("width", mode.width), ("height", mode.height), ("exposure_us", source.exposure_us)):
            _refuse(self.name, key, value, instead="set it in the camera itself, and leave it out here")
        for key, other in (("gain", source.gain), ("white_balance", source.white_balance), ("frame_rate", source.frame_rate)):
            _refuse(self.name, key, other, instead="set it in the camera itself, and leave it out here")
        return []

    def _empty(self, now_ns: int) -> None:
        raise DeviceLostError("the stream ended")


class CsiDevice(CaptureDevice):
    """A sensor on a Jetson's CSI port, through NVIDIA's `nvarguscamerasrc`."""

    def __init__(self, source: CsiSource, clock: Clock, open_capture: Open = cv2.VideoCapture) -> None:
        super().__init__(f"csi-{source.sensor}", source.region, clock, open_capture)
        self._source = source

    def open(self) -> None:
        """Start the pipeline. Raises StationError where this OpenCV has no GStreamer."""
        if not has_gstreamer(cv2.getBuildInformation()):
            raise StationError(
                f"camera {self.name}: this OpenCV ({cv2.__version__}) has no GStreamer, which PyPI's never has; use JetPack's:"
                " apt install python3-opencv, and a virtual environment with --system-site-packages"
            )
        self._connect(csi_pipeline(self._source), cv2.CAP_GSTREAMER)

    def apply(self, source: LiveSource) -> Sequence[Setting]:
        """The pipeline has the settings; of these only mode and rate can be read back."""
        wanted = self._source
        settings = [
            Setting("width", wanted.width, self._get(cv2.CAP_PROP_FRAME_WIDTH)),
            Setting("height", wanted.height, self._get(cv2.CAP_PROP_FRAME_HEIGHT)),
            Setting("frame_rate", wanted.frame_rate, self._get(cv2.CAP_PROP_FPS), _RATE_STEP * wanted.frame_rate),
        ]
        if source.exposure_us is not None:
            settings.append(Setting("exposure_us", source.exposure_us, None))
        if source.gain is not None:
            settings.append(Setting("gain", source.gain, None))
        if source.white_balance is not None:
            settings.append(Setting("automatic white balance", 0, None))
        return settings


def opencv_device(source: CameraSource, clock: Clock) -> V4l2Device | StreamDevice:
    """A number and a path below /dev are V4L2's, all else is a stream."""
    if isinstance(source.device, int) or source.device.startswith("/dev/"):
        return V4l2Device(source, clock)
    return StreamDevice(source, clock)


def csi_pipeline(source: CsiSource) -> str:
    """The pipeline in GStreamer's words. Raises StationError for a white balance that the source cannot have."""
    parts = [f"nvarguscamerasrc sensor-id={source.sensor}"]
    if source.exposure_us is not None:
        nanoseconds = round(source.exposure_us * 1000)
        parts.append(f'exposuretimerange="{nanoseconds} {nanoseconds}"')
    if source.gain is not None:
        parts.append(f'gainrange="{source.gain:g} {source.gain:g}" ispdigitalgainrange="1 1"')
    if source.exposure_us is not None and source.gain is not None:
        parts.append("aelock=true")
    if source.white_balance is not None:
        balance = source.white_balance
        values = (balance.kelvin, balance.red, balance.blue)
        _refuse(f"csi-{source.sensor}", "kelvin, red or blue", *values, instead="write white_balance: {}")
        parts.append("wbmode=0 awblock=true")
    rate = Fraction(source.frame_rate).limit_denominator(1001)
    mode = f"width={source.width},height={source.height},framerate={rate.numerator}/{rate.denominator},format=NV12"
    return (
        f"{' '.join(parts)} ! video/x-raw(memory:NVMM),{mode} ! nvvidconv ! video/x-raw,format=BGRx"
        " ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )


def has_gstreamer(build: str) -> bool:
    """Does OpenCV's build information say so?"""
    return re.search(r"^\s*GStreamer:\s+YES", build, re.MULTILINE) is not None


def rgb(image: npt.NDArray[Any]) -> Image:
    """OpenCV's BGR as uint8 RGB (h, w, 3), a copy. Raises StationError for anything but 8-bit colour."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise StationError(f"frame is {image.dtype} {image.shape}, expected uint8 (height, width, 3); set 8-bit colour")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _cut(image: Image, region: Region | None) -> Image:
    if region is None:
        return image
    height, width = image.shape[:2]
    if region.x + region.width > width or region.y + region.height > height:
        got = f"{region.width} x {region.height} at ({region.x}, {region.y})"
        raise StationError(f"source.region is {got}, expected inside the frame of {width} x {height}; change it")
    return image[region.y : region.y + region.height, region.x : region.x + region.width].copy()


def _refuse(name: str, key: str, *values: object, instead: str) -> None:
    if any(value is not None for value in values):
        raise StationError(f"camera {name}: {key} cannot be set; {instead}")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    _, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=host)) if at else url
