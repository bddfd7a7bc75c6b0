"""Images drawn by formula: textures of many classes, filled into overlapping regions, photographed by a plain camera.

They teach a backbone what small structures look like without a single photograph. A texture class is one draw of a
formula's parameters (a frequency, a direction, a lattice, a glyph); what is free from use to use is where its pattern
falls, and a little scale and rotation. Procedural images as training data: Baradad et al., arXiv 2106.05963 (noise and
dead leaves), and Kataoka et al., arXiv 2101.08515 (iterated function systems).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from engines.images import Image
from engines.ldknn import Progress
from train import TrainError

TILE = 256  # pixels a side of a stored texture
MIXED = -1  # label of a pixel on an edge, or of a cell that more than one region reaches
_LARGEST_LABEL = 32767
_KNOTS = 3  # colours of a palette: dark, middle, bright
_SHIFT = 4  # fractional bits of coordinates handed to OpenCV
_ROTATION = 0.1  # radians either way from use to use
_SCALE = 1.15  # at most, either way, from use to use

Field = npt.NDArray[np.float32]
Random = np.random.Generator


@dataclass(frozen=True)
class Tiles:
    """The stock that scenes are composed of.

    Attributes:
        textures: uint8 (classes, draws, TILE, TILE), grey.
        palettes: float32 (palettes, 3, 3), dark to bright colours, RGB 0 to 255.
    """

    textures: npt.NDArray[np.uint8]
    palettes: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """One composed image, uint8 RGB (s, s, 3), and each pixel's texture and palette, int16 (s, s), MIXED on edges."""

    image: Image
    texture: npt.NDArray[np.int16]
    palette: npt.NDArray[np.int16]


def draw_tiles(classes: int, palettes: int, draws: int, seed: int, progress: Progress | None = None) -> Tiles:
    """Draw `draws` tiles of each texture class, and the palettes; the same for the same seed.

    Raises:
        TrainError: counts that leave nothing to tell apart.
    """
    if not (2 <= classes <= _LARGEST_LABEL and 2 <= palettes <= _LARGEST_LABEL and draws >= 1):
        raise TrainError(
            f"{classes} textures, {palettes} palettes, {draws} draws;"
            f" expected 2 to {_LARGEST_LABEL} textures and palettes, and 1 draw or more"
        )
    textures = np.empty((classes, draws, TILE, TILE), np.uint8)
    for label in range(classes):
        for draw in range(draws):
            textures[label, draw] = texture(label, draw, seed)
        if progress is not None:
            progress(label + 1, classes)
    colours = np.random.default_rng([seed, 1]).uniform(0, 255, (palettes, _KNOTS, 3))
    # half the palettes are greys and half-greys, as most parts are
    grey = colours.mean(axis=2, keepdims=True)
    saturation = np.linspace(0, 1, palettes)[:, None, None].clip(0.05)
    order = np.argsort(grey[..., 0], axis=1)[..., None]
    colours = np.take_along_axis(grey + saturation * (colours - grey), order, axis=1)
    return Tiles(textures, colours.astype(np.float32))


def texture(label: int, draw: int, seed: int) -> npt.NDArray[np.uint8]:
    """One tile of a texture class, uint8 (TILE, TILE): the class fixes the formula's parameters, the draw the rest."""
    fixed, free = np.random.default_rng([seed, 0, label]), np.random.default_rng([seed, 0, label, draw + 1])
    field = FORMULAS[label % len(FORMULAS)](fixed, free)
    low, high = np.percentile(field[::4, ::4], (1, 99))
    return ((field - low) * (255 / max(high - low, 1e-6))).clip(0, 255).astype(np.uint8)


def compose(tiles: Tiles, size: int, seed: int, index: int) -> Scene:
    """Scene number `index`: a ground and one to seven regions over it, each with a texture and a palette."""
    rng = np.random.default_rng([seed, 2, index])
    textures, palettes = (
        np.full((size, size), rng.integers(len(tiles.textures)), np.int16),
        np.full((size, size), rng.integers(len(tiles.palettes)), np.int16),
    )
    image = _fill(tiles, int(textures[0, 0]), int(palettes[0, 0]), size, rng)
    for _ in range(rng.integers(1, 8)):
        weight = _region(size, rng)
        label, palette = _contrasting(tiles, textures, palettes, weight, rng)
        blended = weight[..., None]
        image += blended * (_fill(tiles, label, palette, size, rng) - image)
        edge, inside = (weight > 0.02) & (weight < 0.98), weight >= 0.98
        textures[inside], palettes[inside] = label, palette
        textures[edge], palettes[edge] = MIXED, MIXED
    return Scene(image.clip(0, 255).astype(np.uint8), textures, palettes)


