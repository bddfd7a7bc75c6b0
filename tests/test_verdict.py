"""A score against a threshold: what is above rejects, what is no number is a fault."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.verdict import Outcome, compare

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite)
def test_a_score_at_the_threshold_passes_and_the_next_above_rejects(threshold: float) -> None:
    assert compare(threshold, threshold)[0] is Outcome.PASS
    above = math.nextafter(threshold, math.inf)
    if math.isfinite(above):
        assert compare(above, threshold)[0] is Outcome.REJECT
    below = math.nextafter(threshold, -math.inf)
    if math.isfinite(below):
        assert compare(below, threshold)[0] is Outcome.PASS


@given(finite, finite)
def test_reject_if_and_only_if_above(score: float, threshold: float) -> None:
    assert compare(score, threshold)[0] is (Outcome.REJECT if score > threshold else Outcome.PASS)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1e308])
def test_a_score_that_is_not_finite_is_a_fault_at_every_threshold(score: float, threshold: float) -> None:
    outcome, reason = compare(score, threshold)
    assert outcome is Outcome.FAULT
    assert str(score) in reason


def test_negative_scores_and_zeros_of_either_sign() -> None:
    assert compare(-3.0, -2.0)[0] is Outcome.PASS
    assert compare(-2.0, -3.0)[0] is Outcome.REJECT
    assert compare(0.0, -0.0)[0] is Outcome.PASS
    assert compare(-0.0, 0.0)[0] is Outcome.PASS


def test_the_reason_gives_both_numbers() -> None:
    assert compare(2.5, 1.25)[1] == "score 2.5 is above the threshold 1.25"
    assert compare(1.0, 1.25)[1] == "score 1 is at or below the threshold 1.25"


def test_whatever_is_not_a_pass_rejects() -> None:
    assert {outcome: outcome.rejects for outcome in Outcome} == {
        Outcome.PASS: False,
        Outcome.REJECT: True,
        Outcome.FAULT: True,
    }
