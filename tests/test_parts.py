"""The part as the unit: weights, quantiles, and the bound that holds however many pictures there are of a part."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import CalibrationError
from calibration.parts import parts_of
from calibration.threshold import conformal, conformal_threshold, sigma_threshold


def test_a_part_weighs_one_shared_by_its_pictures() -> None:
    parts = parts_of([1.0, 2.0, 3.0, 4.0], ["a", "b", "b", "b"])
    assert parts.count == 2
    assert parts.above(0.5) == pytest.approx(2)
    assert parts.above(1.0) == pytest.approx(1)
    assert parts.above(2.0) == pytest.approx(2 / 3)
    assert parts.above(4.0) == 0
    assert parts.quantile(0.5) == 1.0
    assert parts.quantile(0.6) == 2.0
    assert parts.quantile(1.0) == 4.0


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.sampled_from("abcdef")), min_size=1, max_size=40), st.randoms())
def test_neither_the_order_nor_the_names_of_parts_matter(rows: list[tuple[float, str]], random: object) -> None:
    one = parts_of([score for score, _ in rows], [name for _, name in rows])
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    other = parts_of([score for score, _ in mixed], [f"part {name}" for _, name in mixed])
    assert one.count == other.count == len({name for _, name in rows})
    np.testing.assert_allclose(one.scores, other.scores)
    for share in (0.1, 0.5, 0.9, 1.0):
        assert one.quantile(share) == other.quantile(share)


@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=60), st.sampled_from([0.2, 0.25, 0.5]))
def test_with_one_picture_a_part_it_is_the_usual_threshold(scores: list[float], rate: float) -> None:
    alone = conformal(parts_of(scores, list(range(len(scores)))), rate)
    assert alone == conformal_threshold(np.array(scores), rate)


@pytest.mark.parametrize(("rate", "groups"), [(0.1, 30), (0.05, 25), (0.2, 12)])
def test_a_picture_of_a_further_part_is_rejected_no_more_often_than_promised(rate: float, groups: int) -> None:
    # parts differ much, their pictures little, and odd parts were photographed more often
    random = np.random.default_rng(5)
    rejected, trials = [], 2000
    for _ in range(trials):
        level = random.gamma(2, 1, groups + 1)
        pictures = 1 + (level > 3) * random.integers(1, 8, groups + 1)
        scores = np.repeat(level, pictures) + random.normal(0, 0.05, pictures.sum())
        part = np.repeat(np.arange(groups + 1), pictures)
        seen = part < groups
        rejected.append((scores[~seen] > conformal(parts_of(scores[seen], part[seen].tolist()), rate)).mean())
    assert np.mean(rejected) <= rate + 3 * math.sqrt(rate / trials)
    assert np.mean(rejected) >= rate / 3


def test_a_burst_taken_for_parts_breaks_the_promise_and_taken_for_one_part_is_told_so() -> None:
    random = np.random.default_rng(6)
    as_pictures, as_parts = [], []
    for _ in range(1000):
        scores, groups = np.repeat(random.random(20), 5), np.repeat(np.arange(20), 5).tolist()
        as_pictures.append(1 - conformal(parts_of(scores), 0.02))  # of uniform scores, the share above
        as_parts.append(1 - conformal(parts_of(scores, groups), 0.05))
    # 2 % of 100 pictures leaves the highest of 20 parts: 1 / 21
    assert np.mean(as_pictures) == pytest.approx(1 / 21, rel=0.1)
    assert np.mean(as_parts) == pytest.approx(1 / 21, rel=0.1)
    with pytest.raises(CalibrationError, match="20 good parts"):
        conformal(parts_of(scores, groups), 0.02)


def test_twenty_frames_of_five_parts_are_five_parts() -> None:
    scores, groups = np.arange(100.0), [number % 5 for number in range(100)]
    with pytest.raises(CalibrationError, match=r"5 good parts \(on 100 images\), expected at least 19 for .* 0\.05"):
        conformal(parts_of(scores, groups), 0.05)
    assert conformal(parts_of(scores), 0.05) == 95.0  # what pictures for parts would have promised


def test_one_score_a_part_stands_for_it_and_it_is_the_same_in_every_run() -> None:
    scores, groups = np.random.default_rng(1).random(60), [number // 3 for number in range(60)]
    drawn = parts_of(scores, groups).representatives()
    assert len(drawn) == 20
    assert set(drawn.tolist()) <= set(scores.tolist())
    np.testing.assert_array_equal(drawn, parts_of(scores[::-1], groups[::-1]).representatives())


def test_the_spread_is_the_scaled_median_deviation() -> None:
    assert parts_of([1.0, 2.0, 3.0, 4.0, 100.0]).spread == pytest.approx(1.4826)
    # five pictures of a far part weigh as one
    assert parts_of([1.0, 2.0, 3.0, 4.0, *[100.0] * 5], [1, 2, 3, 4, *[5] * 5]).spread == pytest.approx(1.4826)


def test_median_and_sigma_by_hand() -> None:
    # median 3, spread 1.4826, and 2.3263 standard deviations hold 99 %
    assert sigma_threshold(parts_of([1.0, 2.0, 3.0, 4.0, 100.0]), 0.01) == pytest.approx(3 + 2.32635 * 1.4826, rel=1e-5)
    with pytest.raises(CalibrationError, match="same score"):
        sigma_threshold(parts_of([1.0, 1.0, 1.0, 2.0]), 0.01)


def test_what_are_no_scores_is_refused() -> None:
    with pytest.raises(CalibrationError, match="no scores"):
        parts_of([])
    with pytest.raises(CalibrationError, match="not all finite"):
        parts_of([1.0, math.nan])
    with pytest.raises(CalibrationError, match="1 groups for 2 scores"):
        parts_of([1.0, 2.0], ["a"])
