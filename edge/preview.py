"""What a technician needs to set a camera up: which there are, and how sharp and how well exposed its picture is."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from edge import aravis
from edge.camera import Camera
from edge.clock import Clock
from edge.verdict import Frame
from engines.images import Image

WAIT_S = 10.0


@dataclass(frozen=True)
class Figures:
    """Of one picture.

    Attributes:
        size: (width, height) in pixels.
        focus: variance of the Laplacian of the grey picture, in grey levels squared (Pech-Pacheco et al., Diatom
            autofocusing in brightfield microscopy, 2000). The sharpest picture of one scene has the largest; other scenes,
            exposures and gains cannot be compared.
        mean: of all values, 0 to 255.
        saturated: per cent of the pixels with a channel at or above the level.
        black: per cent of the pixels with every channel at or below the level.
    """

    size: tuple[int, int]
    focus: float
    mean: float
    saturated: float
    black: float


def measure(image: Image, black_level: int, saturated_level: int) -> Figures:
    """Figures of uint8 RGB (h, w, 3)."""
    height, width = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    brightest = image.max(axis=2)
    return Figures(
        size=(width, height),
        focus=float(np.var(cv2.Laplacian(grey, cv2.CV_64F))),
        mean=float(image.mean()),
        saturated=100 * float(np.mean(brightest >= saturated_level)),
        black=100 * float(np.mean(brightest <= black_level)),
    )


@dataclass
class Watched:
    """What came from a camera.

    Attributes:
        last: the newest picture; None where none came.
        frames: how many came.
        seconds: from the first to the last one's time.
        faults: reasons of those that were none, with their numbers.
    """

    last: Frame | None = None
    frames: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float | None:
        """Frames a second; None for fewer than two."""
        return (self.frames - 1) / self.seconds if self.frames > 1 and self.seconds > 0 else None


class _TimeIsUpError(Exception):
    pass


def watch(open_camera: Callable[[Callable[[], None]], Camera], clock: Clock, seconds: float | None) -> Watched:
    """Take pictures for so many seconds; None: the first one, for which it waits WAIT_S. A source may end earlier.

    Args:
        open_camera: called with what the camera calls while it waits; the camera is closed here.
        clock: monotonic time.
        seconds: from the opened camera on.
    """
    watched = Watched()
    end_ns: int | None = None

    def beat() -> None:
        if end_ns is not None and clock.now_ns() >= end_ns:
            raise _TimeIsUpError

    with contextlib.closing(open_camera(beat)) as camera, contextlib.suppress(_TimeIsUpError):
        end_ns = clock.now_ns() + round((WAIT_S if seconds is None else seconds) * 1e9)
        first_ns = 0
        for arrival in camera.frames():
            if isinstance(arrival, Frame):
                first_ns = arrival.captured_ns if watched.last is None else first_ns
                watched.last = arrival
                watched.frames += 1
                watched.seconds = (arrival.captured_ns - first_ns) / 1e9
                if seconds is None:
                    break
            else:
                watched.faults[arrival.reason] += 1
            beat()
    return watched


def video_devices(sysfs: Path = Path("/sys/class/video4linux")) -> list[tuple[str, str]]:
    """V4L2 devices as (path, name). A camera's further nodes, which carry no pictures, are left out."""
    found = []
    for node in sorted(sysfs.glob("video*"), key=lambda path: int(path.name.removeprefix("video"))):
        with contextlib.suppress(OSError):  # unplugged meanwhile
            if (node / "index").read_text().strip() == "0":
                found.append((f"/dev/{node.name}", (node / "name").read_text().strip()))
    return found


def genicam_devices() -> list[tuple[str, str]]:
    """GenICam cameras as (id, words). Raises StationError without Aravis."""
    return [
        (camera.id, f"{camera.vendor} {camera.model}, {camera.protocol}, {camera.address}") for camera in aravis.find_cameras()
    ]
