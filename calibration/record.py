"""The calibration record: a threshold and everything that it is valid for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from calibration import CalibrationError
from calibration.intervals import Estimate
from engines.atomic import write_file
from engines.bundle import Record

SCHEMA: Final = 2
MANUAL: Final = "manual"
_SINCE_2 = frozenset({"false_reject", "escape", "why", "entry"})


class Calibration(Record):
    """One station's threshold for one recipe.

    A score depends on the bundle, the backend, its precision and the compiled engine, so the record is bound to all of
    them. Records of schema 1, which had no history, stay valid and are never rewritten: everything that a station needs is
    in them, and their digests are in its journal.

    Attributes:
        n: good parts that it is from; None where it was set by hand and no scores are known.
        rate: false-reject rate that was asked for; None for methods that take none.
        method: one of `propose.METHODS`, or `manual`.
        false_reject, escape: rates to expect, with their intervals; None is not known.
        why: reason, which a threshold set by hand must have.
        entry: SHA-256 of this record's entry in its history; None where there is no history.
    """

    schema_version: Literal[1, 2] = SCHEMA
    station: str = Field(min_length=1)
    camera: str = Field(min_length=1)
    recipe: str
    threshold: float
    bundle_digest: str
    backend: str
    precision: str
    engine_digest: str
    n: int | None = Field(gt=0)
    rate: float | None = Field(gt=0, lt=1)
    method: str
    when: str
    who: str
    false_reject: Estimate | None = None
    escape: Estimate | None = None
    why: str = ""
    entry: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Calibration:
        if self.method == MANUAL and not self.why.strip():
            raise ValueError("a threshold that was set by hand has no reason")
        if self.schema_version == 1 and self.model_fields_set & _SINCE_2:
            raise ValueError("schema 1 with fields of schema 2")
        return self

    @property
    def manual(self) -> bool:
        """A person set the threshold, and no statistics."""
        return self.method == MANUAL

    @property
    def origin(self) -> str:
        """Where the threshold comes from, for a person; one that was set by hand says so in capitals."""
        if self.manual:
            return f"SET BY HAND by {self.who}, {self.when}: {self.why}"
        return f"{self.method} from {self.n} part{'' if self.n == 1 else 's'}, {self.when}"

    @property
    def shown(self) -> str:
        """The threshold for a person where there is no room for its origin; one that was set by hand is marked."""
        return show_threshold(self.threshold, self.method)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the record's fields: the one that its file ends with."""
        return sha256(self.fields())

    def fields(self) -> dict[str, Any]:
        """The record as it is written, in JSON's types."""
        return self.model_dump(mode="json", exclude=set(_SINCE_2) if self.schema_version == 1 else None)


def show_threshold(threshold: float, method: str) -> str:
    """A threshold for a person, marked where the method is that a person set it."""
    return f"{threshold:.6g}{' SET BY HAND' if method == MANUAL else ''}"


def save_calibration(path: Path | str, calibration: Calibration) -> None:
    """Write a record atomically, with its own SHA-256. Raises EngineError when it cannot be written."""
    write_file(path, (json.dumps({**calibration.fields(), "sha256": calibration.digest}, indent=1) + "\n").encode())


def load_calibration(path: Path | str) -> Calibration:
    """Read a record.

    Raises:
        CalibrationError: missing, unreadable, newer than this program, with a wrong or unknown field, or changed since it
            was written: one digit of a threshold decides what passes.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_bytes())
        version = document["schema_version"]
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror or error}); run `calibration fit` first") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CalibrationError(f"{path}: not a calibration record; run `calibration fit` again") from None
    if version not in (1, SCHEMA):
        raise CalibrationError(
            f"{path}: calibration schema {version}, expected {SCHEMA} or 1; update the program or calibrate again"
        )
    written = document.pop("sha256", None)
    try:
        calibration = Calibration.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CalibrationError(f"{path}: {where}: {first['msg']}; calibrate again") from None
    if written != sha256(document):
        raise CalibrationError(f"{path}: changed since it was written, its SHA-256 does not match; calibrate again")
    return calibration


def mismatches(calibration: Calibration, *, bundle_digest: str, backend: str, precision: str, engine_digest: str) -> list[str]:
    """Why a record does not hold for what is loaded: one line a difference, empty where it holds."""
    pairs = (
        ("bundle", calibration.bundle_digest, bundle_digest),
        ("backend", calibration.backend, backend),
        ("precision", calibration.precision, precision),
        ("engine", calibration.engine_digest, engine_digest),
    )
    return [
        f"calibration is for {name} {made[:12]}, loaded is {loaded[:12]}; calibrate this station again"
        for name, made, loaded in pairs
        if made != loaded
    ]


def sha256(fields: dict[str, Any]) -> str:
    """SHA-256 (hex) of fields as sorted JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
