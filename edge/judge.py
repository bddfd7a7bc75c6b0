"""What a station judges with, as one value: it is replaced whole, so that no part is judged by a mix of two."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from calibration.record import Calibration
from edge import StationError
from edge.worker import Scorer


@dataclass(frozen=True)
class Judge:
    """A scorer and the calibration that holds for it.

    Attributes:
        name: of the recipe, for people and for the journal.
        scorer: gives a score within a time.
        calibration: made with this scorer's bundle, backend and engine.
    """

    name: str
    scorer: Scorer
    calibration: Calibration

    def __post_init__(self) -> None:
        """Refuse a threshold that nothing compares with. Raises StationError."""
        if not math.isfinite(self.threshold):
            raise StationError(f"threshold is {self.threshold}, expected a finite number; calibrate this station")

    @property
    def threshold(self) -> float:
        """REJECT if and only if a score is above it."""
        return self.calibration.threshold

    def row_fields(self) -> dict[str, str]:
        """The fields of a part's row that say what it was judged with."""
        return dict(self._row_fields)

    @functools.cached_property  # a digest for each part would cost it a tenth of a millisecond
    def _row_fields(self) -> dict[str, str]:
        return row_fields(self.name, self.calibration)


def row_fields(name: str, calibration: Calibration) -> dict[str, str]:
    """The fields of a part's row that say what it was judged with: a recipe's name, and all that a threshold holds for."""
    return {
        "recipe": name,
        "bundle": calibration.bundle_digest,
        "backend": calibration.backend,
        "precision": calibration.precision,
        "engine": calibration.engine_digest,
        "calibration": calibration.digest,
    }
