"""Which pictures show the same part: declared by folders, or found by what the pictures look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibration.twins import SAME_PART, Nearness, find_twins
from engines.ldknn import Floats


def by_folder(paths: Sequence[Path], root: Path) -> list[str | None]:
    """The folder below `root` that each file lies in is its part; a file directly in `root` is of a part of its own."""
    folders = [path.parent.relative_to(root) for path in paths]
    return [str(folder) if folder != Path() else None for folder in folders]


def by_likeness(names: Sequence[str], thumbs: Sequence[Floats], near: Nearness = SAME_PART) -> list[str | None]:
    """Pictures that look like the same part again, directly or through others, named after the first of them.

    Args:
        names: of the pictures.
        thumbs: of `twins.thumbnail`, in the same order.
        near: how alike pictures of the same part are.

    Returns:
        One group a picture; None where no other looks like it.
    """
    leads = list(range(len(names)))

    def lead(place: int) -> int:
        while leads[place] != place:
            leads[place] = leads[leads[place]]
            place = leads[place]
        return place

    for twin in find_twins(thumbs, near).pairs:
        one, other = sorted((lead(twin.earlier), lead(twin.later)))
        leads[other] = one
    first = [lead(place) for place in range(len(names))]
    return [names[place] if first.count(place) > 1 else None for place in first]
