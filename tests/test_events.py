"""What happened at a station, in words: who did what, and how each run was configured."""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.__main__ import main
from edge.chain import EVENT, GENESIS, Head, canonical, create, follow
from edge.events import choose_events, read_events
from tests.fakes import tiny_calibration, write_recipes, write_station

STARTED = {"station": "line-1", "version": "9", "calibration": tiny_calibration(1.25).model_dump()}
CHOSEN = {
    "recipe": "bolt",
    "bundle_digest": "b" * 64,
    "calibration_digest": "c" * 64,
    "who": "Ada",
    "why": "order 7",
    "when": "W",
}


def journal_of(path: Path, *events: tuple[str, str, Mapping[str, object]]) -> Path:
    """A journal with events of run `r`, each recorded on a day of May 2024."""
    head = Head(0, GENESIS)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        create(connection)
        for day, name, details in events:
            recorded = f"2024-05-{day}T10:00:00.000+00:00"
            row = follow(head, EVENT, canonical({"run": "r", "recorded": recorded, "event": name, "details": details}))
            connection.execute("INSERT INTO chain VALUES (?, ?, ?, ?)", (row.number, row.kind, row.body, row.hash))
            head = row.head
    return path


def asked(path: Path, *more: str) -> int:
    return main(["events", "--journal", str(path), *more])


@pytest.mark.parametrize(
    ("name", "details", "who", "what"),
    [
        (
            "started",
            {**STARTED, "chosen": CHOSEN},
            "Ada",
            f"bolt (bundle {'b' * 12}, calibration {'c' * 12}), chosen W: order 7;"
            " threshold 1.25, conformal from 99 parts, 2024-01-01T00:00:00+00:00; station line-1, program 9",
        ),
        (
            "started",
            {**STARTED, "calibration": {**STARTED["calibration"], "method": "manual", "why": "lamp"}},  # type: ignore[dict-item]
            "",
            f"bundle {'b' * 12}; threshold 1.25, SET BY HAND by test, 2024-01-01T00:00:00+00:00: lamp;"
            " station line-1, program 9",
        ),
        ("stopped", {"parts": 3, "reason": "SIGTERM", "intake": {}}, "", "SIGTERM; 3 parts"),
        (
            "stopped",
            {"parts": 3, "reason": "SIGTERM", "intake": {"triggered": 3}, "rejector": {"passed": 2, "late": 1}},
            "",
            "SIGTERM; 3 parts; intake: triggered 3; rejector: late 1, passed 2",
        ),
        (
            "recipe-chosen",
            {"recipe": "bolt", "bundle": "b" * 64, "calibration": "c" * 64, "who": "Ada", "why": "rolled back: scratches"},
            "Ada",
            f"bolt (bundle {'b' * 12}, calibration {'c' * 12}) from the next start on: rolled back: scratches",
        ),
        ("drift-reset", {"who": "Ada", "why": "lens", "alarm": "", "calibration": "c"}, "Ada", "lens; what stood: nothing"),
        ("challenge", {"passed": False, "who": "Bo", "reason": "no folder"}, "Bo", "FAILED: no folder"),
        ("reloaded", {"changed": ["evidence", "bundle"]}, "", "changed: evidence, bundle"),
        ("gap", {"first": 3, "last": 5, "parts": 3, "reason": "disk full"}, "", "first 3; last 5; parts 3; reason disk full"),
        ("started", {"station": "line-1"}, "", "station line-1"),  # as nobody writes it: shown as it stands
        ("from another version", {"who": "Ada", "n": [1, None]}, "Ada", "n [1, null]"),
    ],
)
def test_each_is_told_in_words(tmp_path: Path, name: str, details: dict[str, Any], who: str, what: str) -> None:
    ((event,), broken) = read_events(journal_of(tmp_path / "journal.db", ("01", name, details)))
    assert (event.row, event.run, event.recorded[:10], event.name) == (1, "r", "2024-05-01", name)
    assert (event.who, event.what, event.details) == (who, what, details)
    assert broken == ""


def test_the_door_shows_who_did_what_by_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_recipes(tmp_path)
    assert main(["run", "--config", str(config)]) == 0
    assert main(["recipe", "--config", str(config), "bolt", "--who", "Ada\nEve", "--why", "order 7"]) == 0
    assert main(["run", "--config", str(config)]) == 0
    capsys.readouterr()
    assert asked(tmp_path / "journal.db") == 0
    said = capsys.readouterr().out.splitlines()
    runs = [line.removeprefix("run ") for line in said if line.startswith("run ")]
    assert len(runs) == 3
    assert runs[1] == "recipe"
    (choice,) = [line for line in said if " recipe-chosen " in line]
    assert r"  Ada\nEve " in choice
    assert " UTC  recipe-chosen " in choice
    assert ": order 7  (row " in choice
    started = [line for line in said if "  started  " in line]
    assert ["gasket (bundle" in line for line in started] == [True, False]
    assert ["bolt (bundle" in line for line in started] == [False, True]
    assert said[-1] == f"{len(said) - 4} events of {len(said) - 4} in the journal"
    assert asked(tmp_path / "journal.db", "--run", runs[2], "--event", "started", "--event", "stopped") == 0
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[1:-1]] == ["started", "stopped"]
    assert asked(tmp_path / "journal.db", "--event", "drift-alarm") == 0
    assert capsys.readouterr().out.endswith(" in the journal, which are: recipe-chosen, started, state, stopped\n")


def test_from_a_day_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = journal_of(tmp_path / "journal.db", *((day, f"e{day}", {}) for day in ("01", "02", "03")))
    for since, left in (
        ("2024-05-02", ["e02", "e03"]),
        ("2024-05-02T10:00", ["e02", "e03"]),
        ("2024-05-02T10:00:01", ["e03"]),
        ("2024-05-02T12:00:00+02:00", ["e02", "e03"]),
    ):
        assert asked(path, "--since", since) == 0
        assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[1:-1]] == left
    with pytest.raises(SystemExit):
        asked(path, "--since", "yesterday")
    assert "yesterday, expected a day or time such as 2024-05-31" in capsys.readouterr().err


def test_an_event_whose_time_is_none_is_not_hidden(tmp_path: Path) -> None:
    found, _ = read_events(journal_of(tmp_path / "journal.db", ("99", "odd", {})))
    assert choose_events(found, since=datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)) == found


def test_events_after_a_bad_row_are_not_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = journal_of(tmp_path / "journal.db", *((day, f"e{day}", {}) for day in ("01", "02", "03")))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE chain SET body = replace(body, 'e02', 'e04') WHERE id = 2")
    assert asked(path) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in said[1:-2]] == ["e01"]
    assert said[-1].startswith(f"BROKEN  {path}: row 2: ")
    out = tmp_path / "events.csv"
    assert main(["export", "--journal", str(path), "--events", str(out)]) == 1
    with out.open(newline="") as file:
        assert [row["event"] for row in csv.DictReader(file)] == ["e01"]


def test_an_export_has_all_events_with_their_details(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_station(tmp_path)
    assert main(["run", "--config", str(config)]) == 0
    out = tmp_path / "out" / "events.csv"
    assert main(["export", "--journal", str(tmp_path / "journal.db"), "--events", str(out)]) == 0
    found, _ = read_events(tmp_path / "journal.db")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["event"], row["who"], row["what"]) for row in rows] == [
        (str(event.row), event.name, event.who, event.what) for event in found
    ]
    assert [json.loads(row["details"]) for row in rows] == [event.details for event in found]
    assert f"wrote {out}, {len(found)} rows" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["events.csv"]
