"""Image to network input: the one function that training and station both call, so that they cannot differ."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.images import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_SIDE_PX = 16  # a region smaller than two patches a side holds no structure to judge

# x / 255 -> (x - mean) / std, as one multiplication and one addition on the 0..255 value
_SCALE = tuple(np.float32(1 / (255 * std)) for std in IMAGENET_STD)
_SHIFT = tuple(np.float32(-mean / std) for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))


@dataclass(frozen=True)
class Roi:
    """The judged rectangle of a frame, in source pixels: left, top, width, height."""

    x: int
    y: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width},{self.height}"


class Preprocessor:
    """Crop to the region, resize, blank what is ignored, normalise: uint8 (H, W, 3) to float32 (1, 3, h, w).

    Shrinking averages (INTER_AREA). Where one axis has to be enlarged the image is resized bilinearly, after an axis that
    shrinks to less than half is averaged down to twice its size, so that no source pixel is skipped. Ignored pixels
    become the ImageNet mean (0 after normalisation) in training and on the station alike, so what happens inside an
    ignored area changes no score at all.

    Attributes:
        size: network input, (height, width) in pixels.
        ignored: bool (h, w), True where the network input holds an ignored pixel; None without a mask.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        roi: Roi | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        """Prepare for one product.

        Args:
            size: network input (height, width), each a multiple of 16.
            roi: judged rectangle in source pixels; None judges the whole frame.
            mask: bool (H, W) over the whole frame, True = ignored.
            frame_size: (height, width) that every frame must have; None takes any. Needed with `roi` or `mask`,
                whose pixel coordinates mean nothing on another size.

        Raises:
            EngineError: sizes, region and mask that do not fit each other.
        """
        if any(side < 32 or side % 16 for side in size):
            raise EngineError(f"input size {size[1]}x{size[0]}, expected width and height as multiples of 16, 32 or more")
        if (roi is not None or mask is not None) and frame_size is None:
            raise EngineError("a region or a mask needs images of one size: give images of equal size, or leave both out")
        if mask is not None and frame_size is not None and mask.shape != tuple(frame_size):
            raise EngineError(
                f"mask is {mask.shape[1]} x {mask.shape[0]} pixels, expected the frame's {frame_size[1]} x {frame_size[0]}"
            )
        if roi is not None and frame_size is not None:
            inside = min(roi.x, roi.y) >= 0 and roi.x + roi.width <= frame_size[1] and roi.y + roi.height <= frame_size[0]
            if not inside or roi.width < MIN_SIDE_PX or roi.height < MIN_SIDE_PX:
                raise EngineError(
                    f"region {roi} (x,y,width,height), expected at least {MIN_SIDE_PX} pixels a side"
                    f" inside the frame of {frame_size[1]} x {frame_size[0]}"
                )
        self.size = size
        self._roi = roi
        self._frame_size = frame_size
        self.ignored: npt.NDArray[np.bool_] | None = None
        if mask is not None:
            # float32, so that a single ignored source pixel under a large shrink still counts
            self.ignored = self._resize(self._crop(mask.astype(np.float32))) > 0
            if self.ignored.all():
                raise EngineError("the mask ignores the whole region; leave some of the part to be judged")

    def __call__(self, image: Image) -> npt.NDArray[np.float32]:
        """Turn one frame, uint8 RGB (H, W, 3), into float32 (1, 3, h, w).

        Raises:
            EngineError: wrong dtype, shape or frame size, or fewer than 16 pixels a side.
        """
        return self.tensor(self.resized(image))

    def tensor(self, resized: Image) -> npt.NDArray[np.float32]:
        """Turn what `resized` gave into float32 (1, 3, h, w), for whoever looks at it beside."""
        out = np.empty((1, 3, *self.size), np.float32)
        for channel in range(3):
            np.multiply(resized[:, :, channel], _SCALE[channel], out=out[0, channel])
            out[0, channel] += _SHIFT[channel]
        if self.ignored is not None:
            out[0, :, self.ignored] = 0
        return out

    def resized(self, image: Image) -> Image:
        """The judged region at network size, uint8 RGB (h, w, 3): what a person should see under an anomaly map."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise EngineError(f"image is {got}, expected uint8 (height, width, 3) in RGB order")
        if self._frame_size is not None and image.shape[:2] != tuple(self._frame_size):
            raise EngineError(
                f"frame is {image.shape[1]} x {image.shape[0]} pixels, expected {self._frame_size[1]} x {self._frame_size[0]}"
                " as in training; set the camera to that size, or train again with images of this one"
            )
        if min(image.shape[:2]) < MIN_SIDE_PX:
            raise EngineError(f"image is {image.shape[1]} x {image.shape[0]} pixels, expected at least {MIN_SIDE_PX} a side")
        return np.asarray(self._resize(self._crop(image)), dtype=np.uint8)

    def judged_patches(self, grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Which patches count: bool (rows, columns), False where a patch's whole cell is ignored.

        A cell with one judged pixel is judged, so that every judged pixel has its own patch.

        Raises:
            EngineError: a grid whose cells do not tile the network input.
        """
        if self.ignored is None:
            return np.ones(grid, bool)
        rows, columns = grid
        if self.size[0] % rows or self.size[1] % columns:
            raise EngineError(
                f"patch grid {columns} x {rows}, expected one that divides the input of {self.size[1]} x {self.size[0]} pixels"
            )
        cells = self.ignored.reshape(rows, self.size[0] // rows, columns, self.size[1] // columns)
        return np.asarray(~cells.all(axis=(1, 3)))

    def source_px_per_patch(self, frame_size: tuple[int, int], grid: tuple[int, int]) -> tuple[float, float]:
        """How many source pixels one patch covers, (high, wide), for a frame of (height, width)."""
        high, wide = (self._roi.height, self._roi.width) if self._roi else frame_size
        return high / grid[0], wide / grid[1]

    def _crop(self, array: npt.NDArray) -> npt.NDArray:
        if self._roi is None:
            return array
        return array[self._roi.y : self._roi.y + self._roi.height, self._roi.x : self._roi.x + self._roi.width]

    def _resize(self, array: npt.NDArray) -> npt.NDArray:
        high, wide = self.size
        if array.shape[0] >= high and array.shape[1] >= wide:
            return cv2.resize(array, (wide, high), interpolation=cv2.INTER_AREA)
        # bilinear reads two source pixels for each of its own: an axis that shrinks by more would skip some
        averaged = (min(array.shape[0], 2 * high), min(array.shape[1], 2 * wide))
        if averaged != array.shape[:2]:
            array = cv2.resize(array, (averaged[1], averaged[0]), interpolation=cv2.INTER_AREA)
        return cv2.resize(array, (wide, high), interpolation=cv2.INTER_LINEAR)
