"""TensorRT's features and the search for their neighbours in one stream: the embeddings never leave the GPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines.cuda import Repeated
from engines.ldknn import Floats
from engines.ldknn_cuda import CudaLDKNN
from engines.trt import TensorRTExtractor


class OnDevice:
    """From a preprocessed image to its score and map: one tensor in, one number and one small map out."""

    def __init__(self, extractor: TensorRTExtractor, twin: CudaLDKNN) -> None:
        """Join an engine and a search on the same GPU; `close` closes the search, and the extractor's owner the GPU."""
        self._extractor = extractor
        self._twin = twin
        self._repeated = Repeated(extractor.gpu, self._enqueue)
        self._at = twin.queries

    def score(self, tensor: npt.NDArray[np.float32]) -> tuple[float, Floats]:
        """Score float32 (1, 3, h, w): the image's score, and the patches' float32 (rows, columns), NaN where ignored.

        Raises:
            EngineError: as `TensorRTExtractor.extract` and `CudaLDKNN.score`.
        """
        self._extractor.give(tensor)
        if self._at != self._twin.queries:  # the search has moved its memory, which what was recorded writes to
            self._repeated.close()
            self._repeated, self._at = Repeated(self._extractor.gpu, self._enqueue), self._twin.queries
        self._repeated.enqueue()
        self._extractor.gpu.wait()
        scores, maps = self._twin.result()
        return float(scores[0]), maps[0]

    def close(self) -> None:
        """Release the search; may be called twice."""
        self._repeated.close()
        self._twin.close()

    def _enqueue(self) -> None:
        self._extractor.enqueue(self._twin.queries)
        self._twin.enqueue()
