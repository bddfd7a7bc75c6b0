"""Rates and what is known of them: the beta distribution, Clopper-Pearson's interval, and what people are shown."""

from __future__ import annotations

import math

from pydantic import Field

from engines.bundle import Record

LEVEL = 0.95  # confidence of every interval
_TERMS = 10_000  # of the continued fraction, which needs about sqrt(max(a, b))
_TINY = 1e-300
_HALVINGS = 200


class Estimate(Record):
    """A rate: what to expect, and between what it lies with 95 % confidence."""

    expected: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    def __str__(self) -> str:
        return f"{percent(self.expected)} ({percent(self.low)} to {percent(self.high)})"


def percent(rate: float) -> str:
    """A rate for people: three digits at most, never 0 for what is not 0."""
    return f"{100 * rate:.3g} %"


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b): P(X <= x) for X ~ Beta(a, b).

    By its continued fraction (DLMF 8.17.22) with Lentz's method; a, b above 0, need not be whole.
    """
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly its mirror image converges fast
        return 1 - beta_cdf(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a))
    return min(1.0, front * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of I_x(a, b), without what stands in front."""
    numerator, denominator = 1.0, 1 - (a + b) * x / (a + 1)
    denominator = 1 / (denominator if abs(denominator) > _TINY else _TINY)
    value = denominator
    for m in range(1, _TERMS):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            denominator = 1 + step * denominator
            denominator = 1 / (denominator if abs(denominator) > _TINY else _TINY)
            numerator = 1 + step / numerator
            numerator = numerator if abs(numerator) > _TINY else _TINY
            value *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return value


def beta_quantile(probability: float, a: float, b: float) -> float:
    """x with I_x(a, b) = probability, by bisection; a of 0 is a mass at 0, b of 0 one at 1."""
    if a <= 0:
        return 0.0
    if b <= 0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if beta_cdf(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, of a probability from 0.5 to below 1: t^2 / (degrees + t^2) ~ Beta(1/2, degrees / 2)."""
    x = beta_quantile(2 * probability - 1, 0.5, degrees / 2)
    return math.sqrt(degrees * x / (1 - x))


def counted(above: float, count: int) -> Estimate:
    """A rate from a count: `above` of `count` parts, with Clopper-Pearson's interval (Biometrika 26, 1934).

    What is expected is (above + 1) / (count + 1): the expected rate of a threshold at the highest score that is not above
    it, and the least that so many parts allow to promise. Parts with several pictures count by the share of these, so
    `above` need not be whole; the interval takes each part for one draw then, which is cautious: shares vary less.

    Args:
        above: parts above a threshold that was not chosen by these very parts, 0 to `count`.
        count: parts, at least 1.
    """
    tail = (1 - LEVEL) / 2
    return Estimate(
        expected=min(1.0, (above + 1) / (count + 1)),
        low=beta_quantile(tail, above, count - above + 1),
        high=beta_quantile(1 - tail, above + 1, count - above),
    )


def realised(above: float, count: int) -> Estimate:
    """The rate of a threshold that is itself one of the scores: Beta(above + 1, count - above), for any distribution.

    Of independent scores without ties it is exact (Vovk, "Conditional validity of inductive conformal predictors", Machine
    Learning 92, 2013): calibrations like this one have a rate within the interval in 95 of 100 cases.

    Args:
        above: parts above the threshold, 0 to `count` - 1; see `counted` for parts with several pictures.
        count: parts.
    """
    tail = (1 - LEVEL) / 2
    return Estimate(
        expected=(above + 1) / (count + 1),
        low=beta_quantile(tail, above + 1, count - above),
        high=beta_quantile(1 - tail, above + 1, count - above),
    )
