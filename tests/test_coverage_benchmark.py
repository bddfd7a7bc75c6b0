"""The coverage benchmark draws what it says, and its rates are those of what was left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.coverage import DRAWS, Pool, _score, another_frame, main, measure, thresholds
from calibration.parts import parts_of
from engines import console
from engines.bundle import load_bundle
from engines.inspector import Inspector
from tests.fakes import textured, write_pictures, write_tiny_bundle


@pytest.fixture
def pool() -> Pool:
    """Sixty parts of three pictures each, with scores from 0 to 1; a change adds 10."""
    random = np.random.default_rng(0)
    scores, part = np.repeat(random.random(60), 3), np.repeat(np.arange(60), 3)
    frames = np.repeat(scores[:, None], 5, axis=1)
    return Pool(scores, part, frames, {"gamma": scores + 10, "blur": scores})


@pytest.mark.parametrize("number", range(len(DRAWS)))
def test_what_is_judged_was_not_calibrated_on(pool: Pool, number: int) -> None:
    distinct = Pool(np.arange(180.0), pool.part, np.arange(900.0).reshape(180, 5), {})
    parts, judged = DRAWS[number](distinct, 50, np.random.default_rng(1))
    assert len(parts.scores) == 50
    (others,) = judged.values()
    assert not set(parts.scores.tolist()) & set(others.scores.tolist())
    if "tiles" in next(iter(judged)):
        assert not {score // 3 for score in parts.scores.tolist()} & {score // 3 for score in others.scores.tolist()}


def test_groups_count_where_they_are_to(pool: Pool) -> None:
    counts = [DRAWS[number](pool, 60, np.random.default_rng(1))[0].count for number in range(len(DRAWS))]
    assert counts == [60, 60, 20, 60, 12]


def test_rates_are_those_of_what_was_left_out(pool: Pool) -> None:
    rows = {(row["condition"], row["method"], row["rate"]): row for row in measure(pool, DRAWS[0], 100, 50)}
    assert rows["random", "conformal", 0.05]["refused"] == 0
    assert 0.01 < float(str(rows["random", "conformal", 0.05]["mean"])) < 0.1
    assert rows["gamma", "conformal", 0.05]["mean"] == 1.0  # all of it is above
    assert rows["blur", "conformal", 0.05]["mean"] == rows["random", "conformal", 0.05]["mean"]
    few = {(row["method"], row["rate"]): row for row in measure(pool, DRAWS[0], 20, 5) if row["condition"] == "random"}
    assert (few["conformal", 0.01]["refused"], few["conformal", 0.01]["mean"]) == (1, None)


def test_methods_that_refuse_give_no_threshold() -> None:
    parts = parts_of(np.random.default_rng(0).random(50))
    assert {(method, rate) for method, rate, _ in thresholds(parts)} == {
        ("conformal", 0.02),
        ("conformal", 0.05),
        ("sigma", 0.01),
        ("sigma", 0.02),
        ("sigma", 0.05),
    }


def test_the_pool_is_scored_as_it_is_in_bursts_and_changed(tmp_path: Path) -> None:
    pictures = [textured(seed) for seed in range(9)]
    paths = write_pictures(tmp_path / "set", [*pictures, another_frame(pictures[2], np.random.default_rng(3))])
    write_tiny_bundle(tmp_path / "bundle")
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as inspector:
        pool = _score(inspector, paths, tmp_path)
        assert pool.scores.tolist() == [inspector.score(picture).value for picture in pictures] + [pool.scores[-1]]
    assert pool.part.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 2]
    assert pool.frames.shape == (10, 5)
    assert (pool.frames != pool.scores[:, None]).all()
    assert set(pool.changed) == {"gamma", "blur"}


def test_the_door_prints_a_table_a_rate(
    pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "score_pool", lambda *_: pool)
    words = ["--data", str(tmp_path), "--splits", "2", "--pool", "180", "--json", str(tmp_path / "c.json")]
    assert main(words) == console.DONE
    said = capsys.readouterr().out
    assert said.count("realised false-reject rate") == 3
    assert "180 pictures of 60 parts, 2 splits" in said
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert {row["n"] for row in rows} == {20, 50, 100}
    assert {row["condition"] for row in rows} == {
        "random", "gamma", "blur", "tiles, by picture", "tiles, by part", "bursts, by picture", "bursts, by part",
    }  # fmt: skip


def test_too_few_images_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, [textured(1), textured(2)])
    assert main(["--data", str(tmp_path)]) == 2
    assert "2 good images in" in capsys.readouterr().err
