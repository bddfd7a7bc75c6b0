"""The rule that chooses alpha, and what `fit` does with it."""

from __future__ import annotations

import numpy as np
import pytest

from engines.bundle import Tried
from train.select import ALPHAS, choose, compare


def tried(*rows: tuple[float, float]) -> list[Tried]:
    """AUROC and error of each alpha."""
    best = max(value for value, _ in rows)
    return [
        Tried(alpha=alpha, auroc=value, behind=best - value, error=error)
        for alpha, (value, error) in zip(ALPHAS, rows, strict=False)
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (((0.7, 0.02), (0.72, 0.01), (0.74, 0.01), (0.75, 0.005), (0.76, 0)), 4),  # ever better
        (((0.7, 0.02), (0.75, 0), (0.745, 0.01), (0.744, 0.01), (0.72, 0.01)), 3),  # the last is clearly behind
        (((0.7, 0), (0.69, 0.02), (0.68, 0.03), (0.67, 0.04), (0.66, 0.05)), 0),  # none reaches plain NN
        (((0.7, 0.015), (0.71, 0), (0.7, 0.02), (0.69, 0.03), (0.69, 0.04)), 2),  # below plain NN, however near the best
        (((0.7, 0.03), (0.71, 0), (0.7, 0.02), (0.69, 0.03), (0.69, 0.04)), 0),  # behind by a third of the error
        (((0.7, 0.001), (0.72, 0), (0.69, 0.01)), 1),
        (((0.5, 0), (0.5, 0), (0.5, 0)), 0),  # the defects tell nothing apart
    ],
)
def test_the_rule(rows: tuple[tuple[float, float], ...], expected: int) -> None:
    assert choose(tried(*rows)) == expected


def test_comparison_by_hand() -> None:
    # two images, a defect on each; at the second alpha all defects win, at the first three pairs of four
    wins = np.array([[[1, 1], [0, 1]], [[1, 1], [1, 1]]], float)
    first, second = compare(wins, np.ones(2), (0.0, 1.0), seed=0)
    assert (first.alpha, first.auroc, first.behind) == (0, 0.75, 0.25)
    assert (second.alpha, second.auroc, second.behind, second.error) == (1, 1, 0, 0)
    # both images are drawn half of the time, 0.25 behind, and one of them twice else, not behind: deviation 0.125
    assert first.error == pytest.approx(0.125, abs=0.005)


def test_comparisons_are_repeatable() -> None:
    wins = np.random.default_rng(0).random((3, 7, 7))
    assert compare(wins, np.ones(7), (0, 0.5, 1), 5) == compare(wins, np.ones(7), (0, 0.5, 1), 5)
    assert compare(wins, np.ones(7), (0, 0.5, 1), 5) != compare(wins, np.ones(7), (0, 0.5, 1), 6)
