"""From a network's input to a score: features, their search, and what is kept for whoever wants to look."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engines.extractors import FeatureExtractor
from engines.ldknn import LDKNN, Floats
from engines.verdict_first import VerdictFirst

SEARCHES = ("cpu", "gpu")


@dataclass(frozen=True)
class Score:
    """An image's score: higher is more anomalous; squared distances less their density, so it may be negative.

    Attributes:
        value: REJECT if and only if it is above the threshold. NaN where the network gave no finite embedding.
        patches: works out the exact score of every patch, float32 (patches,), when somebody wants to look.
        stages_ms: how long each stage took, in their order; what a GPU does in one go is one stage.
    """

    value: float
    patches: Callable[[], Floats]
    stages_ms: Mapping[str, float] = field(default_factory=dict, compare=False)


def elapsed_ms(since_ns: int) -> float:
    """Milliseconds since a reading of `time.perf_counter_ns`."""
    return (time.perf_counter_ns() - since_ns) / 1e6


class Search(Protocol):
    """Scores images against one bank. Used from one thread."""

    def score(self, tensor: Floats) -> Score:
        """Score a preprocessed image, float32 (1, 3, h, w). Raises EngineError."""

    def judge(self, embeddings: Floats) -> Score:
        """Score an image by its embeddings, float32 (patches, d). Raises EngineError."""

    def close(self) -> None:
        """Release what it holds; may be called twice."""


class HostSearch:
    """The search on the CPU: the verdict first, and the map when it is asked for."""

    def __init__(self, extractor: FeatureExtractor, ldknn: LDKNN, judged: npt.NDArray[np.bool_], pooling: str) -> None:
        """Prepare a bank, as `VerdictFirst` does."""
        self._extractor = extractor
        self._first = VerdictFirst(ldknn, judged, pooling)

    def score(self, tensor: Floats) -> Score:
        """Score a preprocessed image, float32 (1, 3, h, w). Raises EngineError."""
        begun_ns = time.perf_counter_ns()
        embeddings = self._extractor.extract(tensor)
        features_ms = elapsed_ms(begun_ns)
        score = self.judge(embeddings)
        return replace(score, stages_ms={"features": features_ms, **score.stages_ms})

    def judge(self, embeddings: Floats) -> Score:
        """Score an image by its embeddings, float32 (patches, d). Raises EngineError."""
        begun_ns = time.perf_counter_ns()
        value = self._first.score(embeddings)
        return Score(value, partial(self._first.patches, embeddings), {"search": elapsed_ms(begun_ns)})

    def close(self) -> None:
        """Nothing to release."""
