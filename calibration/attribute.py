"""How far decisions agree with the truth, with each other and with themselves: attribute agreement.

AIAG, "Measurement Systems Analysis", 4th edition, 2010, chapter III, section C; Cohen, "A coefficient of agreement for nominal
scales", 1960; Fleiss, "Measuring nominal scale agreement among many raters", 1971.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from calibration.intervals import LEVEL, beta_quantile

Decisions = npt.NDArray[np.bool_]  # (operators, parts, repeats), True is rejected
Truth = npt.NDArray[np.bool_]  # (parts,), True is bad
Grade = Literal["acceptable", "marginal", "unacceptable", "not known"]

RESAMPLES: Final = 2000
# acceptable up to, or from, the first; unacceptable beyond the second (AIAG, table III-C 8, and the text on kappa before it)
EFFECTIVENESS: Final = (0.90, 0.80)
MISS: Final = (0.02, 0.05)
FALSE_ALARM: Final = (0.05, 0.10)
KAPPA: Final = (0.75, 0.40)


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval and AIAG's grade; NaN where the study cannot tell it."""

    value: float
    low: float
    high: float
    grade: Grade


@dataclass(frozen=True)
class Operator:
    """One operator, or one station, against the truth.

    Attributes:
        effectiveness: share of the parts that were decided rightly every time.
        miss: share of the decisions on bad parts that let them pass.
        false_alarm: share of the decisions on good parts that rejected them.
        truth: Cohen's kappa with the truth.
        itself: Fleiss' kappa between its repeats; NaN with one repeat.
    """

    effectiveness: Figure
    miss: Figure
    false_alarm: Figure
    truth: Figure
    itself: Figure


@dataclass(frozen=True)
class Agreement:
    """The operators in the study's order, Cohen's kappa of each pair of them, and Fleiss' kappa of all decisions."""

    operators: tuple[Operator, ...]
    pairs: dict[tuple[int, int], Figure]
    all: Figure


def agreement_of(decisions: Decisions, truth: Truth, seed: int = 0) -> Agreement:
    """Compare the decisions with the truth and with each other.

    Intervals: Clopper-Pearson's for rates, with the part and not the decision as what was drawn, because repeats of a part
    are no new parts (a part counts with its share of wrong decisions); percentiles over resampled parts for kappas.

    Args:
        decisions: bool (operators, parts, repeats), True is rejected.
        truth: bool (parts,), True is bad.
        seed: of the resampling.

    Raises:
        CalibrationError: shapes that do not fit, or no good or no bad part.
    """
    if decisions.ndim != 3 or truth.shape != decisions.shape[1:2] or 0 in decisions.shape:
        raise CalibrationError(f"decisions are {decisions.shape}, truth {truth.shape}, expected (operators, parts, repeats)")
    if truth.all() or not truth.any():
        raise CalibrationError(
            f"{int(truth.sum())} bad of {len(truth)} parts, expected good and bad ones: AIAG asks for 50 parts, a quarter"
            " of them near the limit on either side"
        )
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(truth), size=(RESAMPLES, len(truth)))
    operators = tuple(_operator(one, truth, drawn) for one in decisions)
    pairs = {
        (one, other): _kappa_figure(partial(_between, decisions[one], decisions[other]), drawn)
        for one, other in itertools.combinations(range(len(decisions)), 2)
    }
    ratings = decisions.transpose(1, 0, 2).reshape(len(truth), -1)
    return Agreement(operators, pairs, _kappa_figure(lambda parts: fleiss(ratings[parts]), drawn))


def cohen(table: npt.NDArray[np.int64]) -> float:
    """Cohen's kappa of a table of counts, int64 (2, 2); NaN where one side, or both, only ever said one thing the same."""
    total = table.sum()
    observed = np.trace(table) / total
    chance = float(table.sum(axis=0) @ table.sum(axis=1)) / total**2
    return float((observed - chance) / (1 - chance)) if chance < 1 else math.nan


def fleiss(ratings: npt.NDArray[np.bool_]) -> float:
    """Fleiss' kappa of ratings, bool (parts, raters); NaN where all ratings are the same, or with one rater."""
    parts, raters = ratings.shape
    if raters < 2:
        return math.nan
    bad = ratings.sum(axis=1)
    observed = float((bad * (bad - 1) + (raters - bad) * (raters - bad - 1)).sum()) / (parts * raters * (raters - 1))
    share = float(bad.sum()) / (parts * raters)
    chance = share**2 + (1 - share) ** 2
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def grade(value: float, limits: tuple[float, float]) -> Grade:
    """AIAG's word for a value; `limits` fall where more is better, and rise where less is."""
    good, bad = limits
    if math.isnan(value):
        return "not known"
    sign = 1 if good > bad else -1
    if sign * value >= sign * good:
        return "acceptable"
    return "marginal" if sign * value >= sign * bad else "unacceptable"


def _operator(decisions: npt.NDArray[np.bool_], truth: Truth, drawn: npt.NDArray[np.int64]) -> Operator:
    """One operator's figures; decisions bool (parts, repeats)."""
    wrong = decisions != truth[:, None]
    repeated = np.broadcast_to(truth[:, None], decisions.shape)
    return Operator(
        effectiveness=_rate(~wrong.any(axis=1), EFFECTIVENESS),
        miss=_rate(wrong[truth].mean(axis=1), MISS),
        false_alarm=_rate(wrong[~truth].mean(axis=1), FALSE_ALARM),
        truth=_kappa_figure(partial(_between, decisions, repeated), drawn),
        itself=_kappa_figure(lambda parts: fleiss(decisions[parts]), drawn),
    )


def _rate(by_part: npt.NDArray[np.generic], limits: tuple[float, float]) -> Figure:
    """A mean over parts of what is 0 to 1 for each, with Clopper-Pearson's interval."""
    count, total, tail = len(by_part), float(by_part.sum()), (1 - LEVEL) / 2
    return Figure(
        total / count,
        beta_quantile(tail, total, count - total + 1),
        beta_quantile(1 - tail, total + 1, count - total),
        grade(total / count, limits),
    )


def _kappa_figure(kappa: Callable[[npt.NDArray[np.int64]], float], drawn: npt.NDArray[np.int64]) -> Figure:
    """A kappa of all parts, and its percentiles over resampled ones; those that hold one sort of answer alone tell nothing."""
    value = kappa(np.arange(drawn.shape[1]))
    values = np.array([kappa(parts) for parts in drawn])
    values = values[np.isfinite(values)]
    # without one disagreement every resample agrees too: that is no interval
    if len(values) == 0 or value == 1:
        return Figure(value, math.nan, value, grade(value, KAPPA))
    low, high = np.percentile(values, (2.5, 97.5))
    return Figure(value, float(low), float(high), grade(value, KAPPA))


def _between(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], parts: npt.NDArray[np.int64]) -> float:
    """Cohen's kappa of two sets of decisions, bool (parts, repeats), on some of the parts, repeat by repeat."""
    said = 2 * one[parts].ravel() + other[parts].ravel()
    return cohen(np.bincount(said, minlength=4).reshape(2, 2).astype(np.int64))
