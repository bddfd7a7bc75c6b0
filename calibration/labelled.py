"""Thresholds from good and bad parts: the best F-beta, the least cost, no escape. All rates are by part, as in `Parts`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calibration import CalibrationError
from calibration.intervals import LEVEL, Estimate, counted
from calibration.parts import Parts, Scores

FEW_BAD = 20  # bad parts: below this an escape rate is hardly more than a guess
_DRAWS = 1000

Objective = Callable[[Scores, Scores], Scores]
"""What to make small, of false-reject rates and escape rates of the same shape."""


@dataclass(frozen=True)
class Chosen:
    """A threshold, and what to expect of it.

    Attributes:
        threshold: a part is rejected if and only if its score is above it.
        false_reject, escape: rates, with what choosing by these very parts made look better taken back.
        span: between which thresholds 95 of 100 draws of such parts put it.
        gap: the scores that it lies between.
    """

    threshold: float
    false_reject: Estimate
    escape: Estimate
    span: tuple[float, float]
    gap: tuple[float, float]


def f_beta(beta: float, defects: float) -> Objective:
    """1 - F-beta of finding bad parts, where a share `defects` of the line's parts is bad (van Rijsbergen, 1979).

    F-beta weighs the share of bad parts that are rejected beta times as high as the share of rejects that are bad. The
    second depends on how many bad parts there are, which a folder of examples does not tell.
    """

    def objective(false_reject: Scores, escape: Scores) -> Scores:
        caught = (1 + beta**2) * defects * (1 - escape)
        return np.asarray(1 - caught / (caught + beta**2 * defects * escape + (1 - defects) * false_reject + 1e-300))

    return objective


def expected_cost(escape_cost: float, overkill_cost: float, defects: float) -> Objective:
    """Cost a part: that of a bad part that passes, and that of a good one that is rejected, weighed by how often each comes."""

    def objective(false_reject: Scores, escape: Scores) -> Scores:
        return np.asarray(defects * escape_cost * escape + (1 - defects) * overkill_cost * false_reject)

    return objective


def choose(good: Parts, bad: Parts, objective: Objective) -> Chosen:
    """Threshold with the smallest objective over these parts, in the middle of the scores that are as good.

    A threshold chosen by the parts that it is judged by looks better than it is. So the choice is made again on a thousand
    draws of as many parts with replacement, and judged by the parts that a draw left out. The means of these rates count as
    if so many parts had been above or below a threshold that they did not choose.

    Raises:
        CalibrationError: a single good or bad part, which no draw can leave out; or half of the good parts would be rejected:
            no threshold tells these parts apart.
    """
    if min(good.count, bad.count) < 2:
        raise CalibrationError(
            f"{good.count} good and {bad.count} bad parts, expected 2 of each to judge a choice by; add parts"
        )
    cuts = np.unique(np.concatenate((good.scores, bad.scores)))
    low, high = _best(objective, _above(good, cuts, good.weights), _above(bad, cuts, bad.weights), cuts)
    threshold = (low + high) / 2
    if not low <= threshold < high:  # neighbours among floating-point numbers, or nothing above
        threshold = low
    check_useful(good, threshold)
    random = np.random.default_rng(0)
    places, false_rejects, escapes = np.empty(_DRAWS), [], []
    for draw in range(_DRAWS):
        of_good, of_bad = (random.multinomial(parts.count, np.full(parts.count, 1 / parts.count)) for parts in (good, bad))
        one, other = _best(
            objective,
            _above(good, cuts, good.weights * of_good[good.part]),
            _above(bad, cuts, bad.weights * of_bad[bad.part]),
            cuts,
        )
        places[draw] = (one + other) / 2
        false_rejects.append(_left_out(good, of_good, float(places[draw])))
        escapes.append(1 - _left_out(bad, of_bad, float(places[draw])))
    span = np.quantile(places, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    return Chosen(
        threshold,
        counted(good.count * float(np.nanmean(false_rejects)), good.count),
        counted(bad.count * float(np.nanmean(escapes)), bad.count),
        (span[0], span[1]),
        (low, high),
    )


def no_escape(good: Parts, bad: Parts, margin: float) -> Chosen:
    """Threshold below every bad part's lowest score, by `margin` times the spread of good scores.

    The next bad part may still score lower: of m of them the expected share that does is 1 / (m + 1), without a margin.

    Raises:
        CalibrationError: half of the good parts would be rejected.
    """
    lowest = float(bad.scores[0])
    threshold = float(np.nextafter(lowest - margin * good.spread, -np.inf))
    check_useful(good, threshold)
    below = good.scores[good.scores <= threshold]
    return Chosen(
        threshold,
        counted(good.above(threshold), good.count),
        counted(0, bad.count),
        (threshold, threshold),
        (float(below[-1]), lowest),
    )


def escape_rate(bad: Parts, threshold: float) -> Estimate:
    """Escape rate of a threshold that these bad parts did not choose."""
    return counted(bad.count - bad.above(threshold), bad.count)


def check_useful(good: Parts, threshold: float) -> None:
    """Raises CalibrationError where half of the good parts are above a threshold."""
    rejected = good.above(threshold)
    if 2 * rejected >= good.count:
        raise CalibrationError(
            f"{rejected:.3g} of {good.count} good parts would be rejected: scores do not tell these good and bad parts apart;"
            " look whether they are sorted rightly, or train again"
        )


def _best(objective: Objective, good_above: Scores, bad_above: Scores, cuts: Scores) -> tuple[float, float]:
    """The widest gap between scores, (low, high), in which every threshold has the smallest objective."""
    values = objective(good_above / max(good_above[0], 1e-300), 1 - bad_above / max(bad_above[0], 1e-300))[1:]
    least = float(values.min())
    same = np.flatnonzero(values <= least + 1e-12 * max(1.0, abs(least)))
    highest = cuts[np.minimum(same + 1, len(cuts) - 1)]
    widest = int(np.argmax(highest - cuts[same]))
    return float(cuts[same[widest]]), float(highest[widest])


def _above(parts: Parts, cuts: Scores, weights: Scores) -> Scores:
    """Weight of all scores, and then of those above each cut, float64 (cuts + 1,)."""
    total = np.concatenate(([0.0], np.cumsum(weights)))
    at = np.searchsorted(parts.scores, cuts, side="right")
    return np.concatenate(([total[-1]], np.maximum(total[-1] - total[at], 0.0)))


def _left_out(parts: Parts, drawn: np.ndarray, threshold: float) -> float:
    """Share above a threshold of the parts that a draw left out; NaN where it left out none."""
    out = drawn[parts.part] == 0
    whole = float(parts.weights[out].sum())
    return float(parts.weights[out & (parts.scores > threshold)].sum()) / whole if whole > 0 else float("nan")
