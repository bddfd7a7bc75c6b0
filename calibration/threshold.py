"""Thresholds from scores of good parts: the conformal one, and the one that is for comparison alone. Pure statistics."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from calibration.parts import Parts, parts_of


def conformal_threshold(scores: npt.NDArray[np.float64], rate: float) -> float:
    """Threshold that bounds the false-reject rate of exchangeable good parts, for any distribution of scores.

    With n scores it is the ceil((n + 1)(1 - rate))-th smallest: a further good part scores above it with probability
    at most `rate` (split conformal prediction; Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World",
    2005). A part is rejected if and only if its score is above the threshold.

    Args:
        scores: float64 (n,) of good parts that are not in the bank.
        rate: false-reject rate to allow, above 0 and below 1.

    Raises:
        CalibrationError: a rate out of range, scores that are not finite, or fewer scores than the rate needs.
    """
    check_enough(len(scores), rate)
    return conformal(parts_of(scores), rate)


def conformal(parts: Parts, rate: float) -> float:
    """The same where there may be several pictures of a part, which are not exchangeable with those of others.

    It is the lowest score with (1 - rate)(K + 1) of K parts at or below it, a part counted by the share of its pictures.
    A random picture of a further part scores above it with probability at most `rate`, as long as parts are exchangeable,
    whatever their pictures have to do with each other (Lee, Barber, Willett, "Distribution-free inference with hierarchical
    data", arXiv 2306.06342, 2023). With one picture a part it is `conformal_threshold`.

    Raises:
        CalibrationError: a rate out of range, or fewer parts than the rate needs.
    """
    pictures = len(parts.scores)
    check_enough(parts.count, rate, "good images" if parts.count == pictures else f"good parts (on {pictures} images)")
    # (K + 1)(1 - rate) is a whole number for many sensible pairs: float error must not push it over the next one
    return parts.quantile((parts.count + 1) * (1 - rate) / parts.count)


def sigma_threshold(parts: Parts, rate: float) -> float:
    """Median and as many robust standard deviations as a normal distribution has `rate` beyond: what many stations do.

    Scores of good parts are skewed, so it promises nothing.

    Raises:
        CalibrationError: a rate out of range, or half of the parts have the same score.
    """
    check_rate(rate)
    if parts.spread <= 0:
        raise CalibrationError("half of the good parts have the same score, so their spread is 0; are pictures there twice?")
    return parts.quantile(0.5) + NormalDist().inv_cdf(1 - rate) * parts.spread


def check_enough(count: int, rate: float, of: str = "good images") -> None:
    """Can so many scores bound `rate` at all? Raises CalibrationError with the number needed."""
    check_rate(rate)
    needed = images_needed(rate)
    if count < needed:
        affordable = math.ceil(1e4 / (count + 1)) / 1e4  # rounded up, so that the advice holds
        advice = f"add images, or allow a rate of {affordable:g} or more" if count > 0 else "add images"
        raise CalibrationError(f"{count} {of}, expected at least {needed} for a false-reject rate of {rate:g}; {advice}")


def check_rate(rate: float) -> None:
    """Raises CalibrationError for what is no false-reject rate."""
    if not (math.isfinite(rate) and 0 < rate < 1):
        raise CalibrationError(f"false-reject rate {rate}, expected above 0 and below 1, such as 0.01")


def images_needed(rate: float) -> int:
    """Fewest scores for which the bound says anything: the smallest n with ceil((n + 1)(1 - rate)) <= n."""
    return math.ceil(1 / Fraction(rate) - 1 - Fraction(1, 10**9))
