"""Watches what passes, and rejects in a row, and keeps the station from judging where it drifted, until a person looked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from calibration.drift import Alarm, Monitor
from calibration.record import Calibration
from calibration.reference import Reference
from edge import StationError
from edge.verdict import Outcome, Verdict
from edge.watch_sections import DriftSection

_QUIET_PARTS = 100  # without a warning, after which the next one is told again
_RESET = "POST /drift/reset once somebody looked, or calibrate again"


@dataclass
class _Watched:
    """One calibration's monitor, and what stands against it.

    Attributes:
        alarm: in words, "" for none; stays until it is reset.
        quiet: parts that passed since the last warning.
        rejects: parts rejected one after the other.
    """

    monitor: Monitor
    alarm: str = ""
    quiet: int = _QUIET_PARTS
    rejects: int = 0


class DriftWatch:
    """Takes in each verdict. For the deciding thread alone, but for `fault`, which only reads.

    What stands against a calibration stays while another recipe is judged, and is there again with it. A reference that was
    taken anew begins anew.
    """

    def __init__(
        self,
        settings: DriftSection,
        *,
        note: Callable[[str, Mapping[str, object]], None],
        complain: Callable[[str], None],
    ) -> None:
        """Watch nothing yet; `watch` says what against.

        Args:
            settings: of the configuration.
            note: journals an event.
            complain: told what a person should read.
        """
        self._settings = settings
        self._note = note
        self._complain = complain
        self._by_reference: dict[Reference, _Watched] = {}
        self._reference: Reference | None = None
        self._calibration: Calibration | None = None

    def watch(self, reference: Reference | None, calibration: Calibration) -> None:
        """From the next part on, watch against a reference. Raises CalibrationError: it is of another calibration."""
        if reference is None:
            raise StationError("drift is to be watched and there is no reference to watch against; run `edge calibrate`")
        if reference not in self._by_reference:
            self._by_reference[reference] = _Watched(self._begin(reference, calibration))
        self._reference, self._calibration = reference, calibration

    def observe(self, verdict: Verdict) -> None:
        """Take in one part's verdict. Whatever goes wrong here is an alarm: drift that is not watched may be there."""
        if self._reference is None:
            return
        watched = self._by_reference[self._reference]
        try:
            self._take(watched, verdict)
        except Exception as error:  # whatever watching raises
            said = f"drift cannot be watched ({type(error).__name__}: {error}); look at the station, and tell whoever keeps it"
            self._alarm(watched, said, verdict)

    def fault(self) -> str:
        """Why the station is not ready; "" where nothing drifted, or where `on_alarm` is to warn alone."""
        if self._reference is None or self._settings.on_alarm == "warn":
            return ""
        alarm = self._by_reference[self._reference].alarm
        return f"{alarm} ({_RESET})" if alarm else ""

    def reset(self, who: str, why: str) -> None:
        """A person looked: watch anew, against the reference alone. What was seen meanwhile is not known any more."""
        if self._reference is None or self._calibration is None:
            return
        watched = self._by_reference[self._reference]
        self._note("drift-reset", {"who": who, "why": why, "alarm": watched.alarm, **self._of()})
        self._by_reference[self._reference] = _Watched(self._begin(self._reference, self._calibration))

    def _begin(self, reference: Reference, calibration: Calibration) -> Monitor:
        limits = self._settings
        return reference.monitor(calibration, warning_parts=limits.warning_parts, alarm_parts=limits.alarm_parts)

    def _take(self, watched: _Watched, verdict: Verdict) -> None:
        if verdict.outcome is Outcome.REJECT:
            watched.rejects += 1
            if watched.rejects == self._settings.reject_run:
                said = (
                    f"{watched.rejects} parts were rejected one after the other: look at these parts, then at light, focus and"
                    " whether product and recipe go together"
                )
                self._alarm(watched, said, verdict)
            return
        if verdict.outcome is not Outcome.PASS:
            return
        watched.rejects = 0
        if watched.alarm:
            return
        if verdict.score is None or verdict.appearance is None:
            raise StationError(f"part {verdict.part} passed and nobody measured what it looks like")
        drifted = watched.monitor.observe(verdict.score, verdict.appearance)
        if drifted is None:
            watched.quiet += 1
        elif drifted.level == "alarm":
            self._alarm(watched, drifted.message, verdict, _details(drifted))
        else:
            if watched.quiet >= _QUIET_PARTS:
                self._note("drift-warning", {"message": drifted.message, **_details(drifted), **self._of(verdict)})
                self._complain(f"drift at part {verdict.part}: {drifted.message}")
            watched.quiet = 0

    def _alarm(
        self, watched: _Watched, message: str, verdict: Verdict, details: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        watched.alarm = message
        policy = self._settings.on_alarm
        self._note("drift-alarm", {"message": message, "on_alarm": policy, **details, **self._of(verdict)})
        goes_on = "; judged on all the same, as on_alarm says" if policy == "warn" else ""
        self._complain(f"drift alarm at part {verdict.part}: {message}{goes_on}")

    def _of(self, verdict: Verdict | None = None) -> dict[str, object]:
        of: dict[str, object] = {"calibration": None if self._calibration is None else self._calibration.digest}
        return of if verdict is None else {"part": verdict.part, **of}


def _details(drifted: Alarm) -> dict[str, object]:
    # a number may be NaN, which is no JSON
    got, expected = f"{drifted.got:.6g}", f"{drifted.expected:.6g}"
    return {"kinds": list(drifted.kinds), "channel": drifted.channel, "got": got, "expected": expected}
