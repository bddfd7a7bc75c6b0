"""Where a synthetic defect lies: outlines, clumps and Perlin masks, drawn once and rendered at any size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

Weight = npt.NDArray[np.uint8]  # (h, w): 0 outside the shape, 255 where the fill covers fully
Size = tuple[float, float]  # width, height

_SAMPLES = 12  # points on each Bezier segment: chords of a pixel or two
_SUBPIXEL_BITS = 8
_SMALL_ENOUGH, _TRIES = 0.03, 16


class Shape(Protocol):
    """A shape whose random draws are made, so that it keeps its form whatever its size."""

    def render(self, width: float, height: float) -> Weight:
        """Draw the shape in a frame of that many pixels: uint8 (h, w), 255 inside."""


@dataclass(frozen=True)
class Outline:
    """A closed line, float64 (n, 2), that spans the unit square, and how far its frame is turned (degrees)."""

    points: npt.NDArray[np.float64]
    angle: float = 0.0

    def render(self, width: float, height: float) -> Weight:
        """Fill the outline in a frame of that size; the array is the upright box around the turned frame's outline."""
        # a filled polygon owns the pixels under its line, half a pixel more on each side
        points = self.points * (max(width - 1, 0), max(height - 1, 0))
        if self.angle != 0:
            cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
            points = points @ np.array([[cos, sin], [-sin, cos]])
        points = points - points.min(axis=0)
        columns, rows = np.rint(points.max(axis=0)).astype(int) + 1
        weight = np.zeros((rows, columns), dtype=np.uint8)
        fixed = np.rint(points * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(weight, [fixed], 255, shift=_SUBPIXEL_BITS)
        return weight


@dataclass(frozen=True)
class Clump:
    """Grains inside an outline: where noise on a coarse grid, uint8 (ny, nx), is above a level."""

    outline: Outline
    grains: npt.NDArray[np.uint8]
    level: int

    def render(self, width: float, height: float) -> Weight:
        """The grains in a frame of that size; the whole outline where it is too small to hold one."""
        weight = self.outline.render(width, height)
        noise = cv2.resize(self.grains, weight.shape[::-1], interpolation=cv2.INTER_CUBIC)
        grains = cv2.bitwise_and(weight, cv2.threshold(noise, self.level, 255, cv2.THRESH_BINARY)[1])
        return np.asarray(grains if cv2.countNonZero(grains) > 0 else weight, dtype=np.uint8)


@dataclass(frozen=True)
class PerlinMask:
    """Where Perlin noise from unit gradients, float32 (2, ny + 1, nx + 1), turned by `angle` degrees, is above `level`."""

    gradients: npt.NDArray[np.float32]
    angle: float
    level: float

    def render(self, width: float, height: float) -> Weight:
        """The mask in a frame of that size, cut to its bounding box; one empty pixel where nothing is above the level."""
        columns, rows = max(1, round(width)), max(1, round(height))
        noise = perlin(self.gradients, columns, rows)
        turn = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), self.angle, 1.0)
        noise = np.asarray(cv2.warpAffine(noise, turn, (columns, rows), borderMode=cv2.BORDER_REFLECT), dtype=np.float32)
        weight = (noise > self.level).astype(np.uint8) * np.uint8(255)
        x, y, width_px, height_px = cv2.boundingRect(weight)
        return weight[y : y + max(1, height_px), x : x + max(1, width_px)]


RECTANGLE = Outline(np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]))


def draw_outline(rng: np.random.Generator, count: int, tension: float, straight: float = 0.0, angle: float = 0.0) -> Outline:
    """A closed curve through random points, sorted by angle around their mean and stretched to the unit square.

    Args:
        rng: source of the points.
        count: of points, 3 or more.
        tension: see `closed_curve`.
        straight: probability that a segment stays a straight line, which leaves corners at its ends.
        angle: degrees by which the frame is turned.
    """
    points = rng.random((count, 2))
    around = points - points.mean(axis=0)
    points = points[np.argsort(np.arctan2(around[:, 1], around[:, 0]))]
    curve = closed_curve(points, tension, rng.random(count) < straight)
    low = curve.min(axis=0)
    return Outline((curve - low) / np.maximum(curve.max(axis=0) - low, 1e-9), angle)


