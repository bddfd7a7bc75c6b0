"""Backends that turn a preprocessed image into patch embeddings, loaded only when they are chosen."""

from __future__ import annotations

import importlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.bundle import Bundle


class FeatureExtractor(Protocol):
    """One compiled feature graph on one device. Used from one thread.

    Attributes:
        backend: the name it was chosen by.
        precision: of the graph that runs, such as `fp32`.
        provider: what really runs it, as the runtime reports it.
        engine_digest: SHA-256 (hex) of the file that was compiled or loaded; a calibration is bound to it.
    """

    backend: str
    precision: str
    provider: str
    engine_digest: str

    def extract(self, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Embed one image: float32 (1, 3, h, w) to float32 (patches, d), patches row by row over the grid.

        Raises:
            EngineError: wrong shape or dtype, or the backend failed.
        """

    def close(self) -> None:
        """Release the device; may be called twice."""


# name -> (module, function that opens a bundle); a backend's runtime is imported when it is chosen, never before
_BACKENDS = {
    "onnxruntime": ("engines.ort", "open_bundle"),
    "onnxruntime-cuda": ("engines.ort", "open_cuda"),
    "onnxruntime-tensorrt": ("engines.ort", "open_tensorrt"),
    "tensorrt": ("engines.trt", "open_tensorrt"),
    "tensorrt-rtx": ("engines.trt", "open_tensorrt_rtx"),
}


def backends() -> tuple[str, ...]:
    """Names that `make_extractor` knows."""
    return tuple(_BACKENDS)


def make_extractor(
    bundle: Bundle, backend: str = "onnxruntime", *, precision: str = "fp32", threads: int = 0
) -> FeatureExtractor:
    """Load a bundle's feature graph into the backend asked for, or fail: nothing falls back silently.

    Args:
        bundle: a loaded bundle.
        backend: one of `backends()`.
        precision: of the graph, one that the bundle offers.
        threads: CPU threads; 0 takes one a core.

    Raises:
        EngineError: unknown backend, its runtime is not installed or would run on another device, it refuses the graph,
            or a precision that the bundle does not offer.
    """
    if backend not in _BACKENDS:
        raise EngineError(f"backend '{backend}', expected one of: {', '.join(_BACKENDS)}")
    module, name = _BACKENDS[backend]
    extractor: FeatureExtractor = getattr(importlib.import_module(module), name)(bundle, precision=precision, threads=threads)
    return extractor
