"""Engines: turn an image into an anomaly score. The bottom room; the station runs on it without torch."""

from __future__ import annotations

import os

__version__ = "0.1.0"

# OpenBLAS's idle threads spin for tens of milliseconds after each product unless told otherwise, and take the cores from
# the network that comes next. It reads this once, when NumPy is first imported.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")

# ONNX Runtime's wheels keep a device's number below the home folder, to send it and what was run to their maker, unless told
# otherwise before the first import. A station tells nobody anything.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class InspectionError(Exception):
    """Root of every error that this project raises on purpose.

    The message says what was got, what was expected, and what to do. The doors print it as one line and exit with 2.
    """


class EngineError(InspectionError):
    """An image, a bundle or a backend that the engines room cannot work with."""