def photograph(image: Image, rng: Random) -> Image:
    """What a plain camera makes of a scene: uneven light, gain and offset, a little blur, noise, clipping."""
    side = image.shape[0]
    light = cv2.resize(np.exp(rng.normal(0, 0.18, (3, 3))).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.03, 3)).astype(np.float32)
    seen = image.astype(np.float32) * light[..., None] * gain + np.float32(rng.normal(0, 8))
    if rng.random() < 0.4:
        seen = cv2.GaussianBlur(seen, (0, 0), rng.uniform(0.3, 1.2))
    if rng.random() < 0.8:
        grain = rng.standard_normal(seen.shape, np.float32) if rng.random() < 0.5 else _grey_grain(seen.shape, rng)
        seen += np.float32(12 * rng.random() ** 2) * grain  # mostly little, now and then much
    return seen.clip(0, 255).astype(np.uint8)


def cell_labels(labels: npt.NDArray[np.int16], stride: int) -> npt.NDArray[np.int64]:
    """Label of each stride x stride cell, int64 (s / stride, s / stride); MIXED where a cell holds more than one."""
    side = labels.shape[0] // stride
    cells = labels.reshape(side, stride, side, stride)
    low = cells.min(axis=(1, 3))
    return np.where(low == cells.max(axis=(1, 3)), low, MIXED).astype(np.int64)


def _grey_grain(shape: tuple[int, ...], rng: Random) -> Field:
    return np.broadcast_to(rng.standard_normal((*shape[:2], 1), np.float32), shape)


def _contrasting(
    tiles: Tiles, textures: npt.NDArray[np.int16], palettes: npt.NDArray[np.int16], weight: Field, rng: Random
) -> tuple[int, int]:
    """Texture and palette of a region; a third of the time one of the two is that of what lies under it."""
    label, palette = int(rng.integers(len(tiles.textures))), int(rng.integers(len(tiles.palettes)))
    row, column = np.unravel_index(int(weight.argmax()), weight.shape)
    under = int(textures[row, column]), int(palettes[row, column])
    shared = rng.integers(6)
    if under[0] != MIXED and shared == 0:
        return under[0], palette
    if under[0] != MIXED and shared == 1:
        return label, under[1]
    return label, palette


def _fill(tiles: Tiles, label: int, palette: int, size: int, rng: Random) -> Field:
    """A texture in a palette, float32 (size, size, 3)."""
    tile = tiles.textures[label, rng.integers(tiles.textures.shape[1])]
    scale, angle = _SCALE ** rng.uniform(-1, 1), rng.uniform(-_ROTATION, _ROTATION)
    across, along = scale * math.cos(angle), scale * math.sin(angle)
    left, top = rng.uniform(0, TILE - size, 2) if size < TILE else (0.0, 0.0)
    turn = np.array([[across, -along, left], [along, across, top]])
    seen = cv2.warpAffine(
        tile, turn, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
    )
    colours = tiles.palettes[palette]
    middle = colours.mean(axis=0)
    contrast = rng.uniform(0.25, 1)  # worn and polished surfaces show little of their pattern
    knots = middle + contrast * (colours - middle) + rng.normal(0, 6, colours.shape)
    ramp = np.stack([np.interp(np.arange(256), (0, 127, 255), knots[:, channel]) for channel in range(3)], axis=1)
    return ramp.astype(np.float32)[seen]


def _region(size: int, rng: Random) -> Field:
    """Where a region covers the image, float32 (size, size) 0 to 1: a polygon or a smooth outline, sharp or soft."""
    corners = int(rng.integers(3, 10))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners)) if corners != 4 else np.array([0.25, 0.75, 1.25, 1.75]) * math.pi
    spread = rng.uniform(0.5, 1, corners) if corners != 4 else np.ones(4)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * spread[:, None]
    aspect, turn = np.exp(rng.uniform(-0.8, 0.8)), rng.uniform(0, 2 * math.pi)
    points *= (np.sqrt(aspect), 1 / np.sqrt(aspect))
    points @= np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points = points * size * np.exp(rng.uniform(np.log(0.1), np.log(0.7))) + rng.uniform(0, size, 2)
    if rng.random() < 0.6:
        for _ in range(3):  # Chaikin's corner cutting: a quadratic B-spline in the limit
            following = np.roll(points, -1, axis=0)
            points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [_fixed_point(points)], 255, cv2.LINE_AA, _SHIFT)
    weight = mask.astype(np.float32) / 255
    return np.asarray(cv2.GaussianBlur(weight, (0, 0), rng.uniform(0.5, 3)) if rng.random() < 0.3 else weight, np.float32)


