"""Joins what the station watches itself by, drift and the challenge, with the station, as its configuration says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edge.challenge import Challenge
from edge.clock import Clock
from edge.drift import DriftWatch
from edge.recipes import Loaded
from edge.sections import StationConfig
from edge.station import Condition, Station
from edge.verdict import Verdict


class Watchers:
    """What of the two there is, in one.

    Attributes:
        reset_drift: for a person who looked and for a reason, from any thread; None where drift is not watched.
        challenge: has the labelled parts judged for a person, from any thread; None where there are none.
    """

    def __init__(
        self,
        config: StationConfig,
        station: Station,
        clock: Clock,
        *,
        later: Callable[[str, Mapping[str, object]], None],
        say: Callable[[str], None],
        complain: Callable[[str], None],
    ) -> None:
        """Make the station's readiness depend on them.

        Args:
            config: its sections `drift` and `challenge`.
            station: gets a condition of each.
            clock: monotonic time.
            later: journals an event at any time.
            say, complain: told what a person should read.
        """
        self.reset_drift: Callable[[str, str], None] | None = None
        self.challenge: Callable[[str], None] | None = None
        self._drift: DriftWatch | None = None
        self._challenge: Challenge | None = None
        if config.drift is not None:
            drift = self._drift = DriftWatch(config.drift, note=station.note, complain=complain)
            station.require(Condition("drift", drift.fault))
            self.reset_drift = lambda who, why: station.post(lambda: drift.reset(who, why))
        if config.challenge is not None:
            challenge = self._challenge = Challenge(config.challenge, clock, note=later, say=say, complain=complain)
            station.require(Condition("challenge", challenge.fault))
            self.challenge = lambda who: station.post(lambda: challenge.begin(who))
            self._at_start = config.challenge.at_start

    def start(self, loaded: Loaded, who: str, beat: Callable[[], None]) -> None:
        """Watch what is in force from the start on; the challenge's parts are judged before this returns."""
        if self._drift is not None:
            self._drift.watch(loaded.reference, loaded.calibration)
        if self._challenge is not None:
            self._challenge.put_in_force(loaded.challenge, who=who, at_once=self._at_start)
            self._challenge.settle(beat)

    def change(self, loaded: Loaded) -> None:
        """Another recipe, bundle or calibration is in force: it was never challenged, so that nothing passes before."""
        if self._drift is not None:
            self._drift.watch(loaded.reference, loaded.calibration)
        if self._challenge is not None:
            self._challenge.put_in_force(loaded.challenge, who=f"the change to {loaded.config.recipe}")

    def tell(self, verdict: Verdict) -> None:
        """A part was judged."""
        if self._drift is not None:
            self._drift.observe(verdict)
