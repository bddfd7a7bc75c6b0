"""The judge's instrument: one image in, one score out, and the map when somebody wants to look."""

from __future__ import annotations

import time
from dataclasses import replace
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.bundle import Bank, Bundle, Method
from engines.extractors import FeatureExtractor, make_extractor
from engines.images import Image
from engines.ldknn import LDKNN
from engines.on_device import GpuFeatureExtractor, GpuSearch
from engines.preprocess import Preprocessor
from engines.search import SEARCHES, HostSearch, Score, Search, elapsed_ms

_BLUR_PATCHES = 0.5  # sigma of the map's blur: 4 pixels at 256 x 256, where a patch is 8


class Scorer:
    """Preprocess, embed, search, pool: from a frame to a score, whatever computes the embeddings. Used from one thread."""

    def __init__(
        self,
        method: Method,
        preprocessor: Preprocessor,
        bank: Bank,
        extractor: FeatureExtractor,
        *,
        threads: int = 0,
        search: str = "cpu",
    ) -> None:
        """Join the pieces.

        Args:
            method, preprocessor, bank: of a product.
            extractor: computes embeddings; closed by the caller.
            threads: that search on the CPU; 0 is one a core.
            search: where the bank is searched, one of SEARCHES.

        Raises:
            EngineError: bank and method do not fit, or what `GpuSearch` raises.
        """
        if search not in SEARCHES:
            raise EngineError(f"search on '{search}', expected one of: {', '.join(SEARCHES)}")
        self.preprocessor = preprocessor
        self.extractor = extractor
        self.ldknn = LDKNN(bank.rows, bank.density, alpha=method.alpha, metric=method.metric, threads=threads)
        self._judged = preprocessor.judged_patches(method.grid)
        make_search = GpuSearch if search == "gpu" else HostSearch
        self.search: Search = make_search(extractor, self.ldknn, self._judged, method.pooling)

    def score(self, image: Image) -> Score:
        """Score one frame, uint8 RGB (H, W, 3).

        Raises:
            EngineError: an image or a backend that cannot be worked with.
        """
        begun_ns = time.perf_counter_ns()
        return self._score(self.preprocessor(image), begun_ns)

    def score_resized(self, resized: Image) -> Score:
        """Score what `preprocessor.resized` made of a frame, for whoever looks at it beside. Raises EngineError as `score`."""
        begun_ns = time.perf_counter_ns()
        return self._score(self.preprocessor.tensor(resized), begun_ns)

    def _score(self, tensor: npt.NDArray[np.float32], begun_ns: int) -> Score:
        preprocess_ms = elapsed_ms(begun_ns)
        score = self.search.score(tensor)
        return replace(score, stages_ms={"preprocess": preprocess_ms, **score.stages_ms})

    def judge(self, embeddings: npt.NDArray[np.float32]) -> Score:
        """Score the embeddings float32 (patches, d) of one image."""
        return self.search.judge(embeddings)

    def map(self, score: Score) -> npt.NDArray[np.float32]:
        """Exact patch scores, float32 (rows, columns); NaN where a patch is ignored."""
        patches = score.patches().reshape(self._judged.shape)
        return np.where(self._judged, patches, np.float32(np.nan))


class Inspector(Scorer):
    """Scores images against one bundle, in one backend. Used from one thread; holds the backend until `close`.

    Attributes:
        searched_on: where the bank is searched, `cpu` or `gpu`.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "onnxruntime",
        *,
        precision: str = "fp32",
        threads: int = 0,
        search: str | None = None,
    ) -> None:
        """Load the bundle's graph, in the precision asked for, into a backend and its bank into LDKNN.

        Args:
            bundle: a loaded bundle.
            backend, precision: see `make_extractor`.
            threads: CPU threads of the backend, and of the search; 0 is one a core.
            search: where the bank is searched, one of SEARCHES; None is where the backend leaves the embeddings: on the GPU
                with TensorRT, on the CPU with all others.

        Raises:
            EngineError: see `make_extractor`, and `GpuSearch` for a search on the GPU.
        """
        extractor = make_extractor(bundle, backend, precision=precision, threads=threads)
        self.bundle = bundle
        self.searched_on = search or ("gpu" if isinstance(extractor, GpuFeatureExtractor) else "cpu")
        try:
            super().__init__(
                bundle.manifest.method,
                bundle.preprocessor(),
                bundle.bank,
                extractor,
                threads=threads,
                search=self.searched_on,
            )
        except BaseException:
            extractor.close()
            raise

    def close(self) -> None:
        """Release the search and the backend; may be called twice."""
        self.search.close()
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
