"""The station's clock, injected so that tests can turn it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic time and sleep."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""

    def sleep_until_ns(self, when_ns: int) -> None:
        """Return at `when_ns`, at once if it is past."""


class SystemClock:
    """The machine's monotonic clock."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""
        return time.monotonic_ns()

    def sleep_until_ns(self, when_ns: int) -> None:
        """Return at `when_ns`, at once if it is past."""
        time.sleep(max(0.0, (when_ns - time.monotonic_ns()) / 1e9))
