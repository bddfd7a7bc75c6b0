"""A live camera: a thread that holds its newest pictures, says what is wrong with them, and opens a lost camera again.

Between two parts it can be set otherwise: the thread opens it again with the new settings, and with the former ones where
these do not hold.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from edge import StationError
from edge.camera_sections import LiveSource
from edge.clock import SLICE_S, Clock
from edge.device import Device, DeviceLostError, Grab, Setting, TornFrameError
from edge.frame_check import FrameCheck
from edge.verdict import Arrival, Frame, Missing
from engines import InspectionError
from engines.images import Image

FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 10.0
_OPEN_S = 60.0  # a driver that has not opened a camera by then hangs
_CHANGE_S = 8.0  # the same for one that is to be set otherwise: parts are rejected meanwhile
_HELD = 8  # pictures that wait for parts that trigger
_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(eq=False)
class _Change:
    """Other settings on their way through the capture thread."""

    device: Device
    source: LiveSource
    done: threading.Event = field(default_factory=threading.Event)
    given_up: bool = False
    error: str = ""


class LiveCamera:
    """Arrivals from a device that may be lost and come back.

    Without a trigger each picture that the station takes is a part, always the newest: those that come while it is busy are
    let go, and while the camera is lost there is no part. With one, parts come whatever the camera does: pictures are held
    in order, so that each part finds the first after its trigger, and a part that asks a lost camera, or whose picture was let
    go for newer ones, is missing.

    Attributes:
        source: what it is set to, and its limits.
        settings: what was set, and what the device said that it has, when it was last opened.
        counts: what the device counts, such as lost packets.
    """

    def __init__(
        self,
        device: Device,
        source: LiveSource,
        clock: Clock,
        *,
        beat: Callable[[], None] = lambda: None,
        parts_by_trigger: bool = False,
    ) -> None:
        """Open the camera, set it, and start to take pictures. Device and clock are used by the thread.

        Args:
            device: opened, set, read and closed by one thread alone.
            source: settings and limits.
            clock: for times, and to wait between tries.
            beat: called again and again while somebody waits for a picture; what it raises ends the wait.
            parts_by_trigger: something else says when there is a part.

        Raises:
            StationError: it cannot be opened, or does not take its settings: value wanted and value got.
        """
        self.source = source
        self._use(device, source)
        self._clock = clock
        self._beat = beat
        self._parts_by_trigger = parts_by_trigger
        self._change: _Change | None = None
        self._held: deque[tuple[int, Image | str]] = deque(maxlen=_HELD if parts_by_trigger else 1)
        self._gone: tuple[int, str] | None = None  # when the last picture was taken that was let go, and why, until it is told
        self._news = threading.Condition()
        self._failure: InspectionError | None = None
        self._open = self._delivers = self._worked = False
        self._status = "not opened yet"
        self._alive_ns = 0
        self._retry_s = FIRST_RETRY_S
        self._stopping = False
        self._opened = threading.Event()
        self.settings: Sequence[Setting] = ()
        self.counts: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name=f"camera {device.name}", daemon=True)
        self._thread.start()
        if not self._opened.wait(_OPEN_S):
            self._stopping = True
            raise StationError(
                f"camera {device.name}: not open after {_OPEN_S:g} s; check the driver, the cable and the address"
            )
        if self._failure is not None:
            self._thread.join(_OPEN_S)  # a process that ends while OpenCV releases a device is aborted
            raise self._failure

    @property
    def healthy(self) -> bool:
        """Does it deliver, with its settings read back? Also False while its driver hangs."""
        return self._change is None and self._delivers and self._silent_ns() <= self._timeout_ns

    @property
    def status(self) -> str:
        """Why it is not healthy; empty where it is."""
        if self._change is not None:
            return f"camera {self._device.name}: its settings change"
        if self._delivers and self._silent_ns() > self._timeout_ns:
            return self._silence()
        return self._status

    def change(self, device: Device, source: LiveSource) -> None:
        """Go over to other settings between two parts, for the thread that takes the frames; waits until pictures come.

        It is not healthy meanwhile, and no picture from before is given after. It is opened again, since a driver's queue may
        hold pictures that were taken with the former settings.

        Args:
            device: the same camera, not open, for these settings.
            source: settings and limits.

        Raises:
            StationError: it does not take them or delivers nothing with them; the former ones are set again, with the patience
                that a lost camera gets.
        """
        if source == self.source:
            return
        change = _Change(device, source)
        with self._news:
            if self._failure is not None:
                raise self._failure
            if self._change is not None:
                raise StationError(f"camera {self._device.name}: an earlier change of its settings hangs; check the driver")
            self._change = change
            if self._parts_by_trigger and self._held:
                self._gone = self._held[-1][0], self._let_go_of("its settings changed")
            self._held.clear()
        end_ns = self._clock.now_ns() + round(_CHANGE_S * 1e9)
        try:
            while not change.done.wait(SLICE_S) and self._clock.now_ns() < end_ns:
                self._beat()
        finally:
            holds = self._settle(change)
        if not holds:
            late = f"camera {device.name}: not changed after {_CHANGE_S:g} s; the former settings are set again"
            raise StationError(change.error or late)

    def frames(self) -> Iterator[Arrival]:
        """Arrivals, numbered from 1, until it is closed. A lost camera is waited for.

        Raises:
            StationError: for what opening again cannot mend.
        """
        for part in itertools.count(1):
            taken = self._take()
            if taken is None:
                return
            captured_ns, picture = taken
            if isinstance(picture, str):
                yield Missing(part, captured_ns, self._device.name, picture)
            elif (age_ms := (self._clock.now_ns() - captured_ns) / 1e6) > self._source.stale_ms and not self._parts_by_trigger:
                reason = f"stale: the newest frame is {age_ms:.0f} ms old, allowed are {self._source.stale_ms:g} ms"
                yield Missing(part, captured_ns, self._device.name, reason)
            else:
                yield Frame(picture, part, captured_ns, captured_ns, self._device.name)

    def close(self) -> None:
        """Stop the thread, which closes the device; may be called twice. A driver that hangs is left to the system."""
        self._stopping = True
        self._thread.join(timeout=self._source.timeout_ms / 1e3)

    def _take(self) -> tuple[int, Image | str] | None:
        begun_ns = self._clock.now_ns()
        while not self._stopping:
            with self._news:
                if not self._held and self._failure is None:
                    self._news.wait(SLICE_S)
                if self._failure is not None:
                    raise self._failure
                if self._gone is not None:  # a part that triggered before it must not get a later one
                    gone, self._gone = self._gone, None
                    return gone
                if self._held:
                    return self._held.popleft()
            if self._parts_by_trigger:
                now_ns = self._clock.now_ns()
                if not self.healthy:
                    return now_ns, self.status
                if now_ns - begun_ns >= self._timeout_ns:
                    return now_ns, self._silence()
            self._beat()
        return None

    def _silent_ns(self) -> int:
        return self._clock.now_ns() - self._alive_ns

    def _silence(self) -> str:
        return f"camera {self._device.name}: no new frame for {self._source.timeout_ms / 1e3:g} s"

    def _let_go_of(self, why: str) -> str:
        return f"camera {self._device.name}: its picture was let go, {why}"

    def _run(self) -> None:
        try:
            while not self._stopping:
                if self._change is not None:
                    self._go_over(self._change)
                elif self._open:
                    self._read()
                else:
                    self._connect()
        except InspectionError as error:  # for the thread that waits
            self._fail(error)
        except BaseException as error:  # whatever it was, a dead thread must not look like a quiet camera
            self._fail(StationError(f"camera {self._device.name}: {_words(error)}"))
        finally:
            self._let_go()  # by the thread that reads it: released under a read, OpenCV may crash

    def _fail(self, error: InspectionError) -> None:
        self._delivers = False
        self._status = str(error)
        with self._news:
            self._failure = error
            self._news.notify()
            change, self._change = self._change, None
        if change is not None:
            change.error = str(error)
            change.done.set()
        self._opened.set()

    def _use(self, device: Device, source: LiveSource) -> None:
        self._device = device
        self._source = source
        self._timeout_ns = round(source.timeout_ms * 1e6)
        self._check = FrameCheck(_size(source), source.black_level, source.saturated_level)

    def _settle(self, change: _Change) -> bool:
        """Whether the new settings hold; where that is not known yet, the former ones are set again."""
        with self._news:
            change.given_up = self._change is change
            holds = not change.given_up and not change.error
            if holds:
                self.source = change.source
        return holds

    def _go_over(self, change: _Change) -> None:
        """Set the camera otherwise and see a picture, or set it as it was; once each: a lost one is opened again later."""
        former = self._device, self._source
        self._worked = True  # what fails from here on refuses the change, and does not end the run
        self._exchange(change.device, change.source)
        while self._open and not self._delivers and not self._stopping:
            self._read()
        with self._news:
            if self._delivers and not change.given_up:
                self._change = None
        if self._change is not None:
            reason = self._status
            self._exchange(*former)
            again = "are set again" if self._open else f"could not be set again yet ({self._status})"
            change.error = f"{reason}; the former settings {again}"
            with self._news:
                self._change = None
        change.done.set()

    def _exchange(self, device: Device, source: LiveSource) -> None:
        self._let_go()
        self._open = self._delivers = False
        self._use(device, source)
        self._connect()

    def _connect(self) -> None:
        """One try, of which the first must succeed."""
        try:
            self._device.open()
            settings = self._device.apply(self._source)
            faults = [setting.fault for setting in settings if setting.fault is not None]
            if faults:
                raise StationError(f"camera {self._device.name}: {'; '.join(faults)}; change the configuration")
        except Exception as error:
            if not self._opened.is_set():
                raise
            self._lose(_words(error))
            return
        self.settings = settings
        self._open = True
        self._alive_ns = self._clock.now_ns()
        if self._device.triggered:
            self._deliver()
        else:
            self._status = f"camera {self._device.name}: no frame yet"
        self._opened.set()

    def _read(self) -> None:
        try:
            grab = self._device.read()
            self.counts = self._device.counts()
        except TornFrameError as error:
            self._hold(error.captured_ns, f"torn: {error}")
            grab = None
        except DeviceLostError as error:
            self._lose(str(error))
            return
        except Exception as error:  # whatever a driver raises
            if isinstance(error, InspectionError) and not self._worked:
                raise  # what never worked is a fault of the configuration
            self._lose(_words(error))
            return
        if self._device.triggered:  # it answers, and silence is no fault
            self._alive_ns = self._clock.now_ns()
        if grab is not None:
            self._judge(grab)
        if self._silent_ns() > self._timeout_ns:
            self._lose(self._silence() if self._delivers else self._status)

    def _judge(self, grab: Grab) -> None:
        image = grab.image if self._source.rotation == 0 else _turned(grab.image, self._source.rotation)
        image.flags.writeable = False
        fault = self._check.fault(image)
        if fault is None or not fault.camera:
            self._alive_ns = self._clock.now_ns()
            self._deliver()
        elif not self._delivers:
            self._status = f"camera {self._device.name}: {fault.reason}"
        self._hold(grab.captured_ns, image if fault is None else fault.reason)

    def _deliver(self) -> None:
        self._status = ""
        self._delivers = self._worked = True
        self._retry_s = FIRST_RETRY_S

    def _hold(self, captured_ns: int, picture: Image | str) -> None:
        if self._delivers:  # while it is lost there is no part, or each is missing
            with self._news:
                if self._change is None:
                    if self._parts_by_trigger and len(self._held) == _HELD:
                        self._gone = self._held[0][0], self._let_go_of(f"{_HELD} later ones came before the station asked")
                    self._held.append((captured_ns, picture))
                    self._news.notify()

    def _let_go(self) -> None:
        with contextlib.suppress(Exception):  # a driver that is lost may fail here as well
            self._device.close()

    def _lose(self, reason: str) -> None:
        self._open = self._delivers = False
        name = f"camera {self._device.name}"
        self._status = reason if reason.startswith(name) else f"{name}: {reason}"
        self._let_go()
        end_ns = self._clock.now_ns() + round(self._retry_s * 1e9)
        self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
        while not self._stopping and self._change is None and (now_ns := self._clock.now_ns()) < end_ns:
            self._clock.sleep_until_ns(min(end_ns, now_ns + round(SLICE_S * 1e9)))


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, InspectionError) else f"{type(error).__name__}: {error}"


def _size(source: LiveSource) -> tuple[int, int] | None:
    """(width, height) that every picture must have, where the configuration says so."""
    if source.region is None:
        return None
    size = source.region.width, source.region.height
    return size if source.rotation in (0, 180) else size[::-1]


def _turned(image: Image, degrees: int) -> Image:
    return np.asarray(cv2.rotate(image, _TURNS[degrees]), dtype=np.uint8)
