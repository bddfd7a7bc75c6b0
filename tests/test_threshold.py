"""Conformal thresholds, against numbers worked out by hand and against the bound that they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import CalibrationError
from calibration.threshold import check_enough, conformal_threshold, images_needed


def ranks(count: int) -> np.ndarray:
    """Scores 1, 2, ..., count, shuffled: the threshold is then the rank that was taken."""
    return np.random.default_rng(count).permutation(np.arange(1.0, count + 1))


@pytest.mark.parametrize(
    ("count", "rate", "rank"),
    [
        (99, 0.01, 99),  # ceil(100 * 0.99) = 99: the maximum
        (199, 0.01, 198),  # ceil(200 * 0.99) = 198: the second largest
        (100, 0.01, 100),  # ceil(101 * 0.99 = 99.99): no way round the maximum yet
        (198, 0.01, 198),  # ceil(199 * 0.99 = 197.01)
        (4, 0.2, 4),  # 5 * 0.8 = 4
        (9, 0.2, 8),  # 10 * 0.8 = 8
        (1, 0.5, 1),  # 2 * 0.5 = 1
        (3, 0.5, 2),  # 4 * 0.5 = 2: the median
        (99, 0.29, 71),  # 100 * 0.71 = 71, which float rounding may put above 71
        (99, 0.07, 93),  # 100 * 0.93 = 93.00000000000001 in float64
        (9, 0.9, 1),  # 10 * 0.1 = 1, which float64 makes 0.9999999999999998
        (99, 0.99, 1),
        (999_999, 0.000001, 999_999),
    ],
)
def test_the_threshold_is_the_order_statistic_worked_out_by_hand(count: int, rate: float, rank: int) -> None:
    assert conformal_threshold(ranks(count), rate) == rank


@given(st.integers(1, 5000), st.integers(1, 999))
def test_whole_numbers_are_not_pushed_over_by_rounding(count: int, thousandths: int) -> None:
    rate = thousandths / 1000
    exact = -((count + 1) * (thousandths - 1000) // 1000)  # ceil((count + 1)(1 - rate)) in integers
    if exact <= count:
        assert conformal_threshold(np.arange(1.0, count + 1), rate) == exact
    else:
        with pytest.raises(CalibrationError, match="expected at least"):
            conformal_threshold(np.arange(1.0, count + 1), rate)


@given(st.integers(1, 10_000))
def test_images_needed_is_the_fewest_for_which_the_rank_exists(thousandth_percent: int) -> None:
    rate = thousandth_percent / 100_000
    needed = images_needed(rate)
    fits = [-((n + 1) * (thousandth_percent - 100_000) // 100_000) <= n for n in (needed - 1, needed)]
    assert fits == [False, True]


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.001, 999), (0.5, 1), (0.2, 4), (0.3, 3), (0.9, 1)])
def test_images_needed_by_hand(rate: float, needed: int) -> None:
    assert images_needed(rate) == needed


def test_a_rate_no_camera_lives_to_see_is_refused_in_one_line() -> None:
    with pytest.raises(CalibrationError, match="expected at least"):
        check_enough(50, 1e-320)


@pytest.mark.parametrize(("count", "rate"), [(99, 0.01), (150, 0.01), (19, 0.05), (40, 0.1), (7, 0.3)])
def test_a_further_good_part_is_rejected_no_more_often_than_promised(count: int, rate: float) -> None:
    # n + 1 exchangeable scores without ties: the last is above the threshold with probability floor((n + 1) rate) / (n + 1)
    trials = 20_000
    scores = np.random.default_rng(7).standard_cauchy((trials, count + 1))
    rejected = np.mean([row[-1] > conformal_threshold(row[:-1], rate) for row in scores])
    exact = math.floor((count + 1) * rate + 1e-9) / (count + 1)
    assert exact <= rate
    assert rejected == pytest.approx(exact, abs=4 * math.sqrt(rate / trials))


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60),
    st.sampled_from([0.05, 0.1, 0.2, 0.25, 0.5, 0.8]),
)
def test_whichever_of_them_comes_last_the_share_rejected_is_within_the_rate(scores: list[float], rate: float) -> None:
    # the bound is exact combinatorics over who is left out, ties or not
    if len(scores) - 1 < images_needed(rate):
        return
    everyone = np.array(scores)
    above = [everyone[i] > conformal_threshold(np.delete(everyone, i), rate) for i in range(len(everyone))]
    assert np.mean(above) <= rate + 1e-12


def test_ties_and_negative_scores_are_ordinary() -> None:
    assert conformal_threshold(np.full(99, -3.5), 0.01) == -3.5


def test_the_scores_are_left_as_they_were() -> None:
    scores = ranks(9)
    before = scores.copy()
    conformal_threshold(scores, 0.2)
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, math.nan, math.inf, -math.inf])
def test_rates_that_are_no_rates_are_refused(rate: float) -> None:
    with pytest.raises(CalibrationError, match=r"expected above 0 and below 1, such as 0\.01"):
        conformal_threshold(ranks(500), rate)


def test_too_few_says_how_many_are_needed() -> None:
    with pytest.raises(CalibrationError, match=r"98 good images, expected at least 99 for a false-reject rate of 0\.01"):
        conformal_threshold(ranks(98), 0.01)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 58, 98, 1000])
def test_the_rate_that_the_refusal_advises_is_accepted(count: int) -> None:
    with pytest.raises(CalibrationError) as refusal:
        check_enough(count, 1e-6)
    advised = float(str(refusal.value).rsplit("allow a rate of ", 1)[1].split()[0])
    check_enough(count, advised)


def test_without_any_image_no_rate_is_advised() -> None:
    with pytest.raises(CalibrationError, match=r"^0 good images, expected at least 99 [^;]*; add images$"):
        check_enough(0, 0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_score_that_is_not_finite_is_refused(bad: float) -> None:
    scores = ranks(99)
    scores[50] = bad
    with pytest.raises(CalibrationError, match="not all finite"):
        conformal_threshold(scores, 0.01)


def test_a_table_of_scores_is_refused() -> None:
    with pytest.raises(CalibrationError):
        conformal_threshold(np.ones((99, 2)), 0.01)
