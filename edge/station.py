"""The loop: each arrival gets exactly one verdict, and whatever goes wrong on the way is a FAULT, which rejects."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edge import StationError
from edge.camera import Camera
from edge.clock import Clock
from edge.evidence import Evidence
from edge.journal import Journal
from edge.rejector import Rejector
from edge.verdict import Arrival, Frame, Missing, Outcome, Verdict, compare
from edge.watchdog import Deadline
from edge.worker import Scorer

_RECENT = 10_000  # latencies kept for the percentiles, so that memory stays flat


@dataclass
class Statistics:
    """Running counts of one run.

    Attributes:
        outcomes: parts by outcome.
        by_folder: (folder of the source, outcome) counts, for replays of sorted folders.
        latencies_ms: of the latest parts.
    """

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    by_folder: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.outcomes[verdict.outcome] += 1
        folder = verdict.source.rpartition("/")[0] if "/" in verdict.source else "."
        self.by_folder[folder, verdict.outcome] += 1
        if len(self.latencies_ms) == _RECENT:
            del self.latencies_ms[: _RECENT // 2]
        self.latencies_ms.append(verdict.latency_ms)

    @property
    def parts(self) -> int:
        """All parts."""
        return sum(self.outcomes.values())

    def latency_ms(self, percent: float) -> float:
        """A percentile of the latest latencies; NaN before the first part."""
        return float(np.percentile(self.latencies_ms, percent)) if self.latencies_ms else math.nan


class Station:
    """Judges arrivals. Everything it touches is injected.

    Attributes:
        statistics: of all runs so far, and of the one that goes on.
    """

    def __init__(
        self,
        *,
        scorer: Scorer,
        threshold: float,
        rejector: Rejector,
        journal: Journal,
        clock: Clock,
        deadline_ms: float,
        evidence: Evidence | None = None,
    ) -> None:
        """Join the pieces.

        Args:
            scorer: gives a score within a time.
            threshold: from this station's calibration.
            rejector: acts on verdicts.
            journal: keeps them.
            clock: monotonic time.
            deadline_ms: from trigger to verdict.
            evidence: keeps pictures; offered each one after its part was acted on.

        Raises:
            StationError: a threshold or a deadline that is not a usable number: without these nothing is judged.
        """
        if not math.isfinite(threshold):
            raise StationError(f"threshold is {threshold}, expected a finite number; calibrate this station")
        if not (math.isfinite(deadline_ms) and deadline_ms > 0):
            raise StationError(f"deadline is {deadline_ms} ms, expected above 0")
        self._scorer = scorer
        self._threshold = threshold
        self._rejector = rejector
        self._journal = journal
        self._clock = clock
        self._deadline_ms = deadline_ms
        self._evidence = evidence
        self.statistics = Statistics()

    def run(self, camera: Camera, on_verdict: Callable[[Verdict], None]) -> Statistics:
        """Judge all arrivals of a camera.

        Args:
            camera: closed by the caller.
            on_verdict: called after each part was acted on; what it raises ends the run.

        Raises:
            StationError: the camera is lost, or the reject line cannot be driven.
        """
        for arrival in camera.frames():
            self._rejector.beat()
            verdict = self.judge(arrival)
            self.statistics.add(verdict)
            if self._evidence is not None and isinstance(arrival, Frame):
                self._evidence.offer(arrival.image, verdict)
            on_verdict(verdict)
        return self.statistics

    def judge(self, arrival: Arrival) -> Verdict:
        """Decide on one part, keep the verdict, act on it, and return it.

        The verdict is kept before it is acted on, so that no part passes unrecorded; where keeping it fails or makes
        the part late, it becomes a FAULT. So does a PASS that the reject line did not take, and the run ends there.

        Raises:
            StationError: the reject line cannot be driven.
        """
        deadline = Deadline(arrival.trigger_ns, self._deadline_ms)
        verdict = self._decide(arrival, deadline)
        try:
            self._journal.verdict(verdict)
        except Exception as error:  # whatever a journal raises, the part must be rejected
            verdict = self._fault(verdict, f"journal failed: {error}", deadline)
        else:
            if verdict.outcome is Outcome.PASS and deadline.passed(self._clock.now_ns()):
                verdict = self._replace(verdict, f"{self._missed()}: the journal held the verdict up", deadline)
        try:
            self._rejector.apply(verdict)
        except Exception as error:  # whatever a line raises, nobody knows what it did
            self._replace(verdict, f"reject line failed: {error}", deadline)
            raise StationError(
                f"part {verdict.part}: the reject line cannot be driven ({error}); stop the conveyor and mend the line"
            ) from error
        return verdict

    def _decide(self, arrival: Arrival, deadline: Deadline) -> Verdict:
        score: float | None = None
        try:
            self._rejector.announce(arrival.part, arrival.trigger_ns)
            self._journal.announce(arrival)
            if isinstance(arrival, Missing):
                outcome, reason = Outcome.FAULT, arrival.reason
            else:
                score = self._scorer.score(arrival.image, deadline.remaining_s(self._clock.now_ns()))
                outcome, reason = compare(score, self._threshold)
        except TimeoutError as error:
            outcome, reason = Outcome.FAULT, f"{self._missed()}: {error}"
        except Exception as error:  # any failure of scoring is a FAULT, never a pass
            outcome, reason = Outcome.FAULT, f"{type(error).__name__}: {error}"
        now_ns = self._clock.now_ns()
        elapsed_ms = deadline.elapsed_ms(now_ns)
        if outcome is Outcome.PASS and deadline.passed(now_ns):
            outcome, reason = Outcome.FAULT, f"{self._missed()}: verdict after {elapsed_ms:.1f} ms"
        return Verdict(arrival.part, outcome, score, self._threshold, elapsed_ms, reason, arrival.source)

    def _fault(self, verdict: Verdict, reason: str, deadline: Deadline) -> Verdict:
        elapsed_ms = deadline.elapsed_ms(self._clock.now_ns())
        return dataclasses.replace(verdict, outcome=Outcome.FAULT, reason=reason, latency_ms=elapsed_ms)

    def _missed(self) -> str:
        return f"deadline of {self._deadline_ms:g} ms missed"

    def _replace(self, verdict: Verdict, reason: str, deadline: Deadline) -> Verdict:
        """Replace a verdict that is kept already; the row that replaces it may fail too, the FAULT stands anyway."""
        fault = self._fault(verdict, reason, deadline)
        try:
            self._journal.verdict(fault)
        except Exception as error:  # as in judge
            return self._fault(fault, f"{fault.reason}; journal failed: {error}", deadline)
        return fault
