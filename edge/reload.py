"""A configuration that is read again while the station runs: what of it may change, and why the rest may not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from calibration.record import load_calibration
from edge import StationError
from edge.check import check_evidence, check_file
from edge.config import ConfigError, load_recipes, rejector_setup
from edge.recipes import Loaded
from edge.sections import StationConfig
from edge.travel import RETIMED
from engines.bundle import bundle_digest

CHANGEABLE = ("recipe", "code", "bundle", "calibration", "deadline_ms", "rejector", "evidence", "journal_heads")
"""Of `rejector` the timing of recipes alone."""


@dataclass(frozen=True)
class Reload:
    """A configuration in order, of which only what may change is another one.

    Attributes:
        recipes: the station as it is set up for each, the one in force first.
        changed: keys that changed for the one in force; `bundle` and `calibration` also where other files are there now.
    """

    recipes: Mapping[str, StationConfig]
    changed: tuple[str, ...]


def read_reload(path: Path, in_force: Loaded) -> Reload:
    """Read a configuration again and check all of it but the recipes' files, which are verified when they are changed to.

    Args:
        path: of the file.
        in_force: the recipe that parts are judged by now.

    Raises:
        InspectionError: anything is wrong with it, or something else changed than may; all in one line.
    """
    try:
        recipes = load_recipes(path)
    except ConfigError as error:
        raise StationError("; ".join(error.faults)) from None
    running = in_force.config
    config = recipes.get(running.recipe)
    if config is None:
        raise StationError(f"{path}: no recipe {running.recipe}, which is in force; change to another one first")
    differ = [name for name in StationConfig.model_fields if _other(getattr(config, name), getattr(running, name))]
    fixed = [name for name in differ if name not in CHANGEABLE]
    if "rejector" in differ and not _only_timing(config, running):
        fixed.append("rejector")
    if fixed:
        raise StationError(
            f"{path}: '{', '.join(fixed)}' cannot change while the station runs, only {', '.join(CHANGEABLE)};"
            " start the station again"
        )
    faults = [] if config.evidence is None else list(check_evidence(config.evidence).faults)
    if config.journal_heads is not None:
        faults += check_file("file of heads", config.journal_heads, 0).faults
    if faults:
        raise StationError("; ".join(faults))
    if load_calibration(config.calibration) != in_force.calibration:
        differ.append("calibration")
    if bundle_digest(config.bundle) != in_force.bundle_digest:
        differ.append("bundle")
    return Reload({running.recipe: config, **recipes}, tuple(name for name in CHANGEABLE if name in differ))


def _other(fresh: object, now: object) -> bool:
    """Whether two values differ. A path is the same however it is written: a choice that was rolled back to has it in full."""
    if isinstance(fresh, Path) and isinstance(now, Path):
        return fresh.absolute() != now.absolute()
    return fresh != now


def _only_timing(config: StationConfig, running: StationConfig) -> bool:
    """Whether the rejector's process can take it: the lines, and all else but a recipe's timing, are the same."""
    fresh, now = rejector_setup(config), rejector_setup(running)
    timing = {name: getattr(now.settings, name) for name in RETIMED}
    return dataclasses.replace(fresh, settings=dataclasses.replace(fresh.settings, **timing)) == now
