"""Where frames come from: what every camera does, and a folder or a video replayed; edge/live.py has live cameras."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import cv2

from edge import StationError
from edge.clock import Clock
from edge.opencv_device import rgb
from edge.verdict import Arrival, Frame, Missing
from engines import EngineError
from engines.images import Image, list_images, read_image

# OpenCV would also open a text file, as a film of its letters, and one picture as a sequence of all with like names
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})
_WHOLE = 0.99  # of the frames that a video's header promises; some formats only estimate their number


class Camera(Protocol):
    """Gives one arrival for each part, numbered from 1.

    `healthy` and `status` are read by the deciding loop, and so answer at once.
    """

    @property
    def healthy(self) -> bool:
        """May a part that triggers now expect a picture?"""

    @property
    def status(self) -> str:
        """Why it is not healthy, for people; empty where it is."""

    def frames(self) -> Iterator[Arrival]:
        """Arrivals in order. Raises StationError for what only a person can mend; a camera that is lost is waited for."""

    def close(self) -> None:
        """Release the device; may be called twice."""


class Wrapped:
    """What a camera around another one takes from it: whether it delivers, and its end."""

    def __init__(self, camera: Camera) -> None:
        """`camera` is closed with this."""
        self._camera = camera

    @property
    def healthy(self) -> bool:
        """Of the camera."""
        return self._camera.healthy

    @property
    def status(self) -> str:
        """Of the camera."""
        return self._camera.status

    def close(self) -> None:
        """Close the camera; may be called twice."""
        self._camera.close()


class FolderCamera:
    """Replays the images below a folder, each one a part. A file that cannot be read is a part without a picture."""

    healthy = True
    status = ""

    def __init__(self, folder: Path, clock: Clock, period_ns: int = 0) -> None:
        """Find the files.

        Args:
            folder: searched to any depth.
            clock: for times, and to wait.
            period_ns: time from trigger to trigger, kept whether the station keeps up or not; 0 waits for the station.

        Raises:
            StationError: no image there.
        """
        try:
            self._paths = list_images(folder, recursive=True)
        except EngineError as error:
            raise StationError(str(error)) from None
        if not self._paths:
            raise StationError(f"{folder}: no images; expected PNG, JPEG, BMP, TIFF or WebP files")
        self._folder = folder
        self._pace = _Pace(clock, period_ns)
        self._clock = clock

    def frames(self) -> Iterator[Arrival]:
        """One arrival for each file."""
        for part, path in enumerate(self._paths, start=1):
            source = str(path.relative_to(self._folder))
            try:
                image = _read_only(read_image(path))
            except EngineError as error:
                yield Missing(part, self._pace.trigger(), source, str(error))
                continue
            trigger_ns = self._pace.trigger()
            yield Frame(image, part, trigger_ns, trigger_ns, source)

    def close(self) -> None:
        """Nothing to release."""


class VideoCamera:
    """Replays a video file, each frame a part."""

    healthy = True
    status = ""

    def __init__(self, path: Path, clock: Clock, period_ns: int = 0) -> None:
        """Open the file; `period_ns` as for a folder. Raises StationError when it cannot be opened or decoded."""
        if not path.is_file():
            raise StationError(f"{path}: no such file; expected a folder of images or a video file")
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            kinds = ", ".join(sorted(VIDEO_SUFFIXES))
            raise StationError(f"{path}: not the name of a video; expected a folder of images or a file that ends with {kinds}")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise StationError(f"{path}: OpenCV cannot open it as a video; expected a folder of images or a video file")
        self._path = path
        self._promised = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._pace = _Pace(clock, period_ns)

    def frames(self) -> Iterator[Arrival]:
        """One arrival for each frame; a part is missing where the file ends before its header says."""
        part = 0
        while True:
            read, image = self._capture.read()
            if not read:
                break
            part += 1
            trigger_ns = self._pace.trigger()
            yield Frame(_read_only(rgb(image)), part, trigger_ns, trigger_ns, f"{self._path.name}#{part}")
        if part == 0:
            raise StationError(f"{self._path}: no frame could be decoded; convert the video")
        if part < _WHOLE * self._promised - 1:
            reason = f"the video ended after {part} of {self._promised:.0f} frames: truncated or damaged; copy it again"
            yield Missing(part + 1, self._pace.trigger(), f"{self._path.name}#{part + 1}", reason)

    def close(self) -> None:
        """Release the file; may be called twice."""
        self._capture.release()


class _Pace:
    """Trigger times of a replay: now, or on a fixed beat that does not wait for the station."""

    def __init__(self, clock: Clock, period_ns: int) -> None:
        self._clock = clock
        self._period_ns = period_ns
        self._next_ns: int | None = None

    def trigger(self) -> int:
        now_ns = self._clock.now_ns()
        if self._period_ns == 0:
            return now_ns
        due_ns = now_ns if self._next_ns is None else self._next_ns
        self._clock.sleep_until_ns(due_ns)
        self._next_ns = due_ns + self._period_ns
        return due_ns


def _read_only(image: Image) -> Image:
    image.flags.writeable = False
    return image
