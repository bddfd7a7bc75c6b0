"""Which pictures of parts count: not those that a bundle was made with, and each once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from calibration import CalibrationError
from engines.bundle import Bundle
from engines.images import Image, pixel_digest


class Fresh:
    """Takes one picture after the other and refuses what says nothing."""

    def __init__(self, bundle: Bundle, because: str, known: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start without pictures.

        Args:
            bundle: whose pictures do not count.
            because: behind "the bundle was made with this picture, ": what that does to the result, and what to give instead.
            known: names of pictures that may not come again, by the digest of their pixels.
        """
        self._learnt_from = bundle.learnt_from()
        self._because = because
        self._seen = dict(known)

    def take(self, path: Path, image: Image) -> str:
        """The digest of a picture's pixels.

        Raises:
            CalibrationError: one that the bundle was made with, or that was there before, in whatever file.
        """
        digest = pixel_digest(image)
        if digest in self._learnt_from:
            raise CalibrationError(f"{path}: the bundle was made with this picture, {self._because}")
        if digest in self._seen:
            raise CalibrationError(f"{path}: the same picture as {self._seen[digest]}; each picture may count once, remove one")
        self._seen[digest] = str(path)
        return digest


def finite(score: float, path: Path) -> float:
    """A picture's score. Raises CalibrationError where it is not finite."""
    if not math.isfinite(score):
        raise CalibrationError(f"{path}: score is {score}, expected a finite number; check the backend")
    return score
