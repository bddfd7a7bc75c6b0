"""A station from the door on, with each kind of trigger and reference over a replay."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import pty
import queue
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.__main__ import main
from edge.camera import FolderCamera
from edge.clock import SystemClock
from edge.config import load_config, load_recipes
from edge.events import read_events
from edge.intake import Intake, looks_aside
from edge.rejector import DryRunRejector
from edge.run import open_camera, run_station
from edge.verdict import Arrival, Frame, Verdict
from engines.images import Image
from tests.fakes import flat, journal_rows, write_pictures, write_station


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A station over four parts: PASS, PASS (at the threshold), REJECT, PASS."""
    return write_station(tmp_path)


def add(config: Path, *lines: str) -> None:
    config.write_text(config.read_text() + "".join(f"{line}\n" for line in lines))


def parts(config: Path) -> list[tuple[int, str, str | None]]:
    rows = journal_rows(config.parent / "journal.db")
    return [(row["part"], row["outcome"], row["part_ref"]) for row in rows if "part" in row]


def events(config: Path, name: str) -> list[Mapping[str, Any]]:
    return [row["details"] for row in journal_rows(config.parent / "journal.db") if row.get("event") == name]


def run_with_stdin(config: Path, text: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "edge", "run", "--config", str(config)]
    return subprocess.run(command, input=text, capture_output=True, timeout=120, check=False)


def test_lines_of_standard_input_are_parts_and_their_text_the_reference(config: Path) -> None:
    add(config, "trigger: {kind: software}")
    ran = run_with_stdin(config, b"LOT-1\n\nLOT 3\r\nbad\x01\n")
    assert ran.returncode == 0, ran.stderr
    assert parts(config) == [(1, "PASS", "LOT-1"), (2, "PASS", None), (3, "REJECT", "LOT 3"), (4, "PASS", None)]
    assert [event["reason"] for event in events(config, "part_ref refused")] == [
        "a part's reference with the character U+0001, expected printable ones"
    ]
    (stopped,) = events(config, "stopped")
    assert stopped["reason"] == "end of the source"
    assert stopped["intake"] == {"references refused": 1, "triggered": 4}
    assert b"trigger by software: references refused 1, triggered 4" in ran.stdout


