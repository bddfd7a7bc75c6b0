"""The judge's instrument: one image in, one score out, and the map when somebody wants to look."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt

from engines.bundle import Bank, Bundle, Method
from engines.extractors import FeatureExtractor, make_extractor
from engines.images import Image
from engines.ldknn import LDKNN
from engines.preprocess import Preprocessor
from engines.verdict_first import VerdictFirst

_BLUR_PATCHES = 0.5  # sigma of the map's blur: 4 pixels at 256 x 256, where a patch is 8


@dataclass(frozen=True)
class Score:
    """An image's score: higher is more anomalous; squared distances less their density, so it may be negative.

    Attributes:
        value: REJECT if and only if it is above the threshold. NaN where the network gave no finite embedding.
    """

    value: float
    _embeddings: npt.NDArray[np.float32]


class Scorer:
    """Preprocess, embed, LDKNN, pool: from a frame to a score, whatever computes the embeddings. Used from one thread."""

    def __init__(self, method: Method, preprocessor: Preprocessor, bank: Bank, extractor: FeatureExtractor) -> None:
        """Join the pieces. Raises EngineError where bank and method do not fit."""
        self.preprocessor = preprocessor
        self.extractor = extractor
        self.ldknn = LDKNN(bank.rows, bank.density, alpha=method.alpha, metric=method.metric)
        self._judged = preprocessor.judged_patches(method.grid)
        self._first = VerdictFirst(self.ldknn, self._judged, method.pooling)

    def score(self, image: Image) -> Score:
        """Score one frame, uint8 RGB (H, W, 3).

        Raises:
            EngineError: an image or a backend that cannot be worked with.
        """
        return self.judge(self.extractor.extract(self.preprocessor(image)))

    def judge(self, embeddings: npt.NDArray[np.float32]) -> Score:
        """Score the embeddings float32 (patches, d) of one image."""
        return Score(self._first.score(embeddings), embeddings)

    def map(self, score: Score) -> npt.NDArray[np.float32]:
        """Exact patch scores, float32 (rows, columns); NaN where a patch is ignored."""
        patches = self.ldknn.score(score._embeddings).reshape(self._judged.shape)
        return np.where(self._judged, patches, np.float32(np.nan))


class Inspector(Scorer):
    """Scores images against one bundle, in one backend. Used from one thread; holds the backend until `close`."""

    def __init__(self, bundle: Bundle, backend: str = "onnxruntime", *, precision: str = "fp32", threads: int = 0) -> None:
        """Load the bundle's graph, in the precision asked for, into a backend and its bank into LDKNN.

        Raises:
            EngineError: see `make_extractor`.
        """
        extractor = make_extractor(bundle, backend, precision=precision, threads=threads)
        super().__init__(bundle.manifest.method, bundle.preprocessor(), bundle.bank, extractor)
        self.bundle = bundle

    def close(self) -> None:
        """Release the backend; may be called twice."""
        self.extractor.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def anomaly_map(patches: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Patch scores at image resolution: bilinear upsampling, then a Gaussian blur of half a patch.

    Args:
        patches: float32 (rows, columns), NaN where ignored; ignored patches take the lowest score.
        size: (height, width) wanted, in pixels.

    Returns:
        float32 (height, width).
    """
    lowest = np.nanmin(patches)
    filled = np.where(np.isnan(patches), lowest, patches)
    large = cv2.resize(filled, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    sigma_y, sigma_x = (_BLUR_PATCHES * size[axis] / patches.shape[axis] for axis in (0, 1))
    return np.asarray(cv2.GaussianBlur(large, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y), dtype=np.float32)


def overlay(image: Image, heat: npt.NDArray[np.float32], low: float, high: float) -> Image:
    """Lay a heat map over an image: nothing below `low`, full colour at `high`.

    Args:
        image: uint8 RGB (h, w, 3).
        heat: float32 (h, w).
        low, high: the score range that the colours span; fixed by the caller, so that pictures compare.

    Returns:
        uint8 RGB (h, w, 3).
    """
    strength = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)
    colours = cv2.cvtColor(cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    weight = (0.6 * np.sqrt(strength))[:, :, None]
    return np.asarray(image * (1 - weight) + colours * weight, dtype=np.uint8)
