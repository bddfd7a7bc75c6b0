"""What the coreset benchmark computes from selections, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from benchmarks import coreset
from engines import console
from engines.bank import k_centre


def test_covering_is_the_distance_to_the_nearest_row_taken() -> None:
    line = np.array([[0], [1], [5], [10], [13]], np.float32)
    assert coreset.covering(line, np.array([0, 3])) == pytest.approx((5, (0 + 1 + 5 + 0 + 3) / 5))


def test_a_selection_is_made_and_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(20_000, 200)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    run = coreset.select(coreset.THIS, tmp_path / "features.npy", 100, 3)
    assert run.rows.tolist() == k_centre(features, 100, np.random.default_rng(3)).tolist()
    assert run.seconds > 0
    assert 20_000 * 128 * 4 / 2**20 / 2 < run.peak_mib < 1000  # half the projection or more, in MiB


def test_the_table_compares_with_anomalib() -> None:
    def run(seconds: float, peak: float, radius: float, mean: float) -> dict[str, float]:
        return {"seconds": seconds, "peak_mib": peak, "radius": radius, "mean_distance": mean}

    theirs, ours = [run(6, 40, 2, 1), run(10, 50, 3, 2)], [run(2, 15, 2, 1), run(2, 15, 2, 1)]
    alone = ("this", "2.00", "15", "1.50", "2.000", "1.000")
    assert coreset.table({coreset.PEER: theirs, coreset.THIS: ours}, 10) == [
        ("anomalib", "8.00", "45", "4.50", "2.500", "1.500"),
        alone,
        ("ratio", "4.0", "3.0", "", "1.250", "1.500"),
    ]
    assert coreset.table({coreset.THIS: ours}, 10) == [alone]
    assert coreset.spans({coreset.PEER: theirs}) == {"anomalib": "2.000 to 3.000"}


def test_without_anomalib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert coreset.main(["--data", "nowhere"]) == console.BAD_INPUT
    assert "pip install anomalib" in capsys.readouterr().err
