"""Golden images: held-out normals and marked copies of them near the threshold, where a wrong score flips a decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.images import Image
from engines.ldknn import Progress
from engines.preprocess import Roi
from train.data import Sample

Score = Callable[[Image], float]

NORMALS, MARKED = 6, 6
CLEARANCE = 0.1  # spreads: closer to the threshold, rounding on another processor would flip a sound station
OFFSETS = (0.25, -0.25, 0.5, -0.5, 1.0, 2.0)  # wanted distances of marked images from the threshold, in spreads
_LARGE_PX = 4_000_000  # frames above this are kept in half the number, so that a bundle stays easy to copy


@dataclass(frozen=True)
class Candidate:
    """A golden image before its final score is known."""

    name: str
    image: Image


def choose_golden(
    samples: Sequence[Sample],
    scores: npt.NDArray[np.float64],
    score: Score,
    *,
    threshold: float | None,
    spread: float,
    roi: Roi | None,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Candidate, ...]:
    """Pick normals over the range of their scores, and mark copies until they fall close to either side of the threshold.

    Args:
        samples: normals, held out of the bank where there are enough.
        scores: float64 (n,) of these.
        score: the scorer that the marks are tuned with; asked some thirty times, so the fastest one there is.
        threshold: the provisional one; without it marks are simply half-strength.
        spread: standard deviation of normal scores.
        roi: judged region that marks must lie in.
        seed: of the marks' places.
        progress: called with (marks done, marks in all).
    """
    large = samples[0].image()[:, :, 0].size > _LARGE_PX
    normals, marked = (NORMALS // 2, MARKED // 2) if large else (NORMALS, MARKED)
    clear = [i for i in np.argsort(scores) if threshold is None or abs(scores[i] - threshold) > CLEARANCE * spread]
    spaced = np.unique(np.linspace(0, len(clear) - 1, min(normals, len(clear))).round().astype(int))
    picked = [clear[i] for i in spaced] or [0]  # all at the threshold, as identical images are: one must do
    chosen = [Candidate(samples[i].path.name, samples[i].image()) for i in picked]
    rng = np.random.default_rng([seed, 3])
    for number in range(marked):
        sample = samples[int(rng.integers(len(samples)))]
        mark = _Mark(sample.image(), roi, rng)
        strength, clear_of_it = 0.5, True
        if threshold is not None:
            strength, got = tune(mark.apply, score, threshold + OFFSETS[number] * spread, CLEARANCE / 2 * spread)
            clear_of_it = abs(got - threshold) > CLEARANCE * spread
        if clear_of_it:
            chosen.append(Candidate(f"{sample.path.name} marked {strength:.3f}", mark.apply(strength)))
        if progress is not None:
            progress(number + 1, marked)
    return tuple(chosen)


class _Mark:
    """A square of the part itself, turned and inverted, blended in with a strength between 0 and 1."""

    def __init__(self, image: Image, roi: Roi | None, rng: np.random.Generator) -> None:
        top, left = (roi.y, roi.x) if roi else (0, 0)
        high, wide = (roi.height, roi.width) if roi else image.shape[:2]
        side = max(4, min(high, wide) // 6)
        y, x = top + int(rng.integers(high - side + 1)), left + int(rng.integers(wide - side + 1))
        from_y, from_x = top + int(rng.integers(high - side + 1)), left + int(rng.integers(wide - side + 1))
        self._image = image
        self._place = (slice(y, y + side), slice(x, x + side))
        self._fill = np.rot90(255 - image[from_y : from_y + side, from_x : from_x + side]).astype(np.float32)

    def apply(self, strength: float) -> Image:
        marked = self._image.copy()
        blended = (1 - strength) * marked[self._place] + strength * self._fill
        marked[self._place] = np.round(blended).astype(np.uint8)
        return marked


def tune(apply: Callable[[float], Image], score: Score, target: float, close: float) -> tuple[float, float]:
    """Bisect for the strength, 0 to 1, whose score comes within `close` of the target: the strength, and its score."""
    low, high, strength = 0.0, 1.0, 0.5
    got = score(apply(strength))
    for _ in range(7):
        if abs(got - target) <= close:
            break
        low, high = (strength, high) if got < target else (low, strength)
        strength = (low + high) / 2
        got = score(apply(strength))
    return strength, got
