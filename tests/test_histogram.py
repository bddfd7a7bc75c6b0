"""Bars of scores: each score is in one, and the threshold is marked once, also where it is beyond them."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from edge.histogram import histogram

SCORES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


def test_bars_by_hand() -> None:
    lines = histogram([0.0, 12.0, 12.0], threshold=11.5)
    assert len(lines) == 12
    assert lines[0].split() == ["0", "to", "1", "1", "#" * 11]
    assert lines[-1].split() == ["11", "to", "12", "2", "#" * 22, "<-", "threshold", "11.5"]
    assert histogram([], 1.0) == []
    assert histogram([2.0, 2.0])[0].endswith("2 " + "#" * 22)


def test_a_threshold_beyond_all_scores_has_its_own_line() -> None:
    assert histogram([0.0, 1.0], 5.0)[-1] == "threshold 5, above all scores"
    assert histogram([0.0, 1.0], -5.0)[0] == "threshold -5, below all scores"


@given(SCORES, st.floats(-2e6, 2e6))
def test_each_score_is_in_one_bar_and_the_threshold_is_there_once(scores: list[float], threshold: float) -> None:
    lines = histogram(scores, threshold)
    assert sum("threshold" in line for line in lines) == 1
    counts = [match[1] for line in lines if (match := re.search(r" to \S+ +(\d+)", line))]
    assert sum(map(int, counts)) == len(scores)


@given(SCORES, st.floats(-2e6, 2e6), st.sampled_from(["", " SET BY HAND"]))
def test_no_line_is_cut_off_on_a_terminal_of_80_columns(scores: list[float], threshold: float, mark: str) -> None:
    assert max(map(len, histogram(scores, threshold, mark))) <= 80


def test_the_mark_beside_the_longest_bar_is_not_cut_off_either() -> None:
    lines = histogram([-1.23456e-05] * 99_999, -1.23456e-05)
    assert lines[0].endswith("#  <- threshold -1.235e-05")
    assert len(lines[0]) <= 80
    assert histogram([-1.23456e-05] * 9, -1.23456e-05, " SET BY HAND")[0].endswith("#  <- threshold -1.235e-05 SET BY HAND")
