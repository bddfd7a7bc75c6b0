"""The edge door: what it prints, its exit codes, and what it leaves behind however it ends."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edge.__main__ as door
import edge.run as assembly
from calibration.record import load_calibration, save_calibration
from edge import StationError
from edge.rejector import DryRunRejector
from edge.verdict import Verdict
from edge.worker import InspectorThread
from engines.bundle import Golden, GoldenCheck, Input, Method, load_bundle, make_preprocessor, write_bundle
from engines.images import Image, pixel_digest, read_image
from engines.inspector import Inspector, Score, Scorer
from engines.ort import OnnxRuntimeExtractor
from tests.fakes import (
    DIM,
    GREY,
    calibration_for,
    flat,
    journal_rows,
    textured,
    tiny_bank,
    tiny_provenance,
    write_pictures,
    write_station,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A station over four parts: PASS, PASS (at the threshold), REJECT, PASS."""
    return write_station(tmp_path)


@pytest.fixture
def rejectors(monkeypatch: pytest.MonkeyPatch) -> list[DryRunRejector]:
    """Every reject line that the door opens."""
    opened: list[DryRunRejector] = []

    class Remembered(DryRunRejector):
        def __init__(self) -> None:
            super().__init__()
            opened.append(self)

    monkeypatch.setattr(door, "DryRunRejector", Remembered)
    return opened


def journal(root: Path) -> list[dict[str, Any]]:
    """Its rows, but for changes of state."""
    return [row for row in journal_rows(root / "journal.db") if row.get("event") != "state"]


def replay(root: Path, *more: str) -> int:
    where = ["--bundle", str(root / "bundle"), "--calibration", str(root / "line-1.json"), "--images", str(root / "parts")]
    return door.main(["replay", *where, "--threads", "1", "--deadline-ms", "60000", *more])


OUTCOMES = ["PASS", "PASS", "REJECT", "PASS"]


def check_journal(root: Path) -> None:
    first, *verdicts, last = journal(root)
    assert first["event"] == "started"
    assert first["details"]["station"] == "line-1"
    assert first["details"]["calibration"] == load_calibration(root / "line-1.json").model_dump()
    assert [(row["part"], row["outcome"]) for row in verdicts] == list(enumerate(OUTCOMES, start=1))
    assert last["event"] == "stopped"
    assert (last["details"]["parts"], last["details"]["reason"]) == (4, "end of the source")
    assert len({row["run"] for row in (first, *verdicts, last)}) == 1
    assert {row["bundle"] for row in verdicts} == {first["details"]["calibration"]["bundle_digest"]}
    record = json.loads((root / "line-1.json").read_text())
    assert {row["calibration"] for row in verdicts} == {record["sha256"]}


def test_a_replay_judges_every_part_and_keeps_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(config.parent) == 0
    said = capsys.readouterr().out
    for number, outcome in enumerate(OUTCOMES, start=1):
        assert f"part {number:5d}  {outcome}" in said
    assert "4 parts in" in said
    assert "dry run" in said
    check_journal(config.parent)  # beside the calibration, unless told otherwise


def test_a_run_does_what_its_configuration_says(config: Path) -> None:
    assert door.main(["run", "--config", str(config)]) == 0
    check_journal(config.parent)


