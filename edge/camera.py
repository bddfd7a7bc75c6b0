"""Where frames come from: a folder or a video replayed, or a camera that OpenCV can open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from edge import StationError
from edge.clock import SLICE_S, Clock
from edge.verdict import Arrival, Frame, Missing
from engines import EngineError
from engines.images import Image, list_images, read_image

# OpenCV would also open a text file, as a film of its letters, and one picture as a sequence of all with like names
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})
_WHOLE = 0.99  # of the frames that a video's header promises; some formats only estimate their number
_LOST_AFTER = 5  # waits in a row without a frame before a live camera counts as lost


class Camera(Protocol):
    """Gives one arrival for each part, numbered from 1.

    Attributes:
        healthy: it gives pictures; while it does not, the station is not ready. Read by the deciding loop, and so at once.
        status: why it is not healthy, in words; "" where it is.
    """

    @property
    def healthy(self) -> bool: ...

    @property
    def status(self) -> str: ...

    def frames(self) -> Iterator[Arrival]:
        """Arrivals in order. Raises StationError when the source is lost for good."""

    def close(self) -> None:
        """Release the device; may be called twice."""


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
            yield Frame(_from_opencv(image), part, trigger_ns, trigger_ns, f"{self._path.name}#{part}")
        if part == 0:
            raise StationError(f"{self._path}: no frame could be decoded; convert the video")
        if part < _WHOLE * self._promised - 1:
            reason = f"the video ended after {part} of {self._promised:.0f} frames: truncated or damaged; copy it again"
            yield Missing(part + 1, self._pace.trigger(), f"{self._path.name}#{part + 1}", reason)

    def close(self) -> None:
        """Release the file; may be called twice."""
        self._capture.release()


class OpenCVCamera:
    """A live camera, by number, device path or URL. A thread drains it, so that a frame is never an old one from a queue.

    Each frame that the station takes is a part; frames that come while it is busy are let go. A frame that equals the one
    before bit for bit comes from a frozen camera, since no sensor is without noise: that part is missing.
    """

    healthy = True
    status = ""

    def __init__(
        self,
        device: int | str,
        clock: Clock,
        *,
        timeout_ms: float = 2000,
        beat: Callable[[], None] = lambda: None,
        open_capture: Callable[[int | str], cv2.VideoCapture] | None = None,
    ) -> None:
        """Open the camera and start to drain it.

        Args:
            device: what OpenCV opens.
            clock: for times.
            timeout_ms: without a new frame for this long a part is missing.
            beat: called again and again while somebody waits for a frame; what it raises ends the wait.
            open_capture: replaced in tests.

        Raises:
            StationError: it cannot be opened.
        """
        self._device = device
        self._clock = clock
        self._timeout_s = timeout_ms / 1e3
        self._beat = beat
        self._capture = cv2.VideoCapture(device) if open_capture is None else open_capture(device)
        if not self._capture.isOpened():
            raise StationError(f"camera {device}: OpenCV cannot open it; check the cable, the number and the permissions")
        self._fresh = threading.Condition()
        self._newest: tuple[Image, int] | None = None
        self._failure: str | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._drain, name=f"camera {device}", daemon=True)
        self._thread.start()

    def frames(self) -> Iterator[Arrival]:
        """Newest frame each time. Raises StationError when the camera fails or stays silent."""
        part = silent = 0
        previous: Image | None = None
        while True:
            newest = self._take()
            if newest is None and self._failure is not None:
                raise StationError(f"camera {self._device}: reading failed ({self._failure}); check it, then start again")
            part += 1
            if newest is None:
                silent += 1
                if silent >= _LOST_AFTER:
                    raise StationError(
                        f"camera {self._device}: no frame for {silent * self._timeout_s:g} s; check the cable, then start again"
                    )
                yield Missing(part, self._clock.now_ns(), str(self._device), f"no new frame for {self._timeout_s:g} s")
                continue
            silent = 0
            image, captured_ns = newest
            frozen = previous is not None and np.array_equal(image, previous)
            previous = image
            if frozen:
                yield Missing(part, captured_ns, str(self._device), "the same frame again, bit for bit: the camera is frozen")
                continue
            yield Frame(image, part, captured_ns, captured_ns, str(self._device))

    def close(self) -> None:
        """Stop the thread, which releases the camera; may be called twice. A driver that hangs is left to the system."""
        self._stopping = True
        self._thread.join(timeout=self._timeout_s)

    def _take(self) -> tuple[Image, int] | None:
        end_ns = self._clock.now_ns() + round(self._timeout_s * 1e9)
        while True:
            left_s = (end_ns - self._clock.now_ns()) / 1e9
            with self._fresh:
                wait_s = max(0.0, min(SLICE_S, left_s))
                if self._fresh.wait_for(lambda: self._newest is not None or self._failure is not None, wait_s) or left_s <= 0:
                    newest, self._newest = self._newest, None
                    return newest
            self._beat()

    def _drain(self) -> None:
        try:
            while not self._stopping:
                read, image = self._capture.read()
                captured_ns = self._clock.now_ns()
                if not read:
                    self._clock.sleep_until_ns(captured_ns + 10_000_000)
                    continue
                picture = _from_opencv(image)
                with self._fresh:
                    self._newest = (picture, captured_ns)
                    self._fresh.notify()
        except Exception as error:  # whatever a driver raises is handed to the thread that waits
            with self._fresh:
                self._failure = f"{type(error).__name__}: {error}"
                self._fresh.notify()
        finally:
            self._capture.release()  # by the thread that reads it: released under a read, OpenCV may crash


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


def _from_opencv(image: npt.NDArray[Any]) -> Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise StationError(f"frame is {image.dtype} {image.shape}, expected uint8 (height, width, 3); set 8-bit colour")
    return _read_only(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8))


def _read_only(image: Image) -> Image:
    image.flags.writeable = False
    return image
