"""The reject line hears of each part as it triggers, not only when the station comes to judge it."""

from __future__ import annotations

from typing import Protocol

from edge.rejector import Rejector
from edge.travel import Settings
from edge.trigger import Trigger
from edge.verdict import Verdict


class Pending(Protocol):
    """Knows which parts came and were not given to the station yet."""

    def pending(self) -> list[Trigger]:
        """In the order of their numbers."""


class AnnouncingRejector:
    """Another rejector that is told at each beat of the parts that wait.

    A part that waits, for its turn or for its picture, for longer than its way to the ejector would otherwise be there
    before the rejector knew of it, and pass.
    """

    def __init__(self, rejector: Rejector, source: Pending) -> None:
        """Join the two; the other rejector is closed with this."""
        self._rejector = rejector
        self._source = source
        self._announced = 0

    def beat(self) -> None:
        """Beat, and tell of the parts that wait. Raises StationError."""
        self._rejector.beat()
        for trigger in self._source.pending():
            self.announce(trigger.part, trigger.at_ns)

    def set_ready(self, ready: bool) -> None:
        """Tell whether the station is ready. Raises StationError."""
        self._rejector.set_ready(ready)

    def announce(self, part: int, trigger_ns: int) -> None:
        """Tell of a part, once. Raises StationError when the line cannot be driven."""
        if part > self._announced:
            self._rejector.announce(part, trigger_ns)
            self._announced = part

    def retime(self, settings: Settings) -> None:
        """Tell how parts that trigger from now on travel. Raises StationError."""
        self._rejector.retime(settings)

    def apply(self, verdict: Verdict) -> None:
        """Act on one part. Raises StationError when the line cannot be driven."""
        self._rejector.apply(verdict)

    def close(self) -> None:
        """Close the other one; may be called twice."""
        self._rejector.close()
