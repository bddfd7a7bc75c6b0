"""A configuration that is read again while the station runs: what of it may change, and why the rest may not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibration.record import Calibration, load_calibration, mismatches
from edge import StationError
from edge.check import check_evidence, check_file
from edge.config import ConfigError, load_config
from edge.sections import StationConfig

CHANGEABLE = ("calibration", "deadline_ms", "evidence", "journal_heads")


@dataclass(frozen=True)
class Reload:
    """A configuration in order, of which only what may change is another one.

    Attributes:
        config: the new one.
        calibration: what its key `calibration` names, read.
        changed: keys that changed; `calibration` also where the file has another record in it.
    """

    config: StationConfig
    calibration: Calibration
    changed: tuple[str, ...]


def read_reload(path: Path, started: StationConfig, running: StationConfig, calibration: Calibration) -> Reload:
    """Read a configuration again and check all of it.

    Args:
        path: of the file.
        started: what the station was started with, and the rejector still has.
        running: what it runs with now.
        calibration: what it judges with now.

    Raises:
        InspectionError: anything is wrong with it, or something else changed than may; all in one line.
    """
    try:
        config = load_config(path)
    except ConfigError as error:
        raise StationError("; ".join(error.faults)) from None
    fields = StationConfig.model_fields
    differ = [name for name in fields if getattr(config, name) != getattr(running, name)]
    fixed = [name for name in differ if name not in CHANGEABLE]
    if fixed:
        raise StationError(
            f"{path}: '{', '.join(fixed)}' cannot change while the station runs, only {', '.join(CHANGEABLE)};"
            " start the station again"
        )
    if config.deadline_ms > started.deadline_ms:
        raise StationError(
            f"{path}: deadline_ms is {config.deadline_ms:g}, expected at most {started.deadline_ms:g}, which the rejector was"
            " started with; start the station again"
        )
    fresh = load_calibration(config.calibration)
    faults = _binding_faults(fresh, calibration)
    if config.evidence is not None:
        faults += check_evidence(config.evidence).faults
    if config.journal_heads is not None:
        faults += check_file("file of heads", config.journal_heads, 0).faults
    if faults:
        raise StationError("; ".join(faults))
    changed = [name for name in CHANGEABLE if name in differ or (name == "calibration" and fresh != calibration)]
    return Reload(config, fresh, tuple(changed))


def _binding_faults(fresh: Calibration, running: Calibration) -> list[str]:
    faults = [
        f"calibration is for {name} '{getattr(fresh, name)}', the station runs '{getattr(running, name)}'; calibrate this one"
        for name in ("station", "camera", "recipe")
        if getattr(fresh, name) != getattr(running, name)
    ]
    return faults + mismatches(
        fresh,
        bundle_digest=running.bundle_digest,
        backend=running.backend,
        precision=running.precision,
        engine_digest=running.engine_digest,
    )
