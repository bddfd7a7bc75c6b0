"""A whole station that watches itself: drift and a failed challenge leave it not ready, and the journal says why."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest

import edge.run as assembly
from calibration.record import Calibration, load_calibration, save_calibration
from calibration.reference import Reference, make_reference
from edge.__main__ import main
from edge.changeover import Changeover
from edge.clock import SystemClock
from edge.config import load_recipes
from edge.events import read_events
from edge.rejector import DryRunRejector
from edge.station import Condition
from edge.verdict import Verdict
from edge.watchers import Watchers
from tests.fakes import (
    cells,
    flat,
    journal_rows,
    textured,
    tiny_calibration,
    write_pictures,
    write_recipes,
    write_tiny_bundle,
)
from tests.test_calibrate_door import part
from tests.test_drift_watch import CALIBRATION, reference, rows, verdict

PARTS = 40
SECTIONS = "drift: {}\nchallenge: {path: challenge}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A calibrated station that replays good parts, watches drift, and is challenged with two parts."""
    write_tiny_bundle(tmp_path / "bundle", rows=cells(128), golden=(flat(128), textured(1)), spread=0.02, threshold=None)
    write_pictures(tmp_path / "parts", [part(seed) for seed in range(PARTS)])
    write_pictures(tmp_path / "challenge/OK", [part(501)])
    write_pictures(tmp_path / "challenge/NG", [part(502, level=90)])
    config = tmp_path / "station.yaml"
    config.write_text(
        "station: line-1\nbundle: bundle\ncalibration: line-1.json\nthreads: 1\ndeadline_ms: 60000\njournal: journal.db\n"
        f"source: {{kind: replay, path: parts}}\n{SECTIONS}"
    )
    assert main(["calibrate", "--config", str(config), "--count", str(PARTS), "--false-reject", "0.05", "--yes"]) == 0
    return config


def run(config: Path) -> int:
    return assembly.run_station(load_recipes(config), lambda _: DryRunRejector(), service=config)


def outcomes(config: Path) -> list[str]:
    rows = [row for row in journal_rows(config.parent / "journal.db") if row["kind"] == "part"]
    return [row["outcome"] for row in rows if "outcome" in row]


def events(config: Path, name: str) -> list[dict[str, object]]:
    return [row["details"] for row in journal_rows(config.parent / "journal.db") if row.get("event") == name]


def defocused(config: Path, count: int = 60) -> None:
    blurred = [cv2.GaussianBlur(part(seed), (0, 0), 1.0) for seed in range(700, 700 + count)]
    write_pictures(config.parent / "parts", [*(part(seed) for seed in range(600, 610)), *blurred])


def test_a_station_that_did_not_change_judges_all(config: Path) -> None:
    assert run(config) == 0
    assert outcomes(config).count("FAULT") == 0
    (challenged,) = events(config, "challenge")
    assert (challenged["passed"], challenged["wrong"]) == (True, [])
    assert challenged["counts"] == "1 of 1 good parts passed, 1 of 1 bad ones were rejected, 0 faults"
    assert str(challenged["who"]).startswith("the start by ")
    assert events(config, "drift-alarm") == []


