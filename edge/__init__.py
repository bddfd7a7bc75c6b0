"""Edge: frames in, verdicts and a reject signal out. The room that runs beside the conveyor, without torch."""

from __future__ import annotations

from engines import InspectionError


class StationError(InspectionError):
    """A configuration, camera, journal or line that the station refuses to run with."""
