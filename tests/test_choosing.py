"""`edge recipe`: what it says, its exit codes, and what the next start judges by."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.__main__ import main
from edge.active import load_active
from edge.clock import SystemClock
from edge.config import load_recipes
from edge.journal import SqliteJournal
from tests.fakes import flat, journal_rows, write_pictures, write_recipes, write_tiny_recipe


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_recipes(tmp_path)


def recipe(config: Path, *words: str) -> int:
    return main(["recipe", "--config", str(config), *words])


def chosen(config: Path) -> str | None:
    active = load_active(next(iter(load_recipes(config).values())).active)
    return None if active is None else active.chosen.recipe


def test_a_recipe_is_chosen_for_the_next_start(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe(config, "bolt", "--who", "Ada", "--why", "order 7") == 0
    assert "bolt (bundle " in (said := capsys.readouterr().out)
    assert "is judged by from the next start on" in said
    assert chosen(config) == "bolt"
    (event,) = [row for row in journal_rows(config.parent / "journal.db") if row.get("event") == "recipe-chosen"]
    assert (event["details"]["recipe"], event["details"]["who"], event["details"]["why"]) == ("bolt", "Ada", "order 7")
    assert main(["audit", "--journal", str(config.parent / "journal.db")]) == 0
    assert "run recipe: 0 PASS, 0 REJECT, 0 FAULT; no station ran, recipes were chosen" in capsys.readouterr().out
    assert main(["run", "--config", str(config)]) == 0
    assert {row["recipe"] for row in journal_rows(config.parent / "journal.db") if "part" in row} == {"bolt"}


@pytest.mark.parametrize("spoil", ["unknown", "calibration", "golden"])
def test_what_is_refused_ends_with_1_and_what_was_chosen_stays(
    config: Path, capsys: pytest.CaptureFixture[str], spoil: str
) -> None:
    assert recipe(config, "gasket") == 0
    if spoil == "calibration":
        (config.parent / "bolt.json").unlink()
    elif spoil == "golden":
        write_tiny_recipe(config.parent, "bolt", 60, golden_off=True)
    name = "nut" if spoil == "unknown" else "bolt"
    assert recipe(config, name) == 1
    said = capsys.readouterr().err
    assert f"recipe {name} is refused: " in said
    assert "Traceback" not in said
    assert chosen(config) == "gasket"


def test_a_rollback_goes_back_and_forth(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe(config, "--rollback") == 1
    assert "nothing to roll back to" in capsys.readouterr().err
    assert recipe(config, "gasket") == 0
    assert recipe(config, "bolt") == 0
    assert recipe(config, "--rollback") == 0
    assert chosen(config) == "gasket"
    assert recipe(config, "--rollback") == 0
    assert chosen(config) == "bolt"
    write_tiny_recipe(config.parent, "gasket", 129)  # not what it was
    assert recipe(config, "--rollback") == 1
    assert "bundles/gasket: another one (" in capsys.readouterr().err
    assert chosen(config) == "bolt"


@pytest.mark.parametrize("words", [[], ["bolt", "--rollback"]])
def test_one_of_name_and_rollback(config: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert recipe(config, *words) == 2
    assert "expected the name of a recipe or --rollback" in capsys.readouterr().err


def test_behind_the_back_of_a_station_that_runs_nothing_is_chosen(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = SqliteJournal(config.parent / "journal.db", "run", SystemClock())
    try:
        assert recipe(config, "bolt") == 2
    finally:
        journal.close()
    assert "the station runs, and cannot be asked: it has no section 'control'; add one" in capsys.readouterr().err
    config.write_text(config.read_text() + "control: {address: 'unix:control.sock'}\n")
    journal = SqliteJournal(config.parent / "journal.db", "run", SystemClock())
    try:
        assert recipe(config, "bolt") == 2
    finally:
        journal.close()
    assert "its section 'control' does not answer" in capsys.readouterr().err
    assert chosen(config) is None


class Running:
    """A station in a process of its own, over more parts than the test lasts."""

    def __init__(self, config: Path) -> None:
        write_pictures(config.parent / "parts", [flat(120 + number % 16) for number in range(300)])
        text = config.read_text().replace("path: parts}", "path: parts, fps: 20}")
        config.write_text(text + "control: {address: 'unix:control.sock'}\n")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge", "run", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("part     2"):
                break

    def end(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return "".join(self.process.communicate(timeout=60))


def test_a_station_that_runs_is_asked_and_does_it_between_two_parts(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = Running(config)
    try:
        assert recipe(config, "bolt", "--who", "Ada", "--why", "order 7") == 0
        said = capsys.readouterr().out
        assert said.startswith("bolt (bundle ")
        assert " in place of gasket (bundle " in said
        assert chosen(config) == "bolt"
        assert recipe(config, "nut") == 1
        assert "recipe nut is refused: expected one of: gasket, bolt; bolt (bundle " in capsys.readouterr().err
        assert recipe(config, "--rollback") == 0
        assert chosen(config) == "gasket"
    finally:
        said = running.end()
    assert "Traceback" not in said
    rows = journal_rows(config.parent / "journal.db")
    changes = [row["details"]["after"] for row in rows if row.get("event") == "recipe"]
    assert (changes[0]["recipe"], changes[0]["who"]) == ("bolt", "Ada")
    assert [change["recipe"] for change in changes] == ["bolt", "gasket"]
    in_force = "gasket"
    for row in rows:
        if row.get("event") == "recipe":
            in_force = row["details"]["after"]["recipe"]
        elif "part" in row:
            assert row["recipe"] == in_force


def test_a_damaged_choice_is_replaced_by_a_new_one(config: Path) -> None:
    path = next(iter(load_recipes(config).values())).active
    path.write_text("{")
    assert main(["run", "--config", str(config)]) == 2
    assert recipe(config, "--rollback") == 1
    assert recipe(config, "bolt") == 0
    assert main(["run", "--config", str(config)]) == 0
