"""Good parts for a calibration: each scored as the station would, looked at, and kept as a picture that an auditor can see."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration import CalibrationError
from calibration.appearance import measure
from calibration.copies import Gallery
from calibration.groups import by_likeness
from calibration.looks import LIMIT, MIN_IMAGES, Looks, grey_of, look, oddities, robust_z
from calibration.scores import Scored
from calibration.twins import thumbnail
from engines import EngineError
from engines.atomic import make_folder, write_file
from engines.images import Image, encode_png, pixel_digest
from engines.inspector import Inspector
from engines.ldknn import Floats


@dataclass(frozen=True, eq=False)
class Good:
    """A part that a person shows for a good one.

    Attributes:
        number: from 1, of those that count.
        name: of its picture, below the record's folder.
        source: where it came from.
        pixels: digest of its picture.
        score: the bundle's.
        statistics: six numbers of `calibration.appearance`, for drift.
        remarks: what was odd about it when it came, in words.
    """

    number: int
    name: str
    source: str
    pixels: str
    score: float
    statistics: tuple[float, ...]
    looks: Looks
    thumb: Floats
    remarks: tuple[str, ...]

    def called(self, what: str) -> bool:
        """Whether a person means this one: by number, or by a file's name with or without its ending."""
        names = {self.name, self.source, Path(self.name).name, Path(self.source).name, Path(self.name).stem}
        return what == str(self.number) or what in names


@dataclass(frozen=True)
class Refused:
    """A picture that does not count, and why."""

    problem: str
    detail: str
    source: str


class Gathering:
    """Takes pictures one after the other. Nothing is left out for how it looks or scores: that is for a person to say.

    Attributes:
        parts: in the order in which they came.
        refused: how many pictures do not count, by problem.
    """

    def __init__(self, inspector: Inspector, folder: Path, root: Path) -> None:
        """Begin without parts.

        Args:
            inspector: as the station runs it.
            folder: new, for the pictures.
            root: the record's folder, which names begin from.
        """
        self.parts: list[Good] = []
        self.refused: Counter[str] = Counter()
        self._inspector = inspector
        self._folder = folder
        self._root = root
        self._learnt_from = inspector.bundle.learnt_from()
        self._seen: dict[str, int] = {}
        self._gallery = Gallery()

    def offer(self, image: Image, source: str) -> Good | Refused:
        """Take one picture, uint8 RGB (H, W, 3), or say why it does not count: it says nothing, or it has no score.

        Raises:
            EngineError: it cannot be written, such as to a full disk.
        """
        pixels = pixel_digest(image)
        if pixels in self._learnt_from:
            return self._refuse(
                "known to the bundle", "the bundle was made with this picture, so its score says nothing", source
            )
        if pixels in self._seen:
            return self._refuse("duplicate", f"same pixels as part {self._seen[pixels]}", source)
        try:
            score = self._inspector.score(image).value
            statistics = tuple(measure(self._inspector.preprocessor, image).tolist())
        except (EngineError, CalibrationError) as error:
            return self._refuse("no score", f"{error}; at the station it is a FAULT", source)
        if not math.isfinite(score):
            return self._refuse("no score", f"its score is {score}; at the station it is a FAULT", source)
        number = len(self.parts) + 1
        looks, thumb = look(image), thumbnail(grey_of(image))
        among = [part.looks for part in self.parts] if number > MIN_IMAGES else []
        remarks = [f"{odd.problem}: {odd.detail}" for odd in oddities(looks, among)]
        near = self._gallery.near_copy(thumb)
        if near is not None:
            remarks.append(f"near-duplicate: correlates {near[1]:.3f} with part {near[0]}, and counts as that part again")
        path = self._folder / f"part-{number:06d}.png"
        if number == 1:
            make_folder(self._folder)
        write_file(path, encode_png(image))
        self._seen[pixels] = number
        self._gallery.add(thumb, str(number))
        name = str(path.relative_to(self._root))
        part = Good(number, name, source, pixels, score, statistics, looks, thumb, tuple(remarks))
        self.parts.append(part)
        return part

    def missing(self, reason: str, source: str) -> Refused:
        """A part without a picture."""
        return self._refuse("no picture", reason, source)

    def _refuse(self, problem: str, detail: str, source: str) -> Refused:
        self.refused[problem] += 1
        return Refused(problem, detail, source)


def scored(parts: Sequence[Good]) -> list[Scored]:
    """Their scores, those that look like the same part again as one group."""
    groups = by_likeness([part.name for part in parts], [part.thumb for part in parts])
    return [
        Scored(name=part.name, score=part.score, pixels=part.pixels, group=group)
        for part, group in zip(parts, groups, strict=True)
    ]


def odd_ones(parts: Sequence[Good], spread: float) -> dict[int, list[str]]:
    """What is odd about each part among all of them, by number: size, focus, exposure, and a score far above the others'.

    Args:
        parts: that count.
        spread: standard deviation of good parts' scores at training: less than that is never far.
    """
    found: dict[int, list[str]] = {}
    for part in parts:
        said = [f"{odd.problem}: {odd.detail}" for odd in oddities(part.looks, [other.looks for other in parts])]
        if said:
            found[part.number] = said
    scores = np.array([part.score for part in parts])
    if len(scores) > 1:
        for part, far in zip(parts, robust_z(scores, spread * LIMIT).tolist(), strict=True):
            if far > LIMIT:
                outlying = f"score {part.score:.4g}, usual {np.median(scores):.4g}: is it really a good part?"
                found.setdefault(part.number, []).append(outlying)
    return dict(sorted(found.items()))


def statistics_of(parts: Sequence[Good], counted: Mapping[str, Scored]) -> list[tuple[str, tuple[float, ...]]]:
    """Name, and score and statistics for drift, of the first picture of each part. `counted` is `scored` by name."""
    rows, seen = [], set[str]()
    for part in parts:
        group = counted[part.name].group
        if group is not None and group in seen:
            continue
        if group is not None:
            seen.add(group)
        rows.append((part.name, (part.score, *part.statistics)))
    return rows
