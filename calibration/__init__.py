"""Calibration: good scores in, a threshold that one can defend out."""

from __future__ import annotations

from engines import InspectionError


class CalibrationError(InspectionError):
    """Scores, images or records that no threshold can be taken from."""
