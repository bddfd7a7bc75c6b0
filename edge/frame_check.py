"""Why a picture that arrived is none: of another size, the one before again, black or saturated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.images import Image

NEARLY_ALL = 0.995
_EVERY = 4  # rows and columns; black and saturated pictures are so as a whole


@dataclass(frozen=True)
class Fault:
    """Why a picture is not to be judged.

    Attributes:
        reason: in words.
        camera: the camera does not work as it did; False where it does, and light or exposure are wrong.
    """

    reason: str
    camera: bool


class FrameCheck:
    """Looks at each picture of one camera in turn."""

    def __init__(self, size: tuple[int, int] | None, black_level: int | None, saturated_level: int | None) -> None:
        """Set the limits.

        Args:
            size: (width, height) of every picture; None: that of the first.
            black_level: a picture is black when nearly all its values are at or below this; None: it may be.
            saturated_level: it is saturated when nearly all are at or above this; None: it may be.
        """
        self._size = size
        self._black_level = black_level
        self._saturated_level = saturated_level
        self._previous: Image | None = None

    def fault(self, image: Image) -> Fault | None:
        """What is wrong with uint8 RGB (h, w, 3); None where it may be judged."""
        frozen = self._previous is not None and np.array_equal(image, self._previous)
        self._previous = image
        height, width = image.shape[:2]
        if self._size is None:
            self._size = (width, height)
        if (width, height) != self._size:
            expected = f"{self._size[0]} x {self._size[1]}"
            return Fault(f"frame of {width} x {height} pixels, expected {expected}: the camera is in another mode", camera=True)
        sample = image[::_EVERY, ::_EVERY]
        black, saturated = self._black_level, self._saturated_level
        if black is not None and np.count_nonzero(sample <= black) >= NEARLY_ALL * sample.size:
            return Fault(f"black: nearly all values are {black} or less; check light, lens cap and exposure", camera=frozen)
        if saturated is not None and np.count_nonzero(sample >= saturated) >= NEARLY_ALL * sample.size:
            return Fault(f"saturated: nearly all values are {saturated} or more; check light and exposure", camera=frozen)
        return Fault("the same frame again, bit for bit: the camera is frozen", camera=True) if frozen else None
