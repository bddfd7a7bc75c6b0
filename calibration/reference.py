"""What the station looked like when it was calibrated: the file that drift is measured against."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError

from calibration import CalibrationError
from calibration.appearance import measure
from calibration.drift import ALARM_PARTS, CHANNELS, FEWEST, WARNING_PARTS, Monitor
from calibration.pictures import Fresh
from calibration.record import Calibration
from engines import EngineError
from engines.atomic import write_file
from engines.bundle import Record
from engines.images import read_image
from engines.inspector import Inspector
from engines.ldknn import Progress

SCHEMA: Final = 1
_AGAIN = "run `calibration reference` again"


class Reference(Record):
    """Scores and statistics of the calibration's good parts that pass, one row a part, in the order of `channels`.

    Bound to one calibration by its digest: another threshold lets other parts pass.
    """

    schema_version: Literal[1] = SCHEMA
    station: str
    camera: str
    calibration: str
    channels: tuple[str, ...]
    parts: tuple[tuple[float, ...], ...] = Field(min_length=FEWEST)
    when: str
    who: str

    def monitor(
        self, calibration: Calibration, *, warning_parts: float = WARNING_PARTS, alarm_parts: float = ALARM_PARTS
    ) -> Monitor:
        """A monitor that begins with these parts. Raises CalibrationError as `Monitor`, or where the calibration is another."""
        if self.calibration != calibration.digest:
            raise CalibrationError(
                f"drift reference is for calibration {self.calibration[:12]}, loaded is {calibration.digest[:12]}; {_AGAIN}"
            )
        expected = tuple(channel.name for channel in CHANNELS)
        if self.channels != expected or any(len(part) != len(expected) for part in self.parts):
            raise CalibrationError(
                f"drift reference of {', '.join(self.channels)}, expected {', '.join(expected)} of each part; {_AGAIN}"
            )
        return Monitor(np.array(self.parts), warning_parts=warning_parts, alarm_parts=alarm_parts)


def reference_path(record: Path) -> Path:
    """Where the reference of a record lies unless somebody says otherwise: `line-1.drift.json` beside `line-1.json`."""
    return record.with_name(f"{record.stem}.drift.json")


def take_reference(
    inspector: Inspector, calibration: Calibration, paths: Sequence[Path], *, who: str, progress: Progress | None = None
) -> Reference:
    """Score and measure the good parts that this station was calibrated on.

    Args:
        inspector: as the station runs it.
        calibration: in force.
        paths: image files of good parts that the bundle was not made with.
        who: the person or account.
        progress: called with (images done, images in all).

    Raises:
        CalibrationError: as `make_reference`, the same picture twice, one that the bundle has learnt, or one that cannot be
            read or scored.
    """
    fresh = Fresh(inspector.bundle, "so what it looks like says nothing; give those of the calibration")
    parts: list[tuple[str, tuple[float, ...]]] = []
    for number, path in enumerate(paths, 1):
        try:
            image = read_image(path)
            fresh.take(path, image)
            parts.append((str(path), (inspector.score(image).value, *measure(inspector.preprocessor, image).tolist())))
        except EngineError as error:
            raise CalibrationError(f"{path}: {error}") from None
        if progress is not None:
            progress(number, len(paths))
    return make_reference(calibration, parts, who=who)


def make_reference(calibration: Calibration, parts: Sequence[tuple[str, tuple[float, ...]]], *, who: str) -> Reference:
    """The reference of parts that were scored and measured.

    The part whose score is the threshold is left out: those below it are like the parts that will pass, and it is the highest
    of them by choice.

    Args:
        calibration: in force.
        parts: of each its name, and its score and statistics in the order of `drift.CHANNELS`; each part once.
        who: the person or account.

    Raises:
        CalibrationError: too few parts that pass, or a number that is not finite.
    """
    for name, values in parts:
        if not np.isfinite(values).all():
            broken = next(at for at, value in enumerate(values) if not np.isfinite(value))
            raise CalibrationError(
                f"{name}: {CHANNELS[broken].name} is {values[broken]}, expected a finite number;"
                " a picture without light or structure cannot be compared with, remove it"
            )
    passing = tuple(values for _, values in parts if values[0] < calibration.threshold)
    if len(passing) < FEWEST:
        raise CalibrationError(
            f"{len(passing)} of {len(parts)} good parts are below the threshold, expected {FEWEST} or more; add pictures"
        )
    return Reference(
        station=calibration.station,
        camera=calibration.camera,
        calibration=calibration.digest,
        channels=tuple(channel.name for channel in CHANNELS),
        parts=passing,
        when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        who=who,
    )


def save_reference(path: Path | str, reference: Reference) -> None:
    """Write it atomically, with its own SHA-256. Raises EngineError when it cannot be written."""
    fields = reference.model_dump(mode="json")
    write_file(path, (json.dumps({**fields, "sha256": _sha256(fields)}) + "\n").encode())


def load_reference(path: Path | str) -> Reference:
    """Read it. Raises CalibrationError: missing, unreadable, of another version, or changed since it was written."""
    path = Path(path)
    try:
        document = json.loads(path.read_bytes())
        version, written = document["schema_version"], document.pop("sha256")
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror or error}); {_AGAIN}") from None
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise CalibrationError(f"{path}: not a drift reference; {_AGAIN}") from None
    if version != SCHEMA:
        raise CalibrationError(
            f"{path}: drift reference of schema {version}, expected {SCHEMA}; update the program, or {_AGAIN}"
        )
    try:
        reference = Reference.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CalibrationError(f"{path}: {where}: {first['msg']}; {_AGAIN}") from None
    if written != _sha256(document):
        raise CalibrationError(f"{path}: changed since it was written, its SHA-256 does not match; {_AGAIN}")
    return reference


def _sha256(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
