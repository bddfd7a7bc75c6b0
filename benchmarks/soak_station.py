"""Vision in the simulated plant: the real station, journal, triggers and talk with the rejector, on the plant's clock.

Only what would wait for real time or real hardware is simulated: the camera, the scorer, and waiting itself. `kill -9` is an
exception that no part of the station can catch or tidy up behind, raised wherever vision waits, and around each transaction
of the journal and each message to the rejector.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from benchmarks.soak_devices import CalledTriggers, KilledError, Machine, PlantCamera, PlantScorer, VisionClock
from benchmarks.soak_plant import DEADLINE_NS, HEARTBEAT_NS, MS, Plant, Triggered, settings
from calibration.record import Calibration
from edge import StationError
from edge.announcing import AnnouncingRejector
from edge.disk import DiskSpace
from edge.hold import Hold
from edge.journal import SqliteJournal
from edge.judge import Judge
from edge.rejector import WireRejector
from edge.station import Condition, Station
from edge.trigger import LineTriggers
from edge.triggered_camera import TriggeredCamera
from edge.wire import Kind, Message, pair


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
        self._machine.plant.news = False
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
        self._machine.wait(plant.now_ns + timeout_ns, lambda: plant.news)

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
        heard: the highest number of a part of the trigger line that it was told of before its end.
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
        self.triggers: CalledTriggers | None = None
        self.station: Station | None = None
        self.journal: Journal | None = None
        self._path = path
        self._calibrations = calibrations
        self._judges: list[Judge] = []

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
        if self.talk is not None and self.ended != "stopped":
            self.heard = self.talk.heard
        self.plant.receiver = None
        self.ended_ns = self.plant.now_ns
        return self.ended

    def trigger(self, triggered: Triggered) -> None:
        """Software calls. One that is stopped takes the call when it goes on, and the part triggers then."""
        machine, now_ns = self.machine, self.plant.now_ns
        if machine.stopped_until_ns > now_ns:
            if machine.stopped_for_ns > HEARTBEAT_NS * 5 // 4:
                self.plant.unseen.append(now_ns)
            self.plant.at(machine.stopped_until_ns, lambda: self.trigger(triggered))
        elif self.triggers is not None and not machine.killed:
            with contextlib.suppress(StationError):
                triggered.number = self.triggers.trigger()
                triggered.run, triggered.at_ns = self.run, now_ns

    def stop(self) -> None:
        """To be ended in order, also where it only starts."""
        self.stops = True
        if self.station is not None:
            self.station.stop("the shift ends")

    def change(self) -> None:
        """To the other recipe, between two parts."""
        station = self.station
        if station is not None:
            station.post(lambda: station.change(self._judges[self._judges[0] is station.judge_with]))

    def _live(self) -> str:
        announced = self.plant.announced
        line: AnnouncingRejector | Talk | None = None
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
                self.triggers = triggers = CalledTriggers(self.machine, clock, turn)
                source = TriggeredCamera(camera, triggers)
                line = AnnouncingRejector(talk, source)
            else:
                line = talk
                source = TriggeredCamera(camera, LineTriggers(talk, turn))
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
                conditions=[Condition("disk", free.fault), Condition("hold", self.hold.fault)],
                waiting=lambda: source.waiting,
                rest=source.rest,
            )
            if self.stops:
                station.stop("the shift ends")
            try:
                station.run(source, lambda verdict: None)
                self.heard = talk.heard  # of what comes while the last parts travel there is no verdict
                if not (announced and station.stopping):
                    talk.drain()
                return "stopped"
            finally:
                if not self.machine.killed:
                    talk.close()
                    with contextlib.suppress(StationError):  # a disk that is full
                        journal.event("stopped", {"reason": station.reason})
        raise AssertionError("unreachable")
