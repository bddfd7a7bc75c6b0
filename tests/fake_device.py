"""Stand-ins below the capture thread: a device that tests feed, and a `cv2.VideoCapture` over it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

import cv2
import numpy as np

from edge.camera_sections import LiveSource
from edge.clock import Clock
from edge.device import Grab, Setting
from engines.images import Image

Fed = Image | Exception


class Feed:
    """What a reader finds: pictures and exceptions in order, and nothing in between."""

    def __init__(self) -> None:
        self._fed: queue.SimpleQueue[Fed] = queue.SimpleQueue()
        self._back = threading.Condition()
        self._put = self._taken = self._dealt_with = self._reads = 0
        self._go = threading.Event()
        self._go.set()
        self._hung = threading.Event()

    def next(self) -> Image | None:
        """The next picture, or None; raises what was fed."""
        with self._back:  # whoever reads again has dealt with what was taken before
            self._dealt_with = self._taken
            self._reads += 1
            self._back.notify_all()
        if not self._go.is_set():
            self._hung.set()
            self._go.wait()
        try:
            fed = self._fed.get(timeout=0.002)
        except queue.Empty:
            return None
        self._taken += 1
        if isinstance(fed, Exception):
            raise fed
        return fed

    def feed(self, *items: Fed) -> None:
        """Give these; returns when the last has been taken and dealt with, and the reader is back."""
        self.put(*items)
        with self._back:
            assert self._back.wait_for(lambda: self._dealt_with == self._put, 30)

    def put(self, *items: Fed) -> None:
        """Give these and do not wait."""
        self._put += len(items)
        for item in items:
            self._fed.put(item)

    def turn(self) -> None:
        """Wait until the reader read once more and is back."""
        with self._back:
            wanted = self._reads + 2
            assert self._back.wait_for(lambda: self._reads >= wanted, 30)

    def hang(self) -> None:
        """Let the next read block until `let_go`; returns when it does."""
        self._hung.clear()
        self._go.clear()
        assert self._hung.wait(30)

    def let_go(self) -> None:
        """Unblock."""
        self._go.set()


class FakeDevice(Feed):
    """A camera that tests feed, and that may refuse to open.

    Attributes:
        refusals: raised by the next openings, in order.
        settings: what it says that it has.
        opened_ns: when it was opened, or refused.
        closed_by: names of the threads that closed it.
    """

    name = "fake"

    def __init__(self, clock: Clock, *, triggered: bool = False) -> None:
        super().__init__()
        self._clock = clock
        self.triggered = triggered
        self.refusals: list[Exception] = []
        self.settings: Sequence[Setting] = ()
        self.opened_ns: list[int] = []
        self.closed_by: list[str] = []

    def open(self) -> None:
        self.opened_ns.append(self._clock.now_ns())
        if self.refusals:
            raise self.refusals.pop(0)

    def apply(self, source: LiveSource) -> Sequence[Setting]:
        return self.settings

    def read(self) -> Grab | None:
        image = self.next()
        return None if image is None else Grab(image.copy(), self._clock.now_ns())

    def counts(self) -> dict[str, int]:
        return {"opened": len(self.opened_ns)}

    def close(self) -> None:
        self.closed_by.append(threading.current_thread().name)


class FakeCapture(Feed):
    """A `cv2.VideoCapture` of a V4L2 camera, with its properties.

    Attributes:
        opened: is it?
        properties: by OpenCV's number; a camera has those that are here.
        coarse: properties that take multiples of a number only.
        released_by: names of the threads that released it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.opened = True
        self.properties: dict[int, float] = {}
        self.coarse: dict[int, float] = {}
        self.released_by: list[str] = []

    def isOpened(self) -> bool:  # noqa: N802
        return self.opened

    def read(self) -> tuple[bool, Image | None]:
        image = self.next()
        if image is None:
            return False, None
        return True, np.ascontiguousarray(image[:, :, ::-1]) if image.ndim == 3 else image

    def set(self, key: int, value: float) -> bool:
        if key not in self.properties:
            return False
        step = self.coarse.get(key, 0)
        self.properties[key] = value if step == 0 else step * round(value / step)
        return True

    def get(self, key: int) -> float:
        return self.properties.get(key, -1.0 if key != cv2.CAP_PROP_POS_MSEC else 0.0)

    def release(self) -> None:
        self.released_by.append(threading.current_thread().name)
