"""A process that is killed while it writes the journal."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import crashes as door
from benchmarks.crashes import Crash, Kill, crash, kill
from benchmarks.journal import main as time_journal
from benchmarks.writers import WRITERS


def test_a_writer_killed_at_random_points_leaves_a_journal_that_starts_again(tmp_path: Path) -> None:
    draw = random.Random(1)
    delays_s = [draw.uniform(0, 0.02) for _ in range(5)] + [draw.uniform(0, 0.15) for _ in range(10)]
    crashes = [crash(tmp_path / "journal.db", f"run-{number}", delay_s) for number, delay_s in enumerate(delays_s)]
    assert [found.wrong for found in crashes if found.wrong is not None] == []
    assert sum(found.acted for found in crashes) > 0


def test_a_changeover_killed_at_random_points_leaves_the_old_choice_or_the_new_one(tmp_path: Path) -> None:
    draw = random.Random(11)
    kills: list[Kill] = []
    while len(kills) < 5 or sum(found.acked for found in kills) < 5:
        (tmp_path / f"{len(kills)}").mkdir()
        kills.append(kill("recipe", tmp_path / f"{len(kills)}", draw.uniform(0, 0.15)))
        assert kills[-1].wrong is None


def test_a_writer_that_ends_by_itself_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "bundles").write_text("in the way of the folder")
    found = kill("bundle", tmp_path, 100.0)
    assert (found.begun, found.acked, found.wrong) == (0, 0, "the writer ended by itself, with 1")


def test_the_benchmark_ends_with_1_where_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main(["--points", "1", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [found["wrong"] for found in figures["journal"]] == [None]
    assert [(found["writer"], found["wrong"]) for found in figures["writers"]] == [(name, None) for name in WRITERS]
    monkeypatch.setattr(door, "crash", lambda path, run, delay_s: Crash(3, 2, 1, 0, "a part without a row"))
    assert door.main(["--points", "1"]) == 1
    assert "WRONG  a part without a row" in capsys.readouterr().out


def test_the_times_of_rows(tmp_path: Path) -> None:
    assert time_journal(["--quick", "--folder", str(tmp_path), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["parts_per_s"] > 0
    assert all(len(times) == 500 for times in figures["ms"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
