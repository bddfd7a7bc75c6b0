"""The edge door: what it prints, its exit codes, and what it leaves behind however it ends."""

from __future__ import annotations

import json
import os
import signal
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
from calibration.record import load_calibration, save_calibration
from edge import StationError
from edge.rejector import DryRunRejector
from edge.verdict import Verdict
from engines.bundle import Golden, GoldenCheck, Input, Method, load_bundle, make_preprocessor, write_bundle
from engines.images import Image
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
    return journal_rows(root / "journal.db")


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
    assert (last["event"], last["details"]) == ("stopped", {"parts": 4, "reason": "end of the source"})
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

    monkeypatch.setattr(door, "_print_verdict", listen)
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
    real = door.InspectorThread.score

    def score(self: door.InspectorThread, image: Image, timeout_s: float) -> float:
        if image[0, 0, 0] == 138:
            assert not rejectors[0].rejecting
            raise KeyboardInterrupt
        return real(self, image, timeout_s)

    monkeypatch.setattr(door.InspectorThread, "score", score)
    assert replay(config.parent) == 130
    assert [rejector.rejecting for rejector in rejectors] == [True]
    assert rejectors[0].passed == 1


def test_a_camera_that_breaks_leaves_the_line_rejecting(
    config: Path, rejectors: list[DryRunRejector], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = door.FolderCamera.frames

    def frames(self: door.FolderCamera) -> Iterator[Any]:
        yield next(real(self))
        raise StationError("camera lost; check the cable")

    monkeypatch.setattr(door.FolderCamera, "frames", frames)
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
    monkeypatch.setattr(door.SqliteJournal, "close", closing("journal", OSError("disk gone")))
    monkeypatch.setattr(door.FolderCamera, "close", closing("camera", RuntimeError("camera gone")))
    monkeypatch.setattr(door.InspectorThread, "close", closing("scorer"))
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
    monkeypatch.setattr(door, "_print_statistics", lambda statistics, seconds: release.set())  # after the last part
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
