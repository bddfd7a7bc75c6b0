"""Thresholds with bad parts: where they lie, worked out by hand, and that choosing does not flatter itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import CalibrationError
from calibration.labelled import choose, expected_cost, f_beta, no_escape
from calibration.parts import parts_of

GOOD = parts_of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 12.0])
BAD = parts_of([10.0, 11.0, 13.0, 14.0])


def test_the_cheapest_threshold_by_hand() -> None:
    # between 9 and 10: one good of ten rejected, none of four escapes; from 12 on: none rejected, two of four escape
    dear_escape = choose(GOOD, BAD, expected_cost(100, 1, 0.02))
    assert dear_escape.gap == (9.0, 10.0)
    assert dear_escape.threshold == 9.5
    # 0.02 * 0.5 * 1 = 0.01 for escapes is less than 0.98 * 0.1 * 1 = 0.098 for overkill
    dear_overkill = choose(GOOD, BAD, expected_cost(1, 1, 0.02))
    assert dear_overkill.gap == (12.0, 13.0)
    # half the line bad: 0.25 for escapes is more than 0.05 for overkill
    assert choose(GOOD, BAD, expected_cost(1, 1, 0.5)).gap == (9.0, 10.0)


@given(st.floats(0.5, 3), st.floats(0.01, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_f_beta_is_the_weighted_harmonic_mean(beta: float, defects: float, false_reject: float, escape: float) -> None:
    caught = defects * (1 - escape)
    rejected = caught + (1 - defects) * false_reject
    if caught < 1e-6:
        return
    precision, recall = caught / rejected, 1 - escape
    by_hand = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
    objective = f_beta(beta, defects)(np.array([false_reject]), np.array([escape]))
    assert 1 - objective[0] == pytest.approx(by_hand, rel=1e-9)


def test_the_choice_is_the_best_of_all_thresholds() -> None:
    random = np.random.default_rng(2)
    good, bad = parts_of(random.normal(0, 1, 60)), parts_of(random.normal(2, 1, 25))
    objective = f_beta(1.0, 0.3)

    def value(threshold: float) -> float:
        rates = np.array([good.above(threshold) / 60]), np.array([1 - bad.above(threshold) / 25])
        return float(objective(*rates)[0])

    everywhere = [value(cut) for cut in np.concatenate((good.scores, bad.scores))]
    assert value(choose(good, bad, objective).threshold) == pytest.approx(min(everywhere))


def test_a_part_counts_once_however_often_it_was_photographed() -> None:
    # three frames of the good part at 12 are one tenth of the parts, as one frame is
    again = parts_of([*GOOD.scores.tolist(), 12.0, 12.0], [*range(10), 9, 9])
    assert choose(again, BAD, expected_cost(1, 1, 0.3)).gap == choose(GOOD, BAD, expected_cost(1, 1, 0.3)).gap
    assert choose(parts_of([*GOOD.scores.tolist(), 12.0, 12.0]), BAD, expected_cost(1, 1, 0.3)).gap == (12.0, 13.0)


def test_rates_of_a_choice_are_not_those_that_it_was_chosen_for() -> None:
    # good and bad from one distribution: whatever the threshold, both rates sum to 1, and the best one looks better
    random = np.random.default_rng(1)
    told, looks = [], []
    for _ in range(20):
        scores = random.random(60)
        good, bad = parts_of(scores[:40]), parts_of(scores[40:])
        try:
            chosen = choose(good, bad, expected_cost(1, 1, 0.5))
        except CalibrationError:
            continue
        # expected is (x + 1) / (n + 1)
        told.append((chosen.false_reject.expected * 41 - 1) / 40 + (chosen.escape.expected * 21 - 1) / 20)
        looks.append(good.above(chosen.threshold) / 40 + 1 - bad.above(chosen.threshold) / 20)
    assert len(told) >= 8
    assert np.mean(looks) < 0.8
    assert 0.88 < np.mean(told) < 1.05


def test_no_escape_is_below_the_lowest_bad_part_by_the_margin() -> None:
    good = parts_of([1.0, 2.0, 3.0, 4.0, 5.0])  # spread 1.4826
    chosen = no_escape(good, parts_of([8.0, 9.0, 20.0]), 2.0)
    assert chosen.threshold == pytest.approx(8 - 2 * 1.4826)
    assert chosen.false_reject.expected == pytest.approx(1 / 6)
    assert chosen.escape.expected == 0.25
    assert chosen.gap == (5.0, 8.0)


def test_without_a_margin_the_lowest_bad_part_is_still_rejected() -> None:
    # a part is rejected only if it is above the threshold
    assert no_escape(GOOD, BAD, 0.0).threshold < 10.0
    assert BAD.above(no_escape(GOOD, BAD, 0.0).threshold) == BAD.count


def test_bad_parts_that_score_like_good_ones_are_refused() -> None:
    with pytest.raises(CalibrationError, match="9 of 10 good parts would be rejected"):
        no_escape(GOOD, parts_of([1.5, 20.0]), 0.0)
    with pytest.raises(CalibrationError, match="do not tell these good and bad parts apart"):
        choose(GOOD, parts_of([0.5, 0.6, 0.7]), expected_cost(100, 1, 0.5))


def test_one_bad_part_cannot_choose_and_judge_the_choice() -> None:
    with pytest.raises(CalibrationError, match="10 good and 1 bad parts, expected 2 of each"):
        choose(GOOD, parts_of([20.0]), expected_cost(100, 1, 0.5))
