"""A small product drawn by formula, so that every step can be tried without a camera or a data set.

The part is a turned steel flange on a dark belt. Lengths in this file are design units: one unit is a pixel where
`size_px` is 320 and the part lies exactly as designed.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from engines.images import Image, encode_png
from train import TrainError

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Point = tuple[float, float]
Circle = tuple[float, float, float]  # centre and radius

RIM, HUB, BORE = 122.0, 60.0, 34.0  # radii
BOLT_CIRCLE, BOLT_HOLE, BOLT_HOLES = 91.0, 12.0, 6
CHAMFER = 3.5
STEEL, RUBBER = (0.985, 1.0, 1.025), (0.88, 1.0, 1.04)  # RGB of their grey
VISIBLE = 3.0  # grey levels: a change below this drowns in the sensor's noise and is not part of a defect
SMALLEST_PX = 64


def draw_part(rng: np.random.Generator, size_px: int = 320, defect: str | None = None) -> tuple[Image, Mask]:
    """Draw one part, good or with one defect, as a camera above the belt would see it.

    Pose, finish, light and noise come of `rng`. From generators in the same state, a defective and a good part are
    the same picture outside the mask.

    Args:
        rng: source of all that varies.
        size_px: width and height, at least 64.
        defect: a name in `DEFECTS`; None for a good part.

    Returns:
        The image, uint8 RGB (size, size, 3), and where the defect shows, bool (size, size): all False for a good part.

    Raises:
        TrainError: an unknown defect, or a size below 64.
    """
    if size_px < SMALLEST_PX:
        raise TrainError(f"images of {size_px} pixels, expected {SMALLEST_PX} or more")
    if defect is not None and defect not in _PAINTERS:
        raise TrainError(f"defect '{defect}', expected one of: {', '.join(DEFECTS)}")
    flaw = np.random.default_rng(rng.integers(2**63))  # its own stream, so that a defect draws nothing from the part's
    scene = _lay_part(rng, size_px)
    picture, mask = _through_lens(scene.picture), np.zeros((size_px, size_px), dtype=bool)
    if defect is not None:
        flawed = _through_lens(_PAINTERS[defect](scene, flaw))
        mask = _visible_change(scene, picture, flawed)
        picture = np.where(mask[..., None], flawed, picture)
    return _expose(picture, rng), mask


def write_sample(
    out: Path,
    *,
    train: int = 60,
    calibration: int = 120,
    test_good: int = 40,
    per_defect: int = 10,
    seed: int = 0,
    size_px: int = 320,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a data set in the MVTec layout, and beside it `calibration/good`: good parts that training never sees.

    Each image has a generator of its own, seeded by (seed, folder, index): it stays the same whatever the counts are.
    The folder appears whole or not at all.

    Raises:
        TrainError: a count or seed below 0, a size below 64, or `out` exists and is not an empty folder, or cannot be
            written.
    """
    counts = {"train/good": train, "calibration/good": calibration, "test/good": test_good}
    counts |= {f"test/{defect}": per_defect for defect in DEFECTS}
    for name, value in {**counts, "seed": seed}.items():
        if value < 0:
            raise TrainError(f"{name}: {value}, expected 0 or more")
    if size_px < SMALLEST_PX:
        raise TrainError(f"images of {size_px} pixels, expected {SMALLEST_PX} or more")
    total, done = sum(counts.values()), 0
    with _new_tree(out) as tree:
        for split, count in counts.items():
            for index in range(count):
                _write_part(tree, split, index, seed, size_px)
                done += 1
                if progress is not None:
                    progress(done, total)


def _write_part(tree: Path, split: str, index: int, seed: int, size_px: int) -> None:
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    kind = split.split("/")[1]
    image, mask = draw_part(rng, size_px, None if kind == "good" else kind)
    _write(tree / split / f"{index:03d}.png", image)
    if kind != "good":
        white = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255
        _write(tree / "ground_truth" / kind / f"{index:03d}_mask.png", np.asarray(white, dtype=np.uint8))


def _write(path: Path, image: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))


