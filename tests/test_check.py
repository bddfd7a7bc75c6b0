"""Would this station start? Everything that is wrong, at once; and what is wrong keeps `run` and `replay` from starting too."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.history import history_path
from calibration.history import write as write_record
from calibration.record import load_calibration, save_calibration
from edge import StationError
from edge import check as check_module
from edge.__main__ import main
from edge.camera import Camera, FolderCamera
from edge.camera_sections import LiveSource
from edge.check import Check, check_station
from edge.config import load_recipes
from edge.sections import StationConfig
from engines.bundle import GOLDEN, MANIFEST, Variant, load_bundle, pack_npz
from tests.fakes import FakeClock, feature_graph, flip_byte, journal_rows, write_recipes, write_station, write_tiny_bundle


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A station that would start."""
    return write_station(tmp_path)


def looked_at(path: Path) -> dict[str, Check]:
    """Each check by its name."""

    def open_camera(config: StationConfig) -> Camera:
        return FolderCamera(config.source.path, FakeClock())  # type: ignore[union-attr]

    return {check.name: check for check in check_station(load_recipes(path), open_camera)}


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def recalibrate(root: Path, **changes: Any) -> None:
    """Change fields of the station's record, as `calibration fit` elsewhere would have written them."""
    record = root / "line-1.json"
    save_calibration(record, load_calibration(record).model_copy(update=changes))


def test_triggers_references_and_control_are_looked_at(config: Path) -> None:
    config.write_text(config.read_text() + "trigger: {kind: timer, period_ms: 40}\npart_ref: {kind: file, path: order.txt}\n")
    replace(config, "journal: journal.db\n", "journal: journal.db\ncontrol: {address: '127.0.0.1:0'}\n")
    checks = looked_at(config)
    assert checks["trigger"] == Check("trigger", "a part each 40 ms")
    assert checks["part_ref"] == Check("part_ref", f"file {config.parent / 'order.txt'}")
    assert checks["control"] == Check("control", "127.0.0.1:0")
    replace(config, "kind: timer, period_ms: 40", "kind: software, by: [stdin, http]")
    replace(config, "'127.0.0.1:0'}", "'0.0.0.0:0', token: secret}")
    replace(config, "kind: file, path: order.txt", "kind: serial, device: ttyNONE, max_age_ms: 5")
    checks = looked_at(config)
    assert checks["trigger"] == Check("trigger", "by stdin and http")
    assert "the scanner cannot be opened" in checks["part_ref"].faults[0]
    assert "secret: the token cannot be read" in checks["control"].faults[0]


def start(config: Path) -> int:
    return main(["run", "--config", str(config)])


def replay(config: Path, *more: str) -> int:
    root = config.parent
    where = ["--bundle", str(root / "bundle"), "--calibration", str(root / "line-1.json"), "--images", str(root / "parts")]
    return main(["replay", *where, "--threads", "1", "--deadline-ms", "60000", "--journal", str(root / "journal.db"), *more])


