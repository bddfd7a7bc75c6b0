"""The station as a service: a real process, its signals, and what systemd hears of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calibration.record import load_calibration, save_calibration
from tests.fakes import flat, journal_rows, write_pictures, write_station

LONG_S = 60.0


class Running:
    """`edge run` over many parts, slowly, with a socket where its systemd would be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = write_station(folder)
        write_pictures(folder / "parts", [flat(120 + number % 16) for number in range(400)])
        self.edit("path: parts", "path: parts\n  fps: 20")
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self.manager.settimeout(LONG_S)
        self.heard: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge", "run", "--config", str(self.config)],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "400000"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def edit(self, before: str, after: str) -> None:
        text = self.config.read_text()
        assert before in text
        self.config.write_text(text.replace(before, after))

    def wait_for(self, what: str) -> None:
        """Hear until systemd was told this."""
        while True:
            self.heard.append(self.manager.recv(4096).decode())
            if self.heard[-1].startswith(what):
                return

    def rows(self) -> list[dict[str, Any]]:
        return journal_rows(self.folder / "journal.db")

    def wait_for_row(self, matches: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + LONG_S
        while True:
            for row in self.rows():
                if matches(row):
                    return row
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> tuple[str, str]:
        self.process.send_signal(number)
        return self.process.communicate(timeout=LONG_S)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A station that judges parts."""
    station = Running(tmp_path)
    try:
        station.wait_for("READY=1")
        station.wait_for_row(lambda row: row.get("part") == 2)
        yield station
    finally:
        station.process.kill()
        station.process.communicate()
        station.manager.close()


def test_sigterm_ends_in_order_and_with_0(running: Running) -> None:
    running.wait_for("WATCHDOG=1")
    said, complained = running.end(signal.SIGTERM)
    assert (running.process.returncode, complained) == (0, "")
    rows = running.rows()
    parts = [row["part"] for row in rows if row["kind"] == "part"]
    assert parts == list(range(1, len(parts) + 1))
    assert len(parts) < 400
    stopped = rows[-1]
    assert (stopped["event"], stopped["details"]["parts"], stopped["details"]["reason"]) == ("stopped", len(parts), "SIGTERM")
    assert [row["details"]["after"] for row in rows if row.get("event") == "state"] == [
        "initialized",
        "ready",
        "executing",
        "halted",
    ]
    running.wait_for("STOPPING=1")
    assert [line for line in running.heard if line.startswith("STATUS")][-1] == "STATUS=halted: SIGTERM"
    assert f"{len(parts)} parts in" in said


def test_sigint_is_still_an_interrupt(running: Running) -> None:
    _, complained = running.end(signal.SIGINT)
    assert running.process.returncode == 130
    assert "interrupted" in complained


def test_sighup_takes_what_may_change_and_refuses_the_rest_and_the_station_goes_on(running: Running) -> None:
    record = running.folder / "line-1.json"
    save_calibration(record, load_calibration(record).model_copy(update={"threshold": -1.0}))
    running.edit("deadline_ms: 60000", "deadline_ms: 50000\nevidence:\n  folder: pictures\n  every: 1")
    running.process.send_signal(signal.SIGHUP)
    running.wait_for("RELOADING=1\nMONOTONIC_USEC=")
    running.wait_for("READY=1")
    reloaded = running.wait_for_row(lambda row: row.get("event") == "reloaded")
    assert reloaded["details"] == {"changed": ["calibration", "deadline_ms", "evidence"]}
    row = running.wait_for_row(lambda row: row.get("threshold") == -1.0 and row["outcome"] != "FAULT")
    assert row["outcome"] == "REJECT"
    assert row["calibration"] == load_calibration(record).digest
    running.wait_for_row(lambda row: row["kind"] == "evidence")

    running.edit("threads: 1", "threads: 2")
    running.process.send_signal(signal.SIGHUP)
    refused = running.wait_for_row(lambda row: row.get("event") == "reload refused")
    assert "'threads' cannot change while the station runs" in refused["details"]["reason"]
    newest = max(row["part"] for row in running.rows() if row["kind"] == "part")
    running.wait_for_row(lambda row: row.get("part") == newest + 2)
    said, complained = running.end(signal.SIGTERM)
    assert running.process.returncode == 0
    assert "reloaded: calibration, deadline_ms, evidence" in said
    not_ready, line = complained.splitlines()
    assert "the recipe changes from" in not_ready
    assert line.startswith("warning: the configuration is not taken, the old one goes on: ")
