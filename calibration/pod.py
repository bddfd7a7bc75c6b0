"""Probability of detection from hits and misses: how large a defect must be to be found with a probability.

The model is MIL-HDBK-1823A's for hit/miss data ("Nondestructive Evaluation System Reliability Assessment", 2009, section
4.5.2.3 and appendix G), with the defect's contrast as a second covariate:

    logit POD = b0 + b1 f(size) + b2 log(contrast),        f the logarithm or the identity, whichever fits better.

Coefficients maximise Firth's penalised likelihood, l + log|I| / 2 (D. Firth, "Bias reduction of maximum likelihood
estimates", Biometrika 80, 1993), which is finite where a size separates hits from misses. a90 is the size whose POD is 90 %;
a90/95 is its upper 95 % confidence bound, the size at which the profile penalised likelihood ratio (G. Heinze, M. Schemper,
"A solution to the problem of separation in logistic regression", Statistics in Medicine 21, 2002) reaches the one-sided 95 %
point, as the handbook's bound does for the plain likelihood. Several defects on one image share its luck: the ratio is
divided by the design effect of the images at a90, where that is above 1 (sandwich variance over the model's; A. Rotnitzky,
N. P. Jewell, Biometrika 77, 1990). Where the hits and misses do not tell which f is right, the larger of the two bounds is
taken: the bound of the likelier one alone holds less often than it says (`python -m benchmarks.promises`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from calibration.firth import Doubles, FirthRegression, logistic
from calibration.intervals import student_quantile

Scale = Literal["log", "linear"]
_SCALES: tuple[Scale, ...] = ("log", "linear")

FEWEST = 60  # hits and misses; the handbook's least number for such data
_TREND = 0.05  # probability of so strong a trend without one, above which there is none
_HALVINGS = 30  # of an interval that holds a root
_TIE = 1e-6  # of two likelihoods
_NEAR = 1.92  # between two log-likelihoods, below which the data do not tell the scales apart: half of chi-squared's 95 %
_ROOT_CLOSE = 1e-4  # of the signed root of a likelihood ratio
_BANDS = 10  # of the goodness of fit


@dataclass(frozen=True)
class Trials:
    """Defects that were shown to a station, and whether it found them.

    Attributes:
        size_px: float64 (n,), above 0.
        contrast: float64 (n,), above 0.
        found: bool (n,).
        group: int64 (n,), the image that each defect lies on.
    """

    size_px: Doubles
    contrast: Doubles
    found: npt.NDArray[np.bool_]
    group: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = {self.size_px.shape, self.contrast.shape, self.found.shape, self.group.shape}
        if len(shapes) != 1 or self.size_px.ndim != 1:
            raise CalibrationError(f"sizes, contrasts, hits and images have shapes {shapes}, expected one length for all")
        if not all(np.isfinite(values).all() and (values > 0).all() for values in (self.size_px, self.contrast)):
            raise CalibrationError("sizes and contrasts of defects, expected finite numbers above 0")

    def __len__(self) -> int:
        return len(self.found)

    def only(self, chosen: npt.NDArray[np.bool_]) -> Trials:
        """The trials chosen, bool (n,)."""
        return Trials(self.size_px[chosen], self.contrast[chosen], self.found[chosen], self.group[chosen])


class UndeterminedError(CalibrationError):
    """The trials do not say how large a defect must be; the message says why and what would."""


class PodCurve:
    """A fitted POD curve.

    Attributes:
        scale: of the size, `log` or `linear`.
        coefficients: b0, b1, b2 of the model above.
        design_effect: variance of the curve with images as the units over that with defects as the units, at POD 90 %.
        likelihood: log-likelihood of the hits and misses, without the penalty.
        misfit: probability of so bad a fit where the model is right (Hosmer-Lemeshow, ten bands).
    """

    def __init__(self, trials: Trials) -> None:
        """Fit.

        Raises:
            UndeterminedError: fewer than `FEWEST` trials, all found, none found, or no trend with size.
        """
        _check(trials)
        fits = {scale: FirthRegression(_covariates(trials, scale), trials.found) for scale in _SCALES}
        # of equally many coefficients; the penalty depends on the scale, so the likelihood alone is compared
        self.scale: Scale = "linear" if fits["linear"].likelihood > fits["log"].likelihood + _TIE else "log"
        self._fit = fits[self.scale]
        self._near = {
            scale: fit for scale, fit in fits.items() if fit.likelihood > self._fit.likelihood - _NEAR and fit.beta[1] > 0
        }
        self._trials = trials
        slope = self._fit.beta[1]
        flat = self._fit.ratio(np.array([0.0, 1.0, 0.0]), 0.0)
        if slope <= 0 or flat < _cut(1 - _TREND):
            raise UndeterminedError(
                f"{np.count_nonzero(trials.found)} of {len(trials)} defects were found, and larger ones not clearly more often:"
                " no size can be stated; draw over a wider range of sizes, or look at what is found and what is not"
            )
        self.coefficients = tuple(self._fit.unscaled().tolist())
        self.design_effect = self._design_effect(self.scale)
        self.likelihood = self._fit.likelihood
        self.misfit = _misfit(self._fit.probabilities, trials.found)

    def probability(self, size_px: Doubles | float, contrast: Doubles | float) -> Doubles:
        """POD of defects of a size and a contrast: float64 of their common shape, 0 to 1."""
        b0, b1, b2 = self.coefficients
        return np.asarray(logistic(b0 + b1 * _scaled(size_px, self.scale) + b2 * np.log(contrast)))

    def size_at(self, probability: float, contrast: float, easier: float = 0.0) -> float:
        """The size (pixels) whose POD is `probability` at a contrast, in or beyond the range of sizes tried.

        On a linear scale it may be 0 or below, on a logarithmic one infinite. `easier` is added to the logit: see
        `local_intercepts`.
        """
        return _size_at(self._fit, self.scale, _logit(probability) - easier, contrast)

    def bound_at(self, probability: float, contrast: float, confidence: float = 0.95) -> float:
        """Upper confidence bound of `size_at`, one-sided: a90/95 for 0.9 and 0.95.

        Infinite where it lies beyond four times the largest size, as where the trend is hardly one.
        """
        return max(self._bound_at(scale, probability, contrast, confidence) for scale in self._near)

    def _bound_at(self, scale: Scale, probability: float, contrast: float, confidence: float) -> float:
        fit, level = self._near[scale], _logit(probability)
        limit = self._limit(scale, confidence)
        estimate = _size_at(fit, scale, level, contrast)
        if math.inf in (estimate, limit):
            return math.inf

        def over(size: float) -> float:  # the root of the ratio is nearly a straight line of the (scaled) size
            row = np.array([1.0, float(_scaled(size, scale)), math.log(contrast)])
            return math.sqrt(fit.ratio_at(row, level)) - limit

        largest = max(float(self._trials.size_px.max()), estimate)
        low, at_low = estimate, -limit
        for high in (largest, 4 * largest):
            at_high = over(high)
            if at_high > 0:
                return _root(over, low, at_low, high, at_high)
            low, at_low = high, at_high
        return math.inf

    def _limit(self, scale: Scale, confidence: float) -> float:
        """Signed root of the ratio at the bound: Student's quantile, times the root of the design effect.

        A variance between G images is known with G - 1 degrees of freedom, as any cluster-robust variance (A. C. Cameron,
        D. L. Miller, Journal of Human Resources 50, 2015). One image has none.
        """
        images = len(np.unique(self._trials.group))
        if images < 2:
            return math.inf
        return student_quantile(confidence, images - 1) * math.sqrt(self._design_effect(scale))

    def _design_effect(self, scale: Scale) -> float:
        """At POD 90 % and the geometric mean of the contrasts."""
        fit = self._near[scale]
        contrast = float(np.exp(np.log(self._trials.contrast).mean()))
        b0, b1, b2 = fit.unscaled().tolist()
        at = (_logit(0.9) - b0 - b2 * math.log(contrast)) / b1
        return max(1.0, fit.clustering(np.array([1.0, at, math.log(contrast)]), self._trials.group))


@dataclass(frozen=True)
class Detectable:
    """How large a defect must be, pixels, at one contrast. What the trials do not determine is None, and `reason` says why.

    Attributes:
        found, tried: defects.
        a50, a90: sizes with a POD of 50 % and 90 %.
        a90_95: upper 95 % confidence bound of a90.
        reason: one line.
    """

    found: int
    tried: int
    a50: float | None
    a90: float | None
    a90_95: float | None
    reason: str | None


def detectable(trials: Trials, contrast: float) -> tuple[Detectable, PodCurve | None]:
    """Fit a curve and read sizes off it, none of them outside the sizes that were tried; the curve is None where none fits."""
    found, tried = int(np.count_nonzero(trials.found)), len(trials)
    try:
        curve = PodCurve(trials)
    except UndeterminedError as error:
        return Detectable(found, tried, None, None, None, str(error)), None
    least, most = float(trials.size_px.min()), float(trials.size_px.max())
    a50, a90, bound = curve.size_at(0.5, contrast), curve.size_at(0.9, contrast), curve.bound_at(0.9, contrast)
    reason = None
    if a90 < least:
        reason = (
            f"at contrast {contrast:g}, a90 is below {least:.3g} px, the smallest defect tried; try smaller ones to state it"
        )
    elif a90 > most:
        reason = f"at contrast {contrast:g}, a90 is beyond {most:.3g} px, the largest defect tried"
    elif bound > most:
        reason = f"the bound of a90 is beyond {most:.3g} px, the largest defect tried; try more, on more images"
    within = [value if least <= value <= most else None for value in (a50, a90, bound)]
    return Detectable(found, tried, within[0], within[1], within[2] if within[1] is not None else None, reason), curve


def local_intercepts(curve: PodCurve, trials: Trials, weights: Doubles) -> Doubles:
    """How much harder or easier a place is than the curve says: what is added to its logit there, float64 (places,).

    Each place has an intercept of its own, with the curve as an offset and the trials weighted by how near they lie
    (local likelihood; R. Tibshirani, T. Hastie, JASA 82, 1987), penalised as the curve is, so that a place where all or
    none were found has a finite one.

    Args:
        curve: fitted to all trials.
        trials: n of them.
        weights: float64 (places, n), 0 to 1.

    Returns:
        NaN where the weights of a place sum to less than 10.
    """
    base = _logit_of(curve.probability(trials.size_px, trials.contrast))
    found = trials.found.astype(np.float64)
    added = np.full(len(weights), np.nan)
    for place, weight in enumerate(weights):
        if weight.sum() < 10:
            continue
        low, high = -20.0, 20.0  # the penalised score falls monotonically enough to be bisected
        for _ in range(32):  # to a part in 10^8
            middle = (low + high) / 2
            p = logistic(base + middle)
            spread = weight * p * (1 - p)
            score = float(weight @ (found - p) + spread @ (0.5 - p) / max(spread.sum(), 1e-300))
            low, high = (middle, high) if score > 0 else (low, middle)
        added[place] = (low + high) / 2
    return added


def _size_at(fit: FirthRegression, scale: Scale, level: float, contrast: float) -> float:
    b0, b1, b2 = fit.unscaled().tolist()
    return _unscaled((level - b0 - b2 * math.log(contrast)) / b1, scale)


def _root(over: Callable[[float], float], low: float, at_low: float, high: float, at_high: float) -> float:
    """Where a rising function crosses 0, by false position (the Illinois variant), within `_ROOT_CLOSE` of it."""
    kept = 0
    for _ in range(_HALVINGS):
        at = (low * at_high - high * at_low) / (at_high - at_low)
        value = over(at)
        if abs(value) < _ROOT_CLOSE:
            return at
        if value > 0:
            high, at_high = at, value
            at_low = at_low / 2 if kept > 0 else at_low
            kept = 1
        else:
            low, at_low = at, value
            at_high = at_high / 2 if kept < 0 else at_high
            kept = -1
    return high


def _check(trials: Trials) -> None:
    if len(trials) < FEWEST:
        raise UndeterminedError(
            f"{len(trials)} defects, expected {FEWEST} or more; give more images, or have more defects drawn"
        )
    sizes = f"{trials.size_px.min():.3g} to {trials.size_px.max():.3g} px"
    if trials.found.all():
        raise UndeterminedError(f"all {len(trials)} defects of {sizes} were found: draw smaller or fainter ones")
    if not trials.found.any():
        raise UndeterminedError(f"none of {len(trials)} defects of {sizes} was found: draw larger or stronger ones")


def _covariates(trials: Trials, scale: Scale) -> Doubles:
    return np.column_stack([_scaled(trials.size_px, scale), np.log(trials.contrast)])


def _scaled(size_px: Doubles | float, scale: Scale) -> Doubles:
    return np.asarray(np.log(size_px) if scale == "log" else size_px, np.float64)


def _unscaled(value: float, scale: Scale) -> float:
    if scale == "linear":
        return float(value)
    return math.exp(value) if value < 700 else math.inf


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _logit_of(p: Doubles) -> Doubles:
    kept = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(kept / (1 - kept)))


def _cut(confidence: float) -> float:
    """The likelihood ratio, chi-squared with one degree of freedom, at a one-sided confidence: its signed root is normal."""
    return NormalDist().inv_cdf(confidence) ** 2


def _misfit(p: Doubles, found: npt.NDArray[np.bool_]) -> float:
    """Hosmer-Lemeshow: observed against expected hits in ten bands of POD; chi-squared with eight degrees of freedom."""
    statistic = 0.0
    for band in np.array_split(np.argsort(p, kind="stable"), _BANDS):
        expected = float(p[band].sum())
        variance = max(expected * (1 - expected / len(band)), 1e-12)
        statistic += (float(found[band].sum()) - expected) ** 2 / variance
    half = statistic / 2
    return math.exp(-half) * sum(half**k / math.factorial(k) for k in range((_BANDS - 2) // 2))
