"""The drift benchmark: its fast arithmetic is the monitor's, and its door works on drawn scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import drift
from benchmarks.drift import main
from benchmarks.drift_changes import CHANGES
from benchmarks.drift_peers import siegmund
from benchmarks.drift_streams import alarms_of
from calibration.drift import Monitor


def test_streams_raise_the_alarms_of_a_monitor_at_the_same_parts() -> None:
    rng = np.random.default_rng(3)
    clean = rng.normal(100, 10, (80, 7))
    clean[:, 3:5] = 33.3  # grey images: all ties
    values = np.concatenate([clean, clean + np.array([0, -15, 0, 0, 0, 0, 0])])
    references, streams, expected = [], [], []
    for length in (60, 250):
        order = rng.permutation(80)
        reference, pool = clean[order[:40]], order[40:]
        stream = np.concatenate([rng.choice(pool, 30), rng.choice(pool, length - 30) + 80])
        monitor = Monitor(reference, warning_parts=200, alarm_parts=200)
        places = []
        for at, row in enumerate(values[stream]):
            if monitor.observe(row[0], row[1:]) is not None:
                places.append(at)
                monitor.reset()
        references.append(reference)
        streams.append(stream)
        expected.append(places)
    assert sum(map(len, expected)) >= 2
    assert alarms_of(references, values, streams, 200) == expected


def test_the_cusum_limit_gives_the_run_length_ofsiegmund() -> None:
    # k 0.5, h 4: b = 5.166, (e^5.166 - 5.166 - 1) / 0.5 = 338.1; tables say 336 for one side
    assert siegmund(338.1, 0.5) == pytest.approx(4.0, abs=0.001)


def test_the_door_prints_its_tables_from_kept_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_STREAM", "_LATEST", "_BEFORE", "_STEP"):
        monkeypatch.setattr(drift, name, 100)
    rng = np.random.default_rng(1)
    clean = rng.normal(100, 3, (60, 7))
    scores = {name: clean - [0, 20, 0, 0, 0, 0, 0] for name in (*CHANGES, "light x 0.95", "light x 0.9", "light x 0.85")}
    np.savez(tmp_path / "scores.npz", clean=clean, **{"product other": clean + 50}, **scores)
    kept = ["--scores", str(tmp_path / "scores.npz"), "--json", str(tmp_path / "figures.json"), "--counts", "40"]
    argv = ["--bundle", "none", "--data", "none", *kept, "--parts", "500", "--splits", "2"]
    assert main(argv) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    dark = next(one for one in figures["delays"] if one["change"] == "light x 0.8" and one["method"] == "calibration.drift")
    assert dark["median"] < 30
    assert "light" in dark["said"]
    told = next(one for one in figures["told"] if one["change"] == "light x 0.8")
    # 20 grey levels are beyond all good parts: ranks of 1 / 2 in 61, which are the normal deviate -2.40
    assert (told["channel"], told["nats"]) == ("brightness", pytest.approx(2.40**2 / 2, abs=0.01))
    assert told["parts"] == pytest.approx(np.log(10_000) / told["nats"])
    assert figures["false"][0]["parts"] >= 400
    assert "without a change" in capsys.readouterr().out
