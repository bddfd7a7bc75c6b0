"""What makes a part: a line, software or a timer. Each trigger is numbered, stamped and never lost."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge import StationError
from edge.clock import SLICE_S, Clock

WAITING = 8
_BACKLOG = 1000  # waiting triggers, FAULTs among them, above which no further one is taken by software


@dataclass(frozen=True)
class Trigger:
    """One part.

    Attributes:
        part: its number, from 1.
        at_ns: when it triggered, monotonic.
        part_ref: the factory's own name for it, where it came with the trigger.
        fault: why it cannot be judged, "" where it can.
    """

    part: int
    at_ns: int
    part_ref: str | None = None
    fault: str = ""


class Triggers(Protocol):
    """Parts as they trigger, in order and without a gap in their numbers. The deciding loop takes them.

    Attributes:
        counts: `triggered`, and by name those that came too fast.
    """

    counts: Counter[str]

    @property
    def ended(self) -> bool:
        """No further one will come, and none waits."""

    def next(self, timeout_s: float) -> Trigger | None:
        """The next one, None when there was none in time. Raises StationError."""

    def pending(self) -> list[Trigger]:
        """Those that came and were not taken yet."""

    def settle(self, at_ns: int) -> None:
        """Wait until all are known that triggered by `at_ns`, which is past. Raises StationError."""

    def close(self) -> None:
        """Take no more; those that came can still be had. May be called twice."""


class BacklogError(StationError):
    """So many triggers wait that this one was not taken, and is no part."""


class _Waiting:
    """Triggers in order. Where more than `limit` of them wait to be judged, the next ones are FAULTs."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._triggers: deque[Trigger] = deque()
        self._good = 0
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._triggers)

    def add(self, trigger: Trigger) -> None:
        self.counts["triggered"] += 1
        if not trigger.fault and self._good >= self._limit:
            self.counts["overflow"] += 1
            fault = f"triggers come faster than the station serves them: {self._good} parts waited already"
            trigger = dataclasses.replace(trigger, fault=fault)
        self._good += not trigger.fault
        self._triggers.append(trigger)

    def take(self) -> Trigger | None:
        if not self._triggers:
            return None
        trigger = self._triggers.popleft()
        self._good -= not trigger.fault
        return trigger

    def all(self) -> list[Trigger]:
        return list(self._triggers)


class LineSource(Protocol):
    """Whoever owns the trigger line."""

    def next_trigger(self, timeout_s: float) -> tuple[int, int] | None:
        """The next (number, monotonic ns), None when there was none in time. Raises StationError."""

    def told_until(self, at_ns: int, timeout_s: float) -> bool:
        """Whether all that triggered by `at_ns` were told, which is waited for. Raises StationError."""


class LineTriggers:
    """Triggers of the rejector's line, which numbers and stamps them."""

    def __init__(self, source: LineSource, beat: Callable[[], None] = lambda: None, waiting: int = WAITING) -> None:
        """Join the two; `beat` and `waiting` as for `SoftwareTriggers`."""
        self._source = source
        self._beat = beat
        self._waiting = _Waiting(waiting)
        self._closed = False
        self._last = 0  # part that the rejector told of
        self.counts = self._waiting.counts

    @property
    def ended(self) -> bool:
        """Closed, and nothing waits; a line has no end of its own."""
        return self._closed and len(self._waiting) == 0

    def next(self, timeout_s: float) -> Trigger | None:
        """The next one, None when there was none in time. Raises StationError: the rejector is lost."""
        if self._closed:
            return self._waiting.take()
        for _ in range(max(1, math.ceil(timeout_s / SLICE_S))):
            self._beat()
            self._gather(min(SLICE_S, timeout_s) if len(self._waiting) == 0 else 0.0)
            if len(self._waiting) > 0:
                break
        return self._waiting.take()

    def pending(self) -> list[Trigger]:
        """Those that came and were not taken yet. Raises StationError: the rejector is lost."""
        self._gather(0.0)
        return self._waiting.all()

    def settle(self, at_ns: int) -> None:
        """Wait, beating, until all are known that triggered by `at_ns`: a rejector that is held up tells of a part late.

        Raises StationError: the rejector is lost.
        """
        while not self._closed and not self._source.told_until(at_ns, SLICE_S):
            self._beat()

    def close(self) -> None:
        """Take no more, from a rejector that may be lost; those that came can still be had. May be called twice."""
        with contextlib.suppress(StationError):
            self._gather(0.0)
        self._closed = True

    def _gather(self, timeout_s: float) -> None:
        while not self._closed and (came := self._source.next_trigger(timeout_s)) is not None:
            number, at_ns = came
            for lost in range(self._last + 1, number):  # the rejector counts on while nobody reads what it says
                self.counts["untold"] += 1
                fault = "the station stood still for so long that it was not told of this part; its time is that of a later one"
                self._waiting.add(Trigger(lost, at_ns, fault=fault))
            self._last = number
            self._waiting.add(Trigger(number, at_ns))
            timeout_s = 0.0


