"""Does this machine give the scores that the bundle promises? Asked before any part is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engines import EngineError
from engines.bundle import Golden, Manifest, ProvisionalThreshold
from engines.inspector import Scorer
from engines.ldknn import Progress

TOLERANCE = 0.05  # of the spread of normal scores; what rounding on another processor costs is a hundred times less


@dataclass(frozen=True)
class GoldenRow:
    """One golden image: the score promised, the score got, their difference in spreads, and whether the decision flips."""

    name: str
    expected: float
    got: float
    difference: float
    flipped: bool


@dataclass(frozen=True)
class GoldenResult:
    """All golden images re-run; `tolerance` is how far a score may be off, in spreads of normal scores."""

    rows: tuple[GoldenRow, ...]
    tolerance: float = TOLERANCE

    @property
    def flips(self) -> int:
        """Decisions that changed at the provisional threshold."""
        return sum(row.flipped for row in self.rows)

    @property
    def max_difference(self) -> float:
        """Largest score difference, in standard deviations of normal scores; NaN if any score was."""
        differences = [row.difference for row in self.rows]
        return math.nan if any(math.isnan(value) for value in differences) else max(differences)

    @property
    def passed(self) -> bool:
        """No decision flips and no score is off by more than the tolerance; NaN fails."""
        return self.flips == 0 and self.max_difference <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{len(self.rows)} golden images: {self.flips} decision flips, largest score difference"
            f" {self.max_difference:.2g} of the spread of normal scores (at most {self.tolerance:.2g})"
        )


def allowed_difference(manifest: Manifest, precision: str) -> float:
    """How far a score in this precision may be from the promised one, in spreads of normal scores.

    The promise is fp32's. Another precision was off by its `max_difference` where the bundle was made, and rounding on
    another processor comes on top, as it does for fp32.
    """
    variant = manifest.variant(precision)
    if variant is None or variant.max_difference is None:
        return TOLERANCE
    return TOLERANCE + variant.max_difference


def verify_golden(
    scorer: Scorer,
    golden: Golden,
    threshold: ProvisionalThreshold | None,
    spread: float,
    progress: Progress | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> GoldenResult:
    """Score the golden images and compare with what the bundle says.

    Args:
        scorer: what is to be trusted.
        golden: images and expected scores.
        threshold: the provisional threshold at which a flip is counted; without one only differences count.
        spread: standard deviation of normal scores.
        progress: called with (done, total).
        tolerance: spreads that a score may be off; see `allowed_difference`.

    Raises:
        EngineError: no golden images, or an image or the backend failed.
    """
    if not golden.images:
        raise EngineError("the bundle has no golden images to verify with; train it again")
    rows = []
    for number, (name, image, expected) in enumerate(zip(golden.names, golden.images, golden.scores, strict=True), start=1):
        got = scorer.score(image).value
        flipped = threshold is not None and (got > threshold.value) != (float(expected) > threshold.value)
        rows.append(GoldenRow(name, float(expected), got, abs(got - float(expected)) / spread, flipped))
        if progress is not None:
            progress(number, len(golden.images))
    return GoldenResult(tuple(rows), tolerance)
