"""Has the labelled parts judged by what is in force, and lets the station judge others only where all were judged rightly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from calibration.challenge import Result, wrong_parts
from edge.clock import SLICE_S, Clock
from edge.watch_sections import ChallengeSection

_HOUR_NS = 3600 * 10**9

Judge = Callable[[str], Result]


@dataclass
class _Run:
    """One run, in a thread of its own, which leaves a result or what it raised."""

    judge: Judge
    who: str
    result: Result | None = None
    error: BaseException | None = None

    def work(self) -> None:
        """Judge all parts."""
        try:
            self.result = self.judge(self.who)
        except BaseException as error:  # handed to the deciding thread
            self.error = error


class Challenge:
    """For the deciding thread alone. A run goes on beside it, and nothing passes meanwhile."""

    def __init__(
        self,
        settings: ChallengeSection,
        clock: Clock,
        *,
        note: Callable[[str, Mapping[str, object]], None],
        say: Callable[[str], None],
        complain: Callable[[str], None],
    ) -> None:
        """Challenge nothing yet; `put_in_force` says what.

        Args:
            settings: of the configuration.
            clock: monotonic time.
            note: journals an event, also while a part is judged.
            say, complain: told in one line what came of a run.
        """
        self._settings = settings
        self._clock = clock
        self._note = note
        self._say = say
        self._complain = complain
        self._judge: Judge | None = None
        self._run: _Run | None = None
        self._thread: threading.Thread | None = None
        self._fault = ""
        self._next_ns: int | None = None

    def put_in_force(self, judge: Judge | None, *, who: str, at_once: bool = True) -> None:
        """From now on challenge this, which nothing may pass before.

        Args:
            judge: judges all parts for a person, in a thread of its own.
            who: has it done.
            at_once: begin; otherwise it waits for its hour.
        """
        self._judge = judge
        if at_once:
            self.begin(who)
        else:
            self._plan()

    def begin(self, who: str) -> None:
        """Have the parts judged; one that goes on is let go on, and begun anew where it is of another judge."""
        self._fault = "the challenge's parts are being judged"
        if self._thread is not None:
            return
        if self._judge is None:
            self._fault = "no challenge for this recipe"
            return
        self._run = _Run(self._judge, who)
        self._thread = threading.Thread(target=self._run.work, name="challenge", daemon=True)
        self._thread.start()

    def fault(self) -> str:
        """Why the station is not ready, "" where the last run was right; begins a run that is due."""
        self._collect()
        if self._thread is None and self._next_ns is not None and self._clock.now_ns() >= self._next_ns:
            self.begin(f"every {self._settings.every_hours:g} h")
        return self._fault

    def settle(self, beat: Callable[[], None]) -> None:
        """Wait for the run that goes on."""
        while self._thread is not None:
            self._thread.join(SLICE_S)
            beat()
            self._collect()

    def _collect(self) -> None:
        run, thread = self._run, self._thread
        if run is None or thread is None or thread.is_alive():
            return
        self._run = self._thread = None
        if run.judge is not self._judge:  # another recipe is in force by now
            self.begin(run.who)
            return
        self._plan()
        if run.result is None:
            self._fault = (
                f"the challenge's parts cannot be judged: {' '.join(str(run.error).split()) or type(run.error).__name__}"
            )
            self._note("challenge", {"passed": False, "who": run.who, "reason": self._fault})
        else:
            self._fault = wrong_parts(run.result)
            self._note("challenge", _details(run.result))
        if self._fault:
            self._complain(f"challenge FAILED: {self._fault}")
        else:
            self._say(f"challenge passed: {run.result}, {run.who}")

    def _plan(self) -> None:
        hours = self._settings.every_hours
        self._next_ns = None if hours is None else self._clock.now_ns() + round(hours * _HOUR_NS)


def _details(result: Result) -> dict[str, object]:
    """What the journal keeps of a run: every part that was wrong, and of the others how many."""
    shown = result.model_dump(mode="json", exclude={"parts"})
    wrong = [part.model_dump(mode="json") for part in result.wrong]
    return {"passed": result.passed, "counts": str(result), "parts": len(result.parts), "wrong": wrong, **shown}
