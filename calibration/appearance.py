"""What a part's picture looks like in six numbers: light, focus, colour and position, as separate as they can be."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from engines.images import Image
from engines.preprocess import Preprocessor

STATISTICS = ("brightness", "sharpness", "red", "blue", "across", "down")
_POSITION_PX = 64  # the side at which edges are looked for: grain is gone there, outlines are not


def measure(preprocessor: Preprocessor, frame: Image) -> npt.NDArray[np.float64]:
    """The statistics of what is judged of a frame, uint8 RGB (H, W, 3): its region, at the network's size.

    Ignored pixels are black, so that nothing that happens there counts. Raises EngineError as `Preprocessor`.
    """
    return measure_resized(preprocessor, preprocessor.resized(frame))


def measure_resized(preprocessor: Preprocessor, resized: Image) -> npt.NDArray[np.float64]:
    """The same of what `preprocessor.resized` made of a frame; of a large one that takes longer than all the rest."""
    image = resized
    if preprocessor.ignored is not None:
        image = np.where(preprocessor.ignored[..., None], np.uint8(0), image)
    return statistics_of(image)


def statistics_of(image: Image) -> npt.NDArray[np.float64]:
    """Measure one picture, float64 (6,), in the order of STATISTICS.

    - brightness: mean grey level, 0 to 255.
    - sharpness: fine detail in percent of coarser detail, as mean absolute Laplacians of the picture and of the picture at
      half its size. A brighter light or a stronger texture raises both alike; blur takes the fine one first.
    - red, blue: percent of the sum of red, green and blue.
    - across, down: where the edges lie on average, percent of width and height; light hardly changes it.

    A picture without light or without structure has no colour, sharpness or position: these are NaN then, which
    `calibration.drift` takes for an alarm.

    Args:
        image: uint8 RGB (h, w, 3). `measure` gives the judged region at the network's size: what lies outside does not
            count, and the time does not depend on the camera.

    Raises:
        CalibrationError: not a picture of that kind.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 2:
        raise CalibrationError(f"image is {image.dtype} {image.shape}, expected uint8 (height, width, 3) in RGB order")
    red, green, blue = cv2.mean(image)[:3]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    half = cv2.resize(grey, (grey.shape[1] // 2, grey.shape[0] // 2), interpolation=cv2.INTER_AREA)
    small = cv2.resize(grey, (_POSITION_PX, _POSITION_PX), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small.astype(np.float32), (0, 0), 1)
    edges = cv2.magnitude(cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1)).astype(np.float64)
    at = (np.arange(_POSITION_PX) + 0.5) * (100 / _POSITION_PX)
    with np.errstate(invalid="ignore", divide="ignore"):
        light, weight = np.float64(red + green + blue), edges.sum()
        return np.array(
            [
                cv2.mean(grey)[0],
                100 * _detail(grey) / _detail(half),
                100 * red / light,
                100 * blue / light,
                edges.sum(axis=0) @ at / weight,
                edges.sum(axis=1) @ at / weight,
            ]
        )


def _detail(grey: cv2.typing.MatLike) -> np.float64:
    return np.float64(cv2.norm(cv2.Laplacian(grey, cv2.CV_16S), cv2.NORM_L1) / grey.size)
