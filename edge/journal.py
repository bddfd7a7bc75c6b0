"""What was decided, one chained row in SQLite for each part, and rows for the station's events."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import fcntl
import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge import StationError
from edge.chain import (
    EVENT,
    EVIDENCE,
    PART,
    Head,
    canonical,
    create,
    follow,
    is_new,
    last_head,
    refuse_other_files,
    refuse_other_station,
    renew,
)
from edge.clock import Clock
from edge.verdict import Arrival, Frame, Outcome, Verdict
from engines.atomic import make_folder

_CHECKPOINT_ROWS = 500
_RETRY_NS = 2_000_000  # while another program holds the write lock
_BACKSTOP_PAGES = 10_000  # 40 MB of write-ahead log, should checkpoints from aside not keep up


class JournalInUseError(StationError):
    """A station that runs writes to it."""


class Journal(Protocol):
    """Where verdicts are kept."""

    def announce(self, arrival: Arrival, judged_with: Mapping[str, str]) -> None:
        """Note a part before it is judged, with the row fields of its judge. Raises StationError when it cannot be noted."""

    def verdict(self, verdict: Verdict) -> None:
        """Keep one verdict. Raises StationError when it cannot be kept."""

    def event(self, name: str, details: Mapping[str, object]) -> None:
        """Keep one event. Raises StationError when it cannot be kept."""

    def later(self, name: str, details: Mapping[str, object]) -> None:
        """Keep one event together with the next row, from any thread; returns at once and raises nothing."""

    def close(self) -> None:
        """Bring everything to the disk; may be called twice."""


@dataclass(frozen=True)
class _Gap:
    """Parts whose rows could not be written."""

    first: int
    last: int
    parts: int
    reason: str


class SqliteJournal:
    """A station's journal, which one thread writes; `later` and `note_evidence` alone are for others too.

    What holds after a kill or a power cut: a verdict's row is on the disk (`synchronous=FULL`, one fsync) before the
    reject line is told of it, so no part passed that has no row. A part is announced before it is judged, without an
    fsync, which costs microseconds: the operating system has it then, and after a kill the next start records the part as
    FAULT. A power cut may take the announcement with it. Such a part did not pass either, and the next start records that
    the run was interrupted, and after which part. An fsync for each announcement would name that one part, and hold up
    every other part for as long as its own verdict does. In the other direction a row says more than was done: a PASS whose
    row was being written when the process died may be the last one before `interrupted`, and its part was rejected.

    A part row that follows another of the same run and part replaces it: that happens only where writing the first one
    made the part late, or where the reject line did not take it. Parts whose rows could not be written are FAULTs; the
    first row that can be written again follows an event `gap` with their numbers.
    """

    def __init__(self, path: Path, run: str, clock: Clock, *, timeout_ms: float = 200, station: str | None = None) -> None:
        """Open or make the file, and record what an interrupted run left undecided.

        Args:
            path: the file; beside it SQLite keeps its log while the station runs, and the station a lock.
            run: identifies this start of the station; parts are numbered within it.
            clock: the one that triggers were taken with. It sleeps while another program's lock holds a write up, so that a
                station whose clock beats goes on showing that it turns.
            timeout_ms: a write that is held up for longer fails.
            station: whose journal it must be, unless it has no start yet.

        Raises:
            StationError: not a journal, a newer one, one of JSON lines, another station's or in use by one, or not writable.
        """
        self._path = path
        self._clock = clock
        self._run = run
        self._timeout_ms = timeout_ms
        self._head: Head | None = None
        self._announced: dict[str, object] = {}
        self._gap: _Gap | None = None
        self._waiting: collections.deque[tuple[str, str]] = collections.deque()
        self._checkpointing: threading.Thread | None = None
        with contextlib.ExitStack() as undo:
            self._lock = self._take_lock()
            undo.callback(os.close, self._lock)
            refuse_other_files(path)
            try:
                self._connection = self._open()
                undo.callback(self._connection.close)
                self._inode = os.stat(path).st_ino
                if station is not None:
                    refuse_other_station(path, self._connection, station)
            except (sqlite3.Error, OSError, ValueError, KeyError) as error:
                raise self._refused(error) from None
            self._recover()
            undo.pop_all()

    @property
    def head(self) -> Head:
        """The newest row's. Raises StationError when it cannot be read."""
        if self._head is None:
            try:
                self._head = last_head(self._connection)
            except sqlite3.Error as error:
                raise self._refused(error) from None
        return self._head

    def announce(self, arrival: Arrival, judged_with: Mapping[str, str]) -> None:
        """Note a part before it is judged, with the row fields of its judge. Raises StationError when it cannot be noted."""
        age_ns = self._clock.now_ns() - arrival.trigger_ns
        self._announced = {
            "run": self._run,
            **judged_with,
            "part": arrival.part,
            "triggered": _wall(age_ns),
            "trigger_ns": arrival.trigger_ns,
            "capture_ms": (arrival.captured_ns - arrival.trigger_ns) / 1e6 if isinstance(arrival, Frame) else None,
            "source": arrival.source,
            "part_ref": arrival.part_ref,
        }
        row = (self._run, arrival.part, canonical(self._announced))
        with self._transaction(synchronous="NORMAL"):
            self._connection.execute("INSERT OR REPLACE INTO in_flight VALUES (?, ?, ?)", row)

    def verdict(self, verdict: Verdict) -> None:
        """Keep the verdict of the part announced last. Raises StationError when it cannot be kept."""
        try:
            if self._announced.get("part") != verdict.part:
                raise StationError(f"{self._path}: part {verdict.part} was not announced before its verdict")
            self._write([(PART, _part(self._announced, verdict))], decided=verdict.part)
        except StationError as error:
            if self._gap is None:
                self._gap = _Gap(verdict.part, verdict.part, 1, str(error))
            elif self._gap.last != verdict.part:  # the row that replaces a part's first one may fail too
                self._gap = dataclasses.replace(self._gap, last=verdict.part, parts=self._gap.parts + 1)
            raise

    def event(self, name: str, details: Mapping[str, object]) -> None:
        """Keep one event. Raises StationError when it cannot be kept."""
        self._write([(EVENT, self._event(name, details))])

    def later(self, name: str, details: Mapping[str, object]) -> None:
        """Keep one event together with the next row, from any thread."""
        self._waiting.append((EVENT, self._event(name, details)))

    def note_evidence(self, *, part: int, outcome: Outcome, path: str, pixels: str, why: str) -> None:
        """Keep, together with the next row and from any thread, where a part's picture is and the digest of its pixels."""
        body = {"run": self._run, "recorded": _wall(), "part": part, "outcome": outcome.value, "path": path}
        self._waiting.append((EVIDENCE, canonical({**body, "pixels": pixels, "why": why})))

    def close(self) -> None:
        """Bring everything to the disk; may be called twice."""
        if self._lock < 0:
            return
        try:
            rows = self._undecided()  # of a part that an interrupt kept from being judged
            if rows or self._waiting or self._gap is not None:
                self._write(rows, decided=None)
            self._head = self.head  # for whoever asks after
        finally:
            lock, self._lock = self._lock, -1
            if self._checkpointing is not None:
                self._checkpointing.join(timeout=5)
            try:
                self._connection.close()
            except sqlite3.Error as error:
                raise self._refused(error) from None
            finally:
                os.close(lock)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=self._timeout_ms / 1e3, isolation_level=None)
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            new = is_new(connection, self._path)
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StationError(f"{self._path}: a file system without write-ahead logs; put the journal on a local disk")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_BACKSTOP_PAGES}")
            if new:
                connection.execute("BEGIN IMMEDIATE")
                create(connection)
                connection.execute("COMMIT")
            else:
                renew(connection)
            connection.execute("PRAGMA busy_timeout = 0")  # from here on `_begin` waits, awake
            undo.pop_all()
        return connection

    def _take_lock(self) -> int:
        """A second station would break the chain of the first. The lock goes with the process, however that ends."""
        try:
            make_folder(self._path.parent)
            lock = os.open(f"{self._path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._refused(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise JournalInUseError(
                f"{self._path}: another station writes to it; stop that one, or give this one another journal"
            ) from None
        return lock

    def _recover(self) -> None:
        """Record what a run that did not stop left behind: its undecided parts as FAULTs, and that it was interrupted."""
        rows = self._undecided()
        try:
            run = self._running()
            newest = f"SELECT body FROM chain WHERE kind = '{PART}' ORDER BY id DESC LIMIT 1"
            parts = [json.loads(body) for (body,) in self._connection.execute(newest)]
            last_part = next((part["part"] for part in parts if part["run"] == run), None)
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            raise self._refused(error) from None
        if run is not None or rows:
            details = {"run": run, "last_part": last_part, "in_flight": len(rows)}
            self._write([*rows, (EVENT, self._event("interrupted", details))], decided=None)

    def _undecided(self) -> list[tuple[str, str]]:
        """A FAULT for each part that was announced and has no row."""
        fault = {"outcome": Outcome.FAULT.value, "score": None, "threshold": None, "latency_ms": None, "recorded": _wall()}
        reason = "the station ended before the verdict was recorded; the part did not pass"
        try:
            bodies = self._connection.execute("SELECT body FROM in_flight ORDER BY run, part").fetchall()
            return [(PART, canonical({**json.loads(body), **fault, "reason": reason})) for (body,) in bodies]
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise self._refused(error) from None

    def _running(self) -> str | None:
        """The run that the journal shows as started and neither stopped nor found interrupted."""
        for (body,) in self._connection.execute(f"SELECT body FROM chain WHERE kind = '{EVENT}' ORDER BY id DESC"):
            event = json.loads(body)
            if event["event"] in ("started", "stopped", "interrupted"):
                return str(event["run"]) if event["event"] == "started" else None
        return None

    def _event(self, name: str, details: Mapping[str, object]) -> str:
        return canonical({"run": self._run, "recorded": _wall(), "event": name, "details": dict(details)})

    def _write(self, rows: list[tuple[str, str]], decided: int | None = 0) -> None:
        """Chain rows to the disk: first the gap, if there was one, and last what other threads left.

        The parts of this run up to `decided` are no longer in flight; with None, none of any run is.
        """
        waiting = list(self._waiting)
        gap = []
        if self._gap is not None:
            lost = {"first": self._gap.first, "last": self._gap.last, "parts": self._gap.parts, "reason": self._gap.reason}
            gap = [(EVENT, self._event("gap", lost))]
        with self._transaction(synchronous="FULL"):
            head = self.head
            self._head = None  # until the commit: an interrupt may come right behind it
            for kind, body in (*gap, *rows, *waiting):
                row = follow(head, kind, body)
                values = (row.number, row.kind, row.body, row.hash)
                self._connection.execute("INSERT INTO chain VALUES (?, ?, ?, ?)", values)
                head = row.head
            if decided is None:
                self._connection.execute("DELETE FROM in_flight")
            elif decided > 0:
                self._connection.execute("DELETE FROM in_flight WHERE run = ? AND part <= ?", (self._run, decided))
        before, self._head, self._gap = head.row - len(gap) - len(rows) - len(waiting), head, None
        for _ in waiting:
            self._waiting.popleft()
        if head.row // _CHECKPOINT_ROWS > before // _CHECKPOINT_ROWS:
            self._checkpoint()

    @contextlib.contextmanager
    def _transaction(self, synchronous: str) -> Iterator[None]:
        try:
            if os.stat(self._path).st_ino != self._inode:
                raise OSError(None, "another file has taken its place")
            if self._connection.in_transaction:  # an interrupt left it open
                self._connection.execute("ROLLBACK")
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._begin()
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            raise self._refused(error) from None

    def _begin(self) -> None:
        """Take the write lock. SQLite's own wait would stop the caller; the clock's sleep shows that the station turns."""
        end_ns = self._clock.now_ns() + round(self._timeout_ms * 1e6)
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or self._clock.now_ns() >= end_ns:
                    raise
            self._clock.sleep_until_ns(min(end_ns, self._clock.now_ns() + _RETRY_NS))

    def _checkpoint(self) -> None:
        """Move the write-ahead log into the file from aside, so that no verdict waits for the several fsyncs of that."""
        if self._checkpointing is None or not self._checkpointing.is_alive():
            self._checkpointing = threading.Thread(target=_checkpoint, args=(self._path,), name="checkpoint", daemon=True)
            self._checkpointing.start()

    def _refused(self, error: Exception) -> StationError:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            remedy = f"locked for more than {self._timeout_ms:g} ms; close the program that holds it"
            return StationError(f"{self._path}: the journal cannot be written ({remedy})")
        if isinstance(error, sqlite3.DatabaseError) and ("malformed" in str(error) or "not a database" in str(error)):
            remedy = "move the file away and keep it; the next start makes a new one"
            return StationError(f"{self._path}: the journal is damaged ({error}); {remedy}")
        reason = getattr(error, "strerror", None) or error
        return StationError(f"{self._path}: the journal cannot be written ({reason}); check the disk and permissions")


def _part(begun: Mapping[str, object], verdict: Verdict) -> str:
    decided = {
        "recorded": _wall(),
        "outcome": verdict.outcome.value,
        "score": verdict.score if verdict.score is not None and math.isfinite(verdict.score) else None,
        "threshold": verdict.threshold,
        "threshold_method": verdict.threshold_method,
        "reason": verdict.reason,
        "latency_ms": round(verdict.latency_ms, 3),
        "stages_ms": {stage: round(took_ms, 3) for stage, took_ms in verdict.stages_ms.items()},
    }
    return canonical({**begun, **decided})


def _wall(ago_ns: int = 0) -> str:
    """Wall-clock time of some nanoseconds ago, UTC, to the millisecond."""
    when = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(microseconds=ago_ns / 1e3)
    return when.isoformat(timespec="milliseconds")


def _checkpoint(path: Path) -> None:
    # one that fails leaves its work to the next one, or to SQLite's own
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
