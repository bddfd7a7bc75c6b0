"""Deadlines, by hand and at their edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.watchdog import Deadline

TRIGGER = 5 * 10**12
MS = 10**6


@pytest.mark.parametrize(
    ("age_ns", "remaining_s", "passed"),
    [
        (0, 0.1, False),
        (30 * MS, 0.07, False),
        (100 * MS, 0.0, False),  # at the deadline is in time
        (100 * MS + 1, 0.0, True),
        (10**15, 0.0, True),
    ],
)
def test_by_hand(age_ns: int, remaining_s: float, passed: bool) -> None:
    deadline = Deadline(TRIGGER, 100)
    assert deadline.remaining_s(TRIGGER + age_ns) == pytest.approx(remaining_s)
    assert deadline.passed(TRIGGER + age_ns) is passed
    assert deadline.elapsed_ms(TRIGGER + age_ns) == age_ns / MS


def test_a_trigger_that_is_yet_to_come_has_passed_and_gives_no_extra_time() -> None:
    # a clock that went back, or a camera that keeps another one: how late the part is, nobody knows
    deadline = Deadline(TRIGGER, 100)
    assert deadline.passed(TRIGGER - 1)
    assert deadline.remaining_s(TRIGGER - 10**18) == 0.1


@given(st.integers(-(10**18), 10**18), st.floats(0.001, 1e7))
def test_the_time_left_is_never_negative_and_never_more_than_the_budget(age_ns: int, budget_ms: float) -> None:
    deadline = Deadline(TRIGGER, budget_ms)
    assert 0 <= deadline.remaining_s(TRIGGER + age_ns) <= budget_ms / 1e3


@given(st.integers(0, 10**15), st.floats(0.001, 1e7))
def test_late_means_no_time_left(age_ns: int, budget_ms: float) -> None:
    deadline = Deadline(TRIGGER, budget_ms)
    if deadline.passed(TRIGGER + age_ns):
        assert deadline.remaining_s(TRIGGER + age_ns) == 0
    if deadline.remaining_s(TRIGGER + age_ns) > 0:
        assert not deadline.passed(TRIGGER + age_ns)
