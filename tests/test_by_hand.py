"""A threshold that a person set is marked wherever a threshold is shown or kept."""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
from pathlib import Path

import pytest

from calibration.__main__ import main as calibration_main
from calibration.record import load_calibration, show_threshold
from edge import __main__ as door
from edge.audit import audit
from edge.chain import GENESIS, JOURNAL, Head, canonical, create, follow, open_for_reading, walk
from edge.histogram import histogram
from edge.journal import SqliteJournal
from tests.fakes import FakeClock, journal_rows, write_station

WHY = "lamp <changed> [/]"


@pytest.fixture
def config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A station that ran once with its own threshold and once with one that a person set: PASS, PASS, REJECT, PASS twice."""
    config = write_station(tmp_path)
    threshold = load_calibration(tmp_path / "line-1.json").threshold
    assert door.main(["run", "--config", str(config)]) == 0
    assert by_hand(tmp_path, threshold) == 0
    assert door.main(["run", "--config", str(config)]) == 0
    capsys.readouterr()
    return config


def by_hand(folder: Path, threshold: float) -> int:
    where = ["--record", str(folder / "line-1.json")]
    return calibration_main(["set", *where, f"--threshold={threshold!r}", "--why", WHY])


def as_before(path: Path) -> None:
    """Rewrite a journal as versions wrote it whose rows did not say how the threshold came about."""
    with contextlib.closing(open_for_reading(path)) as connection:
        rows = [(row.kind, json.loads(row.body)) for row in walk(connection)]
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        create(connection)
        connection.execute("DROP VIEW parts")
        connection.execute(JOURNAL.former["parts"])
        head = Head(0, GENESIS)
        for kind, content in rows:
            content.pop("threshold_method", None)
            row = follow(head, kind, canonical(content))
            connection.execute("INSERT INTO chain VALUES (?, ?, ?, ?)", (row.number, row.kind, row.body, row.hash))
            head = row.head


def methods_in_view(path: Path) -> list[str | None]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [method for (method,) in connection.execute("SELECT threshold_method FROM parts ORDER BY id")]


def test_each_row_of_the_journal_says_it(config: Path) -> None:
    rows = [row["threshold_method"] for row in journal_rows(config.parent / "journal.db") if row["kind"] == "part"]
    assert rows == ["conformal"] * 4 + ["manual"] * 4
    assert methods_in_view(config.parent / "journal.db") == rows


@pytest.mark.parametrize("before", [False, True])
def test_an_audit_says_who_set_it_and_how_many_parts_it_decided(
    config: Path, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    path = config.parent / "journal.db"
    if before:
        as_before(path)
    assert door.main(["audit", "--journal", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "SET BY HAND" not in said[0]
    assert "4 by a threshold SET BY HAND" in said[1]
    (told,) = [line for line in said if line.startswith("by hand: row ")]
    assert "SET BY HAND by " in told
    assert told.endswith(WHY)


@pytest.mark.parametrize("before", [False, True])
def test_an_export_says_it_for_each_part(config: Path, before: bool) -> None:
    path, out = config.parent / "journal.db", config.parent / "parts.csv"
    if before:
        as_before(path)
    assert door.main(["export", "--journal", str(path), "--csv", str(out)]) == 0
    with out.open(newline="") as file:
        assert [row["threshold_method"] for row in csv.DictReader(file)] == ["conformal"] * 4 + ["manual"] * 4


def test_a_journal_of_before_goes_on_whole_and_its_view_says_it_from_then_on(config: Path) -> None:
    path = config.parent / "journal.db"
    as_before(path)
    rows = audit(path).rows
    assert door.main(["run", "--config", str(config)]) == 0
    report = audit(path)
    assert report.broken is None
    assert report.rows > rows
    assert methods_in_view(path) == [None] * 8 + ["manual"] * 4


def test_a_view_that_is_neither_of_now_nor_of_before_is_still_found(config: Path) -> None:
    path = config.parent / "journal.db"
    as_before(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP VIEW parts")
        connection.execute(JOURNAL.former["parts"] + " AND id > 3")
    assert audit(path).broken == "row 1: the tables around the chain were changed: parts"
    SqliteJournal(path, "r", FakeClock()).close()
    assert audit(path).broken == "row 1: the tables around the chain were changed: parts"


def test_a_list_of_parts_to_look_at_says_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["label", "--journal", str(config.parent / "journal.db"), "--list"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " the threshold" in line]
    assert sum(" the threshold SET BY HAND" in line for line in lines) == 4
    assert len(lines) == 8


def test_history_and_diff_and_export_say_it_of_the_threshold_before_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_station(tmp_path)
    for threshold in (2.0, 3.0):
        assert by_hand(tmp_path, threshold) == 0
    where = ["--record", str(tmp_path / "line-1.json")]
    capsys.readouterr()
    assert calibration_main(["history", *where]) == 0
    second = capsys.readouterr().out.splitlines()[1]
    assert "2 (MANUAL) -> 3, MANUAL" in second
    assert calibration_main(["diff", *where]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 SET BY HAND" in said
    assert "3 SET BY HAND" in said
    assert calibration_main(["export", *where, "--csv", str(tmp_path / "history.csv")]) == 0
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["old_method"], row["method"]) for row in rows] == [("", "manual"), ("manual", "manual")]


def test_what_has_little_room_has_the_mark_alone() -> None:
    assert show_threshold(1.25, "manual") == "1.25 SET BY HAND"
    assert show_threshold(1.25, "conformal") == "1.25"
    assert histogram([0.0, 1.0], 5.0, " SET BY HAND")[-1] == "threshold 5 SET BY HAND, above all scores"
    assert histogram([0.0, 1.0], 1.0, " SET BY HAND")[-1].endswith("<- threshold 1 SET BY HAND")
