"""One shift of the simulated plant: parts, the faults that are injected, and who starts the pair again when it ended."""

from __future__ import annotations

import dataclasses
import datetime
import math
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from benchmarks.soak_devices import picture
from benchmarks.soak_plant import CAMERA_TIMEOUTS_NS, EXIT_NS, MS, PERIOD_NS, START_NS, Part, Plant, Treatment, Triggered
from benchmarks.soak_station import Vision
from calibration.record import Calibration
from edge import journal as journal_module

RATES = {
    # of one part
    "frame lost": 1 / 300,
    "frame torn": 1 / 300,
    "picture later than the deadline": 1 / 1000,
    "slow inference": 1 / 200,
    "inference that answers late": 1 / 500,
    "inference hangs": 1 / 2000,
    "scoring raises": 1 / 300,
    "score NaN or infinite": 1 / 300,
    "duplicate trigger": 1 / 200,
    "missing trigger": 1 / 200,
    "burst of triggers": 1 / 200,
    # of the station
    "camera lost": 1 / 1500,
    "disk full": 1 / 2500,
    "journal locked": 1 / 1000,
    "kill -9 of vision": 1 / 1200,
    "SIGSTOP of vision": 1 / 1200,
    "SIGTERM of vision": 1 / 2000,
    "kill -9 of the rejector": 1 / 2000,
    "SIGSTOP of the rejector": 1 / 2000,
    "wall clock step": 1 / 500,
    "halt and resume": 1 / 2000,
    "change of recipe": 1 / 500,
}
"""How often each is injected, for each part."""

KINDS, TIMER = 3, 2
_BAD = 1 / 20
_WALL = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)


