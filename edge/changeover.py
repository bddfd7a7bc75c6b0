"""From one recipe to another between two parts: loaded and verified beside the one in force, then put in its place whole.

A change happens on the deciding thread, between two parts. The station is not ready meanwhile, so nothing passes; parts that
wait are judged by the old recipe before. What becomes active is written to a file in one step, so that a station that is
killed at any moment starts again with the old recipe or with the new one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edge import StationError
from edge.active import Active, Chosen, check_chosen, choose, config_of, config_to_start, configured, load_active, save_active
from edge.recipes import Loaded, SelfTestError, Shelf
from edge.sections import StationConfig
from engines import InspectionError

_TAKEN_S = 10.0  # a loop that turns takes a change at once
_DRAIN_S = 1.0


class Loop(Protocol):
    """What is needed of the station."""

    def post(self, work: Callable[[], None]) -> None:
        """Have something done between two parts, on the deciding thread."""

    def turn(self) -> None:
        """Look at all conditions, and tell the rejector."""

    def waiting(self) -> int:
        """Parts that triggered and are not judged yet."""


class Events(Protocol):
    """What is needed of the journal."""

    def event(self, name: str, details: Mapping[str, object]) -> None:
        """Keep one event. Raises StationError when it cannot be kept."""

    def later(self, name: str, details: Mapping[str, object]) -> None:
        """Keep one event together with the next row, from any thread."""


@dataclass(frozen=True)
class InForce:
    """What parts are judged by, who chose it, and the choice before it."""

    loaded: Loaded
    active: Active


@dataclass(frozen=True)
class Change:
    """What was done.

    Attributes:
        after: what is in force now.
        before: what was; None where nothing changed.
        not_ready_ms: for how long nothing could pass.
    """

    after: Chosen
    before: Chosen | None
    not_ready_ms: float

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.after} is in force already"
        return f"{self.after} in place of {self.before}, not ready for {self.not_ready_ms:.0f} ms"


@dataclass(eq=False)
class _Step:
    """One change on its way through the deciding thread."""

    after: InForce
    drained_ns: int
    still_wanted: Callable[[], bool]
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    took_ms: float = 0.0
    _owner: threading.Lock = field(default_factory=threading.Lock)

    def claim(self) -> bool:
        """True for the first who asks: either the deciding thread takes the step, or whoever waits for it gives it up."""
        return self._owner.acquire(blocking=False)


def start(recipes: Mapping[str, StationConfig], shelf: Shelf, path: Path | None) -> tuple[InForce, str]:
    """Load what is to be judged by at the start: what was chosen last, else what the configuration says.

    Where the bundle that was chosen fails its self-test and the choice before it was an older version of the same recipe, that
    one takes its place, and is chosen from then on. The text says so; it is "" otherwise.

    Args:
        recipes: the station as it is set up for each.
        shelf: of open recipes.
        path: of the file that remembers the choice; None where none is remembered.

    Raises:
        InspectionError: what was chosen cannot be known, is not there, is another one, or is not fit to judge.
    """
    active = None if path is None else load_active(path)
    config = config_to_start(active, recipes)
    if path is None or active is None:
        loaded = shelf.take(config)
        return InForce(loaded, Active(chosen=_choice(loaded, recipes, "the configuration", "nothing was chosen yet"))), ""
    try:
        loaded = shelf.take(config)
        check_chosen(active.chosen, loaded.bundle_digest, loaded.calibration)
        return InForce(loaded, active), ""
    except SelfTestError as error:
        before = active.before
        if before is None or before.recipe != active.chosen.recipe:
            raise
        try:
            loaded = _take_chosen(before, recipes, shelf)
        except InspectionError as other:
            raise StationError(f"{error}; nor can the version before it be used: {other}") from None
        after = Active(chosen=_choice(loaded, recipes, "the station", f"rolled back: {error}"), before=active.chosen)
        save_active(path, after)
        return InForce(loaded, after), f"rolled back from {active.chosen} to {after.chosen}: {error}"


def choose_for_next_start(recipes: Mapping[str, StationConfig], loaded: Loaded, path: Path, *, who: str, why: str) -> Active:
    """Make a recipe that was loaded and verified the one that the next start judges by. Raises EngineError."""
    try:
        active = load_active(path)
    except StationError:  # nobody knows what it was; now somebody has chosen
        active = None
    after = Active(chosen=_choice(loaded, recipes, who, why), before=None if active is None else active.chosen)
    save_active(path, after)
    return after


class Changeover:
    """Changes the recipe of a station that runs. `change` and `roll_back` are for any thread but the deciding one.

    Attributes:
        in_force: what the next part is judged by.
    """

    def __init__(
        self,
        *,
        recipes: Mapping[str, StationConfig],
        shelf: Shelf,
        in_force: InForce,
        path: Path,
        loop: Loop,
        journal: Events,
        switch: Callable[[Loaded], None],
        codes: deque[int] | None = None,
        code_at_start: bool = False,
    ) -> None:
        """Join the pieces.

        Args:
            recipes: the station as it is set up for each.
            shelf: of open recipes, the one in force among them.
            in_force: as `start` gave it.
            path: of the file that remembers the choice.
            loop, journal: of the station.
            switch: on the deciding thread, makes a recipe the one of the next part: timing, camera, judge. What it raises
                refuses the change, and it is called again for the old recipe.
            codes: that the recipe lines said and nobody took yet; None where there are no such lines.
            code_at_start: they say one all the time, so that there is a first one to wait for.
        """
        self._recipes = recipes
        self._shelf = shelf
        self.in_force = in_force
        self._path = path
        self._loop = loop
        self._journal = journal
        self._switch = switch
        self._codes = codes
        self._one = threading.Lock()
        self._changing = ""
        self._wanted: str | None = None  # by the lines
        self._unmet = "the recipe lines have not said a code yet" if code_at_start else ""

    def fault(self) -> str:
        """Why nothing may pass now: a change goes on, or the lines ask for another recipe; "" otherwise.

        A condition of the station, which the deciding loop looks at whenever it turns. What lines ask for is dealt with between
        two parts.
        """
        while self._codes:
            code = self._codes.popleft()
            self._loop.post(functools.partial(self._ask, code))
        return self._changing or self._unmet

    def change(self, name: str, *, who: str, why: str) -> Change:
        """Change to a recipe as its files are now, a new version of the one in force among them.

        Raises:
            StationError: refused; the recipe in force goes on.
        """
        self._refuse_over_lines(name)
        with self._one:
            return self._change(name, who, why)

    def reconfigure(self, recipes: Mapping[str, StationConfig], *, who: str, why: str) -> None:
        """Take recipes that were configured anew, and change to what the one in force became, where that is anything else.

        Raises:
            StationError: that is refused; then the recipes stay as they were.
        """
        with self._one:
            former, self._recipes = self._recipes, recipes
            try:
                self._change(self.in_force.loaded.config.recipe, who, why)
            except BaseException:
                self._recipes = former
                raise

    def roll_back(self, *, who: str, why: str) -> Change:
        """Change to the choice before this one, with the very files that it had. Raises as `change`."""
        with self._one:
            before = self.in_force.active.before
            if before is None:
                raise StationError("there is nothing to roll back to: no choice was made before this one; name a recipe")
            self._refuse_over_lines(before.recipe)
            return self._to(before.recipe, lambda: _take_chosen(before, self._recipes, self._shelf), who, f"rolled back: {why}")

    def _ask(self, code: int) -> None:
        known = {config.code: name for name, config in self._recipes.items()}
        name = known.get(code)
        self._wanted = name
        if name is None:
            codes = ", ".join(f"{known[number]} {number}" for number in sorted(known, key=str))
            self._unmet = f"code {code} of the recipe lines is no recipe's; expected one of: {codes}"
            self._journal.later("recipe-code", {"code": code, "fault": self._unmet})
        elif name == self.in_force.loaded.config.recipe:
            self._unmet = ""
        else:
            self._unmet = f"code {code} of the recipe lines asks for {name}"
            threading.Thread(target=self._obey, args=(name, code), name="recipe lines", daemon=True).start()

    def _obey(self, name: str, code: int) -> None:
        with self._one:
            if self._wanted != name:  # they say something else by now
                return
            try:
                self._change(name, "recipe lines", f"code {code}", lambda: self._wanted == name)
                unmet = ""
            except StationError as error:
                unmet = str(error)

            def settle() -> None:
                if self._wanted == name:
                    self._unmet = unmet

            self._loop.post(settle)

    def _refuse_over_lines(self, name: str) -> None:
        if self._codes is not None and name != self.in_force.loaded.config.recipe:
            raise StationError(f"the recipe lines choose the recipe, {self._wanted or 'none'} now; change to {name} there")

    def _change(self, name: str, who: str, why: str, still_wanted: Callable[[], bool] = lambda: True) -> Change:
        config = self._recipes.get(name)
        if config is None:
            raise self._refused(name, who, why, f"expected one of: {', '.join(self._recipes)}")
        return self._to(name, lambda: self._shelf.take(config), who, why, still_wanted)

    def _to(
        self, name: str, take: Callable[[], Loaded], who: str, why: str, still_wanted: Callable[[], bool] = lambda: True
    ) -> Change:
        old = self.in_force
        try:
            loaded = take()
        except Exception as error:  # whatever a backend raises, the recipe in force goes on and somebody hears of it
            words = str(error) if isinstance(error, InspectionError) else f"{type(error).__name__}: {error}"
            raise self._refused(name, who, why, words) from None
        chosen = _choice(loaded, self._recipes, who, why)
        if chosen.same_as(old.active.chosen) and loaded == old.loaded:
            return Change(old.active.chosen, None, 0.0)
        after = InForce(loaded, Active(chosen=chosen, before=old.active.chosen))
        step = _Step(after, time.monotonic_ns() + round(_DRAIN_S * 1e9), still_wanted)
        self._loop.post(lambda: self._take_step(step))
        if not step.done.wait(_TAKEN_S):
            if step.claim():
                raise self._refused(name, who, why, f"the station did not come to it within {_TAKEN_S:g} s")
            step.done.wait()
        if step.error is not None:
            raise self._refused(name, who, why, str(step.error) or "the station ends")
        self._shelf.trim(loaded)
        return Change(chosen, old.active.chosen, step.took_ms)

    def _take_step(self, step: _Step) -> None:
        """On the deciding thread, between two parts."""
        if self._loop.waiting() > 0 and time.monotonic_ns() < step.drained_ns:
            self._loop.post(lambda: self._take_step(step))  # these are still the old recipe's
            return
        if not step.claim():
            return
        if not step.still_wanted():
            step.error = StationError("something else is asked for by now")
            step.done.set()
            return
        old, after = self.in_force, step.after
        begun_ns = time.monotonic_ns()
        self._changing = f"the recipe changes from {old.active.chosen} to {after.active.chosen}"
        try:
            self._loop.turn()  # from here on nothing passes
            try:
                self._switch(after.loaded)
                self._journal.event("recipe", _details(old.active.chosen, after))
                save_active(self._path, after.active)
            except InspectionError as error:
                step.error = error
                self._switch(old.loaded)
                self._forget(after.active, old.active)
            else:
                self.in_force = after
            self._changing = ""
            self._loop.turn()  # and from here on it may
        except BaseException as error:  # the run ends with it
            if self.in_force is not after:
                step.error = error
            raise
        finally:
            self._changing = ""
            step.took_ms = (time.monotonic_ns() - begun_ns) / 1e6
            step.done.set()

    def _forget(self, after: Active, old: Active) -> None:
        """Put the old choice back where the disk took the new one and then did not confirm it."""
        with contextlib.suppress(InspectionError):
            if load_active(self._path) == after:
                save_active(self._path, old)

    def _refused(self, name: str, who: str, why: str, reason: str) -> StationError:
        self._journal.later("recipe-refused", {"recipe": name, "who": who, "why": why, "reason": reason})
        return StationError(f"recipe {name} is refused: {reason}; {self.in_force.active.chosen} stays in force")


def _take_chosen(chosen: Chosen, recipes: Mapping[str, StationConfig], shelf: Shelf) -> Loaded:
    loaded = shelf.take(config_of(chosen, recipes))
    check_chosen(chosen, loaded.bundle_digest, loaded.calibration)
    return loaded


def _choice(loaded: Loaded, recipes: Mapping[str, StationConfig], who: str, why: str) -> Chosen:
    named = configured(recipes[loaded.config.recipe])
    return choose(loaded.config, loaded.bundle_digest, loaded.calibration, named, who=who, why=why)


def _details(before: Chosen, after: InForce) -> dict[str, object]:
    """Both choices, and as at a start the whole record, which alone says whether a threshold was set by hand."""
    chosen, record = after.active.chosen.model_dump(mode="json"), after.loaded.calibration.model_dump()
    return {"before": before.model_dump(mode="json"), "after": chosen, "calibration": record}