def test_relative_paths_count_from_the_configuration(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert door.main(["run", "--config", os.path.relpath(config, "/")]) == 0
    check_journal(config.parent)


def test_the_second_run_appends(config: Path) -> None:
    assert replay(config.parent) == 0
    assert replay(config.parent) == 0
    rows = journal(config.parent)
    assert [row.get("part") for row in rows] == [None, 1, 2, 3, 4, None] * 2


def test_a_part_that_is_a_fault_makes_the_exit_code_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = config.parent / "parts" / "2.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    assert replay(config.parent) == 1
    said = capsys.readouterr().out
    assert "part     2  FAULT" in said
    assert "truncated" in said
    assert [row["outcome"] for row in journal(config.parent) if "part" in row] == ["PASS", "FAULT", "REJECT", "PASS"]


def test_a_name_with_a_line_break_or_a_terminals_command_in_it_stays_one_line_and_is_kept_as_it_is(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, name = config.parent, "1\nrow\x1b[2J\x85.png"
    (root / "parts" / "1.png").rename(root / "parts" / name)
    broken = root / "parts" / "2.png"
    broken.rename(root / "parts" / "2\r.png")
    (root / "parts" / "2\r.png").write_bytes(b"no picture")
    assert replay(root) == 1
    said = capsys.readouterr().out
    lines = [line for line in said.split("\n") if line.startswith("part ")]
    assert [line.split()[1] for line in lines] == ["1", "2", "3", "4"]
    assert lines[0].endswith(r"1\nrow\x1b[2J\x85.png")
    assert r"2\r.png" in lines[1]
    assert next(row["source"] for row in journal(root) if "part" in row) == name
    assert door.main(["export", "--journal", str(root / "journal.db"), "--csv", str(root / "parts.csv")]) == 0
    with (root / "parts.csv").open(newline="", encoding="utf-8") as file:
        assert next(row["source"] for row in csv.DictReader(file)) == name  # quoted, as CSV has it


def test_a_reject_alone_is_no_fault(config: Path) -> None:
    for name in ("1.png", "2.png", "4.png"):
        (config.parent / "parts" / name).unlink()
    assert replay(config.parent) == 0


def test_a_deadline_that_nobody_keeps_faults_every_part(config: Path) -> None:
    assert replay(config.parent, "--deadline-ms", "0.000001") == 1
    assert [row["outcome"] for row in journal(config.parent) if "part" in row] == ["FAULT"] * 4


def test_a_beat(config: Path) -> None:
    assert replay(config.parent, "--realtime", "--fps", "200") == 0
    check_journal(config.parent)


def test_folders_of_parts_are_counted_apart(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(config.parent / "parts" / "good", [flat(128)])
    write_pictures(config.parent / "parts" / "bad", [flat(0), flat(255)])
    assert replay(config.parent) == 0
    rows = [line.split("│")[1:5] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        [".", "3", "1", "0"],
        ["bad", "0", "2", "0"],
        ["good", "1", "0", "0"],
        ["all", "4", "3", "0"],
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--fps", "5"], "--fps sets the beat of --realtime; add --realtime, or leave --fps out"),
        (["--images", "nowhere"], "no such file; expected a folder of images or a video file"),
        (["--bundle", "nowhere"], "no manifest.json there"),
        (["--calibration", "nowhere.json"], "run `calibration fit` first"),
        (["--journal", "/proc/no/such/journal"], "the journal cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    config: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert replay(config.parent, *argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "argv", [[], ["replay"], ["run"], ["fly"], ["replay", "--fps", "0"], ["replay", "--deadline-ms", "nan"]]
)
def test_usage_errors_exit_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        door.main(argv)
    assert stop.value.code == 2
    capsys.readouterr()


@pytest.mark.parametrize("text", ["x", "0", "1.5", ""])
def test_a_number_that_is_none_is_named_with_what_was_expected(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        door.main(["label", "--journal", "journal.db", "--part", text])
    assert f"argument --part: {text}, expected an integer above 0" in capsys.readouterr().err


def test_another_stations_journal_is_refused_and_left_alone(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["run", "--config", str(config)]) == 0
    rows = len(journal(config.parent))
    record = config.parent / "line-1.json"
    other = load_calibration(record).model_copy(update={"station": "line-2"})
    record.unlink()
    save_calibration(record, other)
    config.write_text(config.read_text().replace("station: line-1", "station: line-2"))
    capsys.readouterr()
    fault = "journal.db: the journal of station 'line-1', configured is 'line-2'; give each a journal of its own"
    assert door.main(["run", "--config", str(config)]) == 2
    assert fault in capsys.readouterr().err
    assert door.main(["check", "--config", str(config)]) == 1
    assert fault in "".join(capsys.readouterr())
    assert door.main(["recipe", "--config", str(config), "bundle", "--why", "order 7"]) == 2
    assert fault in capsys.readouterr().err
    assert len(journal(config.parent)) == rows


def test_a_calibration_of_anything_else_is_named_with_its_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("station: line-1", "station: line-2"))
    assert door.main(["run", "--config", str(config)]) == 2
    assert "line-1.json: calibration is for station 'line-1', configured is 'line-2'" in capsys.readouterr().err


def test_a_run_with_a_faulty_configuration_names_every_fault(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("bundle: bundle", "bundel: bundle"))
    assert door.main(["run", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert "unknown key 'bundel'" in said
    assert "key 'bundle' is missing" in said


def test_a_calibration_edited_by_hand_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = config.parent / "line-1.json"
    document = json.loads(record.read_text())
    record.write_text(json.dumps(document | {"threshold": 1e6}))
    assert replay(config.parent) == 2
    assert "changed since it was written" in capsys.readouterr().err
    assert not (config.parent / "journal.db").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (StationError("the screen is gone"), 2), (RuntimeError("a bug"), None)]
)
def test_however_it_ends_the_line_rejects_and_the_journal_is_whole(
    config: Path,
    rejectors: list[DryRunRejector],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int | None,
) -> None:
    levels: list[bool] = []

    def listen(verdict: Verdict) -> None:
        levels.append(rejectors[0].rejecting)
        if verdict.part == 2:
            raise error

    monkeypatch.setattr(assembly, "_print_verdict", listen)
    if code is None:
        with pytest.raises(RuntimeError, match="a bug"):
            replay(config.parent)
    else:
        assert replay(config.parent) == code
    assert levels == [False, False]  # both parts passed: the line was up when it ended
    assert [rejector.rejecting for rejector in rejectors] == [True]
    assert [row["part"] for row in journal(config.parent) if "part" in row] == [1, 2]


def test_an_interrupt_while_a_part_is_scored_leaves_the_line_rejecting(
    config: Path, rejectors: list[DryRunRejector], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = InspectorThread.score

    def score(self: InspectorThread, image: Image, timeout_s: float) -> float:
        if image[0, 0, 0] == 138:
            assert not rejectors[0].rejecting
            raise KeyboardInterrupt
        return real(self, image, timeout_s)

    monkeypatch.setattr(InspectorThread, "score", score)
    assert replay(config.parent) == 130
    assert [rejector.rejecting for rejector in rejectors] == [True]
    assert rejectors[0].passed == 1


def test_a_camera_that_breaks_leaves_the_line_rejecting(
    config: Path, rejectors: list[DryRunRejector], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = assembly.FolderCamera.frames

    def frames(self: assembly.FolderCamera) -> Iterator[Any]:
        yield next(real(self))
        raise StationError("camera lost; check the cable")

    monkeypatch.setattr(assembly.FolderCamera, "frames", frames)
    assert replay(config.parent) == 2
    assert (rejectors[0].passed, rejectors[0].rejecting) == (1, True)


def test_the_line_closes_first_and_one_that_fails_to_close_keeps_nothing_open(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def closing(name: str, error: Exception | None = None) -> Any:
        def close(self: object) -> None:
            order.append(name)
            if error is not None:
                raise error

        return close

    monkeypatch.setattr(door.DryRunRejector, "close", closing("rejector", StationError("line gone")))
    monkeypatch.setattr(assembly.SqliteJournal, "close", closing("journal", OSError("disk gone")))
    monkeypatch.setattr(assembly.FolderCamera, "close", closing("camera", RuntimeError("camera gone")))
    monkeypatch.setattr(InspectorThread, "close", closing("scorer"))
    with pytest.raises(RuntimeError):
        replay(config.parent)
    assert order == ["rejector", "journal", "camera", "scorer"]


def test_a_backend_that_hangs_faults_parts_and_the_run_still_ends(
    config: Path, rejectors: list[DryRunRejector], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, real = threading.Event(), Inspector.score

    def score(self: Inspector, image: Image) -> Score:
        if threading.current_thread().name == "inspector" and image[0, 0, 0] == 138:
            release.wait(30)
        return real(self, image)

    monkeypatch.setattr(Inspector, "score", score)
    monkeypatch.setattr(assembly, "_print_statistics", lambda *_: release.set())  # after the last part
    (config.parent / "parts" / "4.png").unlink()
    assert replay(config.parent, "--deadline-ms", "700") == 1
    assert [row["outcome"] for row in journal(config.parent) if "part" in row] == ["PASS", "FAULT", "FAULT"]
    assert (rejectors[0].passed, rejectors[0].rejected) == (1, 2)


def started(root: Path) -> subprocess.Popen[str]:
    """A real process that replays slowly, past its second part."""
    write_pictures(root / "parts", [flat(120 + number % 16) for number in range(200)])
    command = [sys.executable, "-m", "edge", "replay", "--realtime", "--fps", "20", "--threads", "1"]
    for name, path in (("--bundle", "bundle"), ("--calibration", "line-1.json"), ("--images", "parts")):
        command += [name, str(root / path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("part     2"):
            break
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_real_process_cleanly(config: Path, number: signal.Signals) -> None:
    process = started(config.parent)
    process.send_signal(number)
    said, complained = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in complained
    assert "Traceback" not in said + complained
    parts = [row["part"] for row in journal(config.parent) if "part" in row]
    assert parts == list(range(1, len(parts) + 1))
    assert 2 <= len(parts) < 200
    last = next(row for row in reversed(journal(config.parent)) if "event" in row)  # a FAULT may follow for the part in flight
    assert last["event"] == "stopped"
    assert last["details"]["parts"] in (len(parts), len(parts) - 1)  # the one in flight may be kept but not yet counted
    assert last["details"]["reason"] == "KeyboardInterrupt"
    assert "parts in" in said


def test_a_killed_process_leaves_a_journal_that_the_next_run_reads(config: Path) -> None:
    process = started(config.parent)
    process.kill()
    process.communicate(timeout=30)
    for path in (config.parent / "parts").iterdir():
        path.unlink()
    write_pictures(config.parent / "parts", [flat(128)])
    assert replay(config.parent) == 0
    rows = journal(config.parent)
    assert [row["event"] for row in rows if "event" in row] == ["started", "interrupted", "started", "stopped"]
    killed = [row["part"] for row in rows if "part" in row][:-1]
    assert killed == list(range(1, len(killed) + 1))  # with the part in flight, if there was one
    assert rows[-2]["part"] == 1
    assert door.main(["audit", "--journal", str(config.parent / "journal.db")]) == 0


def with_evidence(config: Path, section: str = "  every: 1\n", more: str = "journal_heads: far/heads.txt\n") -> None:
    config.write_text(config.read_text() + more + "evidence:\n  folder: pictures\n" + section)


def audited(root: Path, *more: str) -> int:
    return door.main(["audit", "--journal", str(root / "journal.db"), *more])


def test_a_run_keeps_pictures_and_notes_them_in_the_chain(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_evidence(config, "  every: 0\n  near_spreads: 0\n")
    assert door.main(["run", "--config", str(config)]) == 0
    pictures = [row for row in journal(config.parent) if row["kind"] == "evidence"]
    assert [(row["part"], row["outcome"], row["why"]) for row in pictures] == [(2, "PASS", "near"), (3, "REJECT", "reject")]
    for row, grey in zip(pictures, (138, 139), strict=True):
        assert row["path"].startswith(row["run"] + "/")
        assert row["pixels"] == pixel_digest(flat(grey))
        assert pixel_digest(read_image(config.parent / "pictures" / row["path"])) == row["pixels"]
    assert f"wrote 2 pictures to {config.parent / 'pictures'}; 0 dropped" in capsys.readouterr().out


def test_a_disk_that_is_full_for_pictures_changes_no_verdict(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("edge.evidence.write_file", full)
    with_evidence(config)
    assert door.main(["run", "--config", str(config)]) == 0
    rows = journal(config.parent)
    assert [row["outcome"] for row in rows if row["kind"] == "part"] == OUTCOMES
    assert sum(row.get("event") == "evidence failed" for row in rows) == 1
    said = capsys.readouterr()
    assert said.err.count("evidence is not kept: ") == 1
    assert "wrote 0 pictures" in said.out
    assert "4 failed" in said.out


def test_an_audit_of_a_whole_journal_says_what_it_holds(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_evidence(config)
    assert door.main(["run", "--config", str(config)]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("journal head: row ")]
    assert len(heads) == 2  # at start and at stop
    last = heads[-1].split()[-1]
    kept = config.parent / "far" / "heads.txt"
    for more in ([], ["--heads", str(kept)], ["--head", last]):
        assert audited(config.parent, *more) == 0
        said = capsys.readouterr().out
        assert "14 rows (6 event, 4 evidence, 4 part)" in said
        assert f"head: row 14 {last}" in said
        assert "whole" in said
        assert ("and so is every head that was kept" in said) == bool(more)
        run = journal(config.parent)[0]["run"]
        assert said.splitlines()[0] == f"run {run}: 3 PASS, 1 REJECT, 0 FAULT; end of the source"


def test_an_audit_names_the_first_bad_row(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_evidence(config)
    assert door.main(["run", "--config", str(config)]) == 0
    path, heads = config.parent / "journal.db", config.parent / "far" / "heads.txt"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM chain WHERE id >= 13")
    assert audited(config.parent) == 0  # a chain alone cannot see its end
    assert audited(config.parent, "--heads", str(heads)) == 1
    assert "row 13: missing, a head of row 14 was kept: the end was cut off" in capsys.readouterr().out
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE chain SET body = replace(body, 'REJECT', 'PASS') WHERE kind = 'part'")
    assert audited(config.parent) == 1
    number = next(row for row, content in enumerate(journal_rows(path), start=1) if content.get("part") == 3)
    assert f"row {number}: its hash does not follow" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["audit", "--journal", "none.db"], "no such file; expected a station's journal"),
        (["audit", "--journal", "line-1.json"], "expected an SQLite journal"),
        (["audit", "--journal", "journal.db", "--heads", "none.txt"], "cannot be read"),
        (
            ["export", "--journal", "journal.db"],
            "nothing to export; give --csv FILE, --events FILE, --images DIR, or several of them",
        ),
        (["events", "--journal", "none.db"], "no such file; expected a station's journal"),
        (["export", "--journal", "journal.db", "--events", "line-1.json/a.csv"], "cannot be written"),
        (["export", "--journal", "none.db", "--csv", "a.csv"], "no such file; expected a station's journal"),
        (["export", "--journal", "journal.db", "--csv", "line-1.json/a.csv"], "cannot be written"),
        (["export", "--journal", "journal.db", "--images", "out", "--evidence", "none"], "none: no such folder; give the one"),
    ],
)
def test_what_cannot_be_audited_or_exported_is_one_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert replay(config.parent) == 0
    monkeypatch.chdir(config.parent)
    assert door.main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_an_export_has_every_verdict_and_every_picture(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_evidence(config)
    assert door.main(["run", "--config", str(config)]) == 0
    root = config.parent
    argv = ["export", "--journal", str(root / "journal.db"), "--csv", str(root / "out" / "parts.csv")]
    argv += ["--images", str(root / "out"), "--evidence", str(root / "pictures")]
    assert door.main(argv) == 0
    with (root / "out" / "parts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["part"], row["outcome"]) for row in rows] == [(str(part), outcome) for part, outcome in enumerate(OUTCOMES, 1)]
    kept = [row for row in journal(root) if row["kind"] == "part"]
    assert [float(row["score"]) for row in rows] == [row["score"] for row in kept]
    assert (rows[0]["row"], rows[0]["part_ref"], rows[0]["source"]) == ("4", "", "1.png")
    copied = sorted(str(path.relative_to(root / "out")) for path in (root / "out").rglob("*.png"))
    run = kept[0]["run"]
    assert copied == [f"PASS/{run}-0000000{part}-PASS.png" for part in (1, 2, 4)] + [f"REJECT/{run}-00000003-REJECT.png"]
    assert "copied 4 pictures" in capsys.readouterr().out


def test_an_export_leaves_out_what_was_changed_and_ends_with_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_evidence(config)
    assert door.main(["run", "--config", str(config)]) == 0
    root = config.parent
    run = next(path for path in (root / "pictures").iterdir())
    (run / "00000001-PASS.png").unlink()
    (run / "00000002-PASS.png").write_bytes((run / "00000003-REJECT.png").read_bytes())
    argv = ["export", "--journal", str(root / "journal.db"), "--csv", str(root / "parts.csv")]
    assert door.main([*argv, "--images", str(root / "out"), "--evidence", str(root / "pictures")]) == 1
    said = capsys.readouterr()
    assert "00000002-PASS.png: not the picture that the journal has; not copied" in said.err
    assert "copied 2 pictures" in said.out
    assert "not there any more: 1" in said.out
    with contextlib.closing(sqlite3.connect(root / "journal.db")) as connection, connection:
        connection.execute("DELETE FROM chain WHERE id = 7")
    assert door.main(argv) == 1
    said = capsys.readouterr()
    assert "row 7: missing, row 8 comes next; rows before that are exported" in said.err
    assert "2 rows" in said.out


def test_a_journal_of_json_lines_is_refused_and_left_alone(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = config.parent / "old.jsonl"
    old.write_text('{"when": "2024", "part": 1}\n')
    assert replay(config.parent, "--journal", str(old)) == 2
    assert "a journal of JSON lines, as earlier versions wrote them" in capsys.readouterr().err
    assert old.read_text() == '{"when": "2024", "part": 1}\n'


def test_a_journal_that_is_locked_faults_parts_and_the_run_goes_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(config.read_text() + "journal_timeout_ms: 20\n")
    other: list[sqlite3.Connection] = []
    real = assembly._print_verdict

    def listen(verdict: Verdict) -> None:
        real(verdict)
        if verdict.part == 1:
            other.append(sqlite3.connect(config.parent / "journal.db", isolation_level=None))
            other[0].execute("BEGIN IMMEDIATE")
        if verdict.part == 2:
            other[0].close()

    monkeypatch.setattr(assembly, "_print_verdict", listen)
    assert door.main(["run", "--config", str(config)]) == 1
    rows = [(row.get("event"), row.get("part"), row.get("outcome")) for row in journal(config.parent)]
    assert rows == [
        ("started", None, None),
        (None, 1, "PASS"),
        ("gap", None, None),
        (None, 3, "REJECT"),
        (None, 4, "PASS"),
        ("stopped", None, None),
    ]


def wide_bundle(path: Path, rows: int) -> None:
    """A bundle of real size: 256 x 256 pixels to 1,024 embeddings of 512, and a bank of seeded noise."""
    side, dim = 32, 512
    rng = np.random.default_rng(0)
    kernel = numpy_helper.from_array(rng.normal(size=(dim, DIM, 1, 1)).astype(np.float32), "kernel")
    nodes = [
        helper.make_node("AveragePool", ["image"], ["means"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["means", "kernel"], ["wide"]),
        helper.make_node("Transpose", ["wide"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["last", "shape"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 256, 256])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [side * side, dim])],
        [kernel, helper.make_tensor("shape", TensorProto.INT64, [2], [side * side, dim])],
    )
    features = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    bank = tiny_bank(rng.normal(size=(rows, dim)).astype(np.float32))
    spec, method = Input(size=(256, 256)), Method(backbone="wide", dim=dim, grid=(side, side))
    extractor = OnnxRuntimeExtractor(features, input_shape=(1, 3, 256, 256), output_shape=(side * side, dim), threads=1)
    golden = flat(GREY, (256, 256))
    score = Scorer(method, make_preprocessor(spec, None), bank, extractor).score(golden).value
    write_bundle(
        path,
        spec=spec,
        method=method,
        threshold=None,
        golden_check=GoldenCheck(images=1, spread=1.0, max_difference=0.0, flips=0),
        provenance=tiny_provenance(),
        features=features,
        bank=bank,
        mask=None,
        golden=Golden(("golden.png",), (golden,), np.array([score])),
    )


# VmHWM, because the largest resident size that getrusage gives counts the process that this one was forked from
PEAK = """
import sys
from edge.__main__ import main
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print("peak MB", int(peak.split()[1]) * 1024 // 10**6, "code", code)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its memory from Linux's /proc")
def test_a_replay_with_a_bank_of_6000_rows_stays_below_600_mb(tmp_path: Path) -> None:
    wide_bundle(tmp_path / "bundle", rows=6000)
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as inspector:
        save_calibration(tmp_path / "line-1.json", calibration_for(inspector, 1e9))
    write_pictures(tmp_path / "parts", [textured(seed, (256, 256)) for seed in range(3)])
    command = ["replay", "--deadline-ms", "60000", "--threads", "1"]
    for name, path in (("--bundle", "bundle"), ("--calibration", "line-1.json"), ("--images", "parts")):
        command += [name, str(tmp_path / path)]
    done = subprocess.run([sys.executable, "-c", PEAK, *command], capture_output=True, text=True, check=True, timeout=120)
    *_, peak, _, code = done.stdout.split()
    assert code == "0", done.stdout
    assert 20 < int(peak) < 600