def test_a_good_station_has_no_faults_and_nothing_is_written(config: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    checks = looked_at(config)
    assert {name: check.faults for name, check in checks.items()} == dict.fromkeys(
        (
            "bundle",
            "calibration",
            "calibration fits",
            "self-test",
            "speed",
            "source",
            "lines",
            "trigger",
            "journal",
            "starts with",
        ),
        (),
    )
    assert sorted(config.parent.rglob("*")) == before


def test_a_threshold_that_was_set_by_hand_is_marked_wherever_it_is_shown(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "conformal from 99 parts" in looked_at(config)["calibration"].found
    recalibrate(config.parent, method="manual", why="lamp changed")
    assert "SET BY HAND by test" in looked_at(config)["calibration"].found
    assert "lamp changed" in looked_at(config)["calibration"].found
    assert start(config) == 0
    said = capsys.readouterr().out
    for line in ("line-1 ready: threshold", "judged at threshold"):
        assert any(one.startswith(line) and "SET BY HAND by test" in one for one in said.splitlines())
    events = [row for row in journal_rows(config.parent / "journal.db") if row.get("event") == "started"]
    assert [(row["details"]["calibration"]["method"], row["details"]["calibration"]["why"]) for row in events] == [
        ("manual", "lamp changed")
    ]


def test_everything_that_is_wrong_comes_at_once(config: Path) -> None:
    root = config.parent
    flip_byte(root / "bundle" / "bank.npz")
    (root / "line-1.json").unlink()
    shutil.rmtree(root / "parts")
    (root / "journal.db").mkdir()
    checks = looked_at(config)
    assert [name for name, check in checks.items() if check.faults] == ["bundle", "calibration", "source", "journal"]
    assert "bank.npz: damaged" in checks["bundle"].faults[0]
    assert "run `calibration fit` first" in checks["calibration"].faults[0]
    assert "no such folder" in checks["source"].faults[0]
    assert "a folder, expected the path of a file" in checks["journal"].faults[0]


def test_the_door_lists_them_and_exits_with_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_byte(config.parent / "bundle" / "features.onnx")
    (config.parent / "line-1.json").unlink()
    assert main(["check", "--config", str(config)]) == 1
    said = capsys.readouterr().out
    assert "FAULT  bundle" in said
    assert "FAULT  calibration" in said
    assert "ok     source" in said
    assert said.splitlines()[-1] == "line-1: would not start, faults: 2"


def test_the_door_says_ready_and_exits_with_0(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(config)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "line-1: ready to start"


def test_the_door_lists_the_faults_of_a_configuration(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace(config, "bundle: bundle", "bundel: bundle\ndeadline: 1")
    assert main(["check", "--config", str(config)]) == 1
    said = capsys.readouterr().out
    assert said.count("FAULT  ") == 3
    assert f"{config}:2: unknown key 'bundel'" in said


def test_a_history_that_is_not_whole_is_said_and_noted_and_keeps_nothing_from_starting(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = config.parent / "line-1.json"
    for why in ("first", "second"):
        write_record(record, load_calibration(record).model_copy(update={"entry": None, "why": why}))
    history = history_path(record)
    assert looked_at(config)["calibration"].warnings == ()
    assert start(config) == 0
    assert "history" not in capsys.readouterr().err
    history.write_text(history.read_text().splitlines(keepends=True)[0])
    assert main(["check", "--config", str(config)]) == 0
    said = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(said) if line.startswith("WARN   calibration: threshold "))
    assert said[at + 1].startswith(f"       {history}: no entry ")
    assert said[at + 1].endswith("the end of the history was cut off")
    assert said[-1] == "line-1: ready to start, warnings: 1"
    assert start(config) == 0
    assert f"warning: recipe bundle: the calibration's history is not whole: {history}: no entry" in capsys.readouterr().err
    history.unlink()
    assert start(config) == 0
    assert f"{history}: not there, and line-1.json is an entry of it" in capsys.readouterr().err
    rows = [row for row in journal_rows(config.parent / "journal.db") if row.get("event") == "calibration-history"]
    assert [row["details"]["record"] for row in rows] == [str(record)] * 2
    assert ["cut off" in row["details"]["fault"] for row in rows] == [True, False]
    assert len({row["run"] for row in rows}) == 2


def test_the_history_of_a_recipe_that_may_be_changed_to_is_looked_at_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_recipes(tmp_path)
    record = tmp_path / "bolt.json"
    write_record(record, load_calibration(record))
    history_path(record).unlink()
    assert [name for name, check in looked_at(config).items() if check.warnings] == ["bolt: calibration"]
    start(config)
    assert "warning: recipe bolt: the calibration's history is not whole" in capsys.readouterr().err
    (row,) = [row for row in journal_rows(tmp_path / "journal.db") if row.get("event") == "calibration-history"]
    assert row["details"]["recipe"] == "bolt"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read (No such file or directory); give a YAML file"),
        ("station: [", "not YAML"),
        ("", "expected keys such as 'station:' and 'bundle:', got nothing"),
        ("- station\n", "expected keys such as 'station:' and 'bundle:', got list"),
    ],
)
def test_what_is_no_configuration_is_bad_input_and_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    config = tmp_path / "station.yaml"
    if text is not None:
        config.write_text(text)
    assert main(["check", "--config", str(config)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {config}")
    assert said in printed.err


MISMATCHES: dict[str, Callable[[Path], None]] = {
    "calibration is for station 'line-2', configured is 'line-1'": lambda root: recalibrate(root, station="line-2"),
    "calibration is for camera 'left', configured is 'camera-1'": lambda root: recalibrate(root, camera="left"),
    "calibration is for bundle 000000000000": lambda root: recalibrate(root, bundle_digest="0" * 64),
    "calibration is for backend tensorrt": lambda root: recalibrate(root, backend="tensorrt"),
    "calibration is for precision fp16": lambda root: recalibrate(root, precision="fp16"),
    "calibration is for engine 000000000000": lambda root: recalibrate(root, engine_digest="0" * 64),
}


@pytest.mark.parametrize("line", MISMATCHES)
def test_a_calibration_for_something_else_is_refused_everywhere(
    config: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    MISMATCHES[line](config.parent)
    (fault,) = looked_at(config)["calibration fits"].faults
    assert fault.startswith(line)
    assert main(["check", "--config", str(config)]) == 1
    assert line in capsys.readouterr().out
    assert start(config) == 2
    assert line in capsys.readouterr().err
    if not line.startswith(("calibration is for station", "calibration is for camera")):  # a replay takes these from the record
        assert replay(config) == 2
        assert line in capsys.readouterr().err
    assert not (config.parent / "journal.db").exists()  # refused before a part was judged


def test_all_that_does_not_fit_comes_at_once(config: Path) -> None:
    recalibrate(config.parent, station="line-2", camera="left", bundle_digest="0" * 64, backend="x", precision="y")
    assert len(looked_at(config)["calibration fits"].faults) == 5


def promise_other_scores(root: Path, change: float) -> None:
    """Change what the bundle promises for its golden images, with every digest made right again."""
    bundle = root / "bundle"
    with np.load(bundle / GOLDEN) as archive:
        arrays = {name: archive[name] for name in archive.files}
    data = pack_npz(arrays | {"scores": arrays["scores"] + change})
    (bundle / GOLDEN).write_bytes(data)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][GOLDEN] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(manifest).encode()
    (bundle / MANIFEST).write_bytes(text)
    recalibrate(root, bundle_digest=hashlib.sha256(text).hexdigest())


@pytest.mark.parametrize("change", [-0.5, 0.5])
def test_a_machine_that_does_not_score_as_promised_is_refused_everywhere(
    config: Path, capsys: pytest.CaptureFixture[str], change: float
) -> None:
    promise_other_scores(config.parent, change)
    checks = looked_at(config)
    assert [name for name, check in checks.items() if check.faults] == ["self-test"]
    assert main(["check", "--config", str(config)]) == 1
    assert start(config) == 2
    assert replay(config) == 2
    assert "this machine does not score as the bundle says" in capsys.readouterr().err
    assert not (config.parent / "journal.db").exists()


def test_rounding_within_the_tolerance_is_no_fault(config: Path) -> None:
    promise_other_scores(config.parent, 0.004)  # 0.04 of the spread of 0.1, 0.05 is allowed
    assert looked_at(config)["self-test"].faults == ()


def test_golden_images_that_cannot_be_decoded_are_a_fault(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise StationError("golden-0.png: corrupt")

    monkeypatch.setattr(check_module, "verify_golden", refuse)
    assert looked_at(config)["self-test"].faults == ("golden-0.png: corrupt",)


def test_an_unknown_backend_is_a_fault_of_the_bundle(config: Path) -> None:
    replace(config, "threads: 1", "backend: abacus")
    assert "backend 'abacus', expected one of: onnxruntime" in looked_at(config)["bundle"].faults[0]


def journal_faults(path: Path) -> tuple[str, ...]:
    return check_module._check_journal(path, "line-1").faults


def test_journals_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    assert journal_faults(tmp_path / "journal.db") == ()
    assert journal_faults(tmp_path / "a" / "b" / "journal.db") == ()  # folders are made
    assert "not a station's journal; give another file" in journal_faults(tmp_path / "file")[0]
    assert "a folder, expected the path of a file" in journal_faults(tmp_path)[0]
    assert "a file, expected a folder" in journal_faults(tmp_path / "file" / "journal.db")[0]
    assert "a file, expected a folder" in journal_faults(tmp_path / "file" / "deeper" / "journal.db")[0]
    with monkeypatch.context() as closed:
        closed.setattr(os, "access", lambda path, mode: False)
        assert "cannot be written; change its permissions" in journal_faults(tmp_path / "journal.db")[0]
    full = shutil.disk_usage(tmp_path)._replace(free=50 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert "50 MiB free, expected 100 or more" in journal_faults(tmp_path / "journal.db")[0]


def test_a_parent_that_is_closed_to_us_is_a_fault_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if "secret/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    (tmp_path / "secret").mkdir()
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in journal_faults(tmp_path / "secret" / "journal.db")[0]


def test_the_camera_that_was_opened_is_closed(config: Path) -> None:
    closed: list[bool] = []

    class Watched(FolderCamera):
        def close(self) -> None:
            closed.append(True)

    check_station(load_recipes(config), lambda _: Watched(config.parent / "parts", FakeClock()))
    assert closed == [True]


def test_each_way_in_which_recipes_set_the_camera_is_tried_and_the_first_is_left(tmp_path: Path) -> None:
    path = write_recipes(tmp_path, greys={"gasket": 128, "bolt": 60, "nut": 60})
    replace(path, "{kind: replay, path: parts}", "{kind: camera, device: 0, exposure_us: 100}")
    replace(path, "calibration: bolt.json", "calibration: bolt.json, source: {exposure_us: 200}")
    opened: list[float | None] = []

    def open_camera(config: StationConfig) -> Camera:
        assert isinstance(config.source, LiveSource)
        opened.append(config.source.exposure_us)
        if config.source.exposure_us == 200:
            raise StationError("exposure_us is 190 after 200 was set")
        return FolderCamera(tmp_path / "parts", FakeClock())

    checks = {check.name: check.faults for check in check_station(load_recipes(path), open_camera)}
    assert opened == [200, 100]
    assert checks["gasket: source"] == ()
    assert checks["bolt: source"] == ("exposure_us is 190 after 200 was set",)


def test_a_deadline_that_no_verdict_can_meet_is_a_fault(config: Path) -> None:
    text = config.read_text()
    config.write_text("".join(line for line in text.splitlines(True) if "deadline_ms" not in line) + "deadline_ms: 0.000001\n")
    (fault,) = looked_at(config)["speed"].faults
    assert "deadline 1e-06 ms: every part would be a FAULT" in fault


def test_a_calibration_of_another_precision_is_a_fault(config: Path) -> None:
    root = config.parent
    variant = Variant(precision="fp16", images=2, max_difference=0.0, flips=0, offered=True)
    write_tiny_bundle(root / "bundle", variants=(variant,), graphs={"fp16": feature_graph(convolution=True)})
    recalibrate(root, bundle_digest=load_bundle(root / "bundle").digest)
    assert not looked_at(config)["calibration fits"].faults
    replace(config, "threads: 1", "threads: 1\nprecision: fp16")
    faults = looked_at(config)["calibration fits"].faults
    assert faults[0] == "calibration is for precision fp32, loaded is fp16; calibrate this station again"
    assert "calibration is for engine" in faults[1]
    assert start(config) == 2
    assert replay(config) == 0
    assert replay(config, "--precision", "fp16") == 2
    replace(config, "precision: fp16", "precision: int8")
    assert "no int8, it has fp32, fp16" in looked_at(config)["bundle"].faults[0]


def test_a_journal_that_there_is_already_is_opened_and_not_touched(config: Path) -> None:
    assert start(config) == 0
    path = config.parent / "journal.db"
    before = {file: file.read_bytes() for file in config.parent.glob("journal.db*")}
    check = looked_at(config)["journal"]
    assert (check.faults, check.found.rpartition(", ")[2]) == ((), "10 rows")
    assert {file: file.read_bytes() for file in config.parent.glob("journal.db*")} == before
    path.write_text('{"part": 1}\n')
    assert "a journal of JSON lines" in looked_at(config)["journal"].faults[0]
    path.write_bytes(b"")
    assert looked_at(config)["journal"].faults == ()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")
        connection.execute("CREATE TABLE other (name)")
    assert "a database of another program" in looked_at(config)["journal"].faults[0]


def test_evidence_needs_room_for_its_quota_less_what_it_holds(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(config.read_text() + "evidence:\n  quota_mb: 1048.576\n")  # 1000 MiB
    assert looked_at(config)["evidence"].faults == ()
    held = config.parent / "evidence" / "run" / "00000001-PASS.png"
    held.parent.mkdir(parents=True)
    held.write_bytes(bytes(600 * 2**20 // 1024))
    usage = shutil.disk_usage(config.parent)._replace(free=1100 * 2**20 - 2**19)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert looked_at(config)["evidence"].faults == ()  # 0.6 MiB are there already
    held.unlink()
    (fault,) = looked_at(config)["evidence"].faults
    assert fault.endswith("1099 MiB free, expected 1100 or more; free some space")


def test_evidence_that_could_not_be_written_is_a_fault(config: Path) -> None:
    config.write_text(config.read_text() + "evidence: {folder: line-1.json}\n")
    assert "a file, expected a folder to write the evidence in" in looked_at(config)["evidence"].faults[0]
