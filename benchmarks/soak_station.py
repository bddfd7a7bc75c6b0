"""Vision in the simulated plant: the real station, journal, triggers and talk with the rejector, on the plant's clock.

Only what would wait for real time or real hardware is simulated: the camera, the scorer, and waiting itself. `kill -9` is an
exception that no part of the station can catch or tidy up behind, raised wherever vision waits, and around each transaction
of the journal and each message to the rejector.
"""

from __future__ import annotations

import contextlib
import os
import select
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from benchmarks.soak_devices import CalledTriggers, KilledError, Machine, PlantCamera, PlantScorer, TimedTriggers, VisionClock
from benchmarks.soak_plant import DEADLINE_NS, HEARTBEAT_NS, MS, Plant, Triggered, settings
from calibration.record import Calibration
from edge import StationError
from edge.disk import DiskSpace
from edge.hold import Hold
from edge.intake import join_triggers
from edge.journal import SqliteJournal
from edge.judge import Judge
from edge.rejector import Rejector, WireRejector
from edge.station import Condition, Station
from edge.trigger import LineTriggers, Triggers
from edge.wire import Kind, Message, pair

_DRAIN_NS = 10**9  # a change of recipe waits so long for the parts that wait, as `edge.changeover` does


class Talk(WireRejector):
    """The real talk with the rejector's process, which the plant steps.

    Attributes:
        told: what the rejector was told of parts: number, whether it passes, when.
        heard: the highest number of a part of the trigger line that came to vision.
    """

    def __init__(self, machine: Machine, announced: bool, run: str) -> None:
        ours, theirs = pair()
        super().__init__(settings(announced), ours, lambda: machine.plant.now_ns)
        self._machine = machine
        self.told: dict[int, list[tuple[bool, int]]] = {}
        self.heard = 0
        machine.on_kill = ours.close
        machine.plant.start_process(settings(announced), theirs, run)
        self._greet()
        self.beat()

    def _hear(self) -> None:
        if self._machine.killed:
            raise KilledError
        super()._hear()
        if self.triggers:
            self.heard = max(self.heard, self.triggers[-1][0])

    def _tell(self, message: Message) -> None:
        self._machine.step()
        super()._tell(message)
        if message.kind is Kind.VERDICT and not self._failure:
            self.told.setdefault(message.number, []).append((message.value == 1, self._now_ns()))
        self._machine.plant.wake()
        self._machine.step()

    def _wait(self, timeout_ns: int) -> None:
        plant = self._machine.plant
        self._machine.wait(plant.now_ns + timeout_ns, lambda: len(select.select([self._socket], [], [], 0)[0]) > 0)

    def _end_process(self) -> None:
        if self._machine.plant.process is not None:
            self._machine.plant.process.end()


class Journal(SqliteJournal):
    """The real journal, of which a kill leaves what it committed, and which can be full as SQLite is."""

    def __init__(self, path: Path, run: str, machine: Machine, clock: VisionClock) -> None:
        self._machine = machine
        super().__init__(path, run, clock)

    def fill(self, full: bool) -> None:
        """No page more, until there is room again."""
        self._connection.execute(f"PRAGMA max_page_count = {1 if full else 2**31 - 2}")  # never below what it has

    def drop(self) -> None:
        """What a killed process leaves."""
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            self._connection.close()
            os.close(lock)

    def _open(self) -> sqlite3.Connection:
        self._connection = super()._open()
        self.fill(self._machine.plant.full)
        return self._connection

    @contextlib.contextmanager
    def _transaction(self, synchronous: str) -> Iterator[None]:
        self._machine.step()
        with super()._transaction(synchronous):
            yield
            self._machine.step()
        self._machine.step()

    def _checkpoint(self) -> None:
        """At once and not by a thread: the same seed gives the same run."""
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


