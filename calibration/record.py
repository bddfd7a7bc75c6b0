"""The calibration record: a threshold and everything that it is valid for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from calibration import CalibrationError
from engines.atomic import write_file
from engines.bundle import Record

SCHEMA: Final = 1


class Calibration(Record):
    """One station's threshold for one recipe.

    A score depends on the bundle, the backend, its precision and the compiled engine, so the record is bound to all of
    them. `rate` is the false-reject rate that the threshold bounds, `n` the number of good images that it is from.
    """

    schema_version: Literal[1] = SCHEMA
    station: str = Field(min_length=1)
    camera: str = Field(min_length=1)
    recipe: str
    threshold: float
    bundle_digest: str
    backend: str
    precision: str
    engine_digest: str
    n: int = Field(gt=0)
    rate: float = Field(gt=0, lt=1)
    method: str
    when: str
    who: str

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the record's fields: the one that its file ends with."""
        return _sha256(self.model_dump(mode="json"))


def save_calibration(path: Path | str, calibration: Calibration) -> None:
    """Write a record atomically, with its own SHA-256. Raises EngineError when it cannot be written."""
    fields = calibration.model_dump(mode="json")
    write_file(path, (json.dumps({**fields, "sha256": calibration.digest}, indent=1) + "\n").encode())


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
    if version != SCHEMA:
        raise CalibrationError(
            f"{path}: calibration schema {version}, expected {SCHEMA}; update the program or calibrate again"
        )
    written = document.pop("sha256", None)
    try:
        calibration = Calibration.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CalibrationError(f"{path}: {where}: {first['msg']}; calibrate again") from None
    if written != _sha256(document):
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


def _sha256(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