@dataclass(eq=False)
class Shift:
    """What happened in one shift.

    Attributes:
        plant: as it stood at the end.
        visions: each start of the station, by its run.
        laid: when parts come by.
        over, swept: all parts came by; the last start has ended in order.
    """

    plant: Plant
    number: int
    path: Path
    draw: random.Random
    visions: dict[str, Vision] = field(default_factory=dict)
    vision: Vision | None = None
    laid: set[int] = field(default_factory=set)
    over: bool = False
    swept: bool = False

    def run(self, parts: int, calibrations: tuple[Calibration, Calibration], make: Callable[..., Vision] = Vision) -> None:
        """Let so many parts come by and faults happen at their rates."""
        self.live(self._draw_all(parts), calibrations, make)

    def lay(self, part: Part) -> None:
        """A part will come by."""
        plant = self.plant
        plant.parts[part.number] = part
        self.laid.add(part.at_ns)
        plant.at(part.at_ns, lambda: self._trigger(part))
        if not plant.announced:
            plant.at(part.at_ns + EXIT_NS + part.exit_offset_ns, lambda: plant.edge("exit"))

    def lay_fault(self, fault: str, at_ns: int) -> None:
        """A fault of the station will happen, if it can then; it is counted where it did."""
        happen = self._of_the_station()[fault]

        def inject() -> None:
            self.plant.faults[fault] += happen()

        self.plant.at(at_ns, inject)

    def live(self, end_ns: int, calibrations: tuple[Calibration, Calibration], make: Callable[..., Vision] = Vision) -> None:
        """Let happen what was laid until then; whenever the pair ends before, or is cut off, it is started again."""
        plant = self.plant
        plant.at(end_ns, self._end)
        if plant.period_ns:
            plant.at(START_NS + plant.period_ns, self._tick)
        with mock.patch.object(journal_module, "_wall", self._wall):
            while not self.over or self._cut_off():
                run = f"shift-{self.number:03d}-start-{len(self.visions) + 1:03d}"
                plant.camera_timeout_ns = self.draw.choice(CAMERA_TIMEOUTS_NS)
                self.vision = self.visions[run] = make(plant, run, self.path, calibrations)
                if self.over:
                    self.vision.stop()
                self.vision.live()
                self.vision = None
                plant.run_until(plant.now_ns + self.draw.randrange(100, 500) * MS)
            self.swept = True
            plant.run_until(max(plant.now_ns, end_ns) + 10**9)
            if plant.process is not None:
                plant.process.end()
        plant.close()

    def _tick(self) -> None:
        """The conveyor of a timer carries a thing each period, also where none was laid."""
        plant = self.plant
        if plant.now_ns not in self.laid:
            self.lay(Part(max(plant.parts, default=0) + 1, plant.now_ns, Treatment()))
        if not self.swept:
            plant.at(plant.now_ns + plant.period_ns, self._tick)

    def _wall(self, ago_ns: int = 0) -> str:
        plant = self.plant
        when = _WALL + datetime.timedelta(microseconds=(plant.now_ns + plant.wall_ns - ago_ns) / 1e3)
        return when.isoformat(timespec="milliseconds")

    def _end(self) -> None:
        self.over = True
        if self.vision is not None:
            self.vision.stop()

    def _cut_off(self) -> bool:
        """Only the next start records what became of the parts that waited."""
        return [vision.ended for vision in self.visions.values()][-1:] != ["stopped"]

    def _happens(self, fault: str) -> bool:
        return self.draw.random() < RATES[fault]

    def _draw_all(self, parts: int) -> int:
        """Lay all parts and all faults; returns when the last part triggers, and a second."""
        draw, period_ns = self.draw, self.plant.period_ns
        at_ns, burst, gap_ms = START_NS + 10**9, 0, 0
        for _ in range(parts):
            self.lay(self._part(len(self.plant.parts) + 1 + self.number * 10**7, at_ns))
            for fault in self._of_the_station():
                if self._happens(fault):
                    self.lay_fault(fault, at_ns + draw.randrange(60 * MS))
            if burst == 0 and period_ns == 0 and self._happens("burst of triggers"):
                self.plant.faults["burst of triggers"] += 1
                burst, gap_ms = draw.randrange(4, 30), draw.choice((6, 9, 13, 16))
            burst = max(0, burst - 1)
            at_ns += period_ns or (gap_ms if burst else draw.randrange(25, 70)) * MS + draw.randrange(MS)
        return at_ns + 10**9

    def _part(self, number: int, at_ns: int) -> Part:
        draw, count = self.draw, self.plant.faults
        score = round(draw.uniform(1.01, 3) if draw.random() < _BAD else draw.uniform(0, 1), 6)
        treatment = Treatment(score=score, ms=round(draw.uniform(4, 16), 3))
        changes: dict[str, Callable[[], dict[str, object]]] = {
            "frame lost": lambda: {"frame": "lost"},
            "frame torn": lambda: {"frame": "torn"},
            "picture later than the deadline": lambda: {"late_ms": draw.randrange(200, 900)},  # the way takes 300
            "slow inference": lambda: {"ms": draw.uniform(100, 400)},
            "inference that answers late": lambda: {"ms": draw.uniform(100, 300), "heeds": False},
            "inference hangs": lambda: {"ms": draw.uniform(500, 3000)},
            "scoring raises": lambda: {"error": draw.choice(("memory", "the backend is out of order"))},
            "score NaN or infinite": lambda: {"score": draw.choice((math.nan, math.inf, -math.inf))},
        }
        for fault, change in changes.items():
            if self._happens(fault):
                count[fault] += 1
                treatment = dataclasses.replace(treatment, **change())  # type: ignore[arg-type]
        part = Part(number, at_ns, treatment, exit_offset_ns=draw.randrange(-MS, MS))
        if self.plant.period_ns == 0 and self._happens("duplicate trigger"):
            count["duplicate trigger"] += 1
            part.bounce_ns = draw.randrange(MS, 4 * MS)
        elif not self.plant.announced and self._happens("missing trigger"):  # without an exit sensor nobody would know
            count["missing trigger"] += 1
            part.triggers = False
        return part

    def _trigger(self, part: Part) -> None:
        plant = self.plant
        if part.triggers:
            self._edge(part)
            if part.bounce_ns:
                plant.at(plant.now_ns + part.bounce_ns, lambda: self._edge(part))

    def _edge(self, part: Part) -> None:
        plant = self.plant
        triggered = Triggered(plant.now_ns, part)
        plant.triggered.append(triggered)
        if not plant.announced:
            plant.edge("trigger", triggered)
        elif self.vision is not None:
            self.vision.trigger(triggered)
        plant.shoot(part, picture(part))

    def _of_the_station(self) -> dict[str, Callable[[], bool]]:
        return {
            "camera lost": self._lose_camera,
            "disk full": self._fill_disk,
            "journal locked": self._lock_journal,
            "kill -9 of vision": self._kill_vision,
            "SIGSTOP of vision": self._stop_vision,
            "SIGTERM of vision": self._end_vision,
            "kill -9 of the rejector": self._kill_rejector,
            "SIGSTOP of the rejector": self._stop_rejector,
            "wall clock step": self._step_wall,
            "halt and resume": self._halt,
            "change of recipe": self._change,
        }

    def _later(self, low_ms: int, high_ms: int, happens: Callable[[], None]) -> None:
        self.plant.at(self.plant.now_ns + self.draw.randrange(low_ms, high_ms) * MS, happens)

    def _lose_camera(self) -> bool:
        plant = self.plant
        plant.camera_fault = "camera plant: no new frame for 0.1 s"
        self._later(50, 1500, lambda: setattr(plant, "camera_fault", ""))
        return True

    def _fill_disk(self) -> bool:
        def fill(full: bool) -> None:
            self.plant.full = full
            if self.vision is not None and self.vision.journal is not None and not self.vision.machine.killed:
                self.vision.journal.fill(full)

        fill(True)
        self._later(100, 2000, lambda: fill(False))
        return True

    def _lock_journal(self) -> bool:
        if not self.path.exists():
            return False
        other = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:  # another lock holds
            other.close()
            return False
        self._later(10, 700, other.close)
        return True

    def _kill_vision(self) -> bool:
        if self.vision is None or self.vision.machine.killed:
            return False
        if self.draw.random() < 0.5:
            self.vision.machine.kill()
        else:
            self.vision.machine.steps_left = self.draw.randrange(1, 30)
        return True

    def _stop_vision(self) -> bool:
        if self.vision is None or self.vision.machine.stopped_until_ns > self.plant.now_ns:
            return False
        self.vision.machine.stop(self.draw.choice((60, 150, 600, 2500, 9000)) * MS)
        return True

    def _end_vision(self) -> bool:
        if self.vision is None or self.vision.stops or self.vision.machine.killed:
            return False
        self.vision.stop()
        return True

    def _kill_rejector(self) -> bool:
        process = self.plant.process
        if process is None or not process.alive:
            return False
        process.end()
        return True

    def _stop_rejector(self) -> bool:
        process = self.plant.process
        if process is None or not process.alive or process.stopped_ns is not None:
            return False
        process.stop()
        self._later(2, 2500, process.go_on)
        return True

    def _step_wall(self) -> bool:
        self.plant.wall_ns = self.draw.randrange(-(10**14), 10**14)
        return True

    def _halt(self) -> bool:
        if self.vision is None:
            return False
        hold = self.vision.hold
        hold.halt()
        self._later(100, 1000, hold.resume)
        return True

    def _change(self) -> bool:
        if self.vision is None or self.vision.station is None:
            return False
        self.vision.change()
        return True


def make_shift(number: int, seed: int, path: Path) -> Shift:
    """A shift; one after the other, parts trigger by a line, by calls of software, by a timer."""
    by = number % KINDS
    plant = Plant(by > 0, random.Random(f"plant {seed} {number}"), period_ns=PERIOD_NS if by == TIMER else 0)
    return Shift(plant, number, path, random.Random(f"faults {seed} {number}"))
