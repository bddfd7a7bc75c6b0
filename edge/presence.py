"""Is a part in view? By what changed against an empty scene that was learnt, in a small grey picture."""

from __future__ import annotations

import enum
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edge import StationError
from edge.sections import Side
from edge.verdict import Arrival, Frame, Missing
from engines.atomic import write_file
from engines.bundle import pack_npz
from engines.images import Image

Floats = npt.NDArray[np.float32]
Region = tuple[int, int, int, int]

LEAST_FRAMES = 10
_LONG_SIDE = 64  # cells of the small picture
_SPREADS = 6.0
_LEAST_CHANGE = 10.0  # grey levels
_DRIFT = 0.02  # of the difference that an empty scene moves with each frame
_CLEAR = 2  # cells between a part and the border of the region, once it is fully in view
_VERSION = 1
_OPEN = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class EmptyScene:
    """A scene without a part.

    Attributes:
        mean, spread: grey levels of each cell, float32 (h, w), and their standard deviation.
        frame: (height, width) of the frames it was learnt from, px.
        region: x, y, width, height of what was looked at, px.
        frames: how many it was learnt from.
    """

    mean: Floats
    spread: Floats
    frame: tuple[int, int]
    region: Region
    frames: int

    def cells(self, image: Image) -> Floats:
        """The region of uint8 RGB (H, W, 3), grey and small: float32 (h, w)."""
        return _cells(image, self.region)

    def changed(self, cells: Floats, mean: Floats) -> npt.NDArray[np.uint8]:
        """1 where a cell is not as it is without a part, float32 (h, w) each; single cells and lines are left out."""
        limit = np.maximum(_SPREADS * self.spread, _LEAST_CHANGE)
        return np.asarray(cv2.morphologyEx((np.abs(cells - mean) > limit).view(np.uint8), cv2.MORPH_OPEN, _OPEN), np.uint8)

    def save(self, path: Path) -> None:
        """Write it as .npz. Raises EngineError: it cannot be written."""
        numbers = np.array([_VERSION, *self.frame, *self.region, self.frames], np.int64)
        write_file(path, pack_npz({"mean": self.mean, "spread": self.spread, "numbers": numbers}))


def load_empty(path: Path) -> EmptyScene:
    """Read an empty scene. Raises StationError: not there, or not one that `edge empty` wrote."""
    remedy = "learn it with `python -m edge empty`"
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, spread, numbers = file["mean"], file["spread"], file["numbers"]
    except OSError as error:
        raise StationError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StationError(f"{path}: not an empty scene ({error}); {remedy}") from None
    if numbers.shape != (8,) or numbers.dtype != np.int64 or numbers[0] != _VERSION:
        raise StationError(f"{path}: an empty scene of another version, expected {_VERSION}; {remedy}")
    _, rows, columns, x, y, width, height, frames = (int(number) for number in numbers)
    inside = x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= columns and y + height <= rows
    shape = _shape(width, height) if inside else None
    for cells in (mean, spread):
        if cells.dtype != np.float32 or cells.shape != shape or not np.isfinite(cells).all():
            raise StationError(f"{path}: cells are {cells.dtype} {cells.shape}, expected float32 {shape}; {remedy}")
    return EmptyScene(mean, spread, (rows, columns), (x, y, width, height), frames)


