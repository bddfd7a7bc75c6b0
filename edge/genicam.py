"""GigE Vision and USB3 Vision cameras by Aravis, free-running or released by a signal at the camera."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from edge import StationError, aravis
from edge.aravis import AravisError
from edge.camera_sections import CameraTrigger, GenicamSource, LiveSource, Region
from edge.clock import Clock
from edge.device import DeviceLostError, Grab, Setting, TornFrameError
from edge.device_clock import DeviceClock
from engines.images import Image

_BUFFERS = 8
_WAIT_S = 0.1
_ASK_NS = 1_000_000_000  # a silent camera that waits for its signal is asked this often whether it is there
_STEP = 0.01  # where a camera does not tell its steps
_OFF = 0  # ARV_AUTO_OFF
_CONTINUOUS = 0  # ARV_ACQUISITION_MODE_CONTINUOUS
_EDGES = {"rising": "RisingEdge", "falling": "FallingEdge"}

# GenICam names a Bayer pattern by its first two pixels, and OpenCV's older names by the two at (1, 1); these name all four
_TO_RGB = {
    "Mono8": cv2.COLOR_GRAY2RGB,
    "BayerRG8": cv2.COLOR_BayerRGGB2RGB,
    "BayerGR8": cv2.COLOR_BayerGRBG2RGB,
    "BayerGB8": cv2.COLOR_BayerGBRG2RGB,
    "BayerBG8": cv2.COLOR_BayerBGGR2RGB,
    "RGB8": None,
    "BGR8": cv2.COLOR_BGR2RGB,
}
_THREE = frozenset({"RGB8", "BGR8"})


class GenicamDevice:
    """A camera on the network or on USB 3.

    A picture's time is the camera's own stamp on the station's clock: late by the fastest read-out and transfer, and free of
    their jitter (see DeviceClock). Where a camera does not stamp, it is the arrival.
    """

    def __init__(self, source: GenicamSource, clock: Clock) -> None:
        self.name = source.device or "genicam"
        self.triggered = source.trigger is not None
        self._source = source
        self._clock = clock
        self._camera: aravis.Camera | None = None
        self._stream: aravis.Stream | None = None
        self._device_clock = DeviceClock()
        self._format = ""
        self._heard_ns = 0
        self._lost = False

    def open(self) -> None:
        """Find and open it. Raises StationError without Aravis."""
        self._device_clock = DeviceClock()
        self._lost = False
        try:
            self._camera = aravis.Camera(self._source.device)
        except AravisError as error:
            remedy = "check cable, power, address and permissions"
            raise DeviceLostError(f"camera {self.name}: {error}; {remedy}") from None

    def apply(self, source: LiveSource) -> Sequence[Setting]:
        """Set it and start it. Raises StationError for what it cannot do: what was wanted, and what it offers."""
        camera = self._opened()
        try:
            camera.call("set_acquisition_mode", _CONTINUOUS)
            settings = [*self._apply_format(camera), *_apply_region(camera, source.region)]
            settings += [*_apply_exposure(camera, source), *_apply_balance(camera, source)]
            settings += _apply_trigger(camera, self._source.trigger)
            if source.frame_rate is not None:
                settings.append(_number(camera, "frame_rate", "frame_rate", source.frame_rate, "AcquisitionFrameRate"))
            self._stream = aravis.Stream(camera, _BUFFERS)
            camera.call("start_acquisition")
        except AravisError as error:
            raise DeviceLostError(f"camera {self.name}: {error}") from None
        except StationError as error:
            raise StationError(f"camera {self.name}: {error}") from None
        self._heard_ns = self._clock.now_ns()
        return settings

    def read(self) -> Grab | None:
        """The next picture. An incomplete one is torn: packets were lost, or the bus was too slow."""
        assert self._stream is not None
        with self._stream.next(_WAIT_S) as buffer:
            now_ns = self._clock.now_ns()
            if buffer is None:
                self._ask(now_ns)
                return None
            status = buffer.status
            if status in (aravis.CLEARED, aravis.ABORTED):
                return None
            self._heard_ns = now_ns
            if status != aravis.SUCCESS:
                raise TornFrameError(f"the camera's frame came incomplete ({aravis.STATUSES.get(status, status)})", now_ns)
            captured_ns = self._device_clock.captured_ns(buffer.device_ns, now_ns)
            data, shape, padding = buffer.data(), buffer.shape, buffer.padding
        try:
            return Grab(to_rgb(self._format, data, shape, padding), captured_ns)
        except StationError as error:
            raise TornFrameError(str(error), captured_ns) from None

    def counts(self) -> dict[str, int]:
        """Frames completed, failed and underrun; for GigE Vision packets resent and missing."""
        return {} if self._stream is None else self._stream.counts()

    def close(self) -> None:
        """Stop and give it back; may be called twice."""
        stream, camera = self._stream, self._camera
        self._stream = self._camera = None
        if camera is not None and stream is not None and not self._lost:
            _quietly(lambda: camera.call("stop_acquisition"))
        if stream is not None:
            stream.close()
        if camera is not None:
            camera.close()

    def _opened(self) -> aravis.Camera:
        assert self._camera is not None
        return self._camera

    def _ask(self, now_ns: int) -> None:
        """A camera that waits for its signal and one that is gone are equally silent."""
        if not self.triggered or now_ns - self._heard_ns < _ASK_NS:
            return
        try:
            self._opened().answer()
        except AravisError as error:
            self._lost = True  # telling it to stop would only wait again
            raise DeviceLostError(f"camera {self.name} does not answer ({error})") from None
        self._heard_ns = now_ns

    def _apply_format(self, camera: aravis.Camera) -> list[Setting]:
        wanted = self._source.pixel_format
        offered = camera.choices("PixelFormat")
        usable = [name for name in offered if name in _TO_RGB]
        remedy = f"set source.pixel_format to one of: {', '.join(usable) or 'none that this camera offers'}"
        if wanted is not None:
            if wanted not in usable:
                raise StationError(f"pixel format {wanted} cannot be used; {remedy}")
            camera.set_text("PixelFormat", wanted)
        self._format = camera.get_text("PixelFormat")
        if self._format not in _TO_RGB:
            raise StationError(f"pixel format is {self._format}, expected 8 bits a channel; {remedy}")
        return [] if wanted is None else [Setting("pixel_format", wanted, self._format)]


def to_rgb(pixel_format: str, data: bytes, shape: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> Image:
    """A buffer's bytes as uint8 RGB (h, w, 3), a copy.

    Args:
        pixel_format: GenICam's name, one of eight bits a channel.
        data: rows from the top.
        shape: rows and columns.
        padding: bytes after each row, and after the last one.

    Raises:
        StationError: not as many bytes as the shape needs.
    """
    rows, columns = shape
    channels = 3 if pixel_format in _THREE else 1
    line = columns * channels + padding[0]
    if len(data) < rows * line or rows < 1 or columns < 1:
        raise StationError(f"{len(data)} bytes of {pixel_format}, expected {rows * line} for {columns} x {rows} pixels")
    raw = np.frombuffer(data, np.uint8, rows * line).reshape(rows, line)[:, : columns * channels]
    pixels = raw.reshape(rows, columns, channels) if channels == 3 else np.ascontiguousarray(raw)
    code = _TO_RGB[pixel_format]
    return pixels.copy() if code is None else np.asarray(cv2.cvtColor(pixels, code), dtype=np.uint8)


def _apply_region(camera: aravis.Camera, region: Region | None) -> list[Setting]:
    if region is None:
        return []
    width, height = camera.sensor_size()
    if region.x + region.width > width or region.y + region.height > height:
        got = f"{region.width} x {region.height} at ({region.x}, {region.y})"
        raise StationError(f"source.region is {got}, expected inside the sensor's {width} x {height}; change it")
    camera.call("set_region", region.x, region.y, region.width, region.height)
    wanted = region.x, region.y, region.width, region.height
    names = ("region.x", "region.y", "region.width", "region.height")
    return [Setting(name, want, got) for name, want, got in zip(names, wanted, camera.region(), strict=True)]


def _apply_exposure(camera: aravis.Camera, source: LiveSource) -> list[Setting]:
    settings = []
    if source.exposure_us is not None:
        if camera.call("is_exposure_auto_available"):
            camera.call("set_exposure_time_auto", _OFF)
        names = ("ExposureTime", "ExposureTimeAbs", "ExposureTimeRaw")
        settings.append(_number(camera, "exposure_us", "exposure_time", source.exposure_us, *names))
    if source.gain is not None:
        if camera.call("is_gain_auto_available"):
            camera.call("set_gain_auto", _OFF)
        settings.append(_number(camera, "gain", "gain", source.gain, "Gain", "GainAbs", "GainRaw"))
    return settings


def _apply_balance(camera: aravis.Camera, source: LiveSource) -> list[Setting]:
    balance = source.white_balance
    if balance is None:
        return []
    if balance.kelvin is not None:
        raise StationError("white_balance.kelvin cannot be set; give red and blue, or neither")
    settings = []
    if camera.has("BalanceWhiteAuto"):
        camera.set_text("BalanceWhiteAuto", "Off")
        settings.append(Setting("automatic white balance", "Off", camera.get_text("BalanceWhiteAuto")))
    elif balance.red is None and balance.blue is None:
        raise StationError("it has no white balance; leave white_balance out")
    for name, wanted in (("red", balance.red), ("blue", balance.blue)):
        if wanted is not None:
            if not camera.has("BalanceRatio"):
                raise StationError(f"white_balance.{name} cannot be set, since it has no BalanceRatio; leave it out")
            camera.set_text("BalanceRatioSelector", name.capitalize())
            camera.call("set_float", b"BalanceRatio", wanted)
            got = float(camera.call("get_float", b"BalanceRatio"))
            settings.append(Setting(f"white_balance.{name}", wanted, got, _step(camera, wanted, "BalanceRatio")))
    return settings


def _apply_trigger(camera: aravis.Camera, trigger: CameraTrigger | None) -> list[Setting]:
    if trigger is None:
        camera.call("clear_triggers")
        return []
    for feature, value in (("TriggerSource", trigger.source), ("TriggerActivation", _EDGES[trigger.edge])):
        if not camera.has(feature):
            raise StationError(f"it has no {feature}; leave source.trigger out")
        offered = camera.choices(feature)
        if value not in offered:
            raise StationError(f"{feature} {value} is not offered; it has: {', '.join(offered)}")
    camera.call("set_trigger", trigger.source.encode())
    camera.set_text("TriggerActivation", _EDGES[trigger.edge])
    wanted = (("TriggerMode", "On"), ("TriggerSource", trigger.source), ("TriggerActivation", _EDGES[trigger.edge]))
    return [Setting(feature, value, camera.get_text(feature)) for feature, value in wanted]


def _number(camera: aravis.Camera, key: str, name: str, wanted: float, *features: str) -> Setting:
    """Set one number within the bounds that the camera has now."""
    least, largest = camera.bounds(name)
    if not least <= wanted <= largest:
        raise StationError(f"{key} is {wanted:g}, the camera offers {least:g} to {largest:g}; change it")
    camera.call(f"set_{name}", wanted)
    return Setting(key, wanted, float(camera.call(f"get_{name}")), _step(camera, wanted, *features))


def _step(camera: aravis.Camera, wanted: float, *features: str) -> float:
    step = camera.step(*features)
    return _STEP * wanted if step is None else step


def _quietly(action: Callable[[], object]) -> None:
    """On the way out: the camera may be gone."""
    try:
        action()
    except AravisError:
        return
