"""References from a scanner on a serial port, by termios."""

from __future__ import annotations

import contextlib
import fcntl
import os
import termios
import threading
import tty
from pathlib import Path

from edge import StationError
from edge.part_ref import QueuedReferences, Refusals, check_ref
from edge.text_lines import LineReader

_REOPEN_S = 1.0


class SerialReferences:
    """References of a scanner on a serial port (8 data bits, no parity), one a line, queued for the parts that follow."""

    def __init__(self, device: Path, baud: int, queued: QueuedReferences, refusals: Refusals) -> None:
        """Open the port and read it in a thread. One that is lost is opened again every second, and an event says so.

        Raises:
            StationError: it cannot be opened, or cannot be set.
        """
        self._device = device
        self._baud = baud
        self._queued = queued
        self._refusals = refusals
        self.counts = queued.counts
        self._stop = threading.Event()
        self._lost = threading.Event()
        descriptor = open_serial(device, baud)
        self._thread = threading.Thread(target=self._work, args=(descriptor,), name=f"scanner {device}", daemon=True)
        self._thread.start()

    def take(self, trigger_ns: int) -> str | None:
        """The first one that is neither too old nor too young."""
        return self._queued.take(trigger_ns)

    def close(self) -> None:
        """End the thread and close the port; may be called twice."""
        self._stop.set()
        self._lost.set()
        self._thread.join(timeout=5)

    def _work(self, descriptor: int) -> None:
        while True:
            reader = LineReader(descriptor, self._line, self._end, f"lines of {self._device}")
            self._lost.wait()
            reader.close()
            os.close(descriptor)
            self._lost.clear()
            reopened = None
            while reopened is None and not self._stop.wait(_REOPEN_S):
                with contextlib.suppress(StationError):
                    reopened = open_serial(self._device, self._baud)
            if reopened is None:
                return
            descriptor = reopened

    def _line(self, text: str) -> None:
        if text.strip() == "":
            return
        try:
            self._queued.add(check_ref(text))
        except StationError as error:
            self._refusals.add(str(self._device), str(error))

    def _end(self, reason: str) -> None:
        self.counts["scanner lost"] += 1
        self._refusals.add(str(self._device), f"the scanner is lost ({reason or 'end of file'}); parts have no reference")
        self._lost.set()


def open_serial(device: Path, baud: int) -> int:
    """Open a serial port for lines, for this process alone; what waits there already is dropped. Returns its descriptor.

    Raises:
        StationError: not there, in use, not a serial port, or a speed that it does not have.
    """
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise StationError(f"{device}: {baud} baud, expected a usual speed such as 9600 or 115200")
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise StationError(
            f"{device}: the scanner cannot be opened ({error.strerror}); check the cable and permissions"
        ) from None
    try:
        fcntl.ioctl(descriptor, termios.TIOCEXCL)  # two readers would share the labels out
        tty.setraw(descriptor)
        attributes = termios.tcgetattr(descriptor)
        attributes[2] |= termios.CLOCAL | termios.CREAD
        attributes[4] = attributes[5] = speed
        termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
        termios.tcflush(descriptor, termios.TCIFLUSH)
    except (OSError, termios.error) as error:
        os.close(descriptor)
        raise StationError(f"{device}: not a serial port that can be set ({error.args[-1]}); give the scanner's") from None
    return descriptor
