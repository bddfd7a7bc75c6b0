"""When pictures were taken, on the station's clock, from the times that the camera's own clock gives them."""

from __future__ import annotations

from collections import deque

_WINDOW = 64  # pictures; at 30 a second clocks that differ by 100 ppm drift 0.2 ms apart in it


class DeviceClock:
    """Maps a camera's times to the station's.

    A picture arrives at `device time + offset + delay`, where the delay (read-out, transfer, a busy computer) varies and the
    offset does not. The smallest difference among recent pictures belongs to the one that came fastest, so that
    `device time + smallest difference` is free of jitter, never later than the arrival, and late by the least delay alone
    (Cristian, Probabilistic clock synchronization, 1989, applied one way).
    """

    def __init__(self) -> None:
        self._differences: deque[int] = deque(maxlen=_WINDOW)
        self._device_ns = 0

    def captured_ns(self, device_ns: int, arrived_ns: int) -> int:
        """Monotonic time of a picture; its arrival where the camera has no clock, or set it back."""
        if device_ns <= self._device_ns:
            self._differences.clear()
        self._device_ns = device_ns
        if device_ns == 0:
            return arrived_ns
        self._differences.append(arrived_ns - device_ns)
        return device_ns + min(self._differences)
