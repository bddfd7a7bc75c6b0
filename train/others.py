"""Nearest bank rows that come from other images: how a good part looks to a bank that has never seen it.

A patch of a bank image lies at distance 0 from itself in the bank, which says nothing about the next part. Searched in the
rows of the other images only, it stands for a part that is new. Rows of a k-centre coreset come in the order in which they
were taken, and every beginning of that order is itself a smaller coreset: one pass answers for several sizes of bank. (Not
so a bank of all patches, which come in their own order.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.ldknn import QUERY_BLOCK, ROW_BLOCK, Floats, Progress
from train import TrainError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Nearest:
    """For each of n patches: squared distance float32 (n,) and row int64 (n,) of the nearest row of another image."""

    squared: Floats
    row: Indices

    def first(self, patches: int) -> Nearest:
        """Of the first patches alone: views."""
        return Nearest(self.squared[:patches], self.row[:patches])


class OtherImages:
    """A bank that knows which image each of its rows comes from."""

    def __init__(self, rows: Floats, image_of_row: Indices) -> None:
        """Prepare a bank.

        Args:
            rows: float32 (m, d), the bank.
            image_of_row: int64 (m,).

        Raises:
            TrainError: rows of one image alone.
        """
        if (image_of_row == image_of_row[0]).all():
            raise TrainError(f"all {len(rows)} bank rows come from one image, expected two or more images; raise --coreset")
        self._centre = rows.mean(axis=0, dtype=np.float64).astype(np.float32)  # |q|^2 - 2 q.c + |c|^2 cancels least about it
        self._given = rows
        self._rows = rows - self._centre
        self._norms = np.einsum("ij,ij->i", self._rows, self._rows)
        self._images = image_of_row

    @property
    def rows(self) -> Floats:
        """The bank, float32 (m, d)."""
        return self._given

    @property
    def smallest(self) -> int:
        """Fewest leading rows that come from two images."""
        return int((self._images != self._images[0]).argmax()) + 1

    def search(self, patches: Floats, image: Indices, sizes: Sequence[int], progress: Progress | None = None) -> list[Nearest]:
        """Nearest row of another image for each patch, among the first rows of the bank. O(n m d) time, blocked.

        Rows are compared in float32, so of rows that are equally near up to rounding any may come back; its distance is
        that of the difference.

        Args:
            patches: float32 (n, d).
            image: int64 (n,) the image that each patch comes from; one that has no row in the bank is no exception.
            sizes: ascending, each at least `smallest`, how many of the leading rows make a bank.
            progress: called with (patches done, patches in all).

        Returns:
            For each size its answer.
        """
        found = [Nearest(np.empty(len(patches), np.float32), np.empty(len(patches), np.int64)) for _ in sizes]
        for start in range(0, len(patches), QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            self._search_block(patches[part], image[part], sizes, [(one.squared[part], one.row[part]) for one in found])
            if progress is not None:
                progress(min(start + QUERY_BLOCK, len(patches)), len(patches))
        return found

    def _search_block(self, patches: Floats, image: Indices, sizes: Sequence[int], found: list[tuple[Floats, Indices]]) -> None:
        every = np.arange(len(patches))
        minus_twice = (patches - self._centre) * np.float32(-2)
        least = np.full(len(patches), np.inf, np.float32)
        nearest = np.zeros(len(patches), np.int64)
        begun = 0
        for size, (squared, row) in zip(sizes, found, strict=True):
            for start in range(begun, size, ROW_BLOCK):
                stop = min(start + ROW_BLOCK, size)
                looks = minus_twice @ self._rows[start:stop].T
                looks += self._norms[start:stop]
                looks[image[:, None] == self._images[start:stop]] = np.inf
                column = looks.argmin(axis=1)
                closer = looks[every, column] < least
                least[closer] = looks[every, column][closer]
                nearest[closer] = column[closer] + start
            begun = size
            row[:] = nearest
            difference = patches - self._given[nearest]
            np.einsum("ij,ij->i", difference, difference, out=squared)
