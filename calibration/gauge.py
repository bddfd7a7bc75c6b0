"""Gauge repeatability and reproducibility of a score: variance components by analysis of variance.

AIAG, "Measurement Systems Analysis", 4th edition, 2010, chapter III, section B (ANOVA method).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from calibration.intervals import beta_cdf

Scores = npt.NDArray[np.float64]  # (operators, parts, repeats)

POOL_ABOVE: Final = 0.25  # of the interaction's p-value, as AIAG: it is then taken for repeatability
RESAMPLES: Final = 2000
_MOST_DISTINCT = 1e6  # where the gauge hardly varies at all


@dataclass(frozen=True)
class Components:
    """Variances of a score, in its unit squared; what would be negative is 0, as AIAG has it.

    Attributes:
        repeatability: of one part, shown again to the same operator or station.
        operators: between them (reproducibility without the interaction); 0 with one alone.
        interaction: of operators with parts; 0 where it was pooled.
        parts: between parts.
        pooled: the interaction was not significant and was taken for repeatability.
        interaction_p: its p-value; NaN with one operator alone.
    """

    repeatability: float
    operators: float
    interaction: float
    parts: float
    pooled: bool
    interaction_p: float

    @property
    def reproducibility(self) -> float:
        """Operators and their interaction."""
        return self.operators + self.interaction

    @property
    def gauge(self) -> float:
        """Repeatability and reproducibility (GRR)."""
        return self.repeatability + self.reproducibility

    @property
    def total(self) -> float:
        """All of it."""
        return self.gauge + self.parts

    def share(self, variance: float) -> float:
        """Part of the study's variation, as AIAG's % of TV: a ratio of standard deviations, so shares do not add up to 1."""
        return math.sqrt(variance / self.total) if self.total > 0 else 0.0

    @property
    def distinct(self) -> int:
        """Number of distinct categories: 1.41 times the parts' over the gauge's deviation, truncated."""
        if self.gauge <= 0:
            return int(_MOST_DISTINCT) if self.parts > 0 else 0
        return int(min(1.41 * math.sqrt(self.parts / self.gauge), _MOST_DISTINCT))


@dataclass(frozen=True)
class Gauge:
    """Components, and the 95 % intervals of the standard deviations and shares by name.

    The intervals are percentiles over resampled parts, each with all its measurements. The operators stay those of the study,
    so nothing is said about others.
    """

    components: Components
    deviations: dict[str, tuple[float, float]]
    shares: dict[str, tuple[float, float]]


NAMES: Final = {
    "gauge": "gauge, repeatability and reproducibility",
    "repeatability": "repeatability",
    "reproducibility": "reproducibility",
    "parts": "between parts",
    "total": "total",
}


def components_of(scores: Scores) -> Components:
    """Variance components of a crossed study, float64 (operators, parts, repeats).

    Raises:
        CalibrationError: fewer than 2 parts or 2 repeats, or scores that are not finite.
    """
    check_crossed(scores)
    operators, parts, repeats = scores.shape
    mean = scores.mean()
    by_part, by_operator, by_cell = scores.mean(axis=(0, 2)), scores.mean(axis=(1, 2)), scores.mean(axis=2)
    between_parts = operators * repeats * float(((by_part - mean) ** 2).sum())
    between_operators = parts * repeats * float(((by_operator - mean) ** 2).sum())
    crossed = repeats * float(((by_cell - by_operator[:, None] - by_part + mean) ** 2).sum())
    error = float(((scores - by_cell[..., None]) ** 2).sum())
    error_df = operators * parts * (repeats - 1)
    if operators == 1:
        within = error / error_df
        between = (between_parts / (parts - 1) - within) / repeats
        return Components(within, 0.0, 0.0, max(between, 0.0), pooled=False, interaction_p=math.nan)
    crossed_df = (operators - 1) * (parts - 1)
    p = _tail(crossed / crossed_df, error / error_df, crossed_df, error_df)
    pooled = p > POOL_ABOVE
    within = (error + crossed) / (error_df + crossed_df) if pooled else error / error_df
    against = within if pooled else crossed / crossed_df
    return Components(
        repeatability=within,
        operators=max((between_operators / (operators - 1) - against) / (parts * repeats), 0.0),
        interaction=0.0 if pooled else max((against - within) / repeats, 0.0),
        parts=max((between_parts / (parts - 1) - against) / (operators * repeats), 0.0),
        pooled=pooled,
        interaction_p=p,
    )


def gauge_of(scores: Scores, seed: int = 0) -> Gauge:
    """Components with their intervals. Raises CalibrationError as `components_of`."""
    found, parts = components_of(scores), scores.shape[1]
    rng = np.random.default_rng(seed)
    drawn = [components_of(scores[:, rng.integers(parts, size=parts)]) for _ in range(RESAMPLES)]
    deviations, shares = {}, {}
    for name in NAMES:
        variances = [getattr(one, name) for one in drawn]
        deviations[name] = _interval(np.sqrt(variances))
        shares[name] = _interval(np.array([one.share(variance) for one, variance in zip(drawn, variances, strict=True)]))
    return Gauge(found, deviations, shares)


def check_crossed(scores: Scores) -> None:
    """Raises CalibrationError with fewer than 2 parts or repeats, or with a score that is not finite."""
    operators, parts, repeats = scores.shape
    if operators < 1 or parts < 2 or repeats < 2:
        raise CalibrationError(
            f"{parts} parts, {operators} operators, {repeats} repeats: expected 2 parts and 2 repeats or more, AIAG asks for"
            " 10 parts, 2 or 3 operators and 2 or 3 repeats; show each part again"
        )
    if not np.isfinite(scores).all():
        raise CalibrationError("scores are not all finite numbers; find the picture or the backend that broke them")


def _tail(crossed: float, error: float, crossed_df: int, error_df: int) -> float:
    """P(F > crossed / error) of Fisher's distribution."""
    if crossed <= 0:
        return 1.0
    return beta_cdf(error_df * error / (error_df * error + crossed_df * crossed), error_df / 2, crossed_df / 2)


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
