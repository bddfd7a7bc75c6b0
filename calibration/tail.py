"""Rates beyond the sample: a generalised Pareto tail above a high score, believed only where it fits.

The scores above a high one follow a generalised Pareto distribution for almost any distribution of scores (Pickands,
"Statistical inference using extreme order statistics", Annals of Statistics 3, 1975), if it is high enough, which nobody can
know. So the fit is tested, and refused where the test speaks against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from calibration.intervals import LEVEL, Estimate
from calibration.parts import Scores
from calibration.threshold import check_rate

MIN_EXCESSES = 20  # scores in the tail; the fit of fewer says nothing, and no test would notice
TAIL = 0.2  # share of the scores that is the tail
MIN_SCORES = math.ceil(MIN_EXCESSES / TAIL)
MIN_P = 0.05  # of the test; a good fit is refused as often as this
_DRAWS = 1000
_LEAST_NOMINAL = 0.4  # of the rate asked for: what fits are asked for instead, to keep it on average
_HALVINGS = 25
_FLAT = 1e-9  # of theta times the mean: below it the tail is exponential


@dataclass(frozen=True, eq=False)
class Tail:
    """A generalised Pareto tail, P(score > start + y) = share * (1 + shape * y / scale)^(-1 / shape).

    Attributes:
        start: score that the tail begins at, the (k + 1)-th highest.
        share: of scores above `start`, (k + 1) / (n + 1): the mean over all samples of what lies above that score.
        shape, scale: of the distribution; `shape` below 0 means that scores have an upper end.
        n, excesses: scores, and how many of them (k) the fit is from.
        p: that so bad a fit comes by chance where the tail is what it is taken for.
        drawn: what a thousand further samples of this tail gave.
    """

    start: float
    share: float
    shape: float
    scale: float
    n: int
    excesses: int
    p: float
    drawn: Drawn

    def threshold(self, rate: float) -> tuple[float, Estimate]:
        """Threshold at which the expected false-reject rate is `rate`, and what is known of its rate.

        The quantile of a fitted tail is too low on average: where the fit is too light, many more are rejected, and where it
        is too heavy, hardly fewer. So the fit is repeated on samples drawn from it, and the nominal rate is lowered until
        the rate that these thresholds really have is `rate` on average.

        The interval spans two bootstrap intervals: of the rates that those thresholds have, and of the rate of this one if
        the fit is off by as much as they are, the other way round. The first alone takes the fitted shape for the true one,
        and holds the true rate too seldom beyond the sample (`benchmarks.promises`).

        Raises:
            CalibrationError: a rate out of range, one that is not in the tail, or one so far beyond the sample that the
                correction would be by more than the fit is worth (below 0.4 / n, about).
        """
        check_rate(rate)
        if rate >= self.share:
            raise CalibrationError(
                f"false-reject rate {rate:g}, expected below {self.share:.2g}, where the tail begins; conformal serves there"
            )
        nominal = self.drawn.nominal(rate)
        if nominal < _LEAST_NOMINAL * rate:
            raise CalibrationError(
                f"{self.n} good parts say too little of a rate of {rate:g}; expected about {math.ceil(0.5 / rate)}; add parts"
            )
        excess = float(_quantile(np.array([self.shape]), np.array([self.scale]), self.share / nominal)[0])
        rates = self.drawn.realised(nominal)
        tails = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        ends = np.concatenate([np.quantile(one, tails) for one in (rates, self.drawn.rates_at(excess / self.scale))])
        return self.start + excess, Estimate(expected=float(rates.mean()), low=float(ends.min()), high=float(ends.max()))


@dataclass(frozen=True, eq=False)
class Drawn:
    """Fits to samples from a tail of scale 1: what a fit like this one may be off by.

    Where the tail begins is drawn with them. Its scale and place do not matter, because fit and threshold move with them.

    Attributes:
        shape: of the tail that was drawn from.
        share: of scores that each fit takes to be in the tail.
        above: float64 (draws,) share of scores that really are.
        shapes, scales: float64 (draws,) of the fits.
    """

    shape: float
    share: float
    above: Scores
    shapes: Scores
    scales: Scores

    def nominal(self, rate: float) -> float:
        """Rate to ask of the fits, `rate` or less, for the rates of their thresholds to be `rate` on average."""
        low, high = math.log(rate * _LEAST_NOMINAL) - 1, math.log(rate)
        if self.realised(rate).mean() <= rate:
            return rate
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.realised(math.exp(middle)).mean() > rate else (middle, high)
        return math.exp(low)

    def realised(self, nominal: float) -> Scores:
        """float64 (draws,): rates that the thresholds of these fits at a nominal rate really have."""
        excess = _quantile(self.shapes, self.scales, self.share / nominal)
        return np.asarray(self.above * _survival(np.full(len(excess), self.shape), np.ones(len(excess)), excess[:, None])[:, 0])

    def rates_at(self, excess: float) -> Scores:
        """float64 (draws,): rates of one threshold, were the fit off by as much as each of these is, the other way round."""
        shapes, scales = 2 * self.shape - self.shapes, 1 / self.scales
        return np.asarray(self.above * _survival(shapes, scales, np.full((len(shapes), 1), excess))[:, 0])


def fit_tail(scores: Scores) -> Tail:
    """Fit the upper fifth of the scores, and test the fit.

    The test is Anderson and Darling's, which weighs the ends; its p-value comes from the same fit to 1,000 samples of the
    fitted tail (Choulakian and Stephens, "Goodness-of-fit tests for the generalized Pareto distribution", Technometrics 43,
    2001; their tables assume maximum likelihood). The samples are the same in every run.

    Args:
        scores: float64 (n,), ascending, one a part.

    Raises:
        CalibrationError: fewer than 100 scores, equal ones in the tail, or a bad fit.
    """
    n = len(scores)
    if n < MIN_SCORES:
        raise CalibrationError(f"{n} good parts, expected at least {MIN_SCORES} for a tail; add parts")
    k = int(TAIL * n)
    start = float(scores[n - k - 1])
    excesses = scores[n - k :] - start
    if len(np.unique(excesses)) < k or excesses[0] <= 0:
        raise CalibrationError("equal scores in the tail, which no continuous distribution gives; are parts there twice?")
    shape, scale = _fit(excesses[None])
    random = np.random.default_rng(0)
    samples = np.sort(_quantile(np.repeat(shape, _DRAWS)[:, None], 1.0, 1 / (1 - random.random((_DRAWS, k)))), axis=1)
    shapes, scales = _fit(samples)
    statistic = float(_anderson_darling(excesses[None], shape, scale)[0])
    worse = int((_anderson_darling(samples, shapes, scales) >= statistic).sum())
    p = (1 + worse) / (1 + _DRAWS)
    if p < MIN_P:
        raise CalibrationError(
            f"the highest {k} scores do not follow a generalised Pareto tail (Anderson-Darling {statistic:.3g}, p {p:.2g},"
            f" expected {MIN_P:g} or more); look whether several kinds of parts or odd ones are among them, or take conformal"
        )
    share = (k + 1) / (n + 1)
    drawn = Drawn(float(shape[0]), share, random.beta(k + 1, n - k, _DRAWS), shapes, scales)
    return Tail(start, share, float(shape[0]), float(scale[0]), n, k, p, drawn)


def _fit(excesses: Scores) -> tuple[Scores, Scores]:
    """Shape and scale, float64 (samples,) each, from float64 (samples, k) excesses, ascending.

    The mean of the profile likelihood over a grid (Zhang and Stephens, "A new and efficient estimation method for the
    generalized Pareto distribution", Technometrics 51, 2009): near maximum likelihood in large samples, better in small
    ones, and always a distribution that has room for the data. Their k is minus the shape.
    """
    count = excesses.shape[1]
    size = 20 + math.isqrt(count)
    quartile, largest = excesses[:, int(count / 4 + 0.5) - 1], excesses[:, -1]
    step = (1 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))) / 3
    theta = 1 / largest[:, None] + step / quartile[:, None]  # (samples, size)
    likelihood = np.empty_like(theta)
    for column in range(size):  # one column at a time: the whole would be gigabytes for large samples
        likelihood[:, column] = _profile(theta[:, column], excesses)
    weights = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    best = (theta * weights).sum(axis=1) / weights.sum(axis=1)
    mean = excesses.mean(axis=1)
    best = np.where(np.abs(best) * mean < _FLAT, -_FLAT / mean, best)
    shape = np.log1p(-best[:, None] * excesses).mean(axis=1)
    return shape, -shape / best


def _profile(theta: Scores, excesses: Scores) -> Scores:
    """Log-likelihood at theta with the best shape for it, float64 (samples,)."""
    theta = np.where(np.abs(theta) * excesses[:, -1] < _FLAT, -_FLAT / excesses[:, -1], theta)
    shape = np.log1p(-theta[:, None] * excesses).mean(axis=1)
    return np.asarray(excesses.shape[1] * (np.log(-theta / shape) - shape - 1))


def _quantile(shape: Scores, scale: Scores | float, ratio: npt.ArrayLike) -> Scores:
    """Excess that a share of 1 / ratio of the tail is above."""
    shape = np.where(np.abs(shape) < _FLAT, _FLAT, shape)
    return np.asarray(scale * np.expm1(shape * np.log(ratio)) / shape)


def _survival(shape: Scores, scale: Scores, excesses: Scores) -> Scores:
    """Share of the tail above each of float64 (samples, k) excesses; 0 beyond the upper end of a shape below 0."""
    shape = np.where(np.abs(shape) < _FLAT, _FLAT, shape)[:, None]
    inner = np.maximum(1 + shape * excesses / scale[:, None], 0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(-np.log(inner) / shape))


def _anderson_darling(excesses: Scores, shape: Scores, scale: Scores) -> Scores:
    """Anderson-Darling statistic of each sample, float64 (samples,)."""
    count = excesses.shape[1]
    over = np.clip(_survival(shape, scale, excesses), 1e-300, 1)
    log_below, log_over = np.log(np.maximum(-np.expm1(np.log(over)), 1e-300)), np.log(over)
    odd = 2 * np.arange(1, count + 1) - 1
    return np.asarray(-count - ((log_below + log_over[:, ::-1]) * odd).mean(axis=1))
