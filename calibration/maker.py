"""What all makers of synthetic defects share: the numbers, placement, fusion, and the promise that no defect is a no-op."""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from calibration.fills import is_grey
from calibration.fusion import Fused, blend, fuse, fuse_at, push
from calibration.shapes import Shape, Weight, render_within
from engines.images import Image

SMALLEST_PX = 16  # shortest side of an image

_SIZE_TOLERANCE, _CONTRAST_TOLERANCE = 0.1, 0.1

Mask = npt.NDArray[np.bool_]
Pixel = TypeVar("Pixel", bound=np.generic)
Parameters = dict[str, float | int | str]


@dataclass(frozen=True)
class DefectConfig:
    """The numbers of all makers. Lengths (`_px`) are for 256 x 256; pairs are ranges, both ends included.

    Those of the first block are REB's, except `straight`, which it leaves open: a quarter of the segments gives five or
    six points one corner or two. The second block is CutPaste's (arXiv 2104.04015) and DRAEM's (arXiv 2108.07610).
    The third says what is no defect: a draw that changes less is made again, `attempts` times, and then the change is
    made on purpose, `forced` grey levels all over the shape.
    """

    box_area: tuple[float, float] = (0.02, 0.15)  # of the image
    box_aspect: float = 3.3  # width / height is log-uniform in 1/3.3 .. 3.3
    points: tuple[int, int] = (5, 6)
    tensions: tuple[float, ...] = (0.2, 0.3, 0.4)
    straight: float = 0.25  # probability, for each segment
    scar_width_px: tuple[float, float] = (7, 21)
    scar_height_px: tuple[float, float] = (15, 30)
    scar_angle: float = 45  # degrees, to either side
    clump_points: tuple[int, int] = (5, 9)
    clump_aspect: float = 3
    clump_cell_px: tuple[float, float] = (5, 7)
    clump_cell_aspect: float = 2
    clump_mean: int = 127
    clump_fluctuation: int = 50
    clump_level: int = 138
    clump_opacity: tuple[float, float] = (0.5, 1.0)
    noise_mean: tuple[int, int] = (50, 190)
    noise_mean_step: int = 10
    noise_half_range: tuple[int, int] = (0, 45)
    noise_half_range_step: int = 5
    noise_cells_px: tuple[float, ...] = (1, 2, 4)
    noise_cell_aspects: tuple[float, ...] = (0.25, 0.5, 1, 2, 4)
    jitter: float = 0.1
    soft: float = 0.5  # probability of a soft edge
    soft_px: int = 5  # kernel for Bezier shapes
    soft_thin_px: int = 3  # and for scars and clumps

    cutpaste_scar_width_px: tuple[float, float] = (2, 16)
    cutpaste_scar_height_px: tuple[float, float] = (10, 25)
    perlin_octave: tuple[int, int] = (0, 5)  # cells along a side are a power of two
    perlin_level: float = 0.5
    draem_opacity: tuple[float, float] = (0.2, 1.0)  # 1 - beta

    visible: int = 5  # grey levels in any channel: above a camera's noise, below what a person overlooks
    least_area_px: float = 24  # visibly changed pixels, at 256 x 256
    least_share: float = 0.2  # of the shape: a crop that differs by its noise alone shows in less
    least_contrast: float = 8  # grey levels
    attempts: int = 20
    forced: float = 40


REB = DefectConfig()


@dataclass(frozen=True, eq=False)
class Defect:
    """An image with one synthetic defect.

    Attributes:
        image: uint8, of the shape of the image that it was made on.
        shape: bool (H, W), where the fusion weight is above 0; every pixel outside is as it was.
        changed: bool (H, W), where any channel differs by `DefectConfig.visible` grey levels or more; within `shape`.
        kind: one of the maker's kinds.
        box: x, y, width, height of the array that holds the shape, in pixels, inside the image.
        parameters: everything that was drawn; always `size_px`, the square root of the changed area, `contrast`, the mean
            over the changed pixels and channels of the absolute change in grey levels, `attempt`, and `forced` (0 or 1).
    """

    image: Image
    shape: Mask
    changed: Mask
    kind: str
    box: tuple[int, int, int, int]
    parameters: Mapping[str, float | int | str]


class Maker(Protocol):
    """Whatever makes synthetic defects of named kinds on a set of normal images."""

    kinds: tuple[str, ...]

    def draw(
        self,
        index: int,
        kind: str,
        *,
        seed: int,
        draw: int,
        image: Image | None = None,
        saliency: Mask | None = None,
        size_px: float | None = None,
        contrast: float | None = None,
    ) -> Defect:
        """Make one defect; see `BaseMaker.draw`."""


@dataclass(frozen=True)
class Target:
    """The image that gets a defect. `scale` turns lengths at 256 x 256 into its pixels."""

    index: int
    image: Image
    saliency: Mask | None
    grey: bool
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def planes(self) -> int:
        """Channels: 1 or 3."""
        return 1 if self.image.ndim == 2 else 3


