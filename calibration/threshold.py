"""Thresholds from scores of good parts: pure statistics."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError


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
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise CalibrationError("scores are not all finite numbers; find the image or the backend that broke them")
    # (n + 1)(1 - rate) is a whole number for many sensible pairs: float error must not push it over the next one
    rank = math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)
    return float(np.sort(scores)[rank - 1])


def check_enough(count: int, rate: float) -> None:
    """Can `count` scores bound `rate` at all? Raises CalibrationError with the number needed."""
    if not (math.isfinite(rate) and 0 < rate < 1):
        raise CalibrationError(f"false-reject rate {rate}, expected above 0 and below 1, such as 0.01")
    needed = images_needed(rate)
    if count < needed:
        affordable = math.ceil(1e4 / (count + 1)) / 1e4  # rounded up, so that the advice holds
        advice = f"add images, or allow a rate of {affordable:g} or more" if count > 0 else "add images"
        raise CalibrationError(f"{count} good images, expected at least {needed} for a false-reject rate of {rate:g}; {advice}")


def images_needed(rate: float) -> int:
    """Fewest scores for which the bound says anything: the smallest n with ceil((n + 1)(1 - rate)) <= n."""
    return math.ceil(1 / Fraction(rate) - 1 - Fraction(1, 10**9))
