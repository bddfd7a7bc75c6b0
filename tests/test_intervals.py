"""The beta distribution and what is built on it, against SciPy and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from calibration.intervals import Estimate, beta_cdf, beta_quantile, counted, percent, realised, student_quantile


@given(st.floats(-3, 9), st.floats(-3, 9), st.floats(0, 1))
def test_the_distribution_is_scipys(log_a: float, log_b: float, at: float) -> None:
    a, b = math.exp(log_a), math.exp(log_b)
    for x in (at, stats.beta.ppf(at, a, b)):  # anywhere, and where the mass is
        assert beta_cdf(float(x), a, b) == pytest.approx(float(special.betainc(a, b, x)), abs=1e-10)


def test_by_hand() -> None:
    assert beta_cdf(0.3, 1, 1) == pytest.approx(0.3)
    assert beta_cdf(0.5, 2, 1) == pytest.approx(0.25)  # x^2
    assert beta_cdf(0.1, 1, 3) == pytest.approx(1 - 0.9**3)
    assert (beta_cdf(0, 2, 3), beta_cdf(1, 2, 3)) == (0, 1)
    assert beta_quantile(0.25, 2, 1) == pytest.approx(0.5)
    assert (beta_quantile(0.5, 0, 3), beta_quantile(0.5, 3, 0)) == (0, 1)


@given(st.integers(1, 500), st.data())
def test_a_count_has_the_interval_of_clopper_and_pearson(count: int, data: st.DataObject) -> None:
    above = data.draw(st.integers(0, count))
    exact = stats.binomtest(above, count).proportion_ci(0.95, "exact")
    found = counted(above, count)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert found.expected == min(1, (above + 1) / (count + 1))
    assert found.low <= found.expected <= max(found.high, found.expected)


def test_none_of_59_leaves_five_percent_open_as_the_tables_say() -> None:
    # 1 - 0.025^(1/59): the two-sided limit
    assert counted(0, 59).high == pytest.approx(1 - 0.025 ** (1 / 59))
    assert counted(0, 59).low == 0
    assert counted(59, 59).high == 1


def test_shares_of_parts_lie_between_whole_ones() -> None:
    assert counted(2, 50).high < counted(2.5, 50).high < counted(3, 50).high
    assert counted(2, 50).low < counted(2.5, 50).low < counted(3, 50).low


@pytest.mark.parametrize(("count", "rank"), [(99, 99), (200, 199), (50, 40)])
def test_the_rate_of_an_order_statistic_lies_in_its_interval_in_95_of_100_calibrations(count: int, rank: int) -> None:
    scores = np.sort(np.random.default_rng(3).random((4000, count)), axis=1)
    rates = 1 - scores[:, rank - 1]  # of uniform scores, the share above
    found = realised(count - rank, count)
    assert np.mean((rates >= found.low) & (rates <= found.high)) == pytest.approx(0.95, abs=0.015)
    assert rates.mean() == pytest.approx(found.expected, rel=0.06)


def test_people_read_percent() -> None:
    assert percent(0.01234) == "1.23 %"
    assert str(Estimate(expected=0.01, low=0.0002, high=0.0366)) == "1 % (0.02 % to 3.66 %)"


@pytest.mark.parametrize("degrees", [1, 2, 9, 119, 100_000])
def test_students_quantile(degrees: int) -> None:
    for probability in (0.5, 0.8, 0.95, 0.999):
        assert student_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-5, abs=1e-6)
