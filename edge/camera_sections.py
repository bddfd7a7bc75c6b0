"""The sections of a configuration that say where pictures come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edge.section import CountFromOne, CountFromZero, NumberFromZero, PositiveNumber, Section

Level = Annotated[int, Field(ge=0, le=255, strict=True)]
BLACK, SATURATED = 8, 250  # of 255


class FolderSource(Section):
    """Replay the images below a folder, or the frames of a video file."""

    kind: Literal["replay"]
    path: Path
    fps: PositiveNumber | None = None
    """Triggers a second, kept whether the station keeps up or not; none: each part waits for the one before."""


class Region(Section):
    """What of the picture is kept, in pixels, before any rotation."""

    x: CountFromZero = 0
    y: CountFromZero = 0
    width: CountFromOne
    height: CountFromOne


class WhiteBalance(Section):
    """Fixed: the automatic one is switched off. What is left out stays as the camera has it."""

    kelvin: PositiveNumber | None = None
    """Colour temperature, where a USB camera has one."""
    red: PositiveNumber | None = None
    blue: PositiveNumber | None = None
    """Gains of a GenICam camera."""


class CameraSettings(Section):
    """What a live camera is told. A setting that is left out stays as the camera has it."""

    exposure_us: PositiveNumber | None = None
    gain: NumberFromZero | None = None
    """In the camera's own unit."""
    white_balance: WhiteBalance | None = None
    region: Region | None = None
    frame_rate: PositiveNumber | None = None


class LiveSource(CameraSettings):
    """What all live cameras have."""

    rotation: Literal[0, 90, 180, 270] = 0
    """Clockwise, in degrees."""
    timeout_ms: PositiveNumber = 2000
    """Without a new frame for this long the camera counts as lost, and is opened again."""
    stale_ms: PositiveNumber = 1000
    """A frame that is older than this is not judged."""
    black_level: Level | None = BLACK
    """A frame is not judged when nearly all its values are at or below this; none: it is."""
    saturated_level: Level | None = SATURATED
    """The same at or above."""


class CameraSource(LiveSource):
    """A live camera that OpenCV opens: a number, a device path or a URL."""

    kind: Literal["camera"]
    device: CountFromZero | str
    width: CountFromOne | None = None
    height: CountFromOne | None = None
    """The camera's mode."""


class CsiSource(LiveSource):
    """A camera on a Jetson's CSI port, by GStreamer."""

    kind: Literal["csi"]
    sensor: CountFromZero = 0
    width: CountFromOne
    height: CountFromOne
    """The sensor's mode."""
    frame_rate: PositiveNumber


class CameraTrigger(Section):
    """A signal at the camera that releases each picture."""

    source: Annotated[str, Field(min_length=1)] = "Line0"
    edge: Literal["rising", "falling"] = "rising"


class GenicamSource(LiveSource):
    """A GigE Vision or USB3 Vision camera, by Aravis."""

    kind: Literal["genicam"]
    device: Annotated[str, Field(min_length=1)] | None = None
    """Id (`edge camera --list` shows it) or network address; none: the only one there is."""
    pixel_format: Annotated[str, Field(min_length=1)] | None = None
    trigger: CameraTrigger | None = None
    """None: it runs free."""


AnyLive = CameraSource | CsiSource | GenicamSource
AnySource = FolderSource | AnyLive
