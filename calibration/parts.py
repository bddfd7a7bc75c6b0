"""Scores by part: the part is the unit of every statement about rates, however many pictures there are of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Parts:
    """Scores of pictures, and which of them show the same part. Each part weighs 1, shared by its pictures.

    A station photographs a part once, so the rates that are asked about are those of a random picture of a further part.
    With a part's highest score they would be those of its worst picture, and with each picture on its own a burst of twenty
    frames would count as twenty parts, and promise what only twenty parts can.

    Attributes:
        scores: float64 (n,), finite, ascending; within ties by part.
        part: int64 (n,), number of the part that a score is of, 0 to `count` - 1.
        count: parts.
    """

    scores: Scores
    part: npt.NDArray[np.int64]
    count: int

    @cached_property
    def weights(self) -> Scores:
        """float64 (n,): 1 over the pictures of the same part."""
        return np.asarray(1 / np.bincount(self.part, minlength=self.count)[self.part], np.float64)

    @cached_property
    def cumulated(self) -> Scores:
        """float64 (n + 1,): parts among the first i scores."""
        return np.concatenate(([0.0], np.cumsum(self.weights)))

    def above(self, threshold: float) -> float:
        """How many parts are above a threshold; one with several pictures counts by the share of these."""
        over = int(np.searchsorted(self.scores, threshold, side="right"))
        return max(0.0, self.count - float(self.cumulated[over])) if over < len(self.scores) else 0.0

    def quantile(self, share: float) -> float:
        """Lowest score with at least this share of the parts at or below it."""
        at = int(np.searchsorted(self.cumulated, share * self.count - 1e-9, side="left"))
        return float(self.scores[min(max(at, 1), len(self.scores)) - 1])

    @cached_property
    def spread(self) -> float:
        """Robust standard deviation: 1.4826 times the median absolute deviation, each part weighed alike."""
        from_median = np.abs(self.scores - self.quantile(0.5))
        order = np.argsort(from_median, kind="stable")
        reached = int(np.searchsorted(np.cumsum(self.weights[order]), self.count / 2 - 1e-9))
        return 1.4826 * float(from_median[order][min(reached, len(order) - 1)])

    def representatives(self) -> Scores:
        """float64 (count,): one score a part, drawn at random and the same in every run, ascending."""
        if self.count == len(self.scores):
            return self.scores
        order = np.random.default_rng(0).permutation(len(self.scores))
        _, first = np.unique(self.part[order], return_index=True)
        return np.sort(self.scores[order[first]])


def parts_of(scores: Sequence[float] | Scores, groups: Sequence[Hashable] | None = None) -> Parts:
    """Order scores by part.

    Args:
        scores: float (n,) of good, or of bad, parts that are not in the bank.
        groups: (n,) what part each is of; None where each is of its own.

    Raises:
        CalibrationError: no scores, ones that are not finite, or another number of groups.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise CalibrationError("scores are not all finite numbers; find the image or the backend that broke them")
    if len(values) == 0:
        raise CalibrationError("no scores, expected those of parts that this station has seen; add images")
    if groups is not None and len(groups) != len(values):
        raise CalibrationError(f"{len(groups)} groups for {len(values)} scores, expected one a score")
    if groups is None:
        return Parts(np.sort(values), np.arange(len(values)), len(values))
    lowest: dict[Hashable, float] = {}  # parts are numbered by their scores, so that the files' order changes nothing
    sums: dict[Hashable, float] = {}
    for name, value in zip(groups, values.tolist(), strict=True):
        lowest[name] = min(value, lowest.get(name, value))
        sums[name] = sums.get(name, 0.0) + value
    numbers = {name: number for number, name in enumerate(sorted(lowest, key=lambda one: (lowest[one], sums[one])))}
    part = np.array([numbers[name] for name in groups], np.int64)
    order = np.lexsort((part, values))
    return Parts(values[order], part[order], len(numbers))
