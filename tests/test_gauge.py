"""Variance components, against AIAG's published example and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f as fisher

from calibration import CalibrationError
from calibration.gauge import _tail, components_of, gauge_of

# AIAG, MSA 4th edition, figure III-B 6a: 10 parts, operators A, B and C, 3 trials
AIAG = """
.29 .41 .64 -.56 -.68 -.58 1.34 1.17 1.27 .47 .50 .64 -.80 -.92 -.84 .02 -.11 -.21 .59 .75 .66 -.31 -.20 -.17 2.26 1.99 2.01
-1.36 -1.25 -1.31
.08 .25 .07 -.47 -1.22 -.68 1.19 .94 1.34 .01 1.03 .20 -.56 -1.20 -1.28 -.20 .22 .06 .47 .55 .83 -.63 .08 -.34 1.80 2.12 2.19
-1.68 -1.62 -1.50
.04 -.11 -.15 -1.38 -1.13 -.96 .88 1.09 .67 .14 .20 .11 -1.46 -1.07 -1.45 -.29 -.67 -.49 .02 .01 .21 -.46 -.56 -.49 1.77 1.45
1.87 -1.49 -1.77 -2.16
"""
SCORES = np.array(AIAG.split(), float).reshape(3, 10, 3)


def test_the_published_example() -> None:
    found = components_of(SCORES)
    # AIAG's ANOVA tables III-B 7 and III-B 8: the interaction (F 0.434) is pooled
    assert found.pooled
    assert math.sqrt(found.repeatability) == pytest.approx(0.199933, abs=1e-6)
    assert math.sqrt(found.operators) == pytest.approx(0.226838, abs=1e-6)
    assert found.interaction == 0
    assert math.sqrt(found.gauge) == pytest.approx(0.302373, abs=2e-6)
    assert math.sqrt(found.parts) == pytest.approx(1.042327, abs=1e-6)
    shares = [found.share(variance) for variance in (found.repeatability, found.operators, found.gauge, found.parts)]
    assert shares == pytest.approx([0.184, 0.209, 0.279, 0.960], abs=5e-4)
    assert found.distinct == 4


def test_one_operator_by_hand() -> None:
    # parts 1, 3 and 5, 9: cell means 2 and 7. Within: (1 + 1 + 4 + 4) / 2 = 5. Between: 2 (2.5^2 + 2.5^2) / 1 = 25 = 5 + 2 v
    found = components_of(np.array([[[1.0, 3.0], [5.0, 9.0]]]))
    assert (found.repeatability, found.parts, found.reproducibility) == (5, 10, 0)
    assert math.isnan(found.interaction_p)
    assert found.distinct == 1  # 1.41 sqrt(2) = 1.99, truncated


def test_an_interaction_that_is_sure_stays_apart_by_hand() -> None:
    # two operators who see two parts the other way round, repeats 0.1 apart: cells 0, 10 and 10, 0
    cells = np.array([[0.0, 10.0], [10.0, 0.0]])
    found = components_of(cells[..., None] + np.array([-0.05, 0.05]))
    # within 2 x 0.05^2 = 0.005; crossed: 2 x 4 x 5^2 / 1 = 200 = 0.005 + 2 v; parts and operators are 0, and would be negative
    assert not found.pooled
    assert found.repeatability == pytest.approx(0.005)
    assert found.interaction == pytest.approx((200 - 0.005) / 2)
    assert (found.parts, found.operators, found.distinct) == (0, 0, 0)


def test_components_that_would_be_negative_are_0_by_hand() -> None:
    # one operator: both parts have the mean 0.5, within 0.5, so parts (0 - 0.5) / 2
    alone = components_of(np.array([[[0.0, 1.0], [0.0, 1.0]]]))
    assert (alone.repeatability, alone.parts) == (pytest.approx(0.5), 0.0)
    # two, whose means are all the same: operators and parts (0 - 0.4) below 0, the interaction pooled
    both = components_of(np.array([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]))
    assert (both.operators, both.interaction, both.parts, both.pooled) == (0.0, 0.0, 0.0, True)
    assert both.repeatability == pytest.approx(8 * 0.25 / 5)  # eight squares of 0.5, 4 + 1 degrees of freedom


def test_a_perfect_gauge_and_one_that_sees_nothing() -> None:
    perfect = components_of(np.broadcast_to(np.arange(5.0)[None, :, None], (2, 5, 3)))
    assert (perfect.gauge, perfect.share(perfect.gauge), perfect.distinct) == (0, 0, 1_000_000)
    nothing = components_of(np.zeros((2, 5, 3)))
    assert (nothing.total, nothing.share(nothing.gauge), nothing.distinct) == (0, 0, 0)


@pytest.mark.parametrize(("ratio", "crossed_df", "error_df"), [(0.434, 18, 60), (1.0, 2, 6), (4.5, 1, 4), (0.01, 9, 20)])
def test_the_tail_of_fisher_is_scipys(ratio: float, crossed_df: int, error_df: int) -> None:
    assert _tail(ratio, 1.0, crossed_df, error_df) == pytest.approx(fisher.sf(ratio, crossed_df, error_df), rel=1e-9)


@given(st.floats(0.1, 100), st.floats(-1e3, 1e3), st.integers(0, 1000))
def test_shares_do_not_care_for_unit_and_origin(scale: float, origin: float, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(2, 6, 2)) + np.arange(6.0)[None, :, None]
    one, other = components_of(scores), components_of(scores * scale + origin)
    assert other.share(other.gauge) == pytest.approx(one.share(one.gauge), abs=1e-6)


def test_intervals_hold_their_figures() -> None:
    gauge = gauge_of(SCORES)
    for name, (low, high) in gauge.deviations.items():
        assert low <= math.sqrt(getattr(gauge.components, name)) <= high, name
    assert gauge.shares["total"] == (1, 1)
    assert gauge_of(SCORES) == gauge


@pytest.mark.parametrize("shape", [(3, 1, 3), (3, 10, 1)])
def test_a_study_without_repeats_or_parts_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(CalibrationError, match="expected 2 parts and 2 repeats or more"):
        components_of(np.zeros(shape))


def test_scores_that_are_not_finite_are_refused() -> None:
    broken = SCORES.copy()
    broken[1, 2, 0] = math.nan
    with pytest.raises(CalibrationError, match="not all finite"):
        components_of(broken)
