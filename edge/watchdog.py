"""Deadlines as pure arithmetic on monotonic nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """When a part's verdict is due: `budget_ms` after its trigger."""

    trigger_ns: int
    budget_ms: float

    def remaining_s(self, now_ns: int) -> float:
        """Seconds left: 0 when past, and never more than the budget."""
        return min(self.budget_ms, max(0.0, self.budget_ms - self.elapsed_ms(now_ns))) / 1e3

    def passed(self, now_ns: int) -> bool:
        """True when the verdict is late, or when its trigger is yet to come: a clock that went back proves nothing."""
        return not 0 <= self.elapsed_ms(now_ns) <= self.budget_ms

    def elapsed_ms(self, now_ns: int) -> float:
        """Milliseconds since the trigger."""
        return (now_ns - self.trigger_ns) / 1e6
