"""Audit a folder of good images: duplicates, blur, wrong exposure, wrong sizes, and parts unlike all others.

Nothing here is an absolute rule, because an image is only odd among its own kind. A value is judged by its robust z-score
(x - median) / (1.4826 MAD) over the set, flagged beyond 3.5 (Iglewicz and Hoaglin, "How to Detect and Handle Outliers",
1993), and only where it also differs by an amount that a person would notice. Sets of fewer than 8 images have no usual.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from calibration.twins import NEAR_COPIES, Twin, find_twins, thumbnail
from engines import EngineError
from engines.images import Image, pixel_digest
from engines.ldknn import Floats, Progress
from engines.pooling import Windows
from engines.preprocess import MIN_SIDE_PX
from train import TrainError
from train.data import Sample

Problem = Literal[
    "unreadable", "duplicate", "near-duplicate", "blurred", "over-exposed", "under-exposed", "wrong size", "outlier"
]
PROBLEMS: tuple[Problem, ...] = get_args(Problem)

LIMIT = 3.5  # robust z-score beyond which a value is flagged
MIN_IMAGES = 8  # the median and MAD of fewer say little
_LEAST_BLUR = 0.3  # in natural log: 26 % of the fine detail gone
_LEAST_LEVEL = float(np.log(1.25))  # a quarter brighter or darker
_LEAST_SATURATED = 0.1  # share of pixels
_LEAST_OUTLIER = float(np.log(1.3))
_SATURATED = 250  # grey levels; JPEG ringing keeps clipped areas from being 255 throughout
_FOCUS_SIDE_PX = 1024  # finer detail than this is far below what the network sees


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
    size: tuple[int, int]
    thumb: Floats
    focus: float
    level: float
    saturated: float


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
                pictures.append(_measure(sample, image))
            else:
                findings.append(Finding(sample, "duplicate", f"same pixels as {twin.path.name}", 1.0, twin))
        if progress is not None:
            progress(done, len(samples))
    findings += _near_duplicates(pictures) + _wrong_sizes(pictures)
    if len(pictures) >= MIN_IMAGES:
        findings += _blurred(pictures) + _badly_exposed(pictures)
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
    z = _robust_z(np.log(np.maximum(scores, 1e-6 * scores.max() + 1e-30)), _LEAST_OUTLIER)
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


def _robust_z(values: npt.NDArray[np.float64], least: float) -> npt.NDArray[np.float64]:
    """Robust z-scores, float64 (n,), where a deviation below `least` never reaches the limit, however alike the rest is."""
    deviation = values - np.median(values)
    return np.asarray(deviation / max(1.4826 * float(np.median(np.abs(deviation))), least / LIMIT))


def _measure(sample: Sample, image: Image) -> _Picture:
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    return _Picture(
        sample,
        image.shape[:2],
        thumbnail(grey),
        _focus(grey),
        float(np.log(grey.mean() + 1)),
        float((image >= _SATURATED).any(axis=2).mean()),
    )


def _focus(grey: npt.NDArray[np.uint8]) -> float:
    """Natural log of the energy of 1 to 2 pixel detail over that of 2 to 4 pixel detail (differences of Gaussians).

    Unlike the variance of the Laplacian, the ratio knows neither contrast nor lighting, and the pixel noise that a
    defocused camera still adds hardly reaches either band.
    """
    shrink = min(1.0, _FOCUS_SIDE_PX / max(grey.shape))
    values = (cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) if shrink < 1 else grey).astype(
        np.float32
    )
    one, two, four = (cv2.GaussianBlur(values, (0, 0), sigma) for sigma in (1, 2, 4))
    return float(np.log(((one - two).var() + 1e-3) / ((two - four).var() + 1e-3)))


def _blurred(pictures: Sequence[_Picture]) -> list[Finding]:
    focus = np.array([picture.focus for picture in pictures])
    z = -_robust_z(focus, _LEAST_BLUR)
    share = np.exp(focus - np.median(focus))
    return [
        Finding(pictures[i].sample, "blurred", f"fine detail {share[i]:.0%} of the usual: out of focus or moved", float(z[i]))
        for i in np.flatnonzero(z > LIMIT).tolist()
    ]


def _badly_exposed(pictures: Sequence[_Picture]) -> list[Finding]:
    levels = np.array([picture.level for picture in pictures])
    saturated = np.array([picture.saturated for picture in pictures])
    brighter, clipped = _robust_z(levels, _LEAST_LEVEL), _robust_z(saturated, _LEAST_SATURATED)
    usual = np.exp(np.median(levels)) - 1
    findings = []
    for i, picture in enumerate(pictures):
        level = f"mean level {np.exp(levels[i]) - 1:.0f} of 255, usual {usual:.0f}"
        if clipped[i] > LIMIT and clipped[i] >= brighter[i]:
            detail = f"{saturated[i]:.1%} of pixels saturated, usual {np.median(saturated):.1%}"
            findings.append(Finding(picture.sample, "over-exposed", detail, float(clipped[i])))
        elif brighter[i] > LIMIT:
            findings.append(Finding(picture.sample, "over-exposed", level, float(brighter[i])))
        elif -brighter[i] > LIMIT:
            findings.append(Finding(picture.sample, "under-exposed", level, float(-brighter[i])))
    return findings


def _wrong_sizes(pictures: Sequence[_Picture]) -> list[Finding]:
    """Sizes other than the one that most images have; where no size has a majority, sizes vary by nature."""
    if not pictures:
        return []
    usual, count = Counter(picture.size for picture in pictures).most_common(1)[0]
    if 2 * count <= len(pictures):
        return []
    return [
        Finding(
            picture.sample,
            "wrong size",
            f"{picture.size[1]} x {picture.size[0]} pixels, usual {usual[1]} x {usual[0]}",
            abs(float(np.log(picture.size[0] * picture.size[1] / (usual[0] * usual[1])))),
        )
        for picture in pictures
        if picture.size != usual
    ]


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