def test_a_station_out_of_focus_stops_passing_within_fifty_parts(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    defocused(config)
    assert run(config) == 1
    (alarm,) = events(config, "drift-alarm")
    assert alarm["kinds"] == ["focus"]
    words = {event.name: event.what for event in read_events(config.parent / "journal.db")[0]}
    assert words["drift-alarm"].startswith(f"part {alarm['part']}: focus drifted")
    assert words["drift-alarm"].endswith("(on_alarm: stop)")
    assert words["challenge"] == "passed: 1 of 1 good parts passed, 1 of 1 bad ones were rejected, 0 faults"
    assert alarm["calibration"] == load_calibration(config.parent / "line-1.json").digest
    at = int(str(alarm["part"]))
    assert 10 < at <= 60
    judged = outcomes(config)
    assert "FAULT" not in judged[:at]
    assert set(judged[at:]) == {"FAULT"}
    said = capsys.readouterr().err
    assert f"drift alarm at part {at}: focus drifted" in said
    assert "not ready, every part is rejected: drift: focus drifted" in said


def test_to_warn_alone_judges_on(config: Path) -> None:
    config.write_text(config.read_text().replace("drift: {}", "drift: {on_alarm: warn}"))
    defocused(config)
    assert run(config) == 0
    assert len(events(config, "drift-alarm")) == 1
    assert "FAULT" not in outcomes(config)


def test_rejects_in_a_row_stop_it_though_no_part_passes(config: Path) -> None:
    config.write_text(config.read_text().replace("drift: {}", "drift: {reject_run: 6}"))
    write_pictures(config.parent / "parts", [part(seed, level=90) for seed in range(PARTS)])
    assert run(config) == 1
    assert outcomes(config) == ["REJECT"] * 6 + ["FAULT"] * (PARTS - 6)


def test_watching_that_breaks_stops_the_station(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("calibration.drift.Monitor.observe", broken)
    assert run(config) == 1
    assert outcomes(config).count("PASS") == 1
    assert "drift cannot be watched (RuntimeError: broken)" in str(events(config, "drift-alarm")[0]["message"])


def test_a_picture_that_cannot_be_measured_does_not_pass(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("edge.worker.measure_resized", broken)
    assert run(config) == 1
    assert "PASS" not in outcomes(config)


def test_one_part_judged_wrongly_and_nothing_passes(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(config.parent / "challenge/NG", [part(502, level=90), part(503)])
    assert run(config) == 1
    assert set(outcomes(config)) == {"FAULT"}
    (challenged,) = events(config, "challenge")
    assert challenged["passed"] is False
    assert [wrong["name"] for wrong in challenged["wrong"]] == ["NG/2.png"]  # type: ignore[attr-defined]
    (told,) = [event for event in read_events(config.parent / "journal.db")[0] if event.name == "challenge"]
    assert told.what == f"FAILED: {challenged['counts']}; wrong: NG/2.png"
    assert told.who.startswith("the start by ")
    assert "challenge FAILED: 1 of 3 labelled parts judged wrongly: NG/2.png is NG and was a PASS" in capsys.readouterr().err
    assert main(["check", "--config", str(config)]) == 1
    assert "FAULT  challenge: " in capsys.readouterr().out


def test_a_picture_that_the_challenge_names_and_that_is_gone_keeps_the_station_from_passing(config: Path) -> None:
    (config.parent / "challenge/challenge.csv").write_text("image,label\nOK/1.png,OK\nNG/1.png,NG\nNG/gone.png,NG\n")
    assert run(config) == 1
    assert set(outcomes(config)) == {"FAULT"}
    (challenged,) = events(config, "challenge")
    (wrong,) = challenged["wrong"]  # type: ignore[misc]
    assert (wrong["name"], wrong["decision"]) == ("NG/gone.png", "FAULT")


def test_without_a_challenge_folder_nothing_passes(config: Path) -> None:
    for path in (config.parent / "challenge/OK").iterdir():
        path.unlink()
    assert run(config) == 1
    assert set(outcomes(config)) == {"FAULT"}


@pytest.mark.parametrize("keeps", ["missing", "of another calibration"])
def test_a_reference_that_does_not_hold_is_refused_at_the_start(
    config: Path, keeps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if keeps == "missing":
        (config.parent / "line-1.drift.json").unlink()
    else:
        record = load_calibration(config.parent / "line-1.json")
        save_calibration(config.parent / "line-1.json", record.model_copy(update={"threshold": record.threshold + 1}))
    assert main(["run", "--config", str(config)]) == 2
    assert main(["check", "--config", str(config)]) == 1
    caught = capsys.readouterr()
    words = "cannot be read" if keeps == "missing" else "drift reference is for calibration"
    assert words in caught.err
    assert "FAULT  drift: " in caught.out


def test_after_a_change_parts_are_watched_against_what_is_in_force_then(config: Path) -> None:
    conditions: list[Condition] = []
    station: Any = SimpleNamespace(require=conditions.append, note=lambda name, details: None)

    def loaded(reference: Reference, calibration: Calibration) -> Any:
        return SimpleNamespace(reference=reference, calibration=calibration)

    (wanted,) = load_recipes(config).values()
    alone = wanted.model_copy(update={"challenge": None})
    watchers = Watchers(alone, station, SystemClock(), later=station.note, say=print, complain=print)
    watchers.start(loaded(reference(), CALIBRATION), "Ada", lambda: None)
    other = tiny_calibration(9.0)
    soft = [(str(number), tuple(row)) for number, row in enumerate(rows(100, 1, sharpness=-12).tolist())]
    watchers.change(loaded(make_reference(other, soft, who="Ada"), other))
    (condition,) = conditions
    for row in rows(60, 2, sharpness=-12):
        watchers.tell(verdict(row))
    assert condition.fault() == ""
    for row in rows(60, 3):  # as it was before the change
        watchers.tell(verdict(row))
    assert "focus drifted" in condition.fault()


def test_a_recipe_is_challenged_before_it_may_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_recipes(tmp_path)
    write_pictures(tmp_path / "parts", [flat(130)] * 200)
    text = config.read_text()
    for name, good, bad in (("gasket", 130, 60), ("bolt", 62, 64)):  # bolt's bad part is one that it passes
        write_pictures(tmp_path / f"of-{name}/OK", [flat(good)])
        write_pictures(tmp_path / f"of-{name}/NG", [flat(bad)])
        text = text.replace(f"calibration: {name}.json", f"calibration: {name}.json, challenge: of-{name}")
    config.write_text(f"{text}challenge: {{every_hours: 8}}\n")
    held: list[Changeover] = []
    real, done = assembly._changing, threading.Event()

    def hold(*pieces: Any) -> Changeover:
        held.append(real(*pieces))
        return held[-1]

    def change() -> None:
        held[0].change("bolt", who="Ada", why="order 7")
        done.set()

    def told(verdict: Verdict) -> None:
        if verdict.part == 2:
            threading.Thread(target=change).start()
        elif verdict.part > 2:
            done.wait(0.01)  # the thread that changes is let on

    monkeypatch.setattr(assembly, "_changing", hold)
    monkeypatch.setattr(assembly, "_print_verdict", told)
    assert run(config) == 1
    assert done.is_set()
    first, second = events(config, "challenge")
    assert (first["passed"], first["threshold"]) == (True, load_calibration(tmp_path / "gasket.json").threshold)
    assert (second["passed"], second["threshold"]) == (False, load_calibration(tmp_path / "bolt.json").threshold)
    assert second["who"] == "the change to bolt"
    rows = [row for row in journal_rows(tmp_path / "journal.db") if row["kind"] == "part" and "outcome" in row]
    assert {row["outcome"] for row in rows if row["recipe"] == "gasket"} == {"PASS"}
    assert {row["outcome"] for row in rows if row["recipe"] == "bolt"} == {"FAULT"}  # not REJECT: none of them was judged