@dataclass(frozen=True)
class Draft:
    """A shape with its frame (width and height, pixels), edge kernel and opacity; `parameters` takes what is drawn."""

    shape: Shape
    frame: tuple[float, float]
    kernel: int
    opacity: float = 1.0
    angle: float = 0.0
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Box:
    """Where a shape's array lies in an image, pixels."""

    x: int
    y: int
    width: int
    height: int

    def of(self, image: npt.NDArray[Pixel]) -> npt.NDArray[Pixel]:
        """The crop, a view."""
        return image[self.y : self.y + self.height, self.x : self.x + self.width]

    def overlaps(self, other: Box) -> bool:
        """Do the two cover more than half of each other's width and height?"""
        return 2 * abs(self.x - other.x) < self.width and 2 * abs(self.y - other.y) < self.height


class BaseMaker(ABC):
    """What all makers share: checks, placement, fusion, and the promise that no defect is a no-op."""

    kinds: tuple[str, ...] = ()

    def __init__(self, images: Sequence[Image], saliency: Sequence[Mask] | None = None, config: DefectConfig = REB) -> None:
        """Take a product's normal images.

        Args:
            images: uint8 RGB (H, W, 3) or grey (H, W), all of one shape. They are kept, not copied.
            saliency: bool (H, W) for each image: where the part is. None is everywhere.
            config: the numbers.

        Raises:
            CalibrationError: no images, images of other types or of several shapes, or masks that do not fit them.
        """
        if len(images) == 0:
            raise CalibrationError("no images to make defects on, expected 1 or more; check the folder of good parts")
        for number, image in enumerate(images):
            check_image(image, f"image {number}")
            if image.shape != images[0].shape:
                raise CalibrationError(
                    f"image {number} has shape {image.shape}, image 0 {images[0].shape}, expected one common shape;"
                    " resize the images first"
                )
        if saliency is not None and len(saliency) != len(images):
            raise CalibrationError(f"{len(saliency)} saliency masks for {len(images)} images, expected one for each")
        for number, mask in enumerate(() if saliency is None else saliency):
            _check_saliency(mask, images[0].shape[:2], f"saliency mask {number}")
        self.images, self.saliency, self.config = images, saliency, config
        self._grey = [is_grey(image) for image in images]

    def draw(
        self,
        index: int,
        kind: str,
        *,
        seed: int,
        draw: int,
        image: Image | None = None,
        saliency: Mask | None = None,
        size_px: float | None = None,
        contrast: float | None = None,
    ) -> Defect:
        """Make one defect. The same arguments give the same defect, in any order and in any process.

        The shape's box is centred on a random salient pixel and then pushed inside the image. Grey images, also those of
        three equal channels, stay grey.

        Args:
            index: of the normal image that gets the defect.
            kind: one of `kinds`.
            seed, draw: 0 or above; together with `index` and `kind` they fix all that is random.
            image: drawn on instead of image `index`, which it is a version of: H and W may be swapped.
            saliency: bool (H, W) of the image drawn on. None is image `index`'s own mask; with `image` given, everywhere.
            size_px: square root of the shape's area wanted, pixels of this image, from 2 to a third of the shorter side:
                met within 10 % from 4 pixels on, and within a pixel below. None leaves the size to chance.
            contrast: mean absolute change wanted over the changed pixels, grey levels, from `config.visible` to 255: met
                within 10 % up to 100, above that as far as 8 bits have room. None leaves it to the fill.

        Raises:
            CalibrationError: an unknown kind or index, a negative seed, an image or a mask that does not fit, or a size or
                contrast that no defect can have.
        """
        self._check_draw(index, kind, seed, draw)
        target = self._target(index, image, saliency)
        self._check_wishes(target, size_px, contrast)
        rng = np.random.default_rng([seed, index, draw, zlib.crc32(kind.encode())])
        last: tuple[float, Box, Weight, Parameters] | None = None
        for attempt in range(self.config.attempts):
            draft = self._draft(kind, target, rng)
            weight = render_within(draft.shape, draft.frame, target.size, draft.kernel, size_px)
            box = place(salient_point(target.size, target.saliency, rng), weight.shape[1], weight.shape[0], target.size)
            under, area = box.of(target.image), cv2.countNonZero(weight)
            off = -area if size_px is None else abs(math.sqrt(area) / size_px - 1)
            if last is None or off < last[0]:
                last = off, box, weight, dict(draft.parameters)
            if area == 0 or (size_px is not None and off > max(_SIZE_TOLERANCE, 0.4 / size_px)):
                continue
            fill = self._fill(kind, target, draft, box, rng)
            change = blend(under, fill, weight, draft.opacity)
            visible = self.config.visible
            fused = fuse(under, change, visible) if contrast is None else fuse_at(under, change, visible, contrast)
            if self._shows(fused, area, target.scale, size_px, contrast):
                return _finish(target, kind, box, weight, fused, {**draft.parameters, "attempt": attempt, "forced": 0})
        assert last is not None
        _, box, weight, parameters = last
        under, levels = box.of(target.image), self.config.forced if contrast is None else contrast
        fused = fuse_at(under, push(under, weight, levels), self.config.visible, levels)
        return _finish(target, kind, box, weight, fused, {**parameters, "attempt": self.config.attempts, "forced": 1})

    @abstractmethod
    def _draft(self, kind: str, target: Target, rng: np.random.Generator) -> Draft:
        """Draw a shape."""

    @abstractmethod
    def _fill(self, kind: str, target: Target, draft: Draft, box: Box, rng: np.random.Generator) -> Image:
        """Draw the fill, of the box's size and the target's planes; adds to the draft's parameters."""

    def _target(self, index: int, image: Image | None, saliency: Mask | None) -> Target:
        size = self.images[index].shape[:2]
        if image is None:
            image, grey = self.images[index], self._grey[index]
            if saliency is None and self.saliency is not None:
                saliency = self.saliency[index]
        else:
            check_image(image, "the image to draw on")
            if image.shape[:2] not in (size, size[::-1]) or image.ndim != self.images[index].ndim:
                raise CalibrationError(
                    f"the image to draw on has shape {image.shape}, expected {self.images[index].shape} or that with height"
                    " and width swapped; it must be a version of an image of the set"
                )
            grey = is_grey(image)
        if saliency is not None:
            _check_saliency(saliency, image.shape[:2], f"saliency mask for image {index}")
        return Target(index, image, saliency, grey, math.sqrt(image.shape[0] * image.shape[1]) / 256)

    def _check_draw(self, index: int, kind: str, seed: int, draw: int) -> None:
        if kind not in self.kinds:
            raise CalibrationError(f"defect kind '{kind}', expected one of: {', '.join(self.kinds)}")
        if not 0 <= index < len(self.images):
            raise CalibrationError(f"image index {index}, expected 0 to {len(self.images) - 1}")
        if seed < 0 or draw < 0:
            raise CalibrationError(f"seed {seed} and draw {draw}, expected integers of 0 or more")

    def _check_wishes(self, target: Target, size_px: float | None, contrast: float | None) -> None:
        largest = min(target.size) / 3
        if size_px is not None and not 2 <= size_px <= largest:
            raise CalibrationError(f"defect size {size_px} pixels, expected 2 to {largest:.4g} in an image of {target.size}")
        if contrast is not None and not self.config.visible <= contrast <= 255:
            raise CalibrationError(f"defect contrast {contrast} grey levels, expected {self.config.visible} to 255")

    def _shows(self, fused: Fused, area: int, scale: float, size_px: float | None, contrast: float | None) -> bool:
        """Is a draw a defect at all, and with the contrast that was asked for?"""
        config = self.config
        least = config.least_area_px * scale * scale
        if size_px is not None:  # it may have been asked for smaller than that
            least = min(least, area / 2)
        if fused.area_px < max(1, config.least_share * area, least):
            return False
        if contrast is None:
            return fused.contrast >= config.least_contrast
        return abs(fused.contrast / contrast - 1) <= _CONTRAST_TOLERANCE


