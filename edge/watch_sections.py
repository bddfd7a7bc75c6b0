"""The sections of `station.yaml` that say how the station watches itself: `drift` and `challenge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from calibration.drift import ALARM_PARTS, WARNING_PARTS
from edge.section import CountFromZero, PositiveNumber, Section


class DriftSection(Section):
    """Each part that passes is watched against those of the calibration."""

    reference: Path | None = None
    """None: beside the calibration, where `edge calibrate` writes it."""
    warning_parts: PositiveNumber = WARNING_PARTS
    alarm_parts: PositiveNumber = ALARM_PARTS
    """Parts between two false warnings, or alarms, on average at least."""
    reject_run: CountFromZero = 20
    """So many rejects in a row are an alarm too, since passed parts alone are watched; 0: they are none."""
    on_alarm: Literal["warn", "stop"] = "stop"
    """`stop`: the station is not ready until a person resets it."""

    @model_validator(mode="after")
    def _limits(self) -> DriftSection:
        if not 1 <= self.warning_parts <= self.alarm_parts <= 1e9:
            raise ValueError(f"expected 1 <= warning_parts {self.warning_parts:g} <= alarm_parts {self.alarm_parts:g} <= 1e9")
        return self


class ChallengeSection(Section):
    """Labelled parts that must all be judged rightly before the station is ready."""

    path: Path | None = None
    """Folder with OK and NG, or with a challenge.csv; with `recipes` each recipe names its own."""
    at_start: Annotated[bool, Field(strict=True)] = True
    every_hours: PositiveNumber | None = None
    """Again so long after it was last judged; none: at a start and after a change of recipe alone."""

    @model_validator(mode="after")
    def _some_time(self) -> ChallengeSection:
        if not self.at_start and self.every_hours is None:
            raise ValueError("at_start is false and every_hours is not there, so that it would never run; give one")
        return self
