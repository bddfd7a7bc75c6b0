"""Agreement of decisions, against AIAG's published example and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from sklearn.metrics import cohen_kappa_score

from calibration import CalibrationError
from calibration.attribute import EFFECTIVENESS, FALSE_ALARM, KAPPA, MISS, agreement_of, cohen, fleiss, grade


@pytest.mark.parametrize(
    ("table", "kappa"),
    [  # AIAG, MSA 4th edition, tables III-C 3 to III-C 6: A and B, B and C, A and C, and each with the reference
        ([[44, 6], [3, 97]], 0.86),
        ([[42, 5], [9, 94]], 0.79),
        ([[43, 7], [8, 92]], 0.78),
        ([[45, 5], [3, 97]], 0.88),
        ([[45, 2], [3, 100]], 0.92),
        ([[42, 9], [6, 93]], 0.77),
        ([[5, 0], [0, 5]], 1.0),
        ([[0, 5], [5, 0]], -1.0),
        ([[25, 25], [25, 25]], 0.0),
    ],
)
def test_cohens_kappa_of_the_published_tables(table: list[list[int]], kappa: float) -> None:
    assert cohen(np.array(table)) == pytest.approx(kappa, abs=0.005)


def test_kappa_of_one_sort_of_answer_is_not_known() -> None:
    assert math.isnan(cohen(np.array([[7, 0], [0, 0]])))
    assert math.isnan(fleiss(np.ones((5, 3), bool)))
    assert math.isnan(fleiss(np.eye(3, 1, dtype=bool)))


def test_fleiss_kappa_by_hand() -> None:
    # 3 parts, 3 raters, 3, 0 and 2 say bad: agreeing pairs (6 + 6 + 2) / 18 = 7/9; bad 5/9, chance (25 + 16) / 81 = 41/81
    ratings = np.array([[1, 1, 1], [0, 0, 0], [1, 1, 0]], bool)
    assert fleiss(ratings) == pytest.approx((7 / 9 - 41 / 81) / (1 - 41 / 81))


@given(arrays(bool, (12, 2)))
def test_cohens_kappa_is_scikit_learns(said: np.ndarray) -> None:
    table = np.bincount(2 * said[:, 0] + said[:, 1], minlength=4).reshape(2, 2)
    if len(np.unique(said)) > 1:
        assert cohen(table) == pytest.approx(cohen_kappa_score(said[:, 0], said[:, 1]))


def study() -> tuple[np.ndarray, np.ndarray]:
    """Two operators, 10 parts of which the first 4 are bad, 2 repeats: the first errs twice, the second never."""
    truth = np.arange(10) < 4
    decisions = np.repeat(np.stack([truth, truth])[..., None], 2, axis=2)
    decisions[0, 1, 0] = False  # one miss of 8 decisions
    decisions[0, 7, 1] = True  # one false alarm of 12
    return decisions, truth


def test_rates_of_an_operator_by_hand() -> None:
    found = agreement_of(*study())
    first, second = found.operators
    assert first.effectiveness.value == pytest.approx(8 / 10)
    assert first.miss.value == pytest.approx(1 / 8)
    assert first.false_alarm.value == pytest.approx(1 / 12)
    # with the truth: 7 and 11 agree of 20, bad 8 by both: 18/20, chance (8 x 8 + 12 x 12) / 400 = 0.52
    assert first.truth.value == pytest.approx((0.9 - 0.52) / 0.48)
    # with itself: pairs of repeats of 8 of 10 parts agree, bad 8/20: chance 0.4^2 + 0.6^2
    assert first.itself.value == pytest.approx((0.8 - 0.52) / 0.48)
    assert (second.effectiveness.value, second.miss.value, second.false_alarm.value) == (1, 0, 0)
    assert found.pairs.keys() == {(0, 1)}
    assert found.pairs[0, 1].value == first.truth.value  # the second is the truth


def test_intervals_take_parts_and_not_repeats_as_drawn() -> None:
    # no miss of 4 bad parts: Clopper-Pearson's upper end is 1 - 0.025^(1/4), however often each is shown
    decisions, truth = study()
    for repeats in (1, 2, 10):
        shown = np.repeat(decisions[1:, :, :1], repeats, axis=2)
        found = agreement_of(shown, truth).operators[0].miss
        assert (found.low, found.high) == (0, pytest.approx(1 - 0.025**0.25))


def test_a_kappa_without_a_disagreement_says_nothing_below() -> None:
    found = agreement_of(*study()).operators[1].truth
    assert (found.value, found.high) == (1, 1)
    assert math.isnan(found.low)


@pytest.mark.parametrize(
    ("value", "limits", "word"),
    [
        (0.90, EFFECTIVENESS, "acceptable"),
        (0.89, EFFECTIVENESS, "marginal"),
        (0.79, EFFECTIVENESS, "unacceptable"),
        (0.02, MISS, "acceptable"),
        (0.05, MISS, "marginal"),
        (0.051, MISS, "unacceptable"),
        (0.05, FALSE_ALARM, "acceptable"),
        (0.101, FALSE_ALARM, "unacceptable"),
        (0.75, KAPPA, "acceptable"),
        (0.39, KAPPA, "unacceptable"),
        (math.nan, KAPPA, "not known"),
    ],
)
def test_grades_are_aiags(value: float, limits: tuple[float, float], word: str) -> None:
    assert grade(value, limits) == word


@pytest.mark.parametrize("truth", [np.zeros(10, bool), np.ones(10, bool)])
def test_a_study_of_one_sort_of_parts_is_refused(truth: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="expected good and bad ones"):
        agreement_of(study()[0], truth)


def test_shapes_that_do_not_fit_are_refused() -> None:
    decisions, truth = study()
    with pytest.raises(CalibrationError, match=r"expected .operators, parts, repeats"):
        agreement_of(decisions, truth[:9])
