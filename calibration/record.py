"""The calibration record: a threshold and everything that it is valid for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

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


def save_calibration(path: Path | str, calibration: Calibration) -> None:
    """Write a record atomically. Raises EngineError when it cannot be written."""
    write_file(path, (calibration.model_dump_json(indent=1) + "\n").encode())


def load_calibration(path: Path | str) -> Calibration:
    """Read a record.

    Raises:
        CalibrationError: missing, unreadable, newer than this program, or with a wrong or unknown field.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
        version = json.loads(text)["schema_version"]
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror or error}); run `calibration fit` first") from None
    except (ValueError, KeyError, TypeError):
        raise CalibrationError(f"{path}: not a calibration record; run `calibration fit` again") from None
    if version != SCHEMA:
        raise CalibrationError(
            f"{path}: calibration schema {version}, expected {SCHEMA}; update the program or calibrate again"
        )
    try:
        return Calibration.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CalibrationError(f"{path}: {where}: {first['msg']}; calibrate again") from None


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