def learn_empty(images: Iterable[Image], region: Region | None, share: float) -> EmptyScene:
    """Median and spread of each cell over some frames.

    Args:
        images: of the empty scene, uint8 RGB (H, W, 3).
        region: x, y, width, height, px; None for the whole frame.
        share: of the region, that a part changes at least.

    Raises:
        StationError: too few frames, of several sizes, a region that is not inside, or a scene in which something moves.
    """
    frame: tuple[int, int] | None = None
    stack: list[Floats] = []
    for number, image in enumerate(images, start=1):
        size = (image.shape[0], image.shape[1])
        frame = frame or size
        x, y, width, height = region = region or (0, 0, size[1], size[0])
        if size != frame:
            raise StationError(f"frame {number} is {size[1]} x {size[0]}, expected {frame[1]} x {frame[0]} like the first")
        if x + width > size[1] or y + height > size[0]:
            raise StationError(f"region {list(region)} reaches out of the frame, {size[1]} x {size[0]}; correct it")
        stack.append(_cells(image, region))
    if frame is None or region is None or len(stack) < LEAST_FRAMES:
        raise StationError(f"{len(stack)} frames of the empty scene, expected {LEAST_FRAMES} or more; give more")
    mean = np.median(stack, axis=0).astype(np.float32)
    spread = (1.4826 * np.median(np.abs(stack - mean), axis=0)).astype(np.float32)
    scene = EmptyScene(mean, spread, frame, region, len(stack))
    moved = [float(scene.changed(cells, mean).mean()) for cells in stack]
    worst = int(np.argmax(moved))
    if moved[worst] > share / 2:
        raise StationError(
            f"the scene moves: frame {worst + 1} of {len(stack)} differs from the others in {100 * moved[worst]:.1f} % of the"
            f" region, expected {50 * share:.1f} % at most; clear the view and stop the belt, or take the belt's own pattern"
            " out of the region"
        )
    return scene


class _State(enum.Enum):
    EMPTY = "empty"
    ENTERING = "entering"
    IN_VIEW = "in view"
    LEAVING = "leaving"


