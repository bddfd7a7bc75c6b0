"""The real processes, killed and stopped in turn, and what journal and lines say afterwards.

These look at real times, so they are no part of the suite: `python -m pytest -m timing` runs them, on a machine that does not
stall. `tests/test_soak.py` has the same faults on a simulated clock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.audit import audit
from tests.fakes import flat, journal_rows, write_pictures, write_station

pytestmark = pytest.mark.timing

LONG_S = 60.0
MS = 10**6
TRAVEL_MS, PULSE_MS, HEARTBEAT_MS = 1500, 200, 300
SLOW_NS = 60 * MS  # a busy machine may be late by so much; a rejector that is later than half a pulse stops for good


class Pair:
    """`edge run` over a replay with dry-run lines, started again whenever it ended, each start with a log of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = write_station(folder)
        write_pictures(folder / "parts", [flat(130 if number % 4 else 150) for number in range(600)])
        self.text = self.config.read_text().replace("path: parts", "path: parts\n  fps: 8")
        self.text = self.text.replace("deadline_ms: 60000", f"deadline_ms: {TRAVEL_MS}")
        self.logs: list[Path] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.logs.append(self.folder / f"lines-{len(self.logs)}.log")
        rejector = f"travel_ms: {TRAVEL_MS}, pulse_ms: {PULSE_MS}, heartbeat_ms: {HEARTBEAT_MS}, log: {self.logs[-1].name}"
        self.config.write_text(f"{self.text}rejector: {{kind: dry-run, {rejector}}}\n")
        command = [sys.executable, "-m", "edge", "run", "--config", str(self.config)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        before = self.passes()
        self.wait_for(lambda: self.passes() > before + 12)

    def rejector(self) -> int:
        return int((self.folder / "journal.db-rejector").read_text())

    def rows(self) -> list[dict[str, Any]]:
        made = (self.folder / "journal.db-rejector").exists()  # the rejector starts once the journal is there
        return journal_rows(self.folder / "journal.db") if made else []

    def passes(self) -> int:
        return sum(row.get("outcome") == "PASS" for row in self.rows())

    def levels(self, name: str) -> list[tuple[int, bool]]:
        """Of the newest start, (monotonic ns, level)."""
        rows = [line.split() for line in self.logs[-1].read_text().splitlines()]
        return [(int(at_ns), level == "1") for at_ns, row_name, level in rows if row_name == name]

    def ends(self) -> str:
        assert self.process is not None
        _, error = self.process.communicate(timeout=LONG_S)
        return error

    def wait_for(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + LONG_S
        while not what():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)


def test_kills_and_stops_of_both_processes_leave_no_part_unrejected_and_the_journal_whole(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    try:
        pair.start()
        vision = pair.process
        assert vision is not None
        vision.send_signal(signal.SIGSTOP)  # longer than a heartbeat: not ready, everything is rejected, and it comes back
        pair.wait_for(lambda: pair.levels("ready")[-1][1] is False)
        assert pair.levels("reject")[-1][1] is False
        vision.send_signal(signal.SIGCONT)
        pair.wait_for(lambda: pair.levels("ready")[-1][1])
        vision.kill()
        pair.ends()
        pair.wait_for(lambda: pair.levels("ready")[-1][1] is False)
        assert pair.levels("reject")[-1][1] is False

        pair.start()
        os.kill(pair.rejector(), signal.SIGKILL)
        assert "the rejector is not there: its process ended (signal 9)" in pair.ends()

        pair.start()
        os.kill(pair.rejector(), signal.SIGSTOP)
        assert "the rejector is not there" in pair.ends()
        assert [pair.levels(name)[-1][1] for name in ("reject", "ready")] == [False, False]  # it was woken to let go

        pair.start()
        assert pair.process is not None
        pair.process.send_signal(signal.SIGTERM)
        pair.ends()
    finally:
        if pair.process is not None:
            pair.process.kill()
    rows = pair.rows()
    assert audit(tmp_path / "journal.db").broken is None
    assert sum(row.get("event") == "interrupted" for row in rows) == 1
    for run in {row["run"] for row in rows}:
        parts = [row["part"] for row in rows if row["kind"] == "part" and row["run"] == run]
        assert sorted(set(parts)) == list(range(1, max(parts) + 1))
    assert covered(pair, rows) > 3


def covered(pair: Pair, rows: list[dict[str, Any]]) -> int:
    """How many parts that did not pass were at the ejector while a log went on; each was rejected all through its window."""
    effective = {(row["run"], row["part"]): row for row in rows if row["kind"] == "part"}
    count = 0
    for log in pair.logs:
        lines = [line.split() for line in log.read_text().splitlines()]
        levels = [(int(at_ns), level == "1") for at_ns, name, level in lines if name == "reject"]
        begun_ns, ended_ns = int(lines[0][0]), int(lines[-1][0])
        for row in effective.values():
            start_ns = row["trigger_ns"] + TRAVEL_MS * MS
            if row["outcome"] == "PASS" or not begun_ns <= row["trigger_ns"] <= start_ns + PULSE_MS * MS <= ended_ns:
                continue
            count += 1
            due = start_ns + SLOW_NS, start_ns + PULSE_MS * MS
            passing = [
                (at_ns, to) for (at_ns, level), (to, _) in zip(levels, [*levels[1:], (ended_ns, False)], strict=True) if level
            ]
            assert not any(at_ns < due[1] and to > due[0] for at_ns, to in passing), (row, levels)
    return count


def test_parts_that_trigger_while_the_journal_waits_are_announced_and_rejected(tmp_path: Path) -> None:
    config = write_station(tmp_path)
    text = config.read_text().replace("deadline_ms: 60000", "deadline_ms: 1000\njournal_timeout_ms: 50000")
    rejector = "rejector: {kind: dry-run, travel_ms: 1000, pulse_ms: 200, heartbeat_ms: 1000, log: lines.log}\n"
    config.write_text(f"{text}trigger: {{kind: software, by: [stdin]}}\n{rejector}")
    log = tmp_path / "lines.log"
    command = [sys.executable, "-m", "edge", "run", "--config", str(config)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.stdin is not None

    def passing() -> list[bool]:
        return [row.endswith(b"1") for row in log.read_bytes().splitlines() if b" reject " in row] if log.exists() else []

    def wait_for(what: Callable[[], bool]) -> None:
        end = time.monotonic() + LONG_S
        while not what():
            assert time.monotonic() < end, passing()
            time.sleep(0.02)

    try:
        wait_for(lambda: passing() == [False, True])  # what was under way at the start is past
        with contextlib.closing(sqlite3.connect(tmp_path / "journal.db", timeout=LONG_S, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for pulses in (1, 2):  # the station waits for the first one's row all the time
                process.stdin.write(b"\n")
                process.stdin.flush()
                wait_for(lambda pulses=pulses: passing() == [False, True, *[False, True] * pulses])  # type: ignore[misc]
            other.execute("ROLLBACK")
    finally:
        process.kill()
        process.communicate()
