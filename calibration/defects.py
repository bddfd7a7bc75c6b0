"""Synthetic defects on images of good parts: REB's DefectMaker, and the older makers that it is compared with.

A defect is a shape (where), a fill (what) and a fusion (how). REB: Lyu, Mo, Wong, "Reducing Biases in Representation for
Industrial Anomaly Detection", arXiv 2308.12577.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np

from calibration import CalibrationError
from calibration.fills import Jitter, cut_turned, jitter, noise, tone_table, with_planes
from calibration.maker import (
    REB,
    BaseMaker,
    Box,
    Defect,
    DefectConfig,
    Draft,
    Maker,
    Mask,
    Parameters,
    Target,
    check_image,
    place,
    salient_point,
)
from calibration.shapes import RECTANGLE, Clump, Outline, PerlinMask, draw_gradients, draw_outline
from engines.images import Image

__all__ = [
    "KINDS",
    "MAKERS",
    "CutPasteMaker",
    "Defect",
    "DefectConfig",
    "DefectMaker",
    "DraemMaker",
    "Maker",
    "Mask",
    "make_maker",
]

KINDS: tuple[str, ...] = (
    "bezier-cutpaste",
    "bezier-noise",
    "scar-cutpaste",
    "scar-noise",
    "clump-cutpaste",
    "clump-noise",
)
_OTHER_PLACES = 8
_DRAEM_JITTER = 0.2
_T = TypeVar("_T")


class DefectMaker(BaseMaker):
    """REB's six kinds: Bezier outlines, scars and clumps, filled with crops of other normal images or with noise.

    Where the paper is silent: a scar's crop is turned with the scar, so that the grain of a material turns too; the grains
    of noise and of clumps have an aspect of their own, in pixels of the image (in the authors' code it is multiplied with
    the box's, which makes streaks of them in slim boxes); noise on colour images is coloured grain around a grey mean.
    """

    kinds: tuple[str, ...] = KINDS

    def _draft(self, kind: str, target: Target, rng: np.random.Generator) -> Draft:
        shape = kind.partition("-")[0]
        if shape == "bezier":
            return self._bezier(target, rng)
        if shape == "scar":
            return self._scar(target, rng)
        return self._clump(target, rng)

    def _fill(self, kind: str, target: Target, draft: Draft, box: Box, rng: np.random.Generator) -> Image:
        fill = self._noise(target, draft, box, rng) if kind.endswith("-noise") else self._cut(target, draft, box, rng)
        return _jittered(fill, target, draft, self.config.jitter, rng)

    def _bezier(self, target: Target, rng: np.random.Generator) -> Draft:
        config = self.config
        frame = draw_frame(rng, target, config.box_area, config.box_aspect)
        count, tension = _whole(rng, config.points), _one_of(rng, config.tensions)
        soft = rng.random() < config.soft
        return Draft(
            draw_outline(rng, count, tension, config.straight),
            frame,
            _kernel(config.soft_px if soft else 1, target.scale),
            parameters={"points": count, "tension": tension, "soft": int(soft)},
        )

    def _scar(self, target: Target, rng: np.random.Generator) -> Draft:
        config = self.config
        frame = rng.uniform(*config.scar_width_px) * target.scale, rng.uniform(*config.scar_height_px) * target.scale
        count, tension = _whole(rng, config.points), _one_of(rng, config.tensions)
        angle, soft = rng.uniform(-config.scar_angle, config.scar_angle), rng.random() < config.soft
        return Draft(
            draw_outline(rng, count, tension, config.straight, angle),
            frame,
            _kernel(config.soft_thin_px if soft else 1, target.scale),
            angle=angle,
            parameters={"points": count, "tension": tension, "angle": angle, "soft": int(soft)},
        )

    def _clump(self, target: Target, rng: np.random.Generator) -> Draft:
        config = self.config
        frame = draw_frame(rng, target, config.box_area, config.clump_aspect)
        count, tension = _whole(rng, config.clump_points), _one_of(rng, config.tensions)
        cell, aspect = rng.uniform(*config.clump_cell_px), config.clump_cell_aspect ** rng.uniform(-1, 1)
        soft, opacity = rng.random() < config.soft, rng.uniform(*config.clump_opacity)
        grain = cell * target.scale * math.sqrt(aspect), cell * target.scale / math.sqrt(aspect)
        across, down = (max(2, round(length / step)) for length, step in zip(frame, grain, strict=True))
        low, high = config.clump_mean - config.clump_fluctuation, config.clump_mean + config.clump_fluctuation
        grains = rng.integers(low, high, (down, across), dtype=np.uint8, endpoint=True)
        drawn: Parameters = {"points": count, "tension": tension, "clump_cell_px": cell, "clump_cell_aspect": aspect}
        return Draft(
            Clump(draw_outline(rng, count, tension, config.straight), grains, config.clump_level),
            frame,
            _kernel(config.soft_thin_px if soft else 1, target.scale),
            opacity,
            parameters={**drawn, "opacity": opacity, "soft": int(soft)},
        )

    def _cut(self, target: Target, draft: Draft, box: Box, rng: np.random.Generator) -> Image:
        """A crop of another image around a salient pixel; where there is one image alone, of another place of it."""
        source = target.index
        if len(self.images) > 1:
            source = int(rng.integers(len(self.images) - 1))
            source += source >= target.index
        draft.parameters["source"] = source
        image = self.images[source]
        saliency = None if self.saliency is None else self.saliency[source]
        if image.shape[:2] != target.size:  # the target is transposed
            image = np.ascontiguousarray(np.swapaxes(image, 0, 1))
            saliency = None if saliency is None else saliency.T
        avoid = box if len(self.images) == 1 else None
        return with_planes(_crop(image, saliency, box, draft.angle, avoid, rng), target.planes, grey=target.grey)

    def _noise(self, target: Target, draft: Draft, box: Box, rng: np.random.Generator) -> Image:
        config = self.config
        mean = _step(rng, config.noise_mean, config.noise_mean_step)
        half_range = _step(rng, config.noise_half_range, config.noise_half_range_step)
        cell, aspect = _one_of(rng, config.noise_cells_px), _one_of(rng, config.noise_cell_aspects)
        draft.parameters.update(noise_mean=mean, noise_half_range=half_range, noise_cell_px=cell, noise_cell_aspect=aspect)
        grain = cell * target.scale * math.sqrt(aspect), cell * target.scale / math.sqrt(aspect)
        size = box.width, box.height
        return noise(rng, size, target.planes, mean=mean, half_range=half_range, cell=grain, grey=target.grey)


class CutPasteMaker(BaseMaker):
    """CutPaste 3-way: a rectangle or a thin turned one, cut from another place of the image itself, colours jittered.

    Li, Sohn, Yoon, Pfister, "CutPaste", arXiv 2104.04015. Edges are hard and opacity is 1, as there.
    """

    kinds: tuple[str, ...] = ("cutpaste", "cutpaste-scar")

    def _draft(self, kind: str, target: Target, rng: np.random.Generator) -> Draft:
        config = self.config
        if kind == "cutpaste":
            return Draft(RECTANGLE, draw_frame(rng, target, config.box_area, config.box_aspect), 1)
        width, height = rng.uniform(*config.cutpaste_scar_width_px), rng.uniform(*config.cutpaste_scar_height_px)
        angle = rng.uniform(-config.scar_angle, config.scar_angle)
        frame = width * target.scale, height * target.scale
        return Draft(Outline(RECTANGLE.points, angle), frame, 1, angle=angle, parameters={"angle": angle})

    def _fill(self, kind: str, target: Target, draft: Draft, box: Box, rng: np.random.Generator) -> Image:
        fill = _crop(target.image, target.saliency, box, draft.angle, box, rng)
        return _jittered(fill, target, draft, self.config.jitter, rng)


class RectangleMaker(CutPasteMaker):
    """CutPaste's rectangles alone."""

    kinds: tuple[str, ...] = ("cutpaste",)


class ScarMaker(CutPasteMaker):
    """CutPaste's scars alone."""

    kinds: tuple[str, ...] = ("cutpaste-scar",)


class DraemMaker(BaseMaker):
    """DRAEM: thresholded Perlin noise, filled with a changed texture that is blended in with opacity 1 - beta.

    Zavrtanik, Kristan, Skocaj, "DRAEM", arXiv 2108.07610. The mask may spread over the whole image: saliency then says
    little, as there. The fill is one of `textures`, else another image of the set (the image itself where it is alone),
    mirrored and turned; three changes of tone and a strong jitter make it foreign.
    """

    kinds: tuple[str, ...] = ("draem",)

    def __init__(
        self,
        images: Sequence[Image],
        saliency: Sequence[Mask] | None = None,
        config: DefectConfig = REB,
        textures: Sequence[Image] | None = None,
    ) -> None:
        """Take the normal images and, if any, external textures: uint8 (h, w, 3) or (h, w) of any size."""
        super().__init__(images, saliency, config)
        if textures is not None and len(textures) == 0:
            raise CalibrationError("no textures in the list, expected 1 or more; give None to take the set's own images")
        for number, texture in enumerate(() if textures is None else textures):
            check_image(texture, f"texture {number}")
        self.textures = textures

    def _draft(self, kind: str, target: Target, rng: np.random.Generator) -> Draft:
        config = self.config
        across, down = 2 ** _whole(rng, config.perlin_octave), 2 ** _whole(rng, config.perlin_octave)
        angle, opacity = rng.uniform(-90, 90), rng.uniform(*config.draem_opacity)
        mask = PerlinMask(draw_gradients(rng, across, down), angle, config.perlin_level)
        drawn: Parameters = {"cells_across": across, "cells_down": down, "angle": angle, "opacity": opacity}
        return Draft(mask, (target.size[1], target.size[0]), 1, opacity, parameters=drawn)

    def _fill(self, kind: str, target: Target, draft: Draft, box: Box, rng: np.random.Generator) -> Image:
        choices = self.images if self.textures is None else self.textures
        source = int(rng.integers(len(choices)))
        if self.textures is None and len(choices) > 1:
            source = int(rng.integers(len(choices) - 1))
            source += source >= target.index
        angle = rng.uniform(-45, 45)
        draft.parameters.update(source=source, texture_angle=angle)
        mirrored = np.ascontiguousarray(choices[source][:: _one_of(rng, (1, -1)), :: _one_of(rng, (1, -1))])
        texture = np.asarray(cv2.resize(mirrored, target.size[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)
        middle = (target.size[1] - 1) / 2, (target.size[0] - 1) / 2
        crop = cut_turned(texture, middle, (box.width, box.height), angle)
        toned = cv2.LUT(with_planes(crop, target.planes, grey=target.grey), tone_table(rng))
        return _jittered(np.asarray(toned, dtype=np.uint8), target, draft, _DRAEM_JITTER, rng)


MAKERS: dict[str, type[BaseMaker]] = {
    "defectmaker": DefectMaker,
    "cutpaste": RectangleMaker,
    "cutpaste-scar": ScarMaker,
    "cutpaste-3way": CutPasteMaker,
    "draem": DraemMaker,
}


def make_maker(name: str, images: Sequence[Image], saliency: Sequence[Mask] | None = None) -> Maker:
    """The maker of that name in `MAKERS`, with its published numbers.

    Raises:
        CalibrationError: an unknown name, or images and masks that no maker takes.
    """
    if name not in MAKERS:
        raise CalibrationError(f"defect maker '{name}', expected one of: {', '.join(MAKERS)}")
    return MAKERS[name](images, saliency)


def draw_frame(rng: np.random.Generator, target: Target, area: tuple[float, float], aspect: float) -> tuple[float, float]:
    """Width and height of a box: its area uniform in a range of shares of the image, its aspect log-uniform.

    In a slim image the aspect is limited to what fits, so that the area always holds.
    """
    height, width = target.size
    pixels = rng.uniform(*area) * height * width
    ratio = min(max(aspect ** rng.uniform(-1, 1), pixels / height**2), width**2 / pixels)
    return math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)


def _crop(image: Image, saliency: Mask | None, box: Box, angle: float, avoid: Box | None, rng: np.random.Generator) -> Image:
    """A crop of the box's size around a salient pixel, turned by `angle`; away from `avoid` if there is such a place."""
    for _ in range(_OTHER_PLACES):
        spot = place(salient_point(image.shape[:2], saliency, rng), box.width, box.height, image.shape[:2])
        if avoid is None or not spot.overlaps(avoid):
            break
    if angle == 0:
        return np.ascontiguousarray(spot.of(image))
    middle = spot.x + (spot.width - 1) / 2, spot.y + (spot.height - 1) / 2
    return cut_turned(image, middle, (box.width, box.height), angle)


def _jittered(fill: Image, target: Target, draft: Draft, strength: float, rng: np.random.Generator) -> Image:
    change = Jitter(*rng.uniform(-strength, strength, 4).tolist())
    draft.parameters.update({f"jitter_{name}": value for name, value in change._asdict().items()})
    return jitter(fill, change, grey=target.grey)


def _kernel(length_px: int, scale: float) -> int:
    """The odd number of pixels nearest to a kernel that is `length_px` wide at 256 x 256."""
    return 2 * round((length_px - 1) / 2 * scale) + 1


def _whole(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    return int(rng.integers(limits[0], limits[1] + 1))


def _step(rng: np.random.Generator, limits: tuple[int, int], step: int) -> int:
    return limits[0] + step * int(rng.integers((limits[1] - limits[0]) // step + 1))


def _one_of(rng: np.random.Generator, values: Sequence[_T]) -> _T:
    return values[int(rng.integers(len(values)))]
