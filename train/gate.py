"""Would another precision of the feature graph decide otherwise? Asked before a bundle offers it.

Both graphs score the golden images, all held-out good parts, and synthetic defects that are faded until they lie close to
either side of the provisional threshold: what is far from it says nothing about decisions.

A score that lies within `CLEARANCE` spreads of the threshold in float32 is on neither side of it in earnest: rounding on
another processor, or one more held-out part in the threshold, would turn that decision too. So a change of sides there counts
only where the score moved by more than the clearance. Farther away every change of sides counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.defects import KINDS, Mask, make_maker
from engines.bundle import Golden, Precision, ProvisionalThreshold, Variant
from engines.images import Image
from engines.inspector import Scorer
from engines.ldknn import Progress
from train.data import Sample
from train.golden import CLEARANCE, OFFSETS, Candidate, Score, tune

DEFECTS = 24


@dataclass(frozen=True)
class Compared:
    """One image in both precisions: scores, their difference in spreads, and whether the decision flips."""

    name: str
    expected: float
    got: float
    difference: float
    flipped: bool


def gate_images(
    golden: Golden,
    normals: Sequence[Sample],
    score: Score,
    *,
    threshold: float | None,
    spread: float,
    where: Mask | None,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Candidate, ...]:
    """The golden images, the good ones, and defects on these near the threshold.

    Args:
        golden: of the bundle.
        normals: good images that the bank does not hold.
        score: of the float32 graph, which the defects are tuned with.
        threshold: the provisional one; without it no defects are drawn, for there is nothing to be near to.
        spread: standard deviation of normal scores.
        where: bool (H, W) pixels that are judged, which defects are drawn on; None for all.
        seed: of the defects.
        progress: called with (defects done, defects in all).
    """
    chosen = [Candidate(name, image) for name, image in zip(golden.names, golden.images, strict=True)]
    images = [sample.image() for sample in normals]
    chosen += [Candidate(sample.path.name, image) for sample, image in zip(normals, images, strict=True)]
    if threshold is None or not images:
        return tuple(chosen)
    for number in range(DEFECTS):
        index, kind = number % len(images), KINDS[number % len(KINDS)]
        # from the image alone: images of a product may differ in size, and a maker's may not
        maker = make_maker("defectmaker", [images[index]], None if where is None else [where])
        flawed = maker.draw(0, kind, seed=seed, draw=number).image
        fade = _Fade(images[index], flawed)
        # the kinds take turns too, and each should meet each offset
        offset = OFFSETS[(number + number // len(OFFSETS)) % len(OFFSETS)]
        strength, _ = tune(fade.apply, score, threshold + offset * spread, CLEARANCE / 2 * spread)
        chosen.append(Candidate(f"{normals[index].path.name} defect {number}, {kind} {strength:.3f}", fade.apply(strength)))
        if progress is not None:
            progress(number + 1, DEFECTS)
    return tuple(chosen)


class _Fade:
    """A defect that is blended over its good image with a strength between 0 and 1."""

    def __init__(self, good: Image, flawed: Image) -> None:
        self._good, self._flawed = good.astype(np.float32), flawed.astype(np.float32)

    def apply(self, strength: float) -> Image:
        return np.round(self._good + strength * (self._flawed - self._good)).astype(np.uint8)


def compare(
    scorer: Scorer,
    images: Sequence[Candidate],
    expected: Sequence[float],
    threshold: ProvisionalThreshold | None,
    spread: float,
    progress: Progress | None = None,
) -> tuple[Compared, ...]:
    """Score the images in another precision.

    Args:
        scorer: of that precision.
        images, expected: and their scores in float32.
        threshold: at which a flip is counted; none are without one.
        spread: standard deviation of normal scores.
        progress: called with (done, in all).
    """
    rows = []
    for number, (candidate, reference) in enumerate(zip(images, expected, strict=True), start=1):
        got = scorer.score(candidate.image).value
        difference = abs(got - reference) / spread
        rows.append(
            Compared(candidate.name, reference, got, difference, _flipped(reference, got, difference, threshold, spread))
        )
        if progress is not None:
            progress(number, len(images))
    return tuple(rows)


def _flipped(reference: float, got: float, difference: float, threshold: ProvisionalThreshold | None, spread: float) -> bool:
    if threshold is None or (got > threshold.value) == (reference > threshold.value):
        return False
    undecided = abs(reference - threshold.value) <= CLEARANCE * spread
    return not undecided or difference > CLEARANCE


def judge(precision: Precision, rows: Sequence[Compared], *, decided: bool, ratio: float | None = None) -> Variant:
    """Offer a precision, or say why not.

    Args:
        precision: of the rows.
        rows: of `compare`.
        decided: there was a threshold to decide at. Without one, scores must agree to the clearance itself.
        ratio: time of its features over those in float32, where that was its whole purpose.
    """
    flips = sum(row.flipped for row in rows)
    worst = max((row.difference for row in rows), key=lambda value: (math.isnan(value), value))
    reason = None
    if not math.isfinite(worst):
        reason = "a score is not a finite number"
    elif flips > 0:
        reason = f"{flips} of {len(rows)} decisions flip at the provisional threshold, expected 0"
    elif not decided and worst > CLEARANCE:
        reason = f"no provisional threshold, and scores differ by {worst:.2g} of the spread, expected {CLEARANCE:g} or less"
    elif ratio is not None and ratio >= 1:
        reason = f"features take {ratio:.2f} times as long as in fp32 on this machine, expected less than 1"
    return Variant(
        precision=precision,
        images=len(rows),
        max_difference=worst if math.isfinite(worst) else None,
        flips=flips,
        offered=reason is None,
        reason=reason,
    )
