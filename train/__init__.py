"""Train: good images in, a bundle out. The only room that imports torch."""

from __future__ import annotations

from engines import InspectionError


class TrainError(InspectionError):
    """Data, weights or settings that no bundle can be made from."""
