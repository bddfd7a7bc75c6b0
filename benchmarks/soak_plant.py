"""A simulated plant on a simulated clock: a conveyor, a trigger and an exit sensor, a camera, and the rejector's process.

The rejector's real loop is stepped at the times that it asks for, and up to `JITTER_NS` after something came for it, as an
operating system would wake it. Its lines are recorded as levels over time. When its process is killed the outputs fall to
inactive, which rejects; while it is stopped they stand as they stood. All times are monotonic ns of this one clock.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from edge import StationError
from edge.lines import OUTPUTS, Edge, LineSpec
from edge.rejector_process import Loop, Setup
from edge.travel import Settings
from edge.wire import Kind, Message, send
from engines.images import Image

MS = 10**6
TRAVEL_NS, PULSE_NS, SEPARATION_NS = 300 * MS, 10 * MS, 5 * MS
DEADLINE_NS, HEARTBEAT_NS = 150 * MS, 100 * MS
EXIT_NS, TOLERANCE_NS = 200 * MS, 2 * MS
EXPOSED_NS, DELIVERED_NS = 3 * MS, 8 * MS  # a frame after its trigger
PAUSE_NS = 5 * MS  # between two frames, longer than a contact bounces: no bounce has a picture of its own
CAMERA_TIMEOUTS_NS = (100 * MS, 2000 * MS)  # below and above the way to the ejector; the second one is the station's default
JITTER_NS = MS
PERIOD_NS = 40 * MS  # of a timer
START_NS = 1000 * 10**9


def settings(announced: bool) -> Settings:
    """How parts travel: announced by vision, or told by a trigger line with an exit sensor."""
    return Settings(
        TRAVEL_NS,
        PULSE_NS,
        SEPARATION_NS,
        DEADLINE_NS,
        HEARTBEAT_NS,
        announced=announced,
        exit=None if announced else EXIT_NS,
        tolerance=0 if announced else TOLERANCE_NS,
    )


@dataclass(frozen=True)
class Treatment:
    """What becomes of one part's picture and score.

    Attributes:
        frame: `good`, `torn` or `lost`.
        late_ms: later than others the camera gives it, which holds up those behind it.
        score: that its picture has; a part is good at 1 or below.
        ms: scoring takes.
        error: scoring raises, "" for nothing.
        heeds: scoring ends when its time is over; else it answers late.
        hangs_ms: scoring is busy for so long after it was given up.
    """

    frame: str = "good"
    late_ms: float = 0.0
    score: float = 0.5
    ms: float = 8.0
    error: str = ""
    heeds: bool = True
    hangs_ms: float = 0.0


@dataclass(eq=False)
class Part:
    """One thing on the conveyor; `number` counts things, not triggers.

    `bounce_ns` after it comes a second edge, 0 for none. `given_ns` is when the station got its picture, 0 while it has none.
    """

    number: int
    at_ns: int
    treatment: Treatment
    triggers: bool = True
    bounce_ns: int = 0
    exit_offset_ns: int = 0
    given_ns: int = 0


@dataclass(eq=False)
class Triggered:
    """One edge of the trigger line, or one call of software. `run` and `number` are what the journal knows it by."""

    at_ns: int
    part: Part
    run: str = ""
    number: int = 0


class Receiver(Protocol):
    """Where frames go."""

    def hold(self, captured_ns: int, what: Image | str) -> None:
        """A picture, or what is wrong with it."""


class Lines:
    """The lines of one rejector process; each change of an output is recorded by the plant."""

    def __init__(self, plant: Plant, run: str) -> None:
        """Outputs are inactive."""
        self._plant = plant
        self._run = run
        self._number = 0
        self.levels = dict.fromkeys(OUTPUTS, False)
        self.coming: list[tuple[Edge, Triggered | None]] = []

    def set(self, name: str, active: bool) -> None:
        """Drive an output."""
        self.levels[name] = active
        self._plant.record(name, active)

    def get(self, name: str) -> bool:
        """Level of an output."""
        return self.levels[name]

    def edges(self) -> list[Edge]:
        """Edges since the last call; here the trigger line's parts get their numbers."""
        coming, self.coming = sorted(self.coming, key=lambda come: come[0].at_ns), []
        for _, triggered in coming:
            if triggered is not None:
                self._number += 1
                triggered.run, triggered.number = self._run, self._number
        return [edge for edge, _ in coming]

    def filenos(self) -> list[int]:
        """Of something that can always be read: the loop is stepped when it is due, and never waits."""
        return [self._plant.readable]

    def close(self) -> None:
        """All outputs inactive."""
        for name in OUTPUTS:
            self.set(name, False)


class Process:
    """The rejector's process: its real loop, and what an operating system can do to it."""

    def __init__(self, plant: Plant, settings: Settings, vision: socket.socket, run: str) -> None:
        """Take the lines, and say hello to the other end of `vision`."""
        self._plant = plant
        self.lines = Lines(plant, run)
        specs = tuple(LineSpec(name, True, "plant", name) for name in OUTPUTS)
        self._vision = vision
        self._loop = Loop(Setup("gpiod", specs, settings), self.lines, vision, lambda: plant.now_ns)
        self.alive = True
        self.stopped_ns: int | None = None
        self.wake_ns: int | None = plant.now_ns
        send(vision, Message(Kind.HELLO))

    @property
    def due_ns(self) -> int | None:
        """When its loop turns next; None where it does not."""
        if not self.alive or self.stopped_ns is not None:
            return None
        return min((due for due in (self._loop.due_ns, self.wake_ns) if due is not None), default=None)

    def step(self) -> None:
        """One turn of the loop."""
        self.wake_ns = None
        try:
            goes_on = self._loop.step()
        except StationError:
            goes_on = False
        if not goes_on:
            self.end()

    def stop(self) -> None:
        """SIGSTOP: nothing happens any more, and the lines stand as they stand."""
        if self.alive and self.stopped_ns is None:
            self.stopped_ns = self._plant.now_ns

    def go_on(self) -> None:
        """SIGCONT."""
        if self.stopped_ns is not None:
            self._plant.note_still(self.stopped_ns)
            self.stopped_ns, self.wake_ns = None, self._plant.now_ns

    def end(self) -> None:
        """However it ends, its outputs fall to inactive and its socket closes."""
        if self.alive:
            self.go_on()
            self.alive = False
            self.lines.close()
            self._vision.close()
            self._plant.losses.append(self._plant.now_ns)