class Vision:
    """One start of the station.

    Attributes:
        run: its name.
        machine: the process.
        ended, ended_ns: how and when, once it did.
        heard: the highest number of a part of the trigger line that it took, or, where it was killed, that it was told of.
        in_force: (since, recipe), each that was.
        station, journal, talk: as far as they were made.
    """

    make = Station  # a test breaks it

    def __init__(self, plant: Plant, run: str, path: Path, calibrations: tuple[Calibration, Calibration]) -> None:
        self.run = run
        self.plant = plant
        self.machine = Machine(plant)
        self.hold = Hold()
        self.stops = False
        self.ended, self.ended_ns, self.heard = "", 0, 0
        self.talk: Talk | None = None
        self.triggers: CalledTriggers | TimedTriggers | None = None
        self._taken: Triggers | None = None
        self.station: Station | None = None
        self.journal: Journal | None = None
        self._path = path
        self._calibrations = calibrations
        self._judges: list[Judge] = []
        self._changing = ""
        self.in_force = [(0, calibrations[0].recipe)]

    def live(self) -> str:
        """From the start to the end of the process, whichever that is; returns how it ended."""
        try:
            self.ended = self._live()
        except StationError as error:
            self.ended = str(error)
        except KilledError:
            self.ended = "killed"
            if self.journal is not None:
                self.journal.drop()
        if self.talk is not None and self._taken is not None:
            # of what comes while it says that it ends, and while the last parts travel, there is no verdict
            self.heard = self.talk.heard if self.ended == "killed" else self._taken.counts["triggered"]
        self.plant.receiver = None
        self.ended_ns = self.plant.now_ns
        return self.ended

    def trigger(self, triggered: Triggered) -> None:
        """Vision's timer is due, or software calls. Where it is stopped, it takes a call later, and the part triggers then."""
        machine, now_ns = self.machine, self.plant.now_ns
        if isinstance(self.triggers, TimedTriggers):
            number = self.triggers.number_at(now_ns)
            if number is not None and not machine.killed:
                triggered.run, triggered.number = self.run, number
        elif machine.stopped_until_ns > now_ns:
            if machine.stopped_for_ns > HEARTBEAT_NS * 5 // 4:
                self.plant.unseen.append(now_ns)
            self.plant.at(machine.stopped_until_ns, lambda: self.trigger(triggered))
        elif self.triggers is not None and not machine.killed:
            with contextlib.suppress(StationError):
                triggered.number = self.triggers.trigger()
                triggered.run, triggered.at_ns = self.run, now_ns

    def stop(self) -> None:
        """To be ended in order, as SIGTERM does, also where it only starts."""
        self.stops = True
        if self.station is not None:
            self.station.stop("SIGTERM")

    def change(self) -> None:
        """To the other recipe, in the steps of `edge.changeover`, whose threads and files are left out."""
        station, drained_ns = self.station, self.plant.now_ns + _DRAIN_NS
        if station is not None:
            station.post(lambda: self._change(station, drained_ns))

    def _change(self, station: Station, drained_ns: int) -> None:
        plant, journal, old = self.plant, self.journal, station.judge_with
        assert journal is not None
        new = self._judges[self._judges[0] is old]
        if station.waiting() > 0 and plant.now_ns < drained_ns:
            station.post(lambda: self._change(station, drained_ns))  # what waits is still the old recipe's
            return
        self._changing = f"the recipe changes to {new.name}"
        station.turn()
        try:
            self._switch(station, new)
            journal.event("recipe", {"after": new.name})
        except StationError:
            new = old
            self._switch(station, new)
        self._changing = ""
        self.in_force.append((plant.now_ns, new.name))
        station.turn()

    def _switch(self, station: Station, new: Judge) -> None:
        assert self.talk is not None
        until_ns = self.plant.now_ns + self.plant.draw.randrange(5, 200) * MS
        while self.plant.now_ns < until_ns:  # the camera is set otherwise
            self.machine.wait(min(until_ns, self.plant.now_ns + 20 * MS))
            station.turn()
        self.talk.retime(settings(self.plant.announced))
        station.change(new)

    def _live(self) -> str:
        announced = self.plant.announced
        line: Rejector | None = None
        clock = VisionClock(self.machine, lambda: None if line is None else line.beat())

        def turn() -> None:
            station.turn()

        self.journal = journal = Journal(self._path, self.run, self.machine, clock)
        with contextlib.ExitStack() as closing:
            closing.callback(lambda: None if self.machine.killed else journal.close())
            self.talk = talk = Talk(self.machine, announced, self.run)
            closing.callback(lambda: None if self.machine.killed else talk.close())
            camera = self.plant.receiver = PlantCamera(self.machine, turn)
            if announced:
                own = VisionClock(self.machine, turn)
                period_ns = self.plant.period_ns
                self.triggers = TimedTriggers(own, period_ns) if period_ns else CalledTriggers(self.machine, own, turn)
            self._taken = self.triggers or LineTriggers(talk, turn)
            source, line = join_triggers(camera, self._taken, talk)
            journal.event("started", {})
            scorer = PlantScorer(self.machine, turn)
            self._judges = [Judge(record.recipe, scorer, record) for record in self._calibrations]
            free = DiskSpace(self._path.parent, clock, lambda _folder: 0 if self.plant.full else 2**40)
            self.station = station = self.make(
                judge=self._judges[0],
                rejector=line,
                journal=journal,
                clock=clock,
                deadline_ms=DEADLINE_NS / MS,
                conditions=[
                    Condition("disk", free.fault),
                    Condition("hold", self.hold.fault),
                    Condition("recipe", lambda: self._changing),
                ],
                waiting=lambda: source.waiting,
                rest=source.rest,
            )
            if self.stops:
                station.stop("SIGTERM")
            try:
                station.run(source, lambda verdict: None)
                if not (announced and station.stopping):
                    talk.drain()
                return "stopped"
            finally:
                if not self.machine.killed:
                    talk.close()
                    with contextlib.suppress(StationError):  # a disk that is full
                        journal.event("stopped", {"reason": station.reason})
        raise AssertionError("unreachable")
