"""The search on a GPU; with features from the same GPU, all in one stream: one tensor in, one number and a small map out."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from engines.cuda import Gpu, Repeated
from engines.extractors import FeatureExtractor
from engines.ldknn import LDKNN, Floats
from engines.ldknn_cuda import CudaLDKNN
from engines.search import Score, elapsed_ms


@runtime_checkable
class GpuFeatureExtractor(FeatureExtractor, Protocol):
    """A `FeatureExtractor` that can leave its embeddings on the GPU.

    Attributes:
        gpu: that it runs on.
    """

    gpu: Gpu

    def give(self, tensor: Floats) -> None:
        """Put one image, float32 (1, 3, h, w), where `enqueue` takes it from. Raises EngineError."""

    def enqueue(self, address: int) -> None:
        """Put the network into the GPU's stream; its embeddings, float32 (patches, d), go to an address. Raises EngineError."""


class GpuSearch:
    """The search on a GPU, of which the map is a by-product. Features on the same GPU are not copied from it and back."""

    def __init__(self, extractor: FeatureExtractor, ldknn: LDKNN, judged: npt.NDArray[np.bool_], pooling: str) -> None:
        """Copy a bank to the extractor's GPU, or where it has none, to the first of this machine.

        Raises:
            EngineError: as `Gpu` and `CudaLDKNN`.
        """
        self._extractor = extractor
        self._own = contextlib.ExitStack()
        self._repeated: Repeated | None = None
        with self._own:  # closed here if what follows fails
            on_gpu = isinstance(extractor, GpuFeatureExtractor)
            self._gpu = extractor.gpu if isinstance(extractor, GpuFeatureExtractor) else self._own.enter_context(Gpu())
            self._twin = self._own.enter_context(CudaLDKNN(ldknn, judged, pooling, gpu=self._gpu))
            if on_gpu:
                self._repeated = Repeated(self._gpu, self._enqueue)
            self._own = self._own.pop_all()

    def score(self, tensor: Floats) -> Score:
        """Score a preprocessed image, float32 (1, 3, h, w). Raises EngineError."""
        if self._repeated is None or not isinstance(self._extractor, GpuFeatureExtractor):
            begun_ns = time.perf_counter_ns()
            embeddings = self._extractor.extract(tensor)
            features_ms = elapsed_ms(begun_ns)
            score = self.judge(embeddings)
            return replace(score, stages_ms={"features": features_ms, **score.stages_ms})
        begun_ns = time.perf_counter_ns()
        self._extractor.give(tensor)
        self._repeated.enqueue()
        self._gpu.wait()
        scores, maps = self._twin.result()
        return _answer(scores, maps, {"features and search": elapsed_ms(begun_ns)})

    def judge(self, embeddings: Floats) -> Score:
        """Score an image by its embeddings, float32 (patches, d). Raises EngineError."""
        begun_ns = time.perf_counter_ns()
        scores, maps = self._twin.one(embeddings)  # more would move the memory that was recorded
        return _answer(scores, maps, {"search": elapsed_ms(begun_ns)})

    def close(self) -> None:
        """Give the GPU's memory back; may be called twice."""
        if self._repeated is not None:
            self._repeated.close()
            self._repeated = None  # it holds this object, which would wait for the garbage collector with the GPU's memory
        self._own.close()

    def _enqueue(self) -> None:
        assert isinstance(self._extractor, GpuFeatureExtractor)
        self._extractor.enqueue(self._twin.queries)
        self._twin.enqueue()


def _answer(scores: Floats, maps: Floats, stages_ms: dict[str, float]) -> Score:
    patches = maps.ravel()
    return Score(float(scores[0]), lambda: patches, stages_ms)