class Presence:
    """Turns frames into parts: each thing that comes fully into view is one, at the first frame in which it is.

    Fully in view is when what changed no longer touches the border of the region (or the side where parts enter). That is
    geometry and holds at any speed, whereas "it stopped growing" depends on speed and frame rate, and is true as well of a
    part that stands still half in view. One that left without ever being fully in view, or that is cut off by the region's
    border, is a part without a picture, and so a FAULT: none is lost.

    Light may drift slowly: cells that are not changed follow, while the scene is empty and only then.

    Attributes:
        parts: so far.
        state: in a word, for people.
        share: of the region that was changed in the last frame.
    """

    def __init__(
        self,
        scene: EmptyScene,
        *,
        enters: Side = "any",
        share: float = 0.02,
        blind_s: float = 30,
        note: Callable[[str, Mapping[str, object]], None] = lambda name, details: None,
    ) -> None:
        """Start with an empty scene.

        Args:
            scene: that was learnt.
            enters: where parts come from; with a side, one may enter before the one before it left.
            share: of the region, that a part changes at least; it is gone below half of it.
            blind_s: a scene that is changed for longer is reported, or ends the run where parts cannot be told apart.
            note: journals what is reported.
        """
        self._scene = scene
        self._mean = scene.mean.copy()
        self._enters = enters
        self._enter_share = share
        self._blind_ns = round(blind_s * 1e9)
        self._note = note
        self._state = _State.EMPTY
        self._alone = True  # nothing else was in view when this part entered
        self._since_ns = 0
        self._told = False
        self.parts = 0
        self.share = 0.0

    @property
    def state(self) -> str:
        """In a word."""
        return self._state.value

    def see(self, arrival: Arrival) -> Arrival | None:
        """The part that this frame shows for the first time, None where it shows none.

        A frame that is missing, or of another size, is a part without a picture, since nobody knows what it would have shown.

        Raises:
            StationError: the scene is changed for too long, so that parts cannot be told apart.
        """
        if isinstance(arrival, Missing):
            return self._missing(arrival.trigger_ns, arrival.source, arrival.reason)
        if arrival.image.shape[:2] != self._scene.frame:
            rows, columns = self._scene.frame
            got = f"{arrival.image.shape[1]} x {arrival.image.shape[0]}"
            reason = f"frame is {got}, the empty scene was learnt at {columns} x {rows}; learn it again"
            return self._missing(arrival.captured_ns, arrival.source, reason)
        cells = self._scene.cells(arrival.image)
        changed = self._scene.changed(cells, self._mean)
        self.share = float(changed.mean())
        part = self._step(arrival, changed)
        if self._state is _State.EMPTY:
            self._mean += _DRIFT * (cells - self._mean) * (1 - changed)
        else:
            self._watch(arrival.captured_ns)
        return part

    def end(self, now_ns: int) -> Missing | None:
        """No more frames will come: a part that has not been fully in view yet is one without a picture."""
        entering, self._state = self._state is _State.ENTERING, _State.EMPTY
        return self._missing(now_ns, "presence", "the frames ended before the part was fully in view") if entering else None

    def _step(self, frame: Frame, changed: npt.NDArray[np.uint8]) -> Arrival | None:
        if self._state is _State.EMPTY:
            if self.share < self._enter_share:
                return None
            self._alone = True
            self._go(_State.ENTERING, frame)
        elif self.share <= self._enter_share / 2:
            entering = self._state is _State.ENTERING
            self._go(_State.EMPTY, frame)
            reason = "a part came and went without being fully in view"
            return self._missing(frame.captured_ns, frame.source, reason) if entering else None
        if self._state is _State.IN_VIEW:
            if _touches(changed, self._enters, 1):
                self._alone = False
                # at a given side only a next part can; at any, it may be this one that leaves
                self._go(_State.LEAVING if self._enters == "any" else _State.ENTERING, frame)
            return None
        if _touches(changed, self._enters, _CLEAR):
            return None
        self._go(_State.IN_VIEW, frame)
        if self._alone and _touches(changed, "any", 1):
            return self._missing(frame.captured_ns, frame.source, "the part is cut off by the border of the region")
        return self._part(frame)

    def _go(self, state: _State, frame: Frame) -> None:
        self._state = state
        self._since_ns = frame.captured_ns
        self._told = False

    def _watch(self, now_ns: int) -> None:
        if now_ns - self._since_ns <= self._blind_ns or self._told:
            return
        self._told = True
        seconds = (now_ns - self._since_ns) / 1e9
        self._note("scene changed", {"state": self.state, "seconds": round(seconds, 1), "share": round(self.share, 4)})
        if self._state is not _State.IN_VIEW:  # a part that stands there fully in view hides no other
            raise StationError(
                f"{100 * self.share:.0f} % of the scene is changed for {seconds:.0f} s and nothing is fully in view, so that"
                " parts would be missed; clear the view, check light and camera, or learn the empty scene again"
            )

    def _part(self, frame: Frame) -> Frame:
        self.parts += 1
        return Frame(frame.image, self.parts, frame.captured_ns, frame.captured_ns, frame.source)

    def _missing(self, trigger_ns: int, source: str, reason: str) -> Missing:
        self.parts += 1
        return Missing(self.parts, trigger_ns, source, reason)


def _touches(changed: npt.NDArray[np.uint8], side: Side, cells: int) -> bool:
    """Is anything changed within so many cells of the border?"""
    borders = {
        "left": changed[:, :cells],
        "right": changed[:, -cells:],
        "top": changed[:cells],
        "bottom": changed[-cells:],
    }
    wanted = borders.values() if side == "any" else [borders[side]]
    return any(border.any() for border in wanted)


def _shape(width: int, height: int) -> tuple[int, int]:
    """(rows, columns) of the small picture of a region."""
    scale = min(1.0, _LONG_SIDE / max(width, height))
    return max(1, round(scale * height)), max(1, round(scale * width))


def _cells(image: Image, region: Region) -> Floats:
    x, y, width, height = region
    step = max(1, max(width, height) // (4 * _LONG_SIDE))  # of a large frame every so many pixels are enough
    crop = np.ascontiguousarray(image[y : y + height : step, x : x + width : step])
    rows, columns = _shape(width, height)
    small = cv2.resize(crop, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32)
