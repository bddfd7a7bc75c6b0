"""A configuration that is read again: what may change is taken, and whatever is wrong is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from calibration.record import load_calibration, save_calibration
from edge import StationError
from edge.config import load_config, load_recipes
from edge.judge import Judge
from edge.recipes import Loaded
from edge.reload import Reload, read_reload
from edge.sections import StationConfig
from engines import InspectionError
from engines.bundle import bundle_digest
from tests.fakes import FakeClock, FakeScorer, write_recipes, write_station, write_tiny_bundle


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The configuration of a whole station."""
    return write_station(tmp_path)


@pytest.fixture
def started(path: Path) -> StationConfig:
    """What the station was started with."""
    return load_config(path)


@pytest.fixture
def in_force(started: StationConfig) -> Loaded:
    """The recipe that it judges by."""
    judge = Judge(started.recipe, FakeScorer(FakeClock(), []), load_calibration(started.calibration))
    return Loaded(started, bundle_digest(started.bundle), 0.1, judge)


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_a_file_that_did_not_change_changes_nothing(path: Path, in_force: Loaded) -> None:
    assert read_reload(path, in_force) == Reload({"bundle": in_force.config}, ())


def test_a_choice_that_names_its_files_in_full_is_the_same_as_the_file_beside_them(
    path: Path, in_force: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    full = {"bundle": in_force.config.bundle, "calibration": in_force.config.calibration}
    rolled_back = replace(in_force, config=load_config(Path(path.name)).model_copy(update=full))
    assert read_reload(Path(path.name), rolled_back).changed == ()


def test_what_may_change(path: Path, in_force: Loaded) -> None:
    after = "deadline_ms: 50000\njournal_heads: heads.txt\nevidence: {folder: pictures}\nrejector: {kind: dry-run, pulse_ms: 7}"
    change(path, "deadline_ms: 60000", after)
    fresh = read_reload(path, in_force)
    assert fresh.changed == ("deadline_ms", "rejector", "evidence", "journal_heads")
    config = fresh.recipes["bundle"]
    assert (config.deadline_ms, config.rejector.pulse_ms) == (50_000, 7)
    assert config.evidence is not None
    assert config.evidence.folder == path.parent / "pictures"


def test_other_files_at_the_same_place(path: Path, in_force: Loaded) -> None:
    better = in_force.calibration.model_copy(update={"threshold": in_force.calibration.threshold + 1})
    save_calibration(path.parent / "line-1.json", better)
    assert read_reload(path, in_force).changed == ("calibration",)
    write_tiny_bundle(path.parent / "bundle", threshold=3.0)
    assert read_reload(path, in_force).changed == ("bundle", "calibration")


def test_further_recipes_may_come_and_go_but_not_the_one_in_force(path: Path, tmp_path: Path) -> None:
    config = write_recipes(tmp_path / "more")
    bolt = load_recipes(config)["bolt"]
    judge = Judge("bolt", FakeScorer(FakeClock(), []), load_calibration(bolt.calibration))
    in_force = Loaded(bolt, bundle_digest(bolt.bundle), 0.1, judge)
    assert list(read_reload(config, in_force).recipes) == ["bolt", "gasket"]  # the one in force first
    change(config, "  gasket: {bundle: bundles/gasket, calibration: gasket.json}\n", "")
    change(config, "recipe: gasket", "recipe: bolt")
    assert list(read_reload(config, in_force).recipes) == ["bolt"]
    change(config, "recipe: bolt", "recipe: nut")
    change(config, "  bolt:", "  nut:")
    with pytest.raises(StationError, match="no recipe bolt, which is in force; change to another one first"):
        read_reload(config, in_force)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("threads: 1", "threads: 2", "'threads' cannot change while the station runs, only recipe, code, bundle, calibration"),
        ("station: line-1", "station: line-2", "'station' cannot change"),
        ("journal: journal.db", "journal: other.db", "'journal' cannot change"),
        ("path: parts", "path: bundle", "'source' cannot change"),
        ("threads: 1", "rejector: {kind: dry-run, heartbeat_ms: 77}", "'threads, rejector' cannot change"),
        ("threads: 1", "threads: 1\nrejector: {kind: dry-run, travel_ms: 7}", "the deadline of 60000 ms is after the part's"),
        ("deadline_ms: 60000", "deadline_ms: 0", "'deadline_ms' is 0"),
        ("bundle: bundle", "bundel: bundle", "unknown key 'bundel'"),
        ("calibration: line-1.json", "calibration: none.json", "none.json: cannot be read"),
        ("deadline_ms: 60000", "deadline_ms: 60000\njournal_heads: line-1.json/heads", "a file, expected a folder"),
        ("deadline_ms: 60000", "deadline_ms: 60000\nevidence:\n  folder: line-1.json", "a file, expected a folder"),
        ("deadline_ms: 60000", "deadline_ms: [", "not YAML"),
    ],
)
def test_what_is_refused_is_one_line(path: Path, in_force: Loaded, before: str, after: str, message: str) -> None:
    change(path, before, after)
    with pytest.raises(InspectionError) as refused:
        read_reload(path, in_force)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
