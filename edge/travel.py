"""How parts travel from trigger to ejector, and how long things may take: what the reject line's schedule goes by."""

from __future__ import annotations

from dataclasses import dataclass

from edge import StationError


@dataclass(frozen=True)
class Settings:
    """How parts travel and how long things may take.

    Attributes:
        travel, pulse, separation: on the axis: nanoseconds, or encoder pulses with `encoder`.
        deadline_ns: from trigger to the latest PASS that counts.
        heartbeat_ns: vision is lost when it was silent for this long.
        encoder: the axis is an encoder's count.
        announced: vision announces parts itself, so that it rejects all the time while vision is lost.
        confirm_ns: from the end of a window to the latest confirmation; None without that sensor.
        exit: on the axis, from trigger to the exit sensor, which lies before the ejector; None without one.
        tolerance: on the axis, how far from its expected place a part may be at the exit sensor.
    """

    travel: int
    pulse: int
    separation: int
    deadline_ns: int
    heartbeat_ns: int
    encoder: bool = False
    announced: bool = True
    confirm_ns: int | None = None
    exit: int | None = None
    tolerance: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises StationError."""
        for name in ("travel", "pulse", "deadline_ns", "heartbeat_ns"):
            if getattr(self, name) <= 0:
                raise StationError(f"{name} is {getattr(self, name)}, expected above 0")
        if self.separation < 0 or self.tolerance < 0 or (self.confirm_ns is not None and self.confirm_ns <= 0):
            raise StationError("separation and tolerance must be 0 or more, the confirm window above 0; correct them")
        if not self.encoder and self.deadline_ns > self.travel:
            raise StationError(
                f"the deadline of {self.deadline_ns / 1e6:g} ms is after the part's arrival at the ejector,"
                f" {self.travel / 1e6:g} ms; lower deadline_ms or move the ejector"
            )
        if self.encoder and self.announced:
            raise StationError("travel in encoder pulses needs a trigger line: an announced part has no encoder count")
        if self.exit is not None and self.exit + self.tolerance > self.travel:
            raise StationError(
                f"the exit sensor sees a part up to {self.exit + self.tolerance} after its trigger, expected before it reaches"
                f" the ejector at {self.travel}; move the sensor or lower its tolerance"
            )


RETIMED = {"travel": 1, "pulse": 2, "separation": 3, "deadline_ns": 4}
"""What may change from recipe to recipe; the numbers travel between processes, the last one at the end."""
