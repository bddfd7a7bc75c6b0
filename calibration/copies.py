"""Pictures one after the other: is the next one a near copy of one that was kept?"""

from __future__ import annotations

import numpy as np

from calibration.twins import (
    CANDIDATES,
    NEAR_COPIES,
    REFERENCE_PAIRS,
    SIDE_PX,
    coarse,
    difference,
    flat,
    limit_of,
    middle_of,
    unit,
    windows,
)
from engines.ldknn import Floats


class Gallery:
    """Pictures that were kept so far, to ask whether the next one is a near copy of one of them. Keeps 70 kB of each."""

    def __init__(self) -> None:
        self._thumbs: list[Floats] = []
        self._names: list[str] = []
        self._middles = np.empty((0, SIDE_PX**2), np.float32)
        self._usual: list[float] = []

    def add(self, thumb: Floats, name: str) -> None:
        """Keep a thumbnail; one without structure is not compared with anything."""
        if flat(thumb):
            return
        count = len(self._thumbs)
        for at in np.unique(np.linspace(0, count - 1, min(count, REFERENCE_PAIRS), dtype=int)).tolist():
            self._usual.append(difference(self._thumbs[at], thumb))
        if count == len(self._middles):  # grown by doubling
            self._middles = np.concatenate([self._middles, np.empty((max(64, count), self._middles.shape[1]), np.float32)])
        self._middles[count] = unit(middle_of(coarse(thumb))[None])[0]
        self._thumbs.append(thumb)
        self._names.append(name)

    def near_copy(self, thumb: Floats) -> tuple[str, float] | None:
        """Name of the picture that this one is a near copy of, and their correlation; None where there is none."""
        count = len(self._thumbs)
        if count == 0 or flat(thumb):
            return None
        alike = (self._middles[:count] @ unit(windows(coarse(thumb))).T).max(axis=1)
        wanted = min(CANDIDATES, count)
        nearest = np.argpartition(alike, -wanted)[-wanted:].tolist()
        least, at = min((difference(self._thumbs[index], thumb), index) for index in nearest)
        return (self._names[at], 1 - least) if least < limit_of(self._usual, count, NEAR_COPIES) else None
