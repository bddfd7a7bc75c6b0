"""Pictures for the parts of a trigger line: each takes the first frame after its trigger, and no other part's."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from edge.camera import Camera
from edge.verdict import Arrival, Frame, Missing

_WAIT_S = 1.0


class Triggers(Protocol):
    """Parts as their triggers come; `triggers` are those that nobody took yet."""

    triggers: deque[tuple[int, int]]

    def next_trigger(self, timeout_s: float) -> tuple[int, int] | None:
        """The next (number, monotonic ns), None when there was none in time. Raises StationError."""


class TriggeredCamera:
    """A camera whose parts are those of a trigger line."""

    def __init__(self, camera: Camera, source: Triggers) -> None:
        """Join the two; the camera is closed with this."""
        self._camera = camera
        self._source = source

    @property
    def healthy(self) -> bool:
        """Of the camera."""
        return self._camera.healthy

    @property
    def status(self) -> str:
        """Of the camera."""
        return self._camera.status

    def frames(self) -> Iterator[Arrival]:
        """One arrival for each trigger, as long as the camera has frames. Raises StationError."""
        arrivals = self._camera.frames()
        held: Frame | None = None  # already the next part's
        while True:
            trigger = self._source.next_trigger(_WAIT_S)
            if trigger is None:
                continue
            part, trigger_ns = trigger
            arrival: Arrival | None = held or next(arrivals, None)
            while arrival is not None and _taken_ns(arrival) < trigger_ns:  # a bad frame of before is not this part's either
                arrival = next(arrivals, None)
            if arrival is None:
                return
            held = None
            following = self._source.triggers
            if isinstance(arrival, Frame) and following and following[0][1] <= arrival.captured_ns:
                held = arrival
                arrival = Missing(part, trigger_ns, arrival.source, "no frame before the next part's trigger")
            yield dataclasses.replace(arrival, part=part, trigger_ns=trigger_ns)

    def close(self) -> None:
        """Close the camera; may be called twice."""
        self._camera.close()


def _taken_ns(arrival: Arrival) -> int:
    return arrival.captured_ns if isinstance(arrival, Frame) else arrival.trigger_ns
