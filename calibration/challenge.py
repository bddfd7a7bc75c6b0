"""Parts whose truth is known, shown to the station at the start of a shift: one wrong decision, and it may not run."""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from calibration import CalibrationError
from calibration.record import Calibration, show_threshold
from engines import InspectionError
from engines.bundle import Record
from engines.images import Image, list_images, pixel_digest, read_image
from engines.inspector import Inspector
from engines.ldknn import Progress

LABELS: Final = "challenge.csv"
_GOOD, _BAD = frozenset({"ok", "good"}), frozenset({"ng", "bad"})
_NAMED: Final = 5  # wrong parts of one line
Decision = Literal["PASS", "REJECT", "FAULT"]


@dataclass(frozen=True)
class ChallengePart:
    """A part with its truth. `read` gives its picture: from a file, or from the camera in front of which the part lies."""

    name: str
    good: bool
    read: Callable[[], Image]


class Shown(Record):
    """What the station said to one part. `score` is None and `why` not empty where there was none to compare."""

    name: str
    good: bool
    decision: Decision
    score: float | None
    why: str = ""

    @property
    def right(self) -> bool:
        """A good part passed, or a bad one was rejected; a FAULT is never right."""
        return self.decision == ("PASS" if self.good else "REJECT")


class Result(Record):
    """One run of a challenge.

    Attributes:
        challenge: SHA-256 (hex) over the names, truths and pixels that were shown.
        bundle_digest, backend, precision, engine_digest, threshold: what was challenged.
        threshold_method: how the threshold came about, `manual` where a person set it.
        parts: in the order shown.
    """

    challenge: str
    bundle_digest: str
    backend: str
    precision: str
    engine_digest: str
    threshold: float
    threshold_method: str
    when: str
    who: str
    parts: tuple[Shown, ...]

    @property
    def wrong(self) -> tuple[Shown, ...]:
        """The parts that were decided wrongly."""
        return tuple(part for part in self.parts if not part.right)

    @property
    def shown(self) -> str:
        """The threshold for a person, marked where one set it."""
        return show_threshold(self.threshold, self.threshold_method)

    @property
    def passed(self) -> bool:
        """Every decision was right."""
        return not self.wrong

    def __str__(self) -> str:
        good = [part for part in self.parts if part.good]
        bad = [part for part in self.parts if not part.good]
        faults = sum(part.decision == "FAULT" for part in self.parts)
        return (
            f"{sum(part.right for part in good)} of {len(good)} good parts passed,"
            f" {sum(part.right for part in bad)} of {len(bad)} bad ones were rejected, {faults} faults"
        )