def salient_point(size: tuple[int, int], saliency: Mask | None, rng: np.random.Generator) -> tuple[int, int]:
    """A random salient pixel, x and y."""
    if saliency is None:
        at = int(rng.integers(size[0] * size[1]))
    else:
        places = np.flatnonzero(saliency)
        at = int(places[rng.integers(len(places))])
    return at % size[1], at // size[1]


def place(point: tuple[int, int], width: int, height: int, size: tuple[int, int]) -> Box:
    """A box centred on a point (x, y) and pushed inside an image of `size` (H, W)."""
    x = min(max(point[0] - width // 2, 0), size[1] - width)
    y = min(max(point[1] - height // 2, 0), size[0] - height)
    return Box(x, y, width, height)


def check_image(image: Image, name: str) -> None:
    """Refuse what is not a grey or RGB picture in 8 bits. Raises CalibrationError."""
    planes_fit = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not planes_fit:
        raise CalibrationError(
            f"{name}: {image.dtype} of shape {image.shape}, expected uint8 (H, W, 3) or (H, W); read it with read_image"
        )
    if min(image.shape[:2]) < SMALLEST_PX:
        raise CalibrationError(
            f"{name}: {image.shape[1]} x {image.shape[0]} pixels, expected {SMALLEST_PX} or more on each side"
        )


def _finish(target: Target, kind: str, box: Box, weight: Weight, fused: Fused, parameters: Parameters) -> Defect:
    image = target.image.copy()
    box.of(image)[...] = fused.after
    shape, changed = np.zeros(target.size, dtype=bool), np.zeros(target.size, dtype=bool)
    box.of(shape)[...] = weight > 0
    box.of(changed)[...] = fused.changed > 0
    drawn = {**parameters, "size_px": math.sqrt(fused.area_px), "contrast": fused.contrast}
    return Defect(image, shape, changed, kind, (box.x, box.y, box.width, box.height), drawn)


def _check_saliency(mask: Mask, size: tuple[int, ...], name: str) -> None:
    if mask.dtype != np.bool_ or mask.shape != size:
        raise CalibrationError(f"{name}: {mask.dtype} of shape {mask.shape}, expected bool {size}, as its image")
    if not mask.any():
        raise CalibrationError(f"{name}: no pixel is salient, so a defect has no place; give None for everywhere")
