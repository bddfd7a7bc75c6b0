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

_THUMB_PX = 128
_MARGIN_PX = 6  # of a thumbnail: shifts up to 5 % of the image are found
_COARSE_PX = 48
_COARSE_MARGIN_PX = 3
_CANDIDATES = 8
_REFERENCE_PAIRS = 8
_NEAR = 0.1  # a near-duplicate differs by less than this part of what different parts of the set differ by,
_NEAR_MOST = 0.05  # and never by more than this
_NEAR_FEW = 0.01  # in sets too small to have a usual difference
_FLAT = 0.5  # grey levels: a thumbnail with less structure than this holds noise only


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
        _thumbnail(grey),
        _focus(grey),
        float(np.log(grey.mean() + 1)),
        float((image >= _SATURATED).any(axis=2).mean()),
    )


def _thumbnail(grey: npt.NDArray[np.uint8]) -> Floats:
    """Structure of an image without its lighting: float32 (128, 128), blurred a little so that half-pixel shifts match."""
    small = cv2.resize(grey, (_THUMB_PX, _THUMB_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 1) - cv2.GaussianBlur(small, (0, 0), _THUMB_PX / 16))


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
    """One picture saved again, or one part photographed again: alike far beyond what different parts of this set are.

    Good parts in a fixed pose correlate up to 0.98, so the limit comes from the set: a fixed part of the lower quartile
    of the differences (1 - correlation) between images that stand far apart in the folder. A quartile, so that bursts
    of frames don't set it.
    """
    pictures = [picture for picture in pictures if picture.thumb.std() > _FLAT]
    thumbs = [picture.thumb for picture in pictures]
    if len(pictures) < 2:
        return []
    most = _most_difference(thumbs)
    nearest: dict[int, tuple[float, int]] = {}
    for earlier, later in _candidate_pairs(thumbs):
        difference = _difference(thumbs[earlier], thumbs[later])
        if difference < min(most, nearest.get(later, (np.inf, -1))[0]):
            nearest[later] = difference, earlier
    return [
        Finding(
            pictures[later].sample,
            "near-duplicate",
            f"correlates {1 - difference:.3f} with {pictures[earlier].sample.path.name} (duplicates from {1 - most:.3f}):"
            " saved again, or the same part again",
            1 - difference,
            pictures[earlier].sample,
        )
        for later, (difference, earlier) in nearest.items()
    ]


def _most_difference(thumbs: Sequence[Floats]) -> float:
    """Largest 1 - correlation that still is a near-duplicate in this set."""
    count = len(thumbs)
    if count < MIN_IMAGES:
        return _NEAR_FEW
    steps = np.unique(np.linspace(1, count - 1, _REFERENCE_PAIRS + 2, dtype=int)[1:-1])
    usual = [_difference(thumbs[i], thumbs[(i + step) % count]) for i in range(count) for step in steps]
    return min(_NEAR_MOST, _NEAR * float(np.percentile(usual, 25)))


def _difference(one: Floats, other: Floats) -> float:
    """1 - the largest normalised correlation of the middle of one with the other, over shifts of up to 6 pixels.

    The peak is read between pixels too, from a parabola along each axis: half a pixel of a thumbnail is a shift that
    would cost more correlation than another part in the same pose does.
    """
    middle = one[_MARGIN_PX:-_MARGIN_PX, _MARGIN_PX:-_MARGIN_PX]
    alike = cv2.matchTemplate(other, middle, cv2.TM_CCOEFF_NORMED)
    row, column = np.unravel_index(alike.argmax(), alike.shape)
    peak = float(alike[row, column])
    rise = _rise(alike[:, column], int(row)) + _rise(alike[row], int(column))
    return max(0.0, 1 - peak - rise)


def _rise(values: npt.NDArray, at: int) -> float:
    """How far the parabola through the largest value, at `at`, and its two neighbours rises above it; 0 at the border."""
    if not 0 < at < len(values) - 1:
        return 0.0
    left, top, right = values[at - 1 : at + 2].tolist()
    bend = left - 2 * top + right
    return -((left - right) ** 2) / (8 * bend) if bend < 0 else 0.0


def _candidate_pairs(thumbs: Sequence[Floats]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) worth a close look: each image with its nearest ones at 48 x 48 pixels.

    One matrix product a shift, so that a thousand images take seconds; the products are float32 (n, n).
    """
    size = (_COARSE_PX, _COARSE_PX)
    coarse = np.stack([cv2.GaussianBlur(cv2.resize(thumb, size, interpolation=cv2.INTER_AREA), (0, 0), 1) for thumb in thumbs])
    side, shifts = _COARSE_PX - 2 * _COARSE_MARGIN_PX, range(2 * _COARSE_MARGIN_PX + 1)
    middle = _unit(coarse[:, _COARSE_MARGIN_PX:-_COARSE_MARGIN_PX, _COARSE_MARGIN_PX:-_COARSE_MARGIN_PX])
    alike = np.full((len(thumbs), len(thumbs)), -np.inf, np.float32)
    for down in shifts:
        for right in shifts:
            np.maximum(alike, middle @ _unit(coarse[:, down : down + side, right : right + side]).T, out=alike)
    np.fill_diagonal(alike, -np.inf)
    count = min(_CANDIDATES, len(thumbs) - 1)
    nearest = np.argpartition(alike, -count, axis=1)[:, -count:].tolist()
    return sorted({(min(row, column), max(row, column)) for row, columns in enumerate(nearest) for column in columns})


def _unit(patches: npt.NDArray) -> Floats:
    """Flatten (n, h, w), take the mean away, scale to length 1: products of rows are normalised correlations."""
    flat = patches.reshape(len(patches), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6))
