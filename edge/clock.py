"""The station's clock, injected so that tests can turn it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

SLICE_S = 0.02  # the deciding loop shows that it turns this often while it waits


class Clock(Protocol):
    """Monotonic time and sleep."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""

    def sleep_until_ns(self, when_ns: int) -> None:
        """Return at `when_ns`, at once if it is past."""


class SystemClock:
    """The machine's monotonic clock."""

    def __init__(self, beat: Callable[[], None] = lambda: None) -> None:
        """`beat` is called again and again while somebody sleeps."""
        self._beat = beat

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""
        return time.monotonic_ns()

    def sleep_until_ns(self, when_ns: int) -> None:
        """Return at `when_ns`, at once if it is past."""
        while (left_ns := when_ns - time.monotonic_ns()) > 0:
            time.sleep(min(SLICE_S, left_ns / 1e9))
            self._beat()
