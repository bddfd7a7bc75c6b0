"""The change of the active recipe, as one of `benchmarks.writers`: to and fro between two recipes, with the station's journal.

The backend is left out, which would take most of the time and has no part in what is written.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stand_in import CALIBRATION
from calibration.record import load_calibration, save_calibration
from edge.active import Active, load_active
from edge.audit import audit
from edge.chain import EVENT, open_for_reading, walk
from edge.changeover import Changeover, start
from edge.clock import SystemClock
from edge.config import load_recipes
from edge.journal import SqliteJournal
from edge.judge import Judge
from edge.recipes import Loaded, Shelf
from edge.sections import StationConfig
from engines.atomic import write_file
from engines.bundle import MANIFEST, bundle_digest
from engines.images import Image
from engines.inspector import Score

_NAMES = ("gasket", "bolt")
_RUN = "run"


def write_recipe(folder: Path, rounds: Iterator[int]) -> None:
    """A change to the other recipe each round."""
    with _station(_recipes(folder), _RUN) as changeover:
        for number in rounds:
            changeover.change(_after(number), who="benchmark", why=_reason(number))


def check_recipe(folder: Path, begun: int, acked: int) -> str | None:
    """The choice that is kept is whole and one that the journal has, with that recipe's files; the station changes on from it.

    It is not older than the last change that was done, nor than the last but one that the journal has.
    """
    recipes = _recipes(folder)
    first = recipes[_NAMES[0]]
    kept = load_active(first.active)
    with _station(recipes, "restart") as changeover:  # which refuses files that are not those that were chosen
        changes = _changes(first.journal)
        number = _number_kept(kept, changes)
        if number is None:
            return f"{_words(kept)} is kept, which is none of the {len(changes)} changes in the journal"
        if not (max(acked, len(changes) - 1) <= number <= len(changes) <= begun):
            return f"change {number} is kept, of {len(changes)} in the journal, {begun} begun and {acked} done"
        judged_by, wanted = changeover.in_force.loaded, _open(recipes[_after(number)])
        if (judged_by.judge, judged_by.bundle_digest) != (wanted.judge, wanted.bundle_digest):
            return f"after change {number} {judged_by.config.recipe} is judged by other files than {_after(number)}'s"
        changeover.change(_after(number + 1), who="benchmark", why="after the restart")
    goes_on = load_active(first.active)
    if goes_on is None or goes_on.chosen.recipe != _after(number + 1):
        return f"after one more change {_words(goes_on)} is kept, expected {_after(number + 1)}"
    return audit(first.journal).broken


def _after(number: int) -> str:
    """The recipe that is in force after so many changes."""
    return _NAMES[number % 2]


def _reason(number: int) -> str:
    return f"change {number}"


def _words(kept: Active | None) -> str:
    return "no choice" if kept is None else f"{kept.chosen}, {kept.chosen.why}"


def _changes(journal: Path) -> list[dict[str, dict[str, object]]]:
    """What the journal has of the run's changes, in order."""
    with contextlib.closing(open_for_reading(journal)) as connection:
        events = [json.loads(row.body) for row in walk(connection) if row.kind == EVENT]
    return [event["details"] for event in events if (event["run"], event["event"]) == (_RUN, "recipe")]


def _number_kept(kept: Active | None, changes: list[dict[str, dict[str, object]]]) -> int | None:
    """How many changes there were up to the choice that is kept, 0 where none is; None where the journal has no such change."""
    if kept is None:
        return 0
    fields = kept.model_dump(mode="json")
    for number, change in enumerate(changes, start=1):
        if (change["before"], change["after"]) == (fields["before"], fields["chosen"]) and kept.chosen.why == _reason(number):
            return number
    return None


@contextlib.contextmanager
def _station(recipes: Mapping[str, StationConfig], run: str) -> Iterator[Changeover]:
    """Start as a station does, with what was chosen last."""
    first = recipes[_NAMES[0]]
    shelf = Shelf(_open, len(_NAMES))
    in_force, _ = start(recipes, shelf, first.active)
    journal = SqliteJournal(first.journal, run, SystemClock(), station=first.station)
    with contextlib.closing(journal):
        journal.event("started", {"station": first.station, "chosen": in_force.active.chosen.model_dump(mode="json")})
        yield Changeover(
            recipes=recipes,
            shelf=shelf,
            in_force=in_force,
            path=first.active,
            loop=_Loop(),
            journal=journal,
            switch=lambda loaded: None,
        )
        journal.event("stopped", {"reason": "end"})


def _recipes(folder: Path) -> Mapping[str, StationConfig]:
    """Two recipes, each of a manifest and a calibration record alone.

    No station writes these, they were there before it: so they are made for the writer, and for the start after it once more.
    """
    for name in _NAMES:
        write_file(folder / name / MANIFEST, name.encode())
        save_calibration(folder / f"{name}.json", CALIBRATION.model_copy(update={"recipe": name}))
    below = "".join(f"  {name}: {{bundle: {name}, calibration: {name}.json}}\n" for name in _NAMES)
    station = f"station: line-1\nsource: {{kind: replay, path: .}}\njournal: journal.db\nrecipe: {_NAMES[0]}\nrecipes:\n{below}"
    write_file(folder / "station.yaml", station.encode())
    return load_recipes(folder / "station.yaml")


def _open(config: StationConfig) -> Loaded:
    judge = Judge(config.recipe, _NoScorer(), load_calibration(config.calibration))
    return Loaded(config, bundle_digest(config.bundle), 1.0, judge)


@dataclass(frozen=True)
class _NoScorer:
    """Of a station that judges no part."""

    fault: str = ""

    def score(self, image: Image, timeout_s: float) -> Score:
        raise AssertionError("no part is judged here")

    def close(self) -> None:
        """Nothing to release."""


class _Loop:
    """Of a station that is always between two parts."""

    def post(self, work: Callable[[], None]) -> None:
        work()

    def turn(self) -> None:
        """No line to tell."""

    def waiting(self) -> int:
        return 0
