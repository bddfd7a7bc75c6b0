"""A calibration of a bundle that there is not, for whatever writes, reads or judges by one and loads no network."""

from __future__ import annotations

from calibration.record import Calibration

CALIBRATION = Calibration(
    station="line-1",
    camera="camera-1",
    recipe="none",
    threshold=1.0,
    bundle_digest="b" * 64,
    backend="onnxruntime",
    precision="fp32",
    engine_digest="e" * 64,
    n=99,
    rate=0.01,
    method="conformal",
    when="2024-01-01T00:00:00+00:00",
    who="nobody",
)
