"""How many bank rows a time allows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import train.budget
import train.select
from engines.bench import SearchTime
from engines.bundle import load_bundle
from tests.test_fit import Talk, draw, settings_for
from train import TrainError
from train.budget import read_times, rows_within
from train.fit import fit

TIMES = (SearchTime(200, 2, 3), SearchTime(400, 3, 4), SearchTime(1000, 6, 8))


@pytest.mark.parametrize(
    ("budget_ms", "rows"),
    [
        (2, 200),
        (2.5, 300),
        (4.5, 700),
        (6, 1000),
        (9, 1600),  # 600 rows in 3 ms go on
        (1, 100),  # below the smallest, a search costs no less a row than there
    ],
)
def test_rows_lie_on_the_lines_between_what_was_timed(budget_ms: float, rows: int) -> None:
    assert rows_within(budget_ms, TIMES, 10_000) == rows
    assert rows_within(budget_ms, TIMES, 150) == min(rows, 150)


def test_a_time_that_falls_for_more_rows_is_noise() -> None:
    assert rows_within(3.5, (SearchTime(200, 3, 3), SearchTime(400, 2, 3), SearchTime(1000, 4, 5)), 9999) == 700


def test_more_rows_never_come_for_nothing() -> None:
    assert rows_within(8, (SearchTime(500, 4, 5), SearchTime(1000, 4, 5)), 9999) == 1000 + 4 * 1000


def test_a_budget_for_no_bank_is_refused() -> None:
    with pytest.raises(TrainError, match=r"0\.9 ms leaves 90 bank rows, expected 100 or more; 200 rows take 2 ms"):
        rows_within(0.9, TIMES, 10_000)


def test_a_product_of_few_patches_has_a_bank_of_all_of_them() -> None:
    assert rows_within(0.4, (SearchTime(32, 0.2, 0.2), SearchTime(64, 0.3, 0.3)), 64) == 64
    assert rows_within(9, (SearchTime(2, 1, 1),), 2) == 2


def write(path: Path, search: object) -> Path:
    path.write_text(json.dumps({"title": "a station", "patches": 64, "dim": 512, "search": search}))
    return path


def test_times_are_read_from_what_bench_writes(tmp_path: Path) -> None:
    rows = [{"rows": one.rows, "p50": one.p50, "p95": one.p95} for one in TIMES]
    found = read_times(write(tmp_path / "bench.json", rows))
    assert (found.patches, found.dim, found.search) == (64, 512, TIMES)


@pytest.mark.parametrize(
    "search",
    [
        None,
        [],
        [{"rows": 5, "p50": 1, "p95": 1}, {"rows": 5, "p50": 2, "p95": 2}],
        [{"rows": 5, "p50": 0, "p95": 1}, {"rows": 6, "p50": 2, "p95": 2}],
        [{"rows": "many", "p50": 1, "p95": 1}, {"rows": 6, "p50": 2, "p95": 2}],
    ],
)
def test_a_file_without_usable_times_is_refused(tmp_path: Path, search: object) -> None:
    path = write(tmp_path / "bench.json", search)
    with pytest.raises(TrainError, match=r"bench\.json: .*engines bench --json"):
        read_times(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("no JSON")
    for path in (tmp_path / "bench.json", tmp_path / "gone.json", tmp_path):
        with pytest.raises(TrainError, match="engines bench --json"):
            read_times(path)


def test_fit_takes_the_rows_that_the_station_s_times_allow(tmp_path: Path) -> None:
    data = draw(tmp_path / "flange", 6)
    times = write(tmp_path / "bench.json", [{"rows": 100, "p50": 1, "p95": 1}, {"rows": 200, "p50": 2, "p95": 2}])
    talk = Talk()
    fit(settings_for(data, budget_ms=1.5, timed_on=times, alpha=1.0), tmp_path / "bundle", talk.console)
    bundle = load_bundle(tmp_path / "bundle")
    assert len(bundle.bank.rows) == 150
    assert bundle.manifest.provenance.coreset == 150
    assert f"1.5 ms an image, as timed in {times}: 150 bank rows" in talk.said


def test_times_of_another_network_are_refused(tmp_path: Path) -> None:
    data = draw(tmp_path / "flange", 6)
    times = write(tmp_path / "bench.json", [{"rows": 100, "p50": 1, "p95": 1}])
    with pytest.raises(TrainError, match="times of 64 patches of 512 dimensions, this network gives 16 of 512"):
        fit(settings_for(data, size=(32, 32), budget_ms=1.5, timed_on=times), tmp_path / "bundle", Talk().console)


def test_fewer_rows_than_a_pilot_of_all_patches_cover_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(tmp_path / "flange", 6)
    monkeypatch.setattr(train.budget, "search_ms", lambda search, images: [len(search._search.rows) / 384] * len(images))
    fit(settings_for(data, budget_ms=0.4, alpha=1.0), tmp_path / "bundle", Talk().console)
    bank = load_bundle(tmp_path / "bundle").bank
    assert 140 < len(bank.rows) < 160
    assert len(set(bank.image.tolist())) == 6


def test_a_bank_that_takes_longer_than_the_budget_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(tmp_path / "flange", 6)
    monkeypatch.setattr(train.budget, "search_ms", lambda search, images: [0.1] * len(images))
    monkeypatch.setattr(train.select, "search_ms", lambda search, images: [3.0] * len(images))
    talk = Talk()
    fit(settings_for(data, budget_ms=2.0), tmp_path / "bundle", talk.console)
    assert "the search takes 3 ms, expected 2 or less; give --coreset fewer rows" in talk.warned


@pytest.mark.parametrize(("fastest_ms", "rows"), [(2.0, 192), (0.5, 384)])
def test_without_a_file_the_search_is_timed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fastest_ms: float, rows: int
) -> None:
    data = draw(tmp_path / "flange", 6)
    monkeypatch.setattr(train.budget, "_PILOT_ROWS", 192)
    # a search that takes `fastest_ms` in the whole pilot, and in proportion else
    monkeypatch.setattr(
        train.budget, "search_ms", lambda search, images: [fastest_ms * len(search._search.rows) / 192] * len(images)
    )
    talk = Talk()
    fit(settings_for(data, budget_ms=2.0, alpha=1.0), tmp_path / "bundle", talk.console)
    assert len(load_bundle(tmp_path / "bundle").bank.rows) == rows
    assert any(line.startswith("2 ms an image, here: ") for line in talk.said)


def test_times_without_a_budget_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="--budget-ms"):
        fit(settings_for(tmp_path, timed_on=tmp_path / "bench.json"), tmp_path / "bundle", Talk().console)
