"""Audit a folder of good images: duplicates, blur, wrong exposure, wrong sizes, and parts unlike all others.

An image is only odd among its own kind: `calibration.looks` and `calibration.copies` have the rules, and a station that
records pictures goes by them too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from calibration.looks import LIMIT, MIN_IMAGES, Looks, grey_of, look, oddities, robust_z
from calibration.twins import NEAR_COPIES, Twin, find_twins, thumbnail
from engines import EngineError
from engines.images import pixel_digest
from engines.ldknn import Floats, Progress
from engines.pooling import Windows
from engines.preprocess import MIN_SIDE_PX
from train import TrainError
from train.data import Sample

Problem = Literal[
    "unreadable", "duplicate", "near-duplicate", "blurred", "over-exposed", "under-exposed", "wrong size", "outlier"
]
PROBLEMS: tuple[Problem, ...] = get_args(Problem)

_LEAST_OUTLIER = float(np.log(1.3))


@dataclass(frozen=True)
class Finding:
    """One thing that a person should look at.

    Attributes:
        sample: the image.
        problem: one of `PROBLEMS`.
        detail: value got and the set's usual value, for a person.
        value: severity among findings of the same problem, higher is worse: the robust z-score, or for a duplicate
            the correlation with its twin.
        twin: the earlier image that a duplicate repeats; None for other problems.
    """

    sample: Sample
    problem: Problem
    detail: str
    value: float
    twin: Sample | None = None


@dataclass(frozen=True)
class _Picture:
    """What is kept of one image: not its pixels, only float32 (128, 128) of its structure."""

    sample: Sample
    looks: Looks
    thumb: Floats


def audit_images(samples: Sequence[Sample], progress: Progress | None = None) -> list[Finding]:
    """Find what pixels alone show: each image is decoded once, and only a thumbnail of it is kept.

    Exact duplicates are left out of the other checks, so that copies do not vote on what is usual.

    Args:
        samples: images that are meant to be good.
        progress: called with (images read, images in all).

    Returns:
        Findings by problem in the order of `PROBLEMS`, worst first. An unreadable file is a finding, not an error.
    """
    findings: list[Finding] = []
    pictures: list[_Picture] = []
    first: dict[str, Sample] = {}
    for done, sample in enumerate(samples, start=1):
        try:
            image = sample.image()
            if min(image.shape[:2]) < MIN_SIDE_PX:
                raise EngineError(f"{image.shape[1]} x {image.shape[0]} pixels, expected at least {MIN_SIDE_PX} a side")
        except EngineError as error:
            findings.append(Finding(sample, "unreadable", str(error).removeprefix(f"{sample.path}: "), 1.0))
        else:
            twin = first.setdefault(pixel_digest(image), sample)
            if twin is sample:
                pictures.append(_Picture(sample, look(image), thumbnail(grey_of(image))))
            else:
                findings.append(Finding(sample, "duplicate", f"same pixels as {twin.path.name}", 1.0, twin))
        if progress is not None:
            progress(done, len(samples))
    findings += _near_duplicates(pictures)
    among = [picture.looks for picture in pictures]
    for picture in pictures:
        for oddity in oddities(picture.looks, among):
            findings.append(Finding(picture.sample, oddity.problem, oddity.detail, oddity.value))
    return _in_order(findings)


def leave_one_out(squared: Floats, judged: npt.NDArray[np.bool_], samples: Sequence[Sample]) -> list[Finding]:
    """Find images whose patches are far from the patches of all other images: a bad part among the good, perhaps.

    Two bad parts with the same defect vouch for each other and stay unseen. Leave duplicates out first: an image with
    a twin is never far from the others. Fewer than 8 images give no finding.

    Args:
        squared: float32 (images * judged patches,) squared distance of each patch to the nearest bank row of another
            image, image by image. They are pooled as a part's score is; the density term is left out.
        judged: bool (rows, columns) patches that count.
        samples: the images.

    Raises:
        TrainError: another number of patches than these images have, or a distance that is not finite.
    """
    each = int(judged.sum())
    if len(squared) != each * len(samples):
        raise TrainError(f"{len(squared)} patches for {len(samples)} images, expected {each} judged ones for each")
    if len(samples) < MIN_IMAGES:
        return []
    patches = np.zeros((len(samples), *judged.shape), np.float32)
    patches[:, judged] = squared.reshape(len(samples), each)
    return outliers(Windows(judged).pool(patches), samples)


def outliers(scores: npt.NDArray[np.float64], samples: Sequence[Sample]) -> list[Finding]:
    """Images whose leave-one-out score is far above the others', judged on the logarithm: distances are skewed.

    Raises:
        TrainError: a score that is not finite.
    """
    if not np.isfinite(scores).all():
        raise TrainError(f"score of {samples[int((~np.isfinite(scores)).argmax())].path} is not finite; check the weights")
    usual = float(np.median(scores))
    z = robust_z(np.log(np.maximum(scores, 1e-6 * scores.max() + 1e-30)), _LEAST_OUTLIER)
    return _in_order(
        [
            Finding(samples[i], "outlier", f"least like the others: score {scores[i]:.3g}, usual {usual:.3g}", float(z[i]))
            for i in np.flatnonzero(z > LIMIT).tolist()
        ]
    )


def summarise(findings: Sequence[Finding], images: int) -> str:
    """One line on an audit of so many images."""
    if not findings:
        return f"audit: nothing suspicious in {images} images"
    counts = Counter(finding.problem for finding in findings)
    nouns = ("duplicate", "near-duplicate", "outlier")
    parts = [
        f"{counts[problem]} {problem}{'s' if problem in nouns and counts[problem] > 1 else ''}"
        for problem in PROBLEMS
        if problem in counts
    ]
    return f"audit: {', '.join(parts)} in {images} images; see `train audit`"


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: (PROBLEMS.index(finding.problem), -finding.value))


def _near_duplicates(pictures: Sequence[_Picture]) -> list[Finding]:
    """One picture saved again, or one part photographed again: alike far beyond what different parts of this set are."""
    twins = find_twins([picture.thumb for picture in pictures], NEAR_COPIES)
    nearest: dict[int, Twin] = {}
    for twin in twins.pairs:
        if twin.later not in nearest or twin.difference < nearest[twin.later].difference:
            nearest[twin.later] = twin
    return [
        Finding(
            pictures[twin.later].sample,
            "near-duplicate",
            f"correlates {1 - twin.difference:.3f} with {pictures[twin.earlier].sample.path.name} (duplicates from"
            f" {1 - twins.limit:.3f}): saved again, or the same part again",
            1 - twin.difference,
            pictures[twin.earlier].sample,
        )
        for twin in nearest.values()
    ]
