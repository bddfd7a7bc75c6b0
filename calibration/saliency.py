"""Where the part is in a normal image, so that a synthetic defect is placed on it and not on the background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from engines import EngineError
from engines.images import Image, read_image
from engines.ldknn import Progress

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint16]

_STEPS = 40  # per channel, so that a colour's code fits 16 bits
_COLOURS = _STEPS**3
_LIGHTNESS = 0.5  # weight of L against a and b: shading and shadows change lightness first
_BORDER, _FINE, _COARSE, _OPENING = 0.02, 0.02, 0.16, 0.10  # of the shorter side
_BACKGROUND_SHARE = 0.98  # of the border's pixels; the rest may be a part that touches it
_FAINTEST = 10.0  # distance in colour below which a pixel looks like the background
_SHADOW = 0.3  # of the part's own distance: what lies below it is shadow, reflection or a soft edge
_SMALLEST_PIECE = 0.1  # of the largest piece of the part
_LARGEST_SPECK = 0.002  # of the image: a larger hole in the part shows the background
_LEAST, _MOST = 0.03, 0.90  # of the image, for a typical part
_ALIKE, _FACTOR = 0.8, 3.0  # this share of the masks is within this factor of the typical size


@dataclass(frozen=True)
class Saliency:
    """Where defects may be placed, for each image of a set.

    Attributes:
        masks: one bool (H, W) an image, in the images' order, none of them empty; None = everywhere.
        source: "files", "estimated" or "everywhere".
        reason: one line for a person.
    """

    masks: tuple[Mask, ...] | None
    source: str
    reason: str


def read_saliency(folder: Path, names: Sequence[str], resize: Callable[[npt.NDArray], npt.NDArray]) -> Saliency:
    """Masks from files: `<stem>.png` or `<stem>_mask.png` for an image `<stem>.<any suffix>`; not black = part.

    Args:
        folder: the folder of mask files.
        names: the images' file names, or their paths below some folder; masks are to lie alike below `folder`.
        resize: brings a mask image, uint8 (H, W, 3) of the source image's size, to the network's size.

    Raises:
        CalibrationError: masks that are missing, cannot be read or resized, or show no part; all are named.
    """
    if not folder.is_dir():
        raise CalibrationError(f"{folder}: no such folder; expected a folder of masks, one <image name>.png an image")
    masks: list[Mask] = []
    problems: list[str] = []
    for name in names:
        stem = Path(name).with_suffix("")
        found = [path for path in (folder / f"{stem}.png", folder / f"{stem}_mask.png") if path.is_file()]
        if not found:
            problems.append(f"{name}: no {stem}.png or {stem}_mask.png")
            continue
        try:
            white = np.where(read_image(found[0]).any(axis=2, keepdims=True), np.uint8(255), np.uint8(0))
            mask = np.asarray(resize(np.repeat(white, 3, axis=2))[..., 0] > 127)
        except EngineError as error:
            text = str(error)
            problems.append(text if text.startswith(str(found[0])) else f"{found[0]}: {text}")
            continue
        if not mask.any():
            problems.append(f"{found[0]}: shows no part at the network's size; paint the part in white")
            continue
        masks.append(mask)
    if problems:
        raise CalibrationError(f"{folder}: expected one usable mask an image:\n  " + "\n  ".join(problems))
    typical = float(np.median([mask.mean() for mask in masks])) if masks else 0.0
    return Saliency(tuple(masks), "files", f"masks from {folder}: {typical:.0%} of a typical image is part")


def estimate_saliency(images: Sequence[Image], progress: Progress | None = None) -> Saliency:
    """Find the part in each image of a set, or find that the part fills the images.

    The background is the set of colours (CIE Lab) that show along the border of all the images. A pixel is part where
    its colour is far from all of them, either by itself or as the median of a wide window: a black body on a board
    with black holes differs only as an area. What is found that way is kept where the pixel's own colour is commoner
    in such areas than elsewhere. Specks and shadows are dropped, and one pixel is taken off all around.

    It assumes that the background shows along the border, that the part hardly touches the border, and that it differs
    from the background in colour (in grey images by about 25 of 255 levels) or, where it holds an area about a sixth of
    the image wide, in what colours it is made of. It assumes nothing of where the part lies and how it is turned, and
    the images' order does not matter. Few images show few of the background's colours: the masks then cover less of a
    part on a busy background. Where the find does not convince (it is hardly anything, or nearly everything, fades
    into its surroundings, or differs wildly between the images) the answer is everywhere.

    Args:
        images: uint8 RGB (H, W, 3), all of one size.
        progress: called with (images done, images in all); each image is counted once.

    Raises:
        CalibrationError: no image, or images that are not uint8 (H, W, 3) of one size.
    """
    _check(images)
    high, wide = images[0].shape[:2]
    side = min(high, wide)
    border = np.ones((high, wide), bool)
    strip = max(1, round(_BORDER * side))
    border[strip:-strip, strip:-strip] = False

    fine, coarse = (_codes(images, _odd(share * side)) for share in (_FINE, _COARSE))
    fine_distance, fine_limit = _distances(fine, border)
    coarse_distance, coarse_limit = _distances(coarse, border)
    areas = (coarse_distance > coarse_limit)[coarse]
    inside = np.bincount(fine[areas], minlength=_COLOURS)
    outside = np.bincount(fine[~areas], minlength=_COLOURS)
    commoner_inside = inside * outside.sum() > outside * inside.sum()

    masks: list[Mask] = []
    edges: list[float] = []
    for index, image in enumerate(images):
        area = _morph(areas[index] & commoner_inside[fine[index]], cv2.MORPH_OPEN, _odd(_OPENING * side))
        mask = _tidied(area | (fine_distance > fine_limit)[fine[index]], _odd(_FINE * side))
        edges.append(_edge(image, mask, _odd(_FINE * side)))
        masks.append(_morph(mask, cv2.MORPH_ERODE, 3))
        if progress is not None:
            progress(index + 1, len(images))
    return _judged(masks, edges)


def _judged(masks: list[Mask], edges: list[float]) -> Saliency:
    """The masks, if they convince."""
    shares = np.array([mask.mean() for mask in masks])
    typical = float(np.median(shares))
    alike = float(np.mean((shares >= typical / _FACTOR) & (shares <= typical * _FACTOR)))
    doubt = None
    if typical < _LEAST:
        doubt = f"{typical:.1%} of a typical image stands out from the colours along the border: too little for a part"
    elif typical > _MOST:
        doubt = f"{typical:.0%} of a typical image stands out from the colours along the border: the part fills the images"
    elif np.median(edges) < _FAINTEST:
        doubt = "what stands out from the border fades into its surroundings: shading, not a part"
    elif alike < _ALIKE:
        doubt = f"what stands out from the border has another size in {1 - alike:.0%} of the images: no part that repeats"
    if doubt is not None:
        return Saliency(None, "everywhere", doubt)
    votes = np.sum(masks, axis=0)
    usual_place = np.asarray(votes * 2 >= votes.max())
    found = tuple(mask if share >= typical / _FACTOR else usual_place for mask, share in zip(masks, shares, strict=True))
    return Saliency(found, "estimated", f"the images have a background: {typical:.0%} of a typical image is part")


def _codes(images: Sequence[Image], window: int) -> Codes:
    """Each pixel's median colour over a window, as one number below 64000: uint16 (n, H, W).

    A median keeps the outline of an area sharp where a mean would smear it.
    """
    codes = np.empty((len(images), *images[0].shape[:2]), np.uint16)
    for index, image in enumerate(images):
        lab = cv2.medianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), window)
        step = (lab.astype(np.uint16) * _STEPS) >> 8
        codes[index] = (step[..., 0] * _STEPS + step[..., 1]) * _STEPS + step[..., 2]
    return codes


def _distances(codes: Codes, border: Mask) -> tuple[npt.NDArray[np.float32], float]:
    """Each colour's distance to the nearest colour of the background, float32 (64000,), and the part's least one.

    All of it comes from counts of colours, so the images' order does not matter.
    """
    along = np.bincount(codes[:, border].ravel(), minlength=_COLOURS)
    by_count = np.argsort(-along, kind="stable")
    shown = np.cumsum(along[by_count])
    background = np.zeros(_COLOURS, bool)
    background[by_count[: np.searchsorted(shown, _BACKGROUND_SHARE * shown[-1]) + 1]] = True
    distance = _to_nearest(background)
    # the usual distance of a pixel that stands out, not of a colour: a few glints decide nothing
    counts = np.where(distance > _FAINTEST, np.bincount(codes.ravel(), minlength=_COLOURS), 0)
    nearest_first = np.argsort(distance, kind="stable")
    passed = np.cumsum(counts[nearest_first])
    usual = distance[nearest_first[np.searchsorted(passed, 0.9 * passed[-1])]]
    return distance, max(_FAINTEST, _SHADOW * float(usual))


def _to_nearest(chosen: Mask) -> npt.NDArray[np.float32]:
    """Each colour's Euclidean distance to the nearest chosen one: bool (64000,) to float32 (64000,).

    Squared distances are minimised along one channel after the other, which is exact (Felzenszwalb and Huttenlocher,
    "Distance Transforms of Sampled Functions", 2012).
    """
    squared = np.where(chosen, np.float32(0), np.float32(np.inf)).reshape(_STEPS, _STEPS, _STEPS)
    steps = np.arange(_STEPS, dtype=np.float32) * (256 / _STEPS)
    for channel, weight in enumerate((_LIGHTNESS, 1.0, 1.0)):
        apart = (weight * (steps[:, None] - steps)) ** 2
        along = np.moveaxis(squared, channel, 0)
        nearest = np.stack([(along + row[:, None, None]).min(axis=0) for row in apart.astype(np.float32)])
        squared = np.moveaxis(nearest, 0, channel)
    return np.sqrt(squared).ravel()


def _tidied(mask: Mask, window: int) -> Mask:
    """Gaps closed and threads cut; pieces that are small beside the largest dropped, specks filled."""
    mask = _morph(_morph(mask, cv2.MORPH_CLOSE, window), cv2.MORPH_OPEN, window)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    sizes = stats[:, cv2.CC_STAT_AREA]
    kept = sizes >= _SMALLEST_PIECE * sizes[1:].max(initial=0)
    kept[0] = False
    mask = kept[labels]
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8))
    filled = stats[:, cv2.CC_STAT_AREA] < _LARGEST_SPECK * mask.size
    filled[0] = True
    return np.asarray(filled[labels])


def _edge(image: Image, mask: Mask, window: int) -> float:
    """How much the colour changes across the mask's outline, the median along it; 0 without an outline."""
    outline = mask & ~_morph(mask, cv2.MORPH_ERODE, 3)
    if not outline.any():
        return 0.0
    lab = cv2.medianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), window)
    change = cv2.morphologyEx(lab, cv2.MORPH_GRADIENT, _disc(window + 2))[outline].astype(np.float32)
    return float(np.median(np.linalg.norm(change * np.array([_LIGHTNESS, 1, 1], np.float32), axis=1)))


def _morph(mask: Mask, operation: int, window: int) -> Mask:
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), operation, _disc(window)) > 0)


def _disc(window: int) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (window, window)), dtype=np.uint8)


def _odd(length: float) -> int:
    """The nearest odd window, 3 to 255: OpenCV's wide median counts in 16 bits."""
    return min(255, max(3, 2 * int(length / 2) + 1))


def _check(images: Sequence[Image]) -> None:
    if len(images) == 0:
        raise CalibrationError("no image to find the part in; give one or more images of good parts")
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape != images[0].shape:
            raise CalibrationError(
                f"image {index} is {image.dtype} {image.shape}, expected uint8 {(*images[0].shape[:2], 3)} as the first one;"
                " bring all images to the network's size"
            )