@dataclass(eq=False)
class Plant:
    """Everything but vision. Vision turns the clock by `run_until`; what is due on the way happens on the way.

    Attributes:
        announced: vision tells of parts, not a trigger line.
        period_ns: a timer of vision's makes them, and a thing comes by this often; 0 where software calls.
        now_ns: of the clock.
        outputs: (ns, level) of each output at each change, from the start.
        parts, triggered: all so far.
        unseen: when parts came by whose call vision, stopped for longer than a heartbeat, took only later.
        losses: when a process of the pair was killed, stopped or ended.
        taken: when a rejector's process took the lines.
        still: (from, to, level until a relay on the heartbeat line opened) of stopped rejectors.
        faults: injected, counted.
        camera_timeout_ns: for how long the station waits for a picture.
        full: the journal's disk.
        wall_ns: how far the wall clock is from where it would be.
    """

    announced: bool
    draw: random.Random
    period_ns: int = 0
    readable: int = -1
    now_ns: int = START_NS
    outputs: dict[str, list[tuple[int, bool]]] = field(default_factory=lambda: {name: [(START_NS, False)] for name in OUTPUTS})
    parts: dict[int, Part] = field(default_factory=dict)
    triggered: list[Triggered] = field(default_factory=list)
    unseen: list[int] = field(default_factory=list)
    losses: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    still: list[tuple[int, int, int]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    process: Process | None = None
    receiver: Receiver | None = None
    camera_fault: str = ""
    camera_timeout_ns: int = CAMERA_TIMEOUTS_NS[0]
    full: bool = False
    wall_ns: int = 0

    def __post_init__(self) -> None:
        """Start without events."""
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._shot_ns = self._given_ns = 0
        self.readable, self._other = os.pipe()
        os.write(self._other, b".")

    def close(self) -> None:
        """Release what select looks at."""
        for handle in (self.readable, self._other):
            os.close(handle)

    def at(self, when_ns: int, happens: Callable[[], None]) -> None:
        """Something will happen."""
        heapq.heappush(self._events, (when_ns, next(self._order), happens))

    def run_until(self, end_ns: int, done: Callable[[], bool] = lambda: False) -> None:
        """Let time go on to `end_ns`, or until `done` says so behind something that happened."""
        while not done():
            due_ns = None if self.process is None else self.process.due_ns
            event_ns = self._events[0][0] if self._events else None
            if event_ns is not None and event_ns <= end_ns and (due_ns is None or event_ns <= due_ns):
                self.now_ns = max(self.now_ns, event_ns)
                heapq.heappop(self._events)[2]()
            elif due_ns is not None and due_ns <= end_ns and self.process is not None:
                self.now_ns = max(self.now_ns, due_ns)
                self.process.step()
            else:
                self.now_ns = max(self.now_ns, end_ns)
                return

    def wake(self) -> None:
        """Something came for the rejector's process, which turns a moment later."""
        if self.process is not None and self.process.wake_ns is None:
            self.process.wake_ns = self.now_ns + self.draw.randrange(JITTER_NS)

    def start_process(self, settings: Settings, vision: socket.socket, run: str) -> None:
        """A rejector takes the lines over from whoever has them."""
        if self.process is not None:
            self.process.end()
        self.taken.append(self.now_ns)
        self.process = Process(self, settings, vision, run)

    def record(self, name: str, active: bool) -> None:
        """An output's level now."""
        if self.outputs[name][-1][1] != active:
            self.outputs[name].append((self.now_ns, active))

    def note_still(self, since_ns: int) -> None:
        """A rejector stood still from then until now. A relay that the heartbeat line holds opens when that stands still."""
        up = self.outputs["ready"][-1][1]
        opens_ns = self.outputs["heartbeat"][-1][0] + HEARTBEAT_NS if up else self.now_ns
        self.still.append((since_ns, self.now_ns, min(self.now_ns, max(since_ns, opens_ns))))
        self.losses.append(since_ns)

    def edge(self, name: str, triggered: Triggered | None = None) -> None:
        """An input goes up, to whoever has the lines."""
        if self.process is not None and self.process.alive:
            self.process.lines.coming.append((Edge(name, True, self.now_ns), triggered))
            self.wake()

    def shoot(self, part: Part, picture: Image) -> None:
        """The camera takes a frame of a part that triggered just now, and gives it a little later; frames keep their order."""
        if self.now_ns - self._shot_ns < PAUSE_NS:
            return
        self._shot_ns = self.now_ns
        captured_ns = self.now_ns + EXPOSED_NS
        shown: Image | str = picture if part.treatment.frame == "good" else "torn: half of it is missing"

        def give() -> None:
            if self.receiver is not None and part.treatment.frame != "lost" and not self.camera_fault:
                self.receiver.hold(captured_ns, shown)
                part.given_ns = self.now_ns

        self._given_ns = max(self._given_ns, self.now_ns + DELIVERED_NS + round(part.treatment.late_ms * MS))
        self.at(self._given_ns, give)