def closed_curve(start: npt.NDArray[np.float64], tension: float, flat: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Samples of a closed cubic Bezier curve, float64 (12 n, 2); every twelfth is a control point.

    At each control point the tangent runs along the line between the midpoints of its two edges, which is divided in the
    ratio of their lengths (M. Shemanarev, "Interpolation with Bezier curves", Anti-Grain Geometry, 2002), so that a long
    edge does not make its short neighbour swing out.

    Args:
        start: control points in order, float64 (n, 2).
        tension: length of the handles over that of the parts of that line; 0 gives a polygon.
        flat: bool (n,), the segments behind each point that stay straight.
    """
    end = np.roll(start, -1, axis=0)
    middle = (start + end) / 2  # of the edge behind each point; the edge before it is the previous row
    before = np.roll(middle, 1, axis=0)
    length = np.sqrt(((end - start) ** 2).sum(axis=1, keepdims=True)) + 1e-9
    before_length = np.roll(length, 1, axis=0)
    split = before + (middle - before) * (before_length / (before_length + length))
    leave = start + (middle - split) * tension
    arrive = np.roll(start + (before - split) * tension, -1, axis=0)
    leave, arrive = np.where(flat[:, None], start, leave), np.where(flat[:, None], end, arrive)
    t = np.linspace(0, 1, _SAMPLES, endpoint=False)[:, None]
    u = 1 - t
    curve = u**3 * start[:, None] + 3 * u**2 * t * leave[:, None] + 3 * u * t**2 * arrive[:, None] + t**3 * end[:, None]
    return curve.reshape(-1, 2)


def draw_gradients(rng: np.random.Generator, across: int, down: int) -> npt.NDArray[np.float32]:
    """Unit vectors at the corners of a grid of `across` x `down` cells: float32 (2, down + 1, across + 1)."""
    heading = rng.random((down + 1, across + 1), dtype=np.float32) * np.float32(2 * np.pi)
    return np.stack([np.cos(heading), np.sin(heading)])


def perlin(gradients: npt.NDArray[np.float32], width: int, height: int) -> npt.NDArray[np.float32]:
    """Gradient noise, float32 (height, width), within -1 .. 1 (K. Perlin, "Improving noise", SIGGRAPH 2002).

    Interpolates down the columns on the coarse grid first, so that little is done for each pixel.
    """
    along_x, along_y = gradients
    row, from_row, fade_y = _lattice(height, along_x.shape[0] - 1)
    column, from_column, fade_x = _lattice(width, along_x.shape[1] - 1)
    from_row, fade_y = from_row[:, None], fade_y[:, None]
    slope = (1 - fade_y) * along_x[row] + fade_y * along_x[row + 1]
    level = (1 - fade_y) * from_row * along_y[row] + fade_y * (from_row - 1) * along_y[row + 1]
    left = from_column * slope[:, column] + level[:, column]
    right = (from_column - 1) * slope[:, column + 1] + level[:, column + 1]
    return np.asarray(np.float32(math.sqrt(2)) * (left + fade_x * (right - left)), dtype=np.float32)


def soften(weight: Weight, kernel: int) -> Weight:
    """Erode with a square kernel (odd, pixels) and smooth with a Gaussian of the same width: stays within the shape.

    A shape too thin to survive the erosion keeps its hard edge.
    """
    square = np.ones((kernel, kernel), dtype=np.uint8)
    core = cv2.erode(weight, square, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    if cv2.countNonZero(core) == 0:
        return weight
    # the smoothed edge must end inside the array, where the eroded one left room for it
    return np.asarray(cv2.GaussianBlur(core, (kernel, kernel), 0, borderType=cv2.BORDER_CONSTANT), dtype=np.uint8)


def render_within(shape: Shape, frame: Size, limit: tuple[int, int], kernel: int, size_px: float | None) -> Weight:
    """Render a shape no larger than `limit` (height, width), softened where `kernel` is above 1.

    Args:
        shape: what to draw.
        frame: width and height in pixels; only their ratio counts where `size_px` is given.
        limit: height and width that it must fit into.
        kernel: of the soft edge, odd, pixels.
        size_px: square root of the area wanted. As close as the limit and whole pixels allow.
    """
    width, height = frame
    best, best_off = None, math.inf
    for _ in range(_TRIES):
        weight = shape.render(width, height)
        fit = min(limit[0] / weight.shape[0], limit[1] / weight.shape[1])
        if fit < 1:
            width, height = width * fit, height * fit
            weight = shape.render(width, height)[: limit[0], : limit[1]]
        if kernel > 1:
            weight = soften(weight, kernel)
        if size_px is None:
            return weight
        grow = size_px / math.sqrt(max(cv2.countNonZero(weight), 1))
        off = abs(math.log(grow))
        if off < best_off:
            best, best_off = weight, off
        if off < _SMALL_ENOUGH:
            break
        # a frame as wide as the image may only grow taller
        width, height = min(width * grow, limit[1]), min(height * grow, limit[0])
    assert best is not None
    return best


def _lattice(pixels: int, cells: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """For each pixel its cell, the way into it (0 .. 1), and the fade 6t^5 - 15t^4 + 10t^3 there."""
    at = (np.arange(pixels) + 0.5) * (cells / pixels)
    cell = np.minimum(at.astype(np.intp), cells - 1)
    t = at - cell
    return cell, t.astype(np.float32), (t * t * t * (t * (t * 6 - 15) + 10)).astype(np.float32)
