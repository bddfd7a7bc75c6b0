"""The Pareto tail: its fit against the truth, its test against what it must refuse, its rates against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calibration import CalibrationError
from calibration.tail import MIN_P, _anderson_darling, _fit, fit_tail


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.4])
def test_the_fit_finds_shape_and_scale(shape: float) -> None:
    samples = np.sort(stats.genpareto(shape, scale=2).rvs((400, 200), random_state=1), axis=1)
    shapes, scales = _fit(samples)
    assert shapes.mean() == pytest.approx(shape, abs=0.03)
    assert scales.mean() == pytest.approx(2, rel=0.03)
    # every fit has room for its data
    assert (1 + shapes * samples[:, -1] / scales > 0).all()


def test_in_large_samples_it_is_maximum_likelihood() -> None:
    sample = np.sort(stats.genpareto(0.2, scale=2).rvs(2000, random_state=3))
    shape, scale = _fit(sample[None])
    best_shape, _, best_scale = stats.genpareto.fit(sample, floc=0)
    assert (shape[0], scale[0]) == pytest.approx((best_shape, best_scale), rel=0.02)


def test_the_statistic_is_anderson_and_darlings() -> None:
    sample = np.sort(stats.expon(scale=3).rvs(30, random_state=2))
    below = stats.expon(scale=3).cdf(sample)
    by_hand = -30 - sum((2 * i + 1) * (np.log(below[i]) + np.log(1 - below[29 - i])) for i in range(30)) / 30
    assert _anderson_darling(sample[None], np.array([0.0]), np.array([3.0]))[0] == pytest.approx(by_hand, rel=1e-6)


def test_a_tail_that_is_one_is_refused_as_often_as_the_level_says() -> None:
    refused = 0
    for seed in range(120):
        try:
            fit_tail(np.sort(stats.genpareto(0.1).rvs(150, random_state=seed)))
        except CalibrationError:
            refused += 1
    assert refused / 120 == pytest.approx(MIN_P, abs=0.045)


def test_two_kinds_of_parts_are_no_tail() -> None:
    random = np.random.default_rng(4)
    scores = np.concatenate((random.normal(0, 1, 270), random.normal(30, 0.1, 30)))
    with pytest.raises(CalibrationError, match="do not follow a generalised Pareto tail"):
        fit_tail(np.sort(scores))


def test_too_few_and_equal_scores_are_refused() -> None:
    with pytest.raises(CalibrationError, match="99 good parts, expected at least 100"):
        fit_tail(np.arange(99.0))
    with pytest.raises(CalibrationError, match="equal scores in the tail"):
        fit_tail(np.sort(np.repeat(np.random.default_rng(0).random(60), 2)))


def test_rates_outside_the_tail_or_far_beyond_the_sample_are_refused() -> None:
    tail = fit_tail(np.sort(stats.gamma(3).rvs(200, random_state=1)))
    with pytest.raises(CalibrationError, match=r"expected below 0\.2"):
        tail.threshold(0.25)
    with pytest.raises(CalibrationError, match=r"200 good parts say too little of a rate of 0\.0005; expected about 1000"):
        tail.threshold(0.0005)
    with pytest.raises(CalibrationError, match="expected above 0 and below 1"):
        tail.threshold(0)


@pytest.mark.parametrize("rate", [0.005, 0.02])
def test_thresholds_keep_their_rate_on_average_and_intervals_hold_it(rate: float) -> None:
    truth = stats.gamma(3)
    rates, held = [], 0
    for seed in range(100):
        try:
            threshold, estimate = fit_tail(np.sort(truth.rvs(200, random_state=seed))).threshold(rate)
        except CalibrationError:
            continue
        rates.append(truth.sf(threshold))
        held += estimate.low <= rates[-1] <= estimate.high
        assert estimate.expected == pytest.approx(rate, rel=1e-3)
    assert np.mean(rates) == pytest.approx(rate, rel=0.15)
    assert held / len(rates) >= 0.93


def test_the_threshold_moves_with_the_scores() -> None:
    scores = np.sort(stats.gamma(3).rvs(200, random_state=1))
    threshold, _ = fit_tail(scores).threshold(0.01)
    moved, _ = fit_tail(1000 + 7 * scores).threshold(0.01)
    assert moved == pytest.approx(1000 + 7 * threshold, rel=1e-9)