def test_the_end_of_standard_input_ends_the_run_with_pictures_left(config: Path) -> None:
    add(config, "trigger: {kind: software}")
    assert run_with_stdin(config, b"A\nB").returncode == 0
    assert parts(config) == [(1, "PASS", "A"), (2, "PASS", "B")]
    none = run_with_stdin(config, b"")
    assert none.returncode == 0
    assert b"0 parts in" in none.stdout
    assert b"nan" not in none.stdout
    assert [stopped["parts"] for stopped in events(config, "stopped")] == [2, 0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """A station that runs in a process, and its control."""

    def __init__(self, config: Path) -> None:
        self.port = free_port()
        add(config, f"control: {{address: '127.0.0.1:{self.port}'}}")
        command = [sys.executable, "-m", "edge", "run", "--config", str(config)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        assert self.process.stdout is not None
        self.said: list[bytes] = []
        for line in self.process.stdout:
            self.said.append(line)
            if b" ready: " in line:
                break

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        while True:  # it says that it is ready a moment before the control is
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                data = None if body is None else json.dumps(body)
                connection.request(method, path, data, {"Content-Type": "application/json"})
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            except ConnectionRefusedError:
                assert self.process.poll() is None, self.said
            finally:
                connection.close()

    def end(self) -> int:
        out, _ = self.process.communicate(timeout=60)
        self.said += out.splitlines(keepends=True)
        return self.process.returncode


def test_http_triggers_waits_for_verdicts_and_sets_references(config: Path) -> None:
    add(config, "trigger: {kind: software}", "part_ref: {kind: http}")
    running = Running(config)
    assert running.ask("POST", "/part_ref", {"part_ref": "LOT"})[0] == 200
    status, first = running.ask("POST", "/trigger?wait=1", {"part_ref": "SN-1"})
    assert (status, first["part"], first["outcome"]) == (200, 1, "PASS")
    status, second = running.ask("POST", "/trigger?wait=1")
    assert (status, second["part"], second["outcome"]) == (200, 2, "PASS")
    status, state = running.ask("GET", "/status")
    assert status == 200
    assert (state["parts"], state["outcomes"], state["trigger"]) == (2, {"PASS": 2, "REJECT": 0, "FAULT": 0}, "software")
    assert running.ask("POST", "/part_ref", {"part_ref": "\u202e"})[0] == 422
    status, third = running.ask("POST", "/trigger?wait=1")
    assert (status, third["outcome"]) == (200, "REJECT")
    assert running.ask("POST", "/halt", {"who": "Bo", "why": "jam"}) == (200, {"halted": True})
    status, held = running.ask("GET", "/status")
    while held["state"] != "initialized":
        status, held = running.ask("GET", "/status")
    assert running.ask("POST", "/resume", {"who": "Ada"}) == (200, {"halted": False})
    while held["state"] == "initialized":
        status, held = running.ask("GET", "/status")
    running.ask("POST", "/trigger?wait=1")
    assert running.end() == 0, running.said
    assert parts(config) == [(1, "PASS", "SN-1"), (2, "PASS", "LOT"), (3, "REJECT", "LOT"), (4, "PASS", "LOT")]
    assert [event["source"] for event in events(config, "part_ref refused")] == ["http"]
    assert events(config, "halt") == [{"who": "Bo", "why": "jam"}]
    assert events(config, "resume") == [{"who": "Ada", "why": "asked for by http"}]
    told = [(event.name, event.who, event.what) for event in read_events(config.parent / "journal.db")[0]]
    assert ("halt", "Bo", "jam") in told
    (state,) = [what for name, _, what in told if name == "state" and "hold" in what]
    assert state == "executing to initialized: hold: somebody holds it (POST /halt); POST /resume lets it go on"


def test_a_timer_triggers_each_picture_of_a_replay(config: Path) -> None:
    add(config, "trigger: {kind: timer, period_ms: 200}", "part_ref: {kind: file, path: order.txt}")
    (config.parent / "order.txt").write_text("ORDER-1")
    code = main(["run", "--config", str(config)])
    # on a machine that is held up for 200 ms a part is missed, and there is one more
    rows = [row for row in journal_rows(config.parent / "journal.db") if "part" in row]
    assert [row["outcome"] for row in rows if row["outcome"] != "FAULT"] == ["PASS", "PASS", "REJECT", "PASS"]
    assert code == int(len(rows) > 4)
    times = [row["trigger_ns"] for row in rows]
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [200_000_000] * (len(rows) - 1)
    assert rows[-1]["part_ref"] == "ORDER-1"


def belt(*places: int | None) -> list[Image]:
    """Pictures of an empty scene, or of one with a square at a place."""
    pictures = []
    for place in places:
        image = flat(120)
        if place is not None:
            image[20:44, place : place + 24] = 139  # the threshold is at grey 138
        pictures.append(image)
    return pictures


def test_presence_finds_the_parts_of_a_replay_once_the_empty_scene_was_learnt(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = config.parent
    add(config, "trigger: {kind: presence, empty: empty.npz}")
    assert main(["check", "--config", str(config)]) == 1
    assert "empty.npz: cannot be read" in capsys.readouterr().out
    write_pictures(folder / "scene", belt(*[None] * 12))
    still = folder / "still.yaml"
    still.write_text(config.read_text().replace("path: parts", "path: scene"))
    learn = ["empty", "--config", str(still), "--frames", "12", "--out"]
    assert main([*learn, str(folder / "empty.npz")]) == 0
    assert "learnt 12 frames, region [0, 0, 64, 64]" in capsys.readouterr().out
    for path in (folder / "parts").iterdir():
        path.unlink()
    names = [None, 0, 10, 20, 30, 40, None, None, 20, 20, None]
    for number, picture in enumerate(belt(*names), start=10):
        write_pictures(folder / "one", [picture])[0].rename(folder / "parts" / f"{number}.png")
    assert main(["check", "--config", str(config)]) == 0
    assert main(["run", "--config", str(config)]) == 0
    rows = [row for row in journal_rows(folder / "journal.db") if "part" in row]
    assert [(row["part"], row["source"]) for row in rows] == [(1, "12.png"), (2, "18.png")]
    # a scene in which something moves is none
    moving = folder / "moving.yaml"
    moving.write_text(config.read_text())
    write_pictures(folder / "parts", belt(*[None, 20] * 6))
    assert main(["empty", "--config", str(moving), "--out", str(folder / "no.npz")]) == 2
    assert "the scene moves" in capsys.readouterr().err
    assert not (folder / "no.npz").exists()


def test_learning_needs_a_presence_trigger_and_its_region(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["empty", "--config", str(config), "--out", "x.npz"]) == 2
    assert "the trigger is of kind frame, expected presence" in capsys.readouterr().err
    folder = config.parent
    write_pictures(folder / "parts", belt(*[None] * 12))
    add(config, "trigger: {kind: presence, empty: empty.npz}")
    assert main(["empty", "--config", str(config), "--out", str(folder / "empty.npz")]) == 0
    config.write_text(config.read_text().replace("empty.npz}", "empty.npz, region: [0, 0, 32, 32]}"))
    assert main(["run", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert "learnt for the region [0, 0, 64, 64], configured is [0, 0, 32, 32]; learn it again" in said


def test_a_replay_on_a_beat_is_looked_at_aside(config: Path) -> None:
    folder = config.parent
    write_pictures(folder / "parts", belt(*[None] * 12))
    add(config, "trigger: {kind: presence, empty: empty.npz}")
    assert main(["empty", "--config", str(config), "--out", str(folder / "empty.npz")]) == 0
    write_pictures(folder / "parts", belt(None, 0, 20, 40, None, 20, None))
    config.write_text(config.read_text().replace("path: parts", "path: parts\n  fps: 500"))
    loaded = load_config(config)
    assert looks_aside(loaded)
    camera = open_camera(loaded)
    beats: list[int] = []
    intake = Intake(loaded, camera, DryRunRejector(), lambda: beats.append(1), lambda name, details: None)
    arrivals = list(intake.camera.frames())
    assert [(arrival.part, isinstance(arrival, Frame)) for arrival in arrivals] == [(1, True), (2, True)]
    assert beats
    assert intake.counts() == {"triggered": 2}
    intake.close()
    intake.close()


def test_a_scanners_labels_go_to_the_parts_that_follow(config: Path) -> None:
    ours, theirs = pty.openpty()
    add(config, "trigger: {kind: software}", f"part_ref: {{kind: serial, device: {os.ttyname(theirs)}, max_age_ms: 60000}}")
    notes: queue.Queue[Mapping[str, object]] = queue.Queue()
    loaded = load_config(config.with_name("station.yaml")).model_copy(update={"source": load_config(config).source})
    stdin_theirs, stdin_ours = os.pipe()
    saved = os.dup(0)
    os.dup2(stdin_theirs, 0)
    try:
        with open(0, closefd=False) as fake_stdin, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", fake_stdin)
            camera = open_camera(loaded)
            intake = Intake(loaded, camera, DryRunRejector(), lambda: None, lambda name, details: notes.put(details))
            intake.begin()
            arrivals = intake.camera.frames()
            os.write(ours, b"SN-1\nSN-2\n" + b"x" * 200 + b"\n")
            assert "200 characters" in str(notes.get(timeout=20)["reason"])  # the others were read before
            os.write(stdin_ours, b"\nown\n\n")
            assert [next(arrivals).part_ref for _ in range(3)] == ["SN-1", "own", None]
            assert intake.counts() == {
                "parts without reference": 1,
                "references read": 2,
                "references refused": 1,
                "triggered": 3,
            }
            intake.close()
    finally:
        os.dup2(saved, 0)
        for descriptor in (saved, stdin_theirs, stdin_ours, ours, theirs):
            os.close(descriptor)


def test_parts_that_software_triggered_keep_their_reference_when_the_station_ends_before_their_turn(config: Path) -> None:
    add(config, "trigger: {kind: software}", "part_ref: {kind: http}", "control: {address: '127.0.0.1:0'}")
    loaded = load_config(config)
    intake = Intake(loaded, open_camera(loaded), DryRunRejector(), lambda: None, lambda name, details: None)
    assert intake.set_part_ref is not None
    assert intake.trigger is not None
    intake.set_part_ref("LOT-7")
    assert (intake.trigger(None), intake.trigger("own")) == (1, 2)
    assert [(left.part, left.part_ref) for left in intake.rest("told to end")] == [(1, "LOT-7"), (2, "own")]
    intake.close()


def test_parts_in_view_keep_their_reference_when_the_station_ends_before_their_turn(config: Path) -> None:
    folder = config.parent
    write_pictures(folder / "parts", belt(*[None] * 12))
    add(config, "trigger: {kind: presence, empty: empty.npz}", "part_ref: {kind: http}", "control: {address: '127.0.0.1:0'}")
    assert main(["empty", "--config", str(config), "--out", str(folder / "empty.npz")]) == 0
    write_pictures(folder / "parts", belt(None, 0, 20, 40, None, 20, None))
    config.write_text(config.read_text().replace("path: parts", "path: parts\n  fps: 500"))
    begin = threading.Event()

    class Later(FolderCamera):
        def frames(self) -> Iterator[Arrival]:
            assert begin.wait(20)
            yield from super().frames()

    camera = Later(folder / "parts", SystemClock())
    intake = Intake(load_config(config), camera, DryRunRejector(), lambda: None, lambda name, details: None)
    assert intake.set_part_ref is not None
    intake.set_part_ref("LOT-7")
    begin.set()
    while intake.waiting() < 2:
        threading.Event().wait(0.001)
    assert [(left.part, left.part_ref) for left in intake.rest("told to end")] == [(1, "LOT-7"), (2, "LOT-7")]
    intake.close()


def test_the_line_hears_of_parts_that_wait_for_their_turn(config: Path) -> None:
    class Line(DryRunRejector):
        def announce(self, part: int, trigger_ns: int) -> None:
            heard.append(part)

    heard: list[int] = []
    add(config, "trigger: {kind: timer, period_ms: 1}")
    loaded = load_config(config)
    intake = Intake(loaded, open_camera(loaded), Line(), lambda: None, lambda name, details: None)
    threading.Event().wait(0.003)
    intake.rejector.beat()
    intake.rejector.beat()
    intake.close()
    assert heard[:2] == [1, 2]
    assert heard == list(range(1, len(heard) + 1))


def test_the_line_hears_of_a_part_whose_picture_is_still_waited_for(config: Path) -> None:
    class Line(DryRunRejector):
        def announce(self, part: int, trigger_ns: int) -> None:
            heard.append(part)

    class Slow:
        """A live camera that gives its picture three turns after it was asked."""

        healthy = True
        status = ""

        def frames(self) -> Iterator[Arrival]:
            for number in itertools.count(1):
                for _ in range(3):
                    intake.rejector.beat()
                heard_by_then.append(list(heard))
                now_ns = time.monotonic_ns()
                yield Frame(flat(1), number, now_ns, now_ns, f"{number}")

        def close(self) -> None:
            """Nothing to release."""

    heard: list[int] = []
    heard_by_then: list[list[int]] = []
    add(config, "trigger: {kind: software, by: [http]}", "control: {}")
    config.write_text(config.read_text().replace("  kind: replay\n", "  kind: replay\n  fps: 1\n"))
    intake = Intake(load_config(config), Slow(), Line(), lambda: None, lambda name, details: None)
    assert intake.trigger is not None
    arrivals = intake.camera.frames()
    for part in (1, 2):
        intake.trigger(None)
        assert next(arrivals).part == part
    assert intake.waiting() == 0
    intake.close()
    assert heard_by_then == [[1], [1, 2]]


def test_the_line_hears_of_parts_that_come_while_the_journal_is_locked(config: Path) -> None:
    add(config, "trigger: {kind: timer, period_ms: 20}", "journal_timeout_ms: 200")
    heard: list[int] = []
    heard_by_then: list[int] = []
    other: list[sqlite3.Connection] = []

    class Line(DryRunRejector):
        def announce(self, part: int, trigger_ns: int) -> None:
            heard.append(part)

        def apply(self, verdict: Verdict) -> None:
            super().apply(verdict)
            if verdict.part == 1:
                heard_by_then.append(heard[-1])
                other.append(sqlite3.connect(config.parent / "journal.db", isolation_level=None))
                other[0].execute("BEGIN IMMEDIATE")
            elif verdict.part == 2:
                heard_by_then.append(heard[-1])
                other[0].close()

    assert run_station(load_recipes(config), lambda _config: Line()) == 1
    assert heard_by_then[1] > heard_by_then[0] + 5  # 200 ms have room for ten


def test_an_intake_that_cannot_be_made_leaves_no_thread_behind(config: Path) -> None:
    add(config, "trigger: {kind: timer, period_ms: 100}", "part_ref: {kind: serial, device: /dev/ttyNONE, max_age_ms: 5}")
    before = threading.active_count()
    assert main(["run", "--config", str(config)]) == 2
    assert main(["check", "--config", str(config)]) == 1
    assert threading.active_count() <= before
