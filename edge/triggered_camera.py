"""A camera whose parts are those of triggers: each takes its picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from edge import StationError
from edge.camera import Camera, Wrapped
from edge.clock import SLICE_S
from edge.trigger import Trigger, Triggers
from edge.verdict import Arrival, Frame, Missing


class TriggeredCamera(Wrapped):
    """A camera whose parts are those of triggers: one arrival for each, whatever becomes of the camera.

    A live camera gives each part the first frame that was captured after its trigger; where that frame came after the next
    part's trigger too, nobody knows whom it shows, and the part has none. A replay gives each part its next picture.
    """

    def __init__(self, camera: Camera, triggers: Triggers, *, replayed: bool = False) -> None:
        """Join the two; the camera is closed with this, the triggers are closed when there are no more frames."""
        super().__init__(camera)
        self._triggers = triggers
        self._replayed = replayed
        self._hand: Trigger | None = None  # taken, and no arrival given yet

    @property
    def waiting(self) -> int:
        """Parts that triggered and have no arrival yet."""
        return len(self.pending())

    def pending(self) -> list[Trigger]:
        """Those parts, the one whose picture is waited for among them. Raises StationError: the rejector is lost."""
        return [*([] if self._hand is None else [self._hand]), *self._triggers.pending()]

    def frames(self) -> Iterator[Arrival]:
        """One arrival for each trigger, until these or the frames end. Raises StationError once every part has its arrival."""
        arrivals = self._camera.frames()
        try:
            yield from self._replay(arrivals) if self._replayed else self._watch(arrivals)
        except StationError as error:
            yield from self.rest(f"no picture: {error}")
            raise
        yield from self.rest("the source has no more pictures")

    def rest(self, reason: str) -> Iterator[Missing]:
        """Take no more triggers; arrivals without a picture for all that came before."""
        self._triggers.close()
        waiting = len(self._triggers.pending())
        if self._hand is not None:
            yield self._missing(self._hand, "trigger", reason)
        for _ in range(waiting):
            trigger = self._triggers.next(0)
            if trigger is not None:
                yield self._missing(trigger, "trigger", trigger.fault or reason)

    def _watch(self, arrivals: Iterator[Arrival]) -> Iterator[Arrival]:
        held: Arrival | None = None  # the next part's as well, if that triggered before it
        while (trigger := self._next()) is not None:
            if trigger.fault:
                yield self._missing(trigger, "trigger", trigger.fault)
                continue
            arrival = held or next(arrivals, None)
            while arrival is not None and _taken_ns(arrival) < trigger.at_ns:  # a bad frame of before is not this part's either
                arrival = next(arrivals, None)
            if arrival is None:
                return
            if isinstance(arrival, Frame):
                self._triggers.settle(arrival.captured_ns)  # else the next part's picture may be taken for this one's
            following = next(iter(self._triggers.pending()), None)
            if isinstance(arrival, Missing):  # what is missing is so for all that triggered before
                held = arrival
                yield self._give(arrival, trigger)
            elif following is not None and following.at_ns <= arrival.captured_ns:
                held = arrival
                yield self._missing(trigger, arrival.source, "no frame before the next part's trigger")
            else:
                held = None
                yield self._give(arrival, trigger)

    def _replay(self, arrivals: Iterator[Arrival]) -> Iterator[Arrival]:
        while (arrival := next(arrivals, None)) is not None:
            while (trigger := self._next()) is not None and trigger.fault:
                yield self._missing(trigger, "trigger", trigger.fault)
            if trigger is None:
                return
            if isinstance(arrival, Frame):  # it was read before its trigger came
                arrival = dataclasses.replace(arrival, captured_ns=max(arrival.captured_ns, trigger.at_ns))
            yield self._give(arrival, trigger)

    def _next(self) -> Trigger | None:
        """The next trigger, None when they ended."""
        while not self._triggers.ended:
            self._hand = self._triggers.next(SLICE_S)
            if self._hand is not None:
                return self._hand
        return None

    def _give(self, arrival: Arrival, trigger: Trigger) -> Arrival:
        self._hand = None
        return dataclasses.replace(arrival, part=trigger.part, trigger_ns=trigger.at_ns, part_ref=trigger.part_ref)

    def _missing(self, trigger: Trigger, source: str, reason: str) -> Missing:
        self._hand = None
        return Missing(trigger.part, trigger.at_ns, source, reason, trigger.part_ref)


def _taken_ns(arrival: Arrival) -> int:
    return arrival.captured_ns if isinstance(arrival, Frame) else arrival.trigger_ns
