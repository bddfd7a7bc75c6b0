"""A configuration that is read again: what may change is taken, and whatever is wrong is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.record import Calibration, load_calibration, save_calibration
from edge.config import load_config
from edge.reload import Reload, read_reload
from edge.sections import StationConfig
from engines import InspectionError
from tests.fakes import write_station


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The configuration of a whole station."""
    return write_station(tmp_path)


@pytest.fixture
def started(path: Path) -> StationConfig:
    """What the station was started with."""
    return load_config(path)


@pytest.fixture
def calibration(path: Path) -> Calibration:
    """What it was started with."""
    return load_calibration(path.parent / "line-1.json")


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def read(path: Path, started: StationConfig, calibration: Calibration) -> Reload:
    return read_reload(path, started, started, calibration)


def test_a_file_that_did_not_change_changes_nothing(path: Path, started: StationConfig, calibration: Calibration) -> None:
    assert read(path, started, calibration) == Reload(started, calibration, ())


def test_what_may_change(path: Path, started: StationConfig, calibration: Calibration) -> None:
    change(path, "deadline_ms: 60000", "deadline_ms: 50000\njournal_heads: heads.txt\nevidence:\n  folder: pictures")
    fresh = read(path, started, calibration)
    assert fresh.changed == ("deadline_ms", "evidence", "journal_heads")
    assert fresh.config.deadline_ms == 50_000
    assert fresh.config.evidence is not None
    assert fresh.config.evidence.folder == path.parent / "pictures"


def test_a_new_threshold_in_the_same_file(path: Path, started: StationConfig, calibration: Calibration) -> None:
    better = calibration.model_copy(update={"threshold": calibration.threshold + 1})
    save_calibration(path.parent / "line-1.json", better)
    assert read(path, started, calibration) == Reload(started, better, ("calibration",))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("threads: 1", "threads: 2", "'threads' cannot change while the station runs, only calibration, deadline_ms, evidence"),
        ("station: line-1", "station: line-2", "'station' cannot change"),
        ("journal: journal.db", "journal: other.db", "'journal' cannot change"),
        ("path: parts", "path: bundle", "'source' cannot change"),
        ("deadline_ms: 60000", "deadline_ms: 60001", "deadline_ms is 60001, expected at most 60000, which the rejector was"),
        ("deadline_ms: 60000", "deadline_ms: 0", "'deadline_ms' is 0"),
        ("bundle: bundle", "bundel: bundle", "unknown key 'bundel'"),
        ("calibration: line-1.json", "calibration: none.json", "none.json: cannot be read"),
        ("deadline_ms: 60000", "deadline_ms: 60000\njournal_heads: line-1.json/heads", "a file, expected a folder"),
        ("deadline_ms: 60000", "deadline_ms: 60000\nevidence:\n  folder: line-1.json", "a file, expected a folder"),
        ("deadline_ms: 60000", "deadline_ms: [", "not YAML"),
    ],
)
def test_what_is_refused_is_one_line(
    path: Path, started: StationConfig, calibration: Calibration, before: str, after: str, message: str
) -> None:
    change(path, before, after)
    with pytest.raises(InspectionError) as refused:
        read(path, started, calibration)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["station", "camera", "recipe", "bundle_digest", "backend", "precision", "engine_digest"])
def test_a_calibration_for_anything_else_is_refused(
    path: Path, started: StationConfig, calibration: Calibration, field: str
) -> None:
    save_calibration(path.parent / "line-1.json", calibration.model_copy(update={field: "another"}))
    with pytest.raises(InspectionError, match="another"):
        read(path, started, calibration)


def test_a_deadline_may_go_back_to_where_it_started(path: Path, started: StationConfig, calibration: Calibration) -> None:
    running = started.model_copy(update={"deadline_ms": 100.0})
    assert read_reload(path, started, running, calibration).changed == ("deadline_ms",)