def _fixed_point(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    return np.round(points * 2**_SHIFT).astype(np.int32)


@functools.cache
def _frequencies() -> tuple[Field, Field]:
    """Cycles per pixel along rows and columns of the half spectrum."""
    return (
        np.broadcast_to(np.fft.fftfreq(TILE)[:, None], (TILE, TILE // 2 + 1)).astype(np.float32),
        np.broadcast_to(np.fft.rfftfreq(TILE)[None, :], (TILE, TILE // 2 + 1)).astype(np.float32),
    )


@functools.cache
def _grid() -> tuple[Field, Field]:
    """Row and column of each pixel."""
    rows, columns = np.mgrid[:TILE, :TILE].astype(np.float32)
    return rows, columns


def _noise(free: Random, gain: Field) -> Field:
    """White noise through a filter, zero mean and unit deviation."""
    field = np.fft.irfft2(np.fft.rfft2(free.standard_normal((TILE, TILE), np.float32)) * gain, (TILE, TILE))
    return ((field - field.mean()) / max(field.std(), 1e-9)).astype(np.float32)


def _frequency(fixed: Random, low: float = 0.02, high: float = 0.3) -> float:
    """Cycles per pixel, log-uniform: periods of 50 down to 3 pixels."""
    return float(np.exp(fixed.uniform(np.log(low), np.log(high))))


def _slow(free: Random, frequency: float = 0.012) -> Field:
    rows, columns = _frequencies()
    return _noise(free, np.exp(-(rows**2 + columns**2) / (2 * frequency**2)))


def _band_noise(fixed: Random, free: Random) -> Field:
    """Noise of one frequency, in one direction or in all (Gabor noise: Lagae et al. 2009)."""
    centre = _frequency(fixed)
    width, direction = centre * fixed.uniform(0.1, 0.5), fixed.uniform(0, math.pi)
    focus = fixed.choice([0.0, 2.0, 8.0, 30.0])
    rows, columns = _frequencies()
    ring = np.exp(-((np.hypot(rows, columns) - centre) ** 2) / (2 * width**2))
    return _noise(free, ring * np.exp(focus * (np.cos(2 * (np.arctan2(rows, columns) - direction)) - 1)))


def _coloured_noise(fixed: Random, free: Random) -> Field:
    """1/f^a noise, stretched along one direction."""
    exponent, stretch, direction = fixed.uniform(0.4, 2.2), np.exp(fixed.uniform(0, 2)), fixed.uniform(0, math.pi)
    rows, columns = _frequencies()
    along = rows * math.sin(direction) + columns * math.cos(direction)
    across = columns * math.sin(direction) - rows * math.cos(direction)
    return _noise(free, np.hypot(np.hypot(along * stretch, across), 1 / TILE) ** -exponent)


def _spots(fixed: Random, free: Random) -> Field:
    """Blobs, pits and labyrinths: band noise through a steep step."""
    level, steep = fixed.uniform(-1.3, 1.3), fixed.uniform(2, 12)
    return np.tanh(steep * (_band_noise(fixed, free) - level))


def _wave(fixed: Random, phase: Field) -> Field:
    """A periodic profile over a phase in radians: sine, square, saw, or narrow lines."""
    kind, narrow = fixed.integers(4), fixed.uniform(2, 10)
    if kind == 0:
        return np.sin(phase)
    if kind == 1:
        return np.tanh(6 * np.sin(phase))
    if kind == 2:
        return np.mod(phase / (2 * math.pi), 1).astype(np.float32)
    return np.exp(narrow * (np.cos(phase) - 1))


def _phase(frequency: float, direction: float, free: Random) -> Field:
    rows, columns = _grid()
    turns = frequency * (columns * math.cos(direction) + rows * math.sin(direction)) + free.random()
    return (2 * math.pi * turns).astype(np.float32)


def _stripes(fixed: Random, free: Random) -> Field:
    """Straight or wavering stripes."""
    frequency, direction, waver = _frequency(fixed), fixed.uniform(0, math.pi), fixed.choice([0.0, 0.5, 2.0])
    return _wave(fixed, _phase(frequency, direction, free) + waver * _slow(free))


def _marble(fixed: Random, free: Random) -> Field:
    """A wave through turbulence (Perlin 1985)."""
    frequency, direction = _frequency(fixed, high=0.1), fixed.uniform(0, math.pi)
    strength, turbulence = fixed.uniform(1, 5), _coloured_noise(fixed, free)
    return _wave(fixed, _phase(frequency, direction, free) + strength * turbulence)


def _checks(fixed: Random, free: Random) -> Field:
    """Two waves that cross: checks, grids, lattices."""
    direction, frequency, other = fixed.uniform(0, math.pi), _frequency(fixed, high=0.2), _frequency(fixed, high=0.2)
    crossing = direction + fixed.choice([math.pi / 2, math.pi / 3])
    combine = (np.multiply, np.maximum, np.add)[fixed.integers(3)]
    one = _wave(fixed, _phase(frequency, direction, free))
    return combine(one, _wave(fixed, _phase(other, crossing, free)))


def _weave(fixed: Random, free: Random) -> Field:
    """Two sets of threads, over and under in turn."""
    frequency, direction = _frequency(fixed, high=0.12), fixed.uniform(0, math.pi)
    threads = float(fixed.integers(1, 4))
    warp, weft = _phase(frequency, direction, free), _phase(frequency, direction + math.pi / 2, free)
    over = np.sin((warp + threads * weft) / 2) * np.sin((warp - weft) / 2) > 0
    fibres = fixed.uniform(0, 0.4) * _noise(free, np.ones((TILE, TILE // 2 + 1), np.float32))
    return np.where(over, np.abs(np.sin(warp / 2)), 0.8 * np.abs(np.sin(weft / 2))) + fibres


def _places(fixed: Random, free: Random, spacing: float) -> npt.NDArray[np.float64]:
    """Points (n, 2) as x and y, about `spacing` pixels apart: on a turned lattice, shaken, or anywhere."""
    steps = np.arange(-TILE, TILE, spacing)
    points = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    turn, shake = fixed.uniform(0, math.pi / 2), fixed.choice([0.0, 0.15, 0.6])
    points @= np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points += TILE / 2 + free.uniform(0, spacing, 2) + free.normal(0, shake * spacing, points.shape)
    return points[((points > -spacing) & (points < TILE + spacing)).all(axis=1)]


def _stamped(fixed: Random, free: Random, outlines: list[npt.NDArray[np.float64]], spacing: float) -> Field:
    """Small outlines at many places, filled or as strokes."""
    filled, thick = fixed.random() < 0.5, int(fixed.integers(1, 3))
    canvas = np.zeros((TILE, TILE), np.uint8)
    for place in _places(fixed, free, spacing):
        points = [_fixed_point(outline + place) for outline in outlines]
        if filled:
            cv2.fillPoly(canvas, points, 255, cv2.LINE_AA, _SHIFT)
        else:
            cv2.polylines(canvas, points, False, 255, thick, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32)


def _polygons(fixed: Random, free: Random) -> Field:
    """One polygon, or a disc, at many places."""
    corners, radius = int(fixed.choice([3, 4, 5, 6, 24])), np.exp(fixed.uniform(np.log(1.5), np.log(14)))
    angles = 2 * math.pi * (np.arange(corners + 1) / corners + fixed.random())
    outline = np.stack([np.cos(angles), np.sin(angles) * fixed.uniform(0.4, 1)], axis=1) * radius
    return _stamped(fixed, free, [outline], radius * fixed.uniform(2, 4.5))


def _glyphs(fixed: Random, free: Random) -> Field:
    """One sign of a few strokes at many places."""
    radius = np.exp(fixed.uniform(np.log(3), np.log(14)))
    strokes = [fixed.uniform(-radius, radius, (fixed.integers(2, 5), 2)) for _ in range(fixed.integers(1, 4))]
    return _stamped(fixed, free, strokes, radius * fixed.uniform(2, 3.5))


def _scratches(fixed: Random, free: Random) -> Field:
    """Lines of one length, in one direction or in many."""
    length, direction, spread = np.exp(fixed.uniform(1.5, 5)), fixed.uniform(0, math.pi), fixed.choice([0.05, 0.3, 3.0])
    count, thick = int(fixed.uniform(0.5, 3) * TILE**2 / (12 * length + 60)), int(fixed.integers(1, 4))
    canvas = np.full((TILE, TILE), 128, np.uint8)
    for _ in range(count):
        angle, (x, y) = free.normal(direction, spread), free.uniform(0, TILE, 2)
        reach = np.array([math.cos(angle), math.sin(angle)]) * length * free.uniform(0.4, 0.6)
        start, stop = _fixed_point(np.outer((-1, 1), reach) + np.array([x, y])).tolist()
        cv2.line(canvas, start, stop, int(free.integers(256)), thick, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32)


def _cells(fixed: Random, free: Random) -> Field:
    """Cells around points: distance to the nearest, cracks between, or a mosaic (Worley 1996)."""
    kind, spacing = fixed.integers(3), np.exp(fixed.uniform(np.log(5), np.log(40)))
    places = np.round(_places(fixed, free, spacing)).astype(int)
    places = places[((places >= 0) & (places < TILE)).all(axis=1)]
    empty = np.full((TILE, TILE), 255, np.uint8)
    empty[places[:, 1], places[:, 0]] = 0
    distance, cell = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    if kind == 0:
        return np.asarray(distance, np.float32)
    if kind == 1:
        between = cv2.morphologyEx(cell.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
        return np.asarray(cv2.GaussianBlur(between.astype(np.float32), (0, 0), fixed.uniform(0.5, 1.5)), np.float32)
    return free.random(int(cell.max()) + 1, np.float32)[cell]


def _fractal(fixed: Random, free: Random) -> Field:
    """An attractor of a few affine maps, at many places (Barnsley 1988); many points walk at once."""
    count = int(fixed.integers(2, 5))
    maps = fixed.uniform(-1, 1, (count, 2, 2))
    # singular values below 1 in product keep the walk bounded, and not so small that all of it is one point
    maps *= (fixed.uniform(0.5, 0.85, count) / np.linalg.norm(maps, 2, axis=(1, 2)))[:, None, None]
    shifts = fixed.uniform(-1, 1, (count, 2))
    walkers, walk = np.zeros((4096, 2)), []
    for step in range(16):
        chosen = fixed.integers(count, size=len(walkers))
        walkers = np.einsum("nij,nj->ni", maps[chosen], walkers) + shifts[chosen]
        walk += [walkers] if step >= 8 else []
    radius = np.exp(fixed.uniform(np.log(6), np.log(40)))
    points = np.concatenate(walk)[:: max(1, round(600 / radius**2))]  # a small copy needs few
    spread = points.std(axis=0).max()
    points = (points - points.mean(axis=0)) / max(spread, 1e-9) * radius / 2
    field = np.zeros((TILE, TILE), np.float32)
    for place in _places(fixed, free, radius * fixed.uniform(1.5, 3)):
        x, y = np.floor(points + place).astype(int).T
        within = (x >= 0) & (x < TILE) & (y >= 0) & (y < TILE)
        field[y[within], x[within]] = 1
    return np.asarray(cv2.GaussianBlur(field, (0, 0), 0.5), np.float32)


def _leaves(fixed: Random, free: Random) -> Field:
    """Discs over discs, radii by a power law (dead leaves: Lee, Mumford and Huang 2001)."""
    smallest, power = np.exp(fixed.uniform(0.3, 2.5)), fixed.uniform(1.5, 3.5)
    count = int(3000 / smallest)
    radii = np.minimum(smallest * (1 - free.random(count)) ** (-1 / power), TILE / 3)
    canvas = np.full((TILE, TILE), 128, np.uint8)
    for place, radius in zip(free.uniform(0, TILE, (count, 2)), radii, strict=True):
        x, y = _fixed_point(place).tolist()
        cv2.circle(canvas, (x, y), round(radius * 2**_SHIFT), int(free.integers(256)), -1, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32)


def _shaded(fixed: Random, free: Random) -> Field:
    """Smooth surfaces: a slow shading, and a fine grain of one strength."""
    strength = fixed.uniform(0, 0.5)
    return _slow(free, _frequency(fixed, 0.003, 0.015)) + strength * _band_noise(fixed, free)


FORMULAS: tuple[Callable[[Random, Random], Field], ...] = (
    _band_noise,
    _coloured_noise,
    _spots,
    _stripes,
    _marble,
    _checks,
    _weave,
    _polygons,
    _glyphs,
    _scratches,
    _cells,
    _fractal,
    _leaves,
    _shaded,
)
