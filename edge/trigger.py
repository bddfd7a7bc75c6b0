"""Pictures for the parts of a trigger line: each takes the first frame after its trigger, and no other part's."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from edge.camera import Camera
from edge.clock import SLICE_S
from edge.verdict import Arrival, Frame, Missing

_TOO_MANY = "as many parts as may (waiting_parts) waited for their pictures already: parts come faster than they are served"


class Triggers(Protocol):
    """Parts as their triggers come.

    Attributes:
        triggers: those that nobody took yet.
        surplus: those that came when enough waited already; each is given up at once.
    """

    triggers: deque[tuple[int, int]]
    surplus: deque[tuple[int, int]]

    def next_trigger(self, timeout_s: float) -> tuple[int, int] | None:
        """The next (number, monotonic ns), None when there was none in time. Raises StationError."""


class TriggeredCamera:
    """A camera whose parts are those of a trigger line."""

    def __init__(self, camera: Camera, source: Triggers, beat: Callable[[], None] = lambda: None) -> None:
        """Join the two; the camera is closed with this.

        Args:
            camera: gives the pictures.
            source: gives the parts.
            beat: called again and again while there is no part; what it raises ends the wait.
        """
        self._camera = camera
        self._source = source
        self._beat = beat
        self._in_hand = 0

    @property
    def healthy(self) -> bool:
        """Of the camera."""
        return self._camera.healthy

    @property
    def status(self) -> str:
        """Of the camera."""
        return self._camera.status

    @property
    def waiting(self) -> int:
        """Parts that triggered and were not given yet."""
        return len(self._source.triggers) + len(self._source.surplus) + self._in_hand

    def frames(self) -> Iterator[Arrival]:
        """One arrival for each trigger, as long as the camera has frames. Raises StationError."""
        arrivals = self._camera.frames()
        held: Frame | None = None  # already the next part's
        while True:
            trigger = self._source.next_trigger(SLICE_S)
            self._in_hand = int(trigger is not None)
            while self._source.surplus:
                yield self._given_up(*self._source.surplus.popleft())
            if trigger is None:
                self._beat()
                continue
            part, trigger_ns = trigger
            arrival: Arrival | None = held or next(arrivals, None)
            while isinstance(arrival, Frame) and arrival.captured_ns < trigger_ns:
                arrival = next(arrivals, None)
            if arrival is None:
                return
            held = None
            following = self._source.triggers
            if isinstance(arrival, Frame) and following and following[0][1] <= arrival.captured_ns:
                held = arrival
                arrival = Missing(part, trigger_ns, arrival.source, "no frame before the next part's trigger")
            self._in_hand = 0
            yield dataclasses.replace(arrival, part=part, trigger_ns=trigger_ns)

    def _given_up(self, part: int, trigger_ns: int) -> Missing:
        return Missing(part, trigger_ns, "trigger line", _TOO_MANY)

    def close(self) -> None:
        """Close the camera; may be called twice."""
        self._camera.close()
