"""Logistic regression with Firth's penalty, and its profile likelihood ratio: finite where hits and misses are separated.

D. Firth, "Bias reduction of maximum likelihood estimates", Biometrika 80, 1993; G. Heinze, M. Schemper, "A solution to the
problem of separation in logistic regression", Statistics in Medicine 21, 2002.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

_ITERATIONS, _HALVINGS, _CLOSE = 200, 30, 1e-8
_LARGEST_STEP = 5.0  # of a coefficient, in units of its standardised covariate


class FirthRegression:
    """Coefficients that maximise the penalised likelihood, found on standardised covariates.

    Attributes:
        probabilities: float64 (n,) that are fitted.
        likelihood: their log-likelihood, without the penalty.
    """

    def __init__(self, covariates: Doubles, found: npt.NDArray[np.bool_]) -> None:
        """Fit covariates float64 (n, 2), of which one may be constant, to hits bool (n,)."""
        self._mean, self._spread = covariates.mean(axis=0), covariates.std(axis=0)
        self._spread[self._spread < 1e-9] = np.inf  # a constant covariate has no coefficient
        self._design = np.column_stack([np.ones(len(found)), (covariates - self._mean) / self._spread])
        self._used = np.array([True, *np.isfinite(self._spread)])
        self._design = self._design[:, self._used]
        self._found = found.astype(np.float64)
        start = np.zeros(self._design.shape[1])
        self._beta, self._penalised = _maximise(self._design, np.zeros(len(found)), self._design, self._found, start)
        self.probabilities = logistic(self._design @ self._beta)
        self.likelihood = _log_likelihood(self._design @ self._beta, self._found)

    @property
    def beta(self) -> Doubles:
        """Coefficients of the standardised covariates, float64 (3,); 0 where one is constant."""
        beta = np.zeros(3)
        beta[self._used] = self._beta
        return beta

    def unscaled(self) -> Doubles:
        """Coefficients of the covariates as they were given."""
        slopes = self.beta[1:] / self._spread
        return np.array([self.beta[0] - float(slopes @ self._mean), *slopes])

    def ratio_at(self, row: Doubles, level: float) -> float:
        """Twice the fall of the profile likelihood where the logit at covariates `row` (1, x, z) is held at `level`."""
        return self.ratio(np.array([1.0, *((row[1:] - self._mean) / self._spread)]), level)

    def ratio(self, direction: Doubles, level: float) -> float:
        """The same where `direction` @ beta of the standardised covariates is held at `level`.

        The design is turned so that one coefficient is the one held: an offset, and one column fewer.
        """
        held = direction[self._used]
        pivot = int(np.abs(held).argmax())
        column = self._design[:, pivot] / held[pivot]
        others = [number for number in range(len(held)) if number != pivot]
        free = self._design[:, others] - np.outer(column, held[others])
        _, penalised = _maximise(free, level * column, self._design, self._found, self._beta[others])
        return max(0.0, 2 * (self._penalised - penalised))

    def clustering(self, row: Doubles, group: npt.NDArray[np.int64]) -> float:
        """Variance of the logit at `row` by groups as units (sandwich), over that of the model."""
        at = np.array([1.0, *((row[1:] - self._mean) / self._spread)])[self._used]
        p = self.probabilities
        influence = np.linalg.solve(_information(self._design, p), at)
        groups, member = np.unique(group, return_inverse=True)
        if len(groups) < 2:
            return 1.0
        sums = np.bincount(member, (self._design @ influence) * (self._found - p))
        return float((sums**2).sum() * len(groups) / (len(groups) - 1) / (at @ influence))


def _maximise(free: Doubles, offset: Doubles, design: Doubles, found: Doubles, start: Doubles) -> tuple[Doubles, float]:
    """Fisher scoring with halved steps for the penalised likelihood of offset + free @ beta: beta, and its maximum.

    The penalty is that of the whole design, whose span holds the free columns and the offset.
    """

    def penalised(eta: Doubles) -> float:
        sign, log_determinant = np.linalg.slogdet(_information(design, logistic(eta)))
        return _log_likelihood(eta, found) + 0.5 * log_determinant if sign > 0 else -math.inf

    beta, value = start, penalised(offset + free @ start)
    if not math.isfinite(value):
        return beta, -math.inf
    for _ in range(_ITERATIONS):
        p = logistic(offset + free @ beta)
        weight = p * (1 - p)
        half = np.sqrt(weight)[:, None] * design
        leverage = ((half @ np.linalg.pinv(half.T @ half)) * half).sum(axis=1)
        score = free.T @ (found - p + leverage * (0.5 - p))
        step = np.linalg.pinv(_information(free, p)) @ score
        step *= min(1.0, _LARGEST_STEP / max(float(np.abs(step).max(initial=0.0)), 1e-300))
        for _ in range(_HALVINGS):
            better = penalised(offset + free @ (beta + step))
            if better >= value:
                break
            step = step / 2
        else:
            break
        beta, gained, value = beta + step, better - value, better
        if gained < _CLOSE:
            break
    return beta, value


def _information(design: Doubles, p: Doubles) -> Doubles:
    return np.asarray(design.T @ (design * (p * (1 - p))[:, None]))


def _log_likelihood(eta: Doubles, found: Doubles) -> float:
    return float(found @ eta - np.logaddexp(0, eta).sum())


def logistic(eta: Doubles | float) -> Doubles:
    """1 / (1 + exp(-eta)), without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(eta, np.float64))))