@contextlib.contextmanager
def _new_tree(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out` to fill; rename it to `out` on success, remove it on any failure."""
    out = Path(out).resolve()
    temporary = None
    try:
        if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
            raise TrainError(f"{out}: exists and is not an empty folder; name a new one, or remove it first")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
        temporary.chmod(0o755)
        yield temporary
        os.rename(temporary, out)  # replaces an empty folder in one step, and refuses one that was filled meanwhile
    except OSError as error:
        raise TrainError(f"{out}: could not be written ({error.strerror or error}); check its space and permissions") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class _Scene:
    """One part on the belt before a lens sees it. Fields are float32 (size, size), pictures (size, size, 3)."""

    scale: float  # pixels a design unit
    centre: Point  # pixels
    light: Point  # unit vector in the image plane, towards the lamp
    x: Field  # design units from the part's centre
    y: Field
    holes: tuple[Circle, ...]  # bolt holes, design units
    outside: Field  # signed distance to the part's material in design units, above 0 outside it
    metal: Field  # grey levels if metal were everywhere
    belt: Field  # grey levels if there were no part, its shadow apart
    picture: Field

    @property
    def cover(self) -> Field:
        """How much of each pixel is metal, 0..1."""
        return _cover(self.outside, self.scale)


def _lay_part(rng: np.random.Generator, size: int) -> _Scene:
    """Place a good part on the belt: small errors of pose, lamp and finish, as a fixture and a batch leave them."""
    scale = size / 320 * rng.normal(1.0, 0.006)
    shift_x, shift_y = rng.normal(0.0, 2.5, 2).clip(-6, 6) * size / 320
    centre = (size / 2 + float(shift_x), size / 2 + float(shift_y))
    turn = rng.normal(0.0, 0.035)
    lamp = math.radians(-125) + rng.normal(0.0, 0.06)
    light = (math.cos(lamp), math.sin(lamp))
    pixels = np.arange(size, dtype=np.float32)
    x, y = np.meshgrid((pixels - centre[0]) / scale, (pixels - centre[1]) / scale)
    angles = turn + np.arange(BOLT_HOLES) * (2 * np.pi / BOLT_HOLES)
    holes = tuple((BOLT_CIRCLE * math.cos(angle), BOLT_CIRCLE * math.sin(angle), BOLT_HOLE) for angle in angles)
    metal, belt = _turned_metal(rng, x, y, lamp), _belt(rng, size)
    outside = _flange(x, y, holes)
    picture = _compose(outside, metal, belt, scale, light)
    return _Scene(scale, centre, light, x, y, holes, outside, metal, belt, picture)


def _flange(x: Field, y: Field, holes: Sequence[Circle]) -> Field:
    """Signed distance to the material of a disc with a bore and bolt holes, above 0 outside it."""
    radius = cv2.magnitude(x, y)
    outside = np.asarray(np.maximum(radius - RIM, BORE - radius), dtype=np.float32)
    for hole_x, hole_y, hole in holes:
        np.maximum(outside, hole - cv2.magnitude(x - hole_x, y - hole_y), out=outside)
    return outside


def _turned_metal(rng: np.random.Generator, x: Field, y: Field, lamp: float) -> Field:
    """A lathe-turned face: concentric grooves, and the two bright lobes that grooves throw back at a lamp."""
    radius, angle = cv2.cartToPolar(x, y)
    angles, radii = 256, 200
    turns = rng.standard_normal((angles, radii), dtype=np.float32)
    turns = np.concatenate([turns, turns[:64]])  # more than a turn, so that the blur meets itself without a seam
    arcs = cv2.GaussianBlur(turns, (0, 0), sigmaX=0.7, sigmaY=9)[32 : 32 + angles]
    rings = cv2.GaussianBlur(rng.standard_normal((1, radii), dtype=np.float32), (0, 0), 0.8)
    grooves = rng.uniform(2.5, 4.5) * rings + rng.uniform(8.0, 18.0) * arcs
    for _ in range(rng.poisson(4)):  # marks of a chattering tool: tolerated, and what makes some good parts score high
        at, track = rng.integers(angles - 30), rng.integers(radii - 2)
        grooves[at : at + rng.integers(4, 30), track : track + rng.integers(1, 3)] += rng.uniform(-20, 20)
    to_angle = np.float32(angles / (2 * np.pi))
    grain = cv2.remap(grooves, radius * np.float32(1.4), angle * to_angle, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    lobes = np.cos(angle - np.float32(lamp + rng.normal(0.0, 0.05))) ** 2
    hub = (radius < HUB).astype(np.float32)
    cloud = cv2.resize(rng.standard_normal((6, 6), dtype=np.float32), x.shape, interpolation=cv2.INTER_CUBIC)
    grey = rng.normal(122.0, 3.5) + rng.normal(64.0, 3.5) * lobes * lobes + grain + 2.5 * cloud + 9.0 * hub
    # a step of the lathe: the wall between flange and hub catches the lamp on one side and hides from it on the other
    wall = np.exp(-(((radius - HUB) / 2.2) ** 2)) * np.cos(angle - np.float32(lamp))
    grey += 38.0 * wall
    return np.asarray(grey, dtype=np.float32)


def _belt(rng: np.random.Generator, size: int) -> Field:
    """Dark rubber with a fine grain, and streaks along the way it runs."""
    grain = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), 0.9) * 7
    streaks = cv2.GaussianBlur(rng.standard_normal((size, 1), dtype=np.float32), (0, 0), 1.5) * 3
    return np.asarray(rng.normal(50.0, 2.0) + grain + streaks, dtype=np.float32)


def _cover(outside: Field, scale: float) -> Field:
    return np.asarray(np.clip(0.5 - outside * scale, 0.0, 1.0), dtype=np.float32)


def _compose(outside: Field, metal: Field, belt: Field, scale: float, light: Point) -> Field:
    """Lay the material on the belt: its shadow, its chamfered edges, and edges as smooth as pixels allow."""
    cover = _cover(outside, scale)
    away = np.array([[1, 0, -7 * scale * light[0]], [0, 1, -7 * scale * light[1]]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, away, cover.shape[::-1]), (0, 0), 5 * scale)
    slope_x, slope_y = (cv2.Sobel(outside, cv2.CV_32F, *axis, scale=scale / 8) for axis in ((1, 0), (0, 1)))
    facing = slope_x * np.float32(light[0]) + slope_y * np.float32(light[1])
    chamfer = np.clip((outside + CHAMFER) * scale + 0.5, 0.0, 1.0)
    lit = cover * (metal + chamfer * (62.0 * facing - 6.0))
    dark = (1.0 - cover) * belt * (1.0 - 0.72 * shadow)
    planes = [lit * of_metal + dark * of_belt for of_metal, of_belt in zip(STEEL, RUBBER, strict=True)]
    return np.asarray(cv2.merge(planes), dtype=np.float32)


def _through_lens(picture: Field) -> Field:
    return np.asarray(cv2.GaussianBlur(picture, (3, 3), 0.55), dtype=np.float32)


def _visible_change(scene: _Scene, good: Field, flawed: Field) -> Mask:
    """Where the two pictures differ visibly on the part, gaps of a pixel closed."""
    red, green, blue = cv2.split(cv2.absdiff(flawed, good))
    changed = (cv2.max(cv2.max(red, green), blue) > VISIBLE) & (cv2.magnitude(scene.x, scene.y) < RIM + 1)
    closed = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), dtype=np.uint8))
    return np.asarray(closed > 0)


def _expose(picture: Field, rng: np.random.Generator) -> Image:
    """What the sensor makes of a picture: exposure, uneven light, vignetting, white balance, shot and read noise."""
    size = len(picture)
    u = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y = rng.normal(0.0, 0.02, 2)
    row, column = 1 + slope_x * u - rng.uniform(0.04, 0.07) * u * u, 1 + slope_y * u - rng.uniform(0.04, 0.07) * u * u
    light = np.outer(column, row).astype(np.float32) * np.float32(rng.normal(1.0, 0.02))
    signal = picture * cv2.merge([light * balance for balance in rng.normal(1.0, 0.004, 3).tolist()])
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.sqrt(1.5 + 0.02 * np.maximum(signal, 0))
    return np.asarray(np.clip(signal + noise + 0.5, 0, 255), dtype=np.uint8)


# Defects. Each takes a scene and returns its picture with one flaw, float32 (size, size, 3).


def _scratch(scene: _Scene, rng: np.random.Generator) -> Field:
    """A hard edge drawn over the face: a bright burr with a dark furrow beside it, fading out at both ends."""
    steps = 24
    heading, bend = rng.uniform(0, np.pi), rng.normal(0.0, 0.02)
    length = rng.uniform(22, 85)
    headings = heading + bend * np.arange(steps) + np.cumsum(rng.normal(0.0, 0.02, steps))
    path = np.cumsum(np.stack([np.cos(headings), np.sin(headings)], axis=1), axis=0) * (length / steps)
    path += _spot(scene, rng, depth=6) - path[steps // 2]
    widths = rng.uniform(0.9, 1.9) * np.sin(np.linspace(0.25, np.pi - 0.25, steps)) ** 0.5
    burr = _strokes(scene, path, widths)
    furrow = _strokes(scene, path - 1.2 * np.array(scene.light), widths)
    strength = _from_faint(rng, 15, 85)
    change = (burr - 0.9 * np.maximum(furrow - burr, 0)) * strength * scene.cover
    return np.asarray(scene.picture + cv2.merge([change] * 3), dtype=np.float32)


def _dent(scene: _Scene, rng: np.random.Generator) -> Field:
    """A blow that left a shallow bowl: dark where it faces away from the lamp, bright where it faces it."""
    radius, aspect, tilt = rng.uniform(6, 13), rng.uniform(1.0, 1.6), rng.uniform(0, np.pi)
    spot_x, spot_y = _spot(scene, rng, depth=0.8 * radius)
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    along = ((scene.x - spot_x) * cos + (scene.y - spot_y) * sin) / (radius * aspect)
    across = ((scene.y - spot_y) * cos - (scene.x - spot_x) * sin) / radius
    bowl = np.exp(-1.6 * (along**2 + across**2) ** 1.5)
    # the wall nearer to the lamp falls away from it and is dark, the far wall faces it
    facing = cv2.Sobel(bowl, cv2.CV_32F, 1, 0) * scene.light[0] + cv2.Sobel(bowl, cv2.CV_32F, 0, 1) * scene.light[1]
    facing /= np.abs(facing).max()
    change = _from_faint(rng, 13, 62) * scene.cover * (facing - 0.25 * bowl)
    return np.asarray(scene.picture + cv2.merge([change] * 3), dtype=np.float32)


def _crack(scene: _Scene, rng: np.random.Generator) -> Field:
    """A dark line that starts at a hole, wanders, thins, and may fork."""
    hole = np.array(scene.holes[rng.integers(len(scene.holes))][:2])
    start = rng.uniform(0, 2 * np.pi)
    trunk = _walk(rng, hole + (BOLT_HOLE - 1) * np.array([np.cos(start), np.sin(start)]), start, rng.uniform(16, 52))
    width = rng.uniform(0.8, 2.4)
    crack = _strokes(scene, trunk, np.linspace(width, 0.6, len(trunk)))
    for _ in range(rng.integers(3)):
        at = rng.integers(len(trunk) // 3, len(trunk))
        branch = _walk(rng, trunk[at], start + rng.choice([-1, 1]) * rng.uniform(0.5, 1.0), rng.uniform(8, 20))
        crack = np.maximum(crack, _strokes(scene, branch, np.linspace(0.6 * width, 0.5, len(branch))))
    depth = _from_faint(rng, 0.2, 0.8) * crack * scene.cover
    return np.asarray(scene.picture * (1 - depth)[..., None], dtype=np.float32)


def _stain(scene: _Scene, rng: np.random.Generator) -> Field:
    """Oil, rust or dried coolant: a ragged, translucent blotch, denser towards its border."""
    colour = np.array([(0.62, 0.52, 0.33), (0.66, 0.42, 0.26), (0.52, 0.58, 0.66)][rng.integers(3)], dtype=np.float32)
    radius = rng.uniform(8, 24)
    spot_x, spot_y = _spot(scene, rng, depth=5)
    ragged = np.maximum(0.25 * _mottle(scene, rng, 16) + 0.13 * _mottle(scene, rng, 44), -0.5)
    inside = 1 - cv2.magnitude(scene.x - spot_x, scene.y - spot_y) / radius + ragged
    border = cv2.GaussianBlur(np.exp(-(((inside - 0.1) / 0.1) ** 2)), (0, 0), 0.8)
    film = np.clip(inside * 3.5, 0, 1) * (0.55 + np.maximum(0.12 * _mottle(scene, rng, 60), -0.2)) + 0.4 * border
    opacity = _from_faint(rng, 0.15, 0.7) * np.clip(film, 0, 1) * scene.cover
    return np.asarray(scene.picture * (1 - opacity[..., None] * (1 - colour)), dtype=np.float32)


def _chip(scene: _Scene, rng: np.random.Generator) -> Field:
    """Material broken out of the rim, with a rough, dull break."""
    angle, radius = rng.uniform(0, 2 * np.pi), _from_faint(rng, 4.5, 14)
    reach = RIM + rng.uniform(0.0, 0.35) * radius
    x, y = scene.x - reach * np.float32(np.cos(angle)), scene.y - reach * np.float32(np.sin(angle))
    bite = np.asarray(radius * (1 + 0.12 * _mottle(scene, rng, 40)) - cv2.magnitude(x, y), dtype=np.float32)
    broken = np.clip(1 + (bite - 1.0) / 3.0, 0, 1)
    metal = scene.metal * (1 - broken * (0.3 - 0.09 * _mottle(scene, rng, 110)))
    return _compose(np.maximum(scene.outside, bite), metal, scene.belt, scene.scale, scene.light)


def _blocked_hole(scene: _Scene, rng: np.random.Generator) -> Field:
    """A bolt hole that was drilled too small, or one that swarf and grease fill, wholly or in part."""
    blocked = rng.integers(len(scene.holes))
    hole_x, hole_y, _ = scene.holes[blocked]
    if rng.random() < 0.4:
        holes = [*scene.holes[:blocked], (hole_x, hole_y, rng.uniform(4.0, 10.0)), *scene.holes[blocked + 1 :]]
        return _compose(_flange(scene.x, scene.y, holes), scene.metal, scene.belt, scene.scale, scene.light)
    edge, heading = rng.uniform(-0.9, 0.5) * BOLT_HOLE, rng.uniform(0, 2 * np.pi)
    x, y = scene.x - hole_x, scene.y - hole_y
    lumps = _mottle(scene, rng, 80)
    level = x * np.float32(np.cos(heading)) + y * np.float32(np.sin(heading)) - edge + 2.0 * lumps
    fill = np.clip(level * scene.scale + 0.5, 0, 1) * (cv2.magnitude(x, y) < BOLT_HOLE + 2) * (1 - scene.cover)
    swarf = (rng.uniform(50, 95) + 16 * lumps)[..., None] * np.array([1.08, 1.0, 0.88], dtype=np.float32)
    return np.asarray(scene.picture + fill[..., None] * (swarf - scene.picture), dtype=np.float32)


def _from_faint(rng: np.random.Generator, low: float, high: float) -> float:
    """A strength in [low, high], log-uniform: each octave of faintness is as common as the next."""
    return float(low * (high / low) ** rng.random())


def _mottle(scene: _Scene, rng: np.random.Generator, cells: int) -> Field:
    """Smooth noise of about unit variance, with `cells` grains along each side."""
    grains = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(cv2.resize(grains, scene.x.shape, interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _spot(scene: _Scene, rng: np.random.Generator, depth: float) -> Point:
    """A random place on the metal, at least `depth` from every edge."""
    inside = np.flatnonzero(scene.outside < -depth)
    at = inside[rng.integers(len(inside))]
    return float(scene.x.flat[at]), float(scene.y.flat[at])


def _walk(rng: np.random.Generator, start: npt.NDArray[np.float64], heading: float, length: float) -> npt.NDArray[np.float64]:
    """A jagged path from `start`: float64 (n, 2), design units."""
    headings = heading + np.cumsum(rng.normal(0.0, 0.38, max(3, int(length / 3.0))))
    steps = 3.0 * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def _strokes(scene: _Scene, path: npt.NDArray[np.float64], widths: npt.NDArray[np.float64]) -> Field:
    """How much of each pixel a line covers, 0..1. Widths in design units, drawn no thinner than 0.75 pixel."""
    fine = 4  # drawn at four times the size, since OpenCV's lines are whole pixels wide
    size = len(scene.x)
    canvas = np.zeros((size * fine, size * fine), dtype=np.uint8)
    points = np.rint(((path * scene.scale + scene.centre) + 0.5) * fine).astype(int)
    for start, end, width in zip(points[:-1], points[1:], widths[1:], strict=True):
        cv2.line(canvas, start.tolist(), end.tolist(), 255, max(3, round(width * scene.scale * fine)))
    return np.asarray(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA), dtype=np.float32) / np.float32(255)


_PAINTERS: dict[str, Callable[[_Scene, np.random.Generator], Field]] = {
    "scratch": _scratch,
    "dent": _dent,
    "crack": _crack,
    "stain": _stain,
    "chip": _chip,
    "blocked_hole": _blocked_hole,
}
DEFECTS: tuple[str, ...] = tuple(_PAINTERS)
