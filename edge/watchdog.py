"""Deadlines as pure arithmetic on monotonic nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """When a part's verdict is due: `budget_ms` after its trigger."""

    trigger_ns: int
    budget_ms: float

    def remaining_s(self, now_ns: int) -> float:
        """Seconds left, 0 when past."""
        return max(0.0, self.budget_ms / 1e3 - (now_ns - self.trigger_ns) / 1e9)

    def passed(self, now_ns: int) -> bool:
        """True when the verdict is late."""
        return self.elapsed_ms(now_ns) > self.budget_ms

    def elapsed_ms(self, now_ns: int) -> float:
        """Milliseconds since the trigger."""
        return (now_ns - self.trigger_ns) / 1e6
