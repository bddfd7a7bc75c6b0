"""The benchmarks of drawn scores and of groups measure what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import grouping, promises
from engines import console
from tests.fakes import textured, write_pictures


def test_rates_of_grouped_parts_are_those_of_a_further_picture() -> None:
    row = promises.measure_groups(40, 0.05, 0.1, 200)
    assert row["asked"] == 0.05
    assert 0.03 < float(str(row["really"])) < 0.06
    assert float(str(row["held"])) > 0.9


def test_tails_are_held_against_the_truth_and_refusals_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises, "_RATES", (0.05, 0.0001))
    near, far = promises.measure_tail("gamma", 100, 20)
    assert 0.03 < float(str(near["really"])) < 0.07
    assert float(str(near["refused"])) < 0.3
    assert (far["really"], far["held"], far["refused"]) == (None, None, 1)


def test_the_bound_of_a90_is_held_against_the_true_size() -> None:
    row = promises.measure_bound("log", 240, 0.0, 60)
    assert row["true"] == "16.4"  # exp((log 9 + 9) / 4)
    assert float(str(row["held"])) > 0.88
    assert 17 < float(str(row["median"])) < 24
    lucky = promises.measure_bound("log", 240, 1.0, 2)
    # the mean of logistic(l + u) over standard normal u is 0.9 at l = 2.55
    assert float(str(lucky["true"])) == pytest.approx(np.exp((2.55 + 9) / 4), abs=0.1)


def test_the_door_prints_all_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promises, "_COUNTS", (100,))
    assert promises.main(["--calibrations", "2", "--json", str(tmp_path / "p.json")]) == console.DONE
    said = capsys.readouterr().out
    assert "Pareto tail" in said
    assert "one to seven pictures" in said
    document = json.loads((tmp_path / "p.json").read_text())
    assert {row["scores"] for row in document["tails"]} == set(promises.DISTRIBUTIONS)
    assert len(document["grouped"]) == 5
    assert len(document["bounds"]) == 12
    assert "a90/95" in said


def test_groups_of_a_product(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [textured(seed) for seed in range(10)]
    again = np.clip(parts[3].astype(np.int16) + 3, 0, 255).astype(np.uint8)
    write_pictures(tmp_path / "set" / "train" / "good", [*parts, again])
    assert grouping.main(["--data", str(tmp_path), "--quick", "--json", str(tmp_path / "g.json")]) == console.DONE
    assert "pictures of the same part" in capsys.readouterr().out
    rows = json.loads((tmp_path / "g.json").read_text())
    assert [(row["rule"], row["images"], row["groups"], row["largest"]) for row in rows] == [
        ("the same part", 11, 10, 2),
        ("near-duplicate", 11, 10, 2),
    ]
