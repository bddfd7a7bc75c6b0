"""Recipes that are loaded: each verified before it may judge, kept open as long as there is room, closed when there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from calibration.challenge import Result, find_challenge, run_challenge
from calibration.record import Calibration, load_calibration
from calibration.reference import Reference, load_reference
from edge import StationError
from edge.check import binding_faults, self_test
from edge.judge import Judge
from edge.sections import StationConfig
from edge.worker import InspectorThread
from engines import InspectionError
from engines.bundle import Bundle, bundle_digest, load_bundle
from engines.inspector import Inspector

_OPENED = {
    "station",
    "camera",
    "recipe",
    "bundle",
    "calibration",
    "backend",
    "precision",
    "threads",
    "search",
    "drift",
    "challenge",
}
_FREE_SHARE = 0.25  # of the memory: pictures, the journal's cache and the next bundle that is loaded beside need some


class SelfTestError(StationError):
    """A bundle whose golden images do not score on this machine as it says."""


@dataclass(frozen=True)
class Loaded:
    """A recipe whose bundle, calibration and self-test are in order, and whose inspector is open.

    Attributes:
        config: the station as it is set up for it.
        bundle_digest: of the bundle that the inspector holds.
        spread: standard deviation of good parts' scores.
        judge: its scorer and calibration.
        reference: what drift is measured against; None where nobody watches it.
        challenge: judges its labelled parts for a person; None where there are none. For any thread but the deciding one.
    """

    config: StationConfig
    bundle_digest: str
    spread: float
    judge: Judge
    reference: Reference | None = None
    challenge: Callable[[str], Result] | None = field(default=None, compare=False)

    @property
    def calibration(self) -> Calibration:
        """The record that it judges by."""
        return self.judge.calibration

    def stands(self) -> bool:
        """Whether its files still are those that were loaded."""
        try:
            digest = bundle_digest(self.config.bundle)
            same = digest == self.bundle_digest and load_calibration(self.config.calibration) == self.calibration
            return same and _reference(self.config) == self.reference
        except InspectionError:
            return False


def open_recipe(config: StationConfig, beat: Callable[[], None] = lambda: None) -> Loaded:
    """Load a recipe and verify it: every file of the bundle, that the calibration is for it, the golden images.

    Args:
        config: the station as it is set up for the recipe.
        beat: called while somebody waits for a score.

    Raises:
        SelfTestError: this machine does not give the scores that the bundle says.
        InspectionError: anything else that keeps it from judging.
    """
    calibration = load_calibration(config.calibration)
    reference = _reference(config)
    if reference is not None:
        reference.monitor(calibration)  # which refuses a reference of another calibration
    bundle = load_bundle(config.bundle)
    scorer = InspectorThread(lambda: _open_trusted(bundle, config, calibration), beat, look=reference is not None)
    judge = Judge(config.recipe, scorer, calibration)
    return Loaded(
        config, bundle.digest, bundle.manifest.golden.spread, judge, reference, _challenge(config, scorer, calibration)
    )


def _reference(config: StationConfig) -> Reference | None:
    return None if config.drift is None else load_reference(config.drift_reference)


def _challenge(config: StationConfig, scorer: InspectorThread, calibration: Calibration) -> Callable[[str], Result] | None:
    if config.challenge is None or config.challenge.path is None:
        return None
    path = config.challenge.path

    def judge_all(who: str) -> Result:
        parts = find_challenge(path)
        return scorer.ask(lambda inspector: run_challenge(inspector, calibration, parts, who=who))

    return judge_all


def _open_trusted(bundle: Bundle, config: StationConfig, calibration: Calibration) -> Inspector:
    inspector = Inspector(bundle, config.backend, precision=config.precision, threads=config.threads, search=config.search)
    try:
        unfit = binding_faults(inspector, calibration, config.station, config.camera)
        if unfit:
            raise StationError(f"{config.calibration}: {'; '.join(unfit)}")
        untrue = self_test(inspector).faults
        if untrue:
            raise SelfTestError("; ".join(untrue))
    except BaseException:
        inspector.close()
        raise
    return inspector


class Shelf:
    """The recipes that are open. Used by one thread at a time, never the deciding one: opening one takes seconds."""

    def __init__(
        self, open_one: Callable[[StationConfig], Loaded], keep: int | None, is_room: Callable[[], bool] | None = None
    ) -> None:
        """Start empty.

        Args:
            open_one: loads and verifies a recipe.
            keep: how many stay open; None for as many as there is room for.
            is_room: whether there is room for another one; asks the machine's memory unless given.
        """
        self._open_one = open_one
        self._keep = keep
        self._is_room = memory_is_free if is_room is None else is_room
        self._loaded: list[Loaded] = []  # the one used last is at the end

    @property
    def loaded(self) -> tuple[Loaded, ...]:
        """Those that are open, the one used last at the end."""
        return tuple(self._loaded)

    def take(self, config: StationConfig) -> Loaded:
        """The recipe, opened unless it is open already and its files are still the same. Raises as `open_recipe`."""
        found = next((one for one in reversed(self._loaded) if _opens(one.config) == _opens(config) and one.stands()), None)
        if found is None:
            found = self._open_one(config)
        else:
            self._loaded.remove(found)
            found = dataclasses.replace(found, config=config)
        self._loaded.append(found)
        return found

    def fill(self, configs: Iterable[StationConfig], complain: Callable[[StationConfig, InspectionError], None]) -> None:
        """Open others ahead, as far as there is room, below the ones that are used already."""
        for config in configs:
            if len(self._loaded) >= self._keep if self._keep is not None else not self._is_room():
                return
            try:
                self._loaded.insert(0, self._open_one(config))
            except InspectionError as error:
                complain(config, error)

    def trim(self, in_force: Loaded) -> None:
        """Close what nobody can change to any more, and what is too many, the one not used for longest first.

        The one in force stays.
        """
        for one in [one for one in self._loaded if one.judge is not in_force.judge and not one.stands()]:
            self.drop(one)
        for one in [one for one in self._loaded if one.judge is not in_force.judge]:
            if len(self._loaded) <= self._keep if self._keep is not None else self._is_room():
                return
            self.drop(one)

    def drop(self, one: Loaded) -> None:
        """Close one."""
        self._loaded.remove(one)
        one.judge.scorer.close()

    def close(self) -> None:
        """Close all; may be called twice."""
        while self._loaded:
            self._loaded.pop().judge.scorer.close()


def _opens(config: StationConfig) -> dict[str, object]:
    """What of a configuration an open inspector depends on; the others, such as its timing, may change below it."""
    return config.model_dump(include=_OPENED)


def memory_is_free(meminfo: Path = Path("/proc/meminfo")) -> bool:
    """Whether a quarter of the memory can be had; a GPU without memory of its own takes from the same."""
    lines = meminfo.read_text().splitlines()
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kilobytes["MemAvailable"] >= _FREE_SHARE * kilobytes["MemTotal"]