def find_challenge(folder: Path | str) -> tuple[ChallengePart, ...]:
    """The parts of a folder: images in subfolders OK and NG (or good and bad), or named in its challenge.csv.

    The file has the columns `image`, a path within the folder, and `label`, OK or NG.

    Raises:
        CalibrationError: no such folder, neither of the two layouts, a label that is none, an image twice or outside the
            folder, or no good or no bad part: a challenge of one sort cannot tell a station that always says the same.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CalibrationError(f"{folder}: no such folder; expected one with the challenge's pictures in OK and NG")
    labelled = _from_csv(folder) if (folder / LABELS).is_file() else _from_subfolders(folder)
    parts = tuple(ChallengePart(name, good, partial(read_image, folder / name)) for name, good in labelled)
    check_challenge(parts, str(folder))
    return parts


def check_challenge(parts: Sequence[ChallengePart], where: str) -> None:
    """Raises CalibrationError where there is not a good part and a bad one, or a name is there twice."""
    good = sum(part.good for part in parts)
    if good == 0 or good == len(parts):
        raise CalibrationError(
            f"{where}: {good} good and {len(parts) - good} bad parts, expected one or more of each; put pictures of good parts"
            f" in OK and of bad ones in NG, or name them in {LABELS}"
        )
    names = [part.name for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CalibrationError(f"{where}: {twice} is there twice, expected each part once; remove one")


def run_challenge(
    inspector: Inspector,
    calibration: Calibration,
    parts: Sequence[ChallengePart],
    *,
    who: str,
    progress: Progress | None = None,
) -> Result:
    """Judge every part as the station would. Whatever breaks on the way is a FAULT of that part, and fails the challenge.

    Args:
        inspector: as the station runs it.
        calibration: its threshold decides.
        parts: of `find_challenge`, or live ones.
        who: the person or account.
        progress: called with (parts done, parts in all).

    Raises:
        CalibrationError: as `check_challenge`; a good part that the bundle was made with, which it would pass whatever the
            station sees.
    """
    check_challenge(parts, "challenge")
    learnt_from, digest, shown = inspector.bundle.learnt_from(), hashlib.sha256(), []
    for number, part in enumerate(parts, 1):
        try:
            image = part.read()
            pixels = pixel_digest(image)
            value = inspector.score(image).value if pixels not in learnt_from else None
        except InspectionError as error:
            pixels, result = "", Shown(name=part.name, good=part.good, decision="FAULT", score=None, why=str(error))
        else:
            if value is None:
                raise CalibrationError(f"{part.name}: the bundle was made with this picture; challenge it with another part")
            result = _judged(part, value, calibration.threshold)
        digest.update(f"{part.name}\0{part.good}\0{pixels}\n".encode())
        shown.append(result)
        if progress is not None:
            progress(number, len(parts))
    extractor = inspector.extractor
    return Result(
        challenge=digest.hexdigest(),
        bundle_digest=inspector.bundle.digest,
        backend=extractor.backend,
        precision=extractor.precision,
        engine_digest=extractor.engine_digest,
        threshold=calibration.threshold,
        threshold_method=calibration.method,
        when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        who=who,
        parts=tuple(shown),
    )


def wrong_parts(result: Result) -> str:
    """The parts that were judged wrongly, in one line; "" where there are none."""
    if result.passed:
        return ""
    named = [
        f"{part.name} is {'OK' if part.good else 'NG'} and was a {part.decision}"
        f" ({part.why or f'score {part.score:.6g}, threshold {result.shown}'})"
        for part in result.wrong[:_NAMED]
    ]
    more = f", and {len(result.wrong) - _NAMED} more" if len(result.wrong) > _NAMED else ""
    return f"{len(result.wrong)} of {len(result.parts)} labelled parts judged wrongly: {'; '.join(named)}{more}"


def _judged(part: ChallengePart, score: float, threshold: float) -> Shown:
    if not math.isfinite(score):
        why = f"score is {score}, not a finite number"
        return Shown(name=part.name, good=part.good, decision="FAULT", score=None, why=why)
    return Shown(name=part.name, good=part.good, decision="REJECT" if score > threshold else "PASS", score=score)


def _from_subfolders(folder: Path) -> list[tuple[str, bool]]:
    found = []
    for child in sorted(folder.iterdir()):
        if child.is_dir() and child.name.lower() in _GOOD | _BAD:
            good = child.name.lower() in _GOOD
            found += [(path.relative_to(folder).as_posix(), good) for path in list_images(child, recursive=True)]
    return found


def _from_csv(folder: Path) -> list[tuple[str, bool]]:
    path = folder / LABELS
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
        names = tuple(rows.fieldnames or ())
        content = list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CalibrationError(f"{path}: cannot be read ({reason}); expected CSV with the columns image, label") from None
    if not {"image", "label"} <= set(names):
        raise CalibrationError(f"{path}: columns {', '.join(names) or 'none'}, expected image and label")
    found = []
    for line, row in enumerate(content, 2):
        name, label = (row["image"] or "").strip(), (row["label"] or "").strip().lower()
        if label not in _GOOD | _BAD:
            raise CalibrationError(f"{path}, line {line}: label '{label}', expected OK or NG")
        if not name or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise CalibrationError(f"{path}, line {line}: image '{name}', expected a path within {folder}")
        found.append((Path(name).as_posix(), label in _GOOD))
    return found
