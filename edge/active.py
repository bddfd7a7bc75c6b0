"""What a station judges by, kept over restarts: `<journal>-active.json`, which is either the old choice or the new one."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from calibration.record import Calibration
from edge import StationError
from edge.sections import StationConfig
from engines.atomic import write_file
from engines.bundle import Record

SCHEMA: Final = 1
_CHOOSE = "choose a recipe with `python -m edge recipe --config FILE NAME`"


class Chosen(Record):
    """One choice: the recipe, the very files that it was, and who chose it, why and when.

    Attributes:
        configured: the bundle and the calibration that the configuration named then; other ones than `bundle` and
            `calibration` after a rollback to an older version.
    """

    recipe: str = Field(min_length=1)
    bundle: Path
    bundle_digest: str
    calibration: Path
    calibration_digest: str
    configured: tuple[Path, Path]
    who: str
    why: str
    when: str

    def same_as(self, other: Chosen) -> bool:
        """The same recipe with the same files, whoever chose it."""
        mine, theirs = (
            (chosen.recipe, chosen.bundle_digest, chosen.calibration_digest, chosen.configured) for chosen in (self, other)
        )
        return mine == theirs

    def __str__(self) -> str:
        return f"{self.recipe} (bundle {self.bundle_digest[:12]}, calibration {self.calibration_digest[:12]})"


class Active(Record):
    """The choice that is in force, and the one before it, which a rollback returns to."""

    schema_version: Literal[1] = SCHEMA
    chosen: Chosen
    before: Chosen | None = None


def choose(
    config: StationConfig,
    bundle_digest: str,
    calibration: Calibration,
    named: tuple[Path, Path],
    *,
    who: str,
    why: str,
) -> Chosen:
    """The choice, now, of files as they were loaded; `named` are those that the configuration names."""
    bundle, record = configured(config)
    return Chosen(
        recipe=config.recipe,
        bundle=bundle,
        bundle_digest=bundle_digest,
        calibration=record,
        calibration_digest=calibration.digest,
        configured=named,
        who=who,
        why=why,
        when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def save_active(path: Path, active: Active) -> None:
    """Write it atomically, with its own SHA-256. Raises EngineError when it cannot be written: the old one still stands."""
    fields = active.model_dump(mode="json")
    write_file(path, (json.dumps({**fields, "sha256": _sha256(fields)}, indent=1) + "\n").encode())


def load_active(path: Path) -> Active | None:
    """Read it; None where no recipe was ever chosen, so that the configuration's holds.

    Raises:
        StationError: unreadable, damaged or newer: then nobody knows what was chosen, and nothing is judged.
    """
    try:
        document = json.loads(path.read_bytes())
        version, written = document["schema_version"], document.pop("sha256", None)
        if version != SCHEMA:
            raise StationError(f"{path}: schema {version}, expected {SCHEMA}; update the program, or {_CHOOSE}")
        active = Active.model_validate(document)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StationError(f"{path}: cannot be read ({error.strerror or error}); mend it, or {_CHOOSE}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError):
        raise StationError(f"{path}: damaged, so that nobody knows which recipe was chosen; {_CHOOSE}") from None
    if written != _sha256(document):
        raise StationError(f"{path}: changed since it was written, its SHA-256 does not match; {_CHOOSE}")
    return active


def config_of(chosen: Chosen, recipes: Mapping[str, StationConfig]) -> StationConfig:
    """The configuration to run a choice with its own files, which are an older version's after a rollback.

    Raises:
        StationError: the configuration has no such recipe any more.
    """
    config = recipes.get(chosen.recipe)
    if config is None:
        raise StationError(
            f"recipe {chosen.recipe} was chosen by {chosen.who}, {chosen.when}, and the configuration has"
            f" {', '.join(recipes)}; {_CHOOSE}"
        )
    return config.model_copy(update={"bundle": chosen.bundle, "calibration": chosen.calibration})


def config_to_start(active: Active | None, recipes: Mapping[str, StationConfig]) -> StationConfig:
    """The configuration to start with: what was chosen last, or, before anything ever was, what the configuration says.

    Raises:
        StationError: the configuration names other files than when the choice was made, so that nobody chose these.
    """
    if active is None:
        return next(iter(recipes.values()))
    chosen = active.chosen
    config = config_of(chosen, recipes)
    named = configured(recipes[chosen.recipe])
    if named != chosen.configured:
        raise StationError(
            f"recipe {chosen.recipe} names {named[0]} and {named[1]}, which were {chosen.configured[0]} and"
            f" {chosen.configured[1]} when {chosen.who} chose it, {chosen.when}; {_CHOOSE}"
        )
    return config


def check_chosen(chosen: Chosen, bundle_digest: str, calibration: Calibration) -> None:
    """Refuse files that are not the ones that were chosen. Raises StationError."""
    for path, was, got in (
        (chosen.bundle, chosen.bundle_digest, bundle_digest),
        (chosen.calibration, chosen.calibration_digest, calibration.digest),
    ):
        if was != got:
            raise StationError(
                f"{path}: another one ({got[:12]}) than {chosen.who} chose, {chosen.when} ({was[:12]}); put that one back, or"
                f" {_CHOOSE}"
            )


def configured(config: StationConfig) -> tuple[Path, Path]:
    """Where a configuration says that bundle and calibration are."""
    return config.bundle.absolute(), config.calibration.absolute()


def _sha256(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
