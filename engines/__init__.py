"""Engines: turn an image into an anomaly score. The bottom room; the station runs on it without torch."""

from __future__ import annotations

__version__ = "0.1.0"


class InspectionError(Exception):
    """Root of every error that this project raises on purpose.

    The message says what was got, what was expected, and what to do. The doors print it as one line and exit with 2.
    """


class EngineError(InspectionError):
    """An image, a bundle or a backend that the engines room cannot work with."""