class SoftwareTriggers:
    """Triggers by call, from any thread: HTTP, or lines of standard input."""

    def __init__(self, clock: Clock, beat: Callable[[], None] = lambda: None, waiting: int = WAITING) -> None:
        """Start without parts.

        Args:
            clock: stamps them.
            beat: called again and again while the deciding loop waits for the next one; what it raises ends the wait.
            waiting: above so many parts that nobody took yet, further ones are FAULTs.
        """
        self._clock = clock
        self._beat = beat
        self._waiting = _Waiting(waiting)
        self.counts = self._waiting.counts
        self._changed = threading.Condition()
        self._parts = 0
        self._closed = False

    @property
    def ended(self) -> bool:
        """Closed, and nothing waits."""
        with self._changed:
            return self._closed and len(self._waiting) == 0

    def trigger(self, part_ref: str | None = None, *, wait: bool = False) -> int:
        """A part triggers now; returns its number.

        Args:
            part_ref: the factory's own name for it.
            wait: for room, where too many wait; for a writer that can be held up.

        Raises:
            BacklogError: far too many wait; this is no part.
            StationError: the run is over; this is no part.
        """
        with self._changed:
            while wait and len(self._waiting) >= _BACKLOG and not self._closed:
                self._changed.wait()
            if self._closed:
                raise StationError("the run is over, no more triggers are taken; start the station")
            if len(self._waiting) >= _BACKLOG:
                raise BacklogError(f"{len(self._waiting)} triggers wait; slow down, this one was not taken and is no part")
            self._parts += 1
            self._waiting.add(Trigger(self._parts, self._clock.now_ns(), part_ref))
            self._changed.notify_all()
            return self._parts

    def next(self, timeout_s: float) -> Trigger | None:
        """The next one, None when there was none in time or none will come."""
        for _ in range(max(1, math.ceil(timeout_s / SLICE_S))):
            if not self._closed:  # the run may have ended because it cannot beat any more
                self._beat()
            with self._changed:
                self._changed.wait_for(lambda: len(self._waiting) > 0 or self._closed, min(SLICE_S, timeout_s))
                if len(self._waiting) > 0 or self._closed:
                    self._changed.notify_all()
                    return self._waiting.take()
        return None

    def pending(self) -> list[Trigger]:
        """Those that came and were not taken yet."""
        with self._changed:
            return self._waiting.all()

    def settle(self, at_ns: int) -> None:
        """All that were called are known."""

    def close(self) -> None:
        """Take no more; those that came can still be had. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class TimerTriggers:
    """A part each period, due on a grid that does not drift.

    A part that the station comes to only when the next one is due already was missed, and is a FAULT.
    """

    def __init__(self, clock: Clock, period_ns: int) -> None:
        """Start the grid: the first part is due one period from now. `clock` is also slept by, in the deciding loop."""
        self._clock = clock
        self._period_ns = period_ns
        self._begun_ns = clock.now_ns()
        self._taken = 0
        self._last: int | None = None  # the last part, once closed
        self.counts: Counter[str] = Counter()

    @property
    def ended(self) -> bool:
        """Closed, and no part that was due before is left."""
        return self._last is not None and self._taken >= self._last

    def next(self, timeout_s: float) -> Trigger | None:
        """The next one, None when none was due in time."""
        if self.ended:
            return None
        due_ns = self._due_ns(self._taken + 1)
        self._clock.sleep_until_ns(min(due_ns, self._clock.now_ns() + round(timeout_s * 1e9)))
        late_ns = self._clock.now_ns() - due_ns
        if late_ns < 0:
            return None
        self._taken += 1
        self.counts["triggered"] += 1
        if late_ns < self._period_ns:
            return Trigger(self._taken, due_ns)
        self.counts["missed"] += 1
        return Trigger(
            self._taken, due_ns, fault=f"the station came to it {late_ns / 1e6:.1f} ms late, after the next part was due"
        )

    def pending(self) -> list[Trigger]:
        """Those that are due and were not taken yet."""
        due = self._due() if self._last is None else self._last
        return [Trigger(part, self._due_ns(part)) for part in range(self._taken + 1, due + 1)]

    def settle(self, at_ns: int) -> None:
        """All that were due are known."""

    def close(self) -> None:
        """End the grid now; parts that are due can still be had. May be called twice."""
        if self._last is None:
            self._last = self._due()

    def _due(self) -> int:
        return (self._clock.now_ns() - self._begun_ns) // self._period_ns

    def _due_ns(self, part: int) -> int:
        return self._begun_ns + part * self._period_ns
