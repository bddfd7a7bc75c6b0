"""The loop: each arrival gets exactly one verdict, and whatever goes wrong on the way is a FAULT, which rejects."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edge import StationError
from edge.camera import Camera
from edge.clock import Clock
from edge.evidence import Evidence
from edge.journal import Journal
from edge.judge import Judge
from edge.rejector import Rejector
from edge.states import Machine, State, Transition
from edge.statistics import Statistics
from edge.verdict import Arrival, Frame, Missing, Outcome, Verdict, compare
from edge.watchdog import Deadline
from edge.worker import Seen


@dataclass(frozen=True)
class Condition:
    """Something that must be good for parts to pass.

    Attributes:
        name: in a word.
        fault: why it is not good, "" where it is; asked by the deciding loop whenever it turns, and so answers at once.
    """

    name: str
    fault: Callable[[], str]


class _Stop(BaseException):
    """Ends the wait for the next part; not an Exception, so that nothing on the way takes it for a failure."""


class Station:
    """Judges arrivals. Everything it touches is injected. But for `post` and `status` it is for one thread, the deciding one.

    Attributes:
        statistics: of its run so far.
        judge_with: the judge of the next part.
        deadline_ms: from trigger to verdict.
    """

    def __init__(
        self,
        *,
        judge: Judge,
        rejector: Rejector,
        journal: Journal,
        clock: Clock,
        deadline_ms: float,
        evidence: Evidence | None = None,
        conditions: Sequence[Condition] = (),
        waiting: Callable[[], int] = lambda: 0,
        rest: Callable[[str], Iterable[Arrival]] = lambda reason: (),
        on_state: Callable[[Transition], None] = lambda transition: None,
    ) -> None:
        """Join the pieces.

        Args:
            judge: gives scores, and the threshold for them.
            rejector: acts on verdicts.
            journal: keeps them.
            clock: monotonic time.
            deadline_ms: from trigger to verdict.
            evidence: keeps pictures; offered each one after its part was acted on.
            conditions: what must be good, beside the camera and the judge's scorer.
            waiting: how many parts have triggered that the camera has not given yet.
            rest: arrivals of parts that triggered and still wait when the station ends, given the reason.
            on_state: told each change of state.

        Raises:
            StationError: a deadline that is not a usable number: without one nothing is judged.
        """
        self.set_deadline(deadline_ms)
        self.judge_with = judge
        self._rejector = rejector
        self._journal = journal
        self._clock = clock
        self._evidence = evidence
        self._conditions = list(conditions)
        self._waiting = waiting
        self._rest = rest
        self._on_state = on_state
        self._machine = Machine()
        self._since_ns = self._ready_ns = clock.now_ns()
        self._camera: Camera | None = None
        self._faults: dict[str, str] = {}
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._judging = self._at_work = self._taking = False
        self._after_ms: dict[str, float] = {}  # stages of the last part that came after its row was made
        self._waited = 0  # as the last turn found it: whatever knows of triggers is the deciding thread's
        self._stop_ns: int | None = None
        self._stop_reason = ""
        self.statistics = Statistics(clock.now_ns())

    @property
    def state(self) -> State:
        """Now."""
        return self._machine.state

    @property
    def reason(self) -> str:
        """Why it is in its state, in words; where it is not ready, all that is not good now."""
        return self._bad() if self._faults and self.state is State.INITIALIZED else self._machine.reason

    @property
    def faults(self) -> Mapping[str, str]:
        """What was not good when it last looked, by name."""
        return self._faults

    @property
    def stopping(self) -> bool:
        """It was told to end."""
        return self._stop_ns is not None

    def require(self, condition: Condition) -> None:
        """One more thing that must be good."""
        self._conditions.append(condition)

    def set_deadline(self, deadline_ms: float) -> None:
        """Change the deadline, between two parts. Raises StationError where it is not a usable number."""
        if not (math.isfinite(deadline_ms) and deadline_ms > 0):
            raise StationError(f"deadline is {deadline_ms} ms, expected above 0")
        self.deadline_ms = deadline_ms

    def set_evidence(self, evidence: Evidence | None) -> None:
        """Keep pictures elsewhere from the next part on."""
        self._evidence = evidence

    def change(self, judge: Judge) -> None:
        """Judge with another judge from the next part on; whoever replaces one closes it.

        Raises:
            StationError: a part is being judged, so that it would be judged by a mix of two.
        """
        if self._judging:
            raise StationError("the judge cannot change while a part is judged; have it changed by `post`")
        self.judge_with = judge

    def post(self, work: Callable[[], None]) -> None:
        """Have something done between two parts, on the deciding thread. For any thread, and for signal handlers.

        What it raises ends the run.
        """
        self._posted.put(work)

    def waiting(self) -> int:
        """Parts that have triggered and are not judged yet. Raises StationError: the rejector is lost."""
        return self._waiting()

    def note(self, name: str, details: Mapping[str, object]) -> None:
        """Journal an event, between two parts; one that cannot be kept now is kept with the next row that can."""
        try:
            self._journal.event(name, details)
        except StationError:  # a disk that is full is itself a reason to note something
            self._journal.later(name, details)

    def stop(self, reason: str) -> None:
        """End in order: parts that triggered by now get their verdicts, until their deadline at most; later ones are FAULTs."""
        if self._stop_ns is None:
            self._stop_ns, self._stop_reason = self._clock.now_ns(), reason

    def turn(self) -> None:
        """Show that the deciding loop turns, and look at all conditions; between two parts, do what was posted.

        To be called again and again while the loop waits for a part or a score. While it waits for the journal it may only
        beat, since what is looked at here may have to be journalled.

        Raises:
            StationError: the rejector is not there.
        """
        self._rejector.beat()
        self._waited = self._waiting()
        self._look()
        if self._judging or self._at_work:  # what was posted turns the loop itself where it takes time
            return
        self._at_work = True
        try:
            for _ in range(self._posted.qsize()):  # what these post themselves comes with the next turn
                self._posted.get()()
        finally:
            self._at_work = False
        if self._stop_ns is not None and self._taking:
            over = self._clock.now_ns() - self._stop_ns > self.deadline_ms * 1e6
            if over or self._waiting() == 0:
                raise _Stop

    def run(self, camera: Camera, on_verdict: Callable[[Verdict], None]) -> Statistics:
        """Judge all arrivals of a camera, until it has no more or `stop` was called.

        Args:
            camera: closed by the caller; while it is not healthy no part passes.
            on_verdict: called after each part was acted on; what it raises ends the run.

        Raises:
            StationError: the camera is lost for good, or the reject line cannot be driven.
        """
        self._camera = camera
        try:
            self._faults = self._found(camera)
            there = "bundle, engine, calibration and lines are there, the self-test passed"
            self._to(State.INITIALIZED, f"{there}; not good yet: {self._bad()}" if self._faults else there)
            for arrival in itertools.chain(self._arrivals(camera), self._left()):
                verdict = self.judge(arrival)
                self.statistics.add(verdict, self._clock.now_ns(), self._after_ms)
                if self._evidence is not None and isinstance(arrival, Frame):
                    self._evidence.offer(arrival.image, verdict)
                on_verdict(verdict)
        except Exception as error:
            self._to(State.ERROR, f"{type(error).__name__}: {error}")
            self._give_up(f"the station ended before its turn ({self.reason})")
            raise
        except BaseException as error:
            self._to(State.HALTED, type(error).__name__)
            raise
        if self._stop_ns is not None:  # where the source ended, no part comes that nobody saw
            self._rejector.set_ready(False)
        self._to(State.HALTED, self._stop_reason or "end of the source")
        return self.statistics

    def judge(self, arrival: Arrival) -> Verdict:
        """Decide on one part, keep the verdict, act on it, and return it.

        The verdict is kept before it is acted on, so that no part passes unrecorded; where keeping it fails or makes
        the part late, it becomes a FAULT. So does a PASS that the reject line did not take, and the run ends there.

        Raises:
            StationError: the reject line cannot be driven.
        """
        self._judging = True
        try:
            return self._judge(arrival, Deadline(arrival.trigger_ns, self.deadline_ms))
        finally:
            self._judging = False

    def status(self) -> dict[str, object]:
        """What the station does, as plain JSON types; for any thread."""
        now_ns = self._clock.now_ns()
        judge, machine = self.judge_with, self._machine
        return {
            "state": machine.state.value,
            "reason": self.reason,
            "state_seconds": round((now_ns - self._since_ns) / 1e9, 3),
            "faults": dict(self._faults),
            "recipe": judge.name,
            "threshold": judge.threshold,
            "threshold_from": judge.calibration.origin,
            "bundle": judge.calibration.bundle_digest,
            "calibration": judge.calibration.digest,
            "deadline_ms": self.deadline_ms,
            "waiting": self._waited,
            **self.statistics.as_dict(now_ns),
        }

    def _arrivals(self, camera: Camera) -> Iterator[Arrival]:
        arrivals = camera.frames()
        self._taking = True
        while True:
            try:
                self.turn()
                arrival = next(arrivals, None)
            except _Stop:
                arrival = None
            if arrival is None:
                self._taking = False  # those that are left wait for nothing any more
                return
            yield arrival

    def _left(self) -> Iterator[Arrival]:
        if self._stop_ns is not None:  # asked once the arrivals are over
            yield from self._rest(f"the station was told to end ({self._stop_reason}) before its turn")

    def _give_up(self, reason: str) -> None:
        """Keep a FAULT for each part that triggered and waits. The reject line, if it still is there, rejects them unasked."""
        judge = self.judge_with
        for arrival in self._rest(reason):
            latency_ms = (self._clock.now_ns() - arrival.trigger_ns) / 1e6
            why = arrival.reason if isinstance(arrival, Missing) else reason
            how = judge.calibration.method
            verdict = Verdict(arrival.part, Outcome.FAULT, None, judge.threshold, latency_ms, why, arrival.source, how)
            with contextlib.suppress(Exception):  # what ended the station is raised, not what came of it
                self._journal.announce(arrival, judge.row_fields())
            with contextlib.suppress(Exception):  # also unannounced, so that the journal knows of a gap
                self._journal.verdict(verdict)
            self.statistics.add(verdict, self._clock.now_ns(), {})

    def _judge(self, arrival: Arrival, deadline: Deadline) -> Verdict:
        if self.state is State.READY:
            self._to(State.EXECUTING, f"part {arrival.part} came")
        verdict = self._decide(arrival, deadline)
        decided_ns = self._clock.now_ns()
        try:
            self._journal.verdict(verdict)
        except Exception as error:  # whatever a journal raises, the part must be rejected
            verdict = self._fault(verdict, f"journal failed: {error}", deadline)
        else:
            if verdict.outcome is Outcome.PASS and deadline.passed(self._clock.now_ns()):
                verdict = self._replace(verdict, f"{self._missed()}: the journal held the verdict up", deadline)
        kept_ns = self._clock.now_ns()
        try:
            self._rejector.apply(verdict)
        except Exception as error:  # whatever a line raises, nobody knows what it did
            self._replace(verdict, f"reject line failed: {error}", deadline)
            raise StationError(
                f"part {verdict.part}: the reject line cannot be driven ({error}); stop the conveyor and mend the line"
            ) from error
        self._after_ms = {"journal": (kept_ns - decided_ns) / 1e6, "line": (self._clock.now_ns() - kept_ns) / 1e6}
        return verdict

    def _decide(self, arrival: Arrival, deadline: Deadline) -> Verdict:
        score: float | None = None
        appearance = None
        judge = self.judge_with
        stages_ms = {"capture": (arrival.captured_ns - arrival.trigger_ns) / 1e6} if isinstance(arrival, Frame) else {}
        try:
            self._rejector.announce(arrival.part, arrival.trigger_ns)
            self._journal.announce(arrival, judge.row_fields())
            if isinstance(arrival, Missing):
                outcome, reason = Outcome.FAULT, arrival.reason
            elif self._stop_ns is not None and arrival.trigger_ns > self._stop_ns:
                outcome, reason = Outcome.FAULT, f"triggered after the station was told to end ({self._stop_reason})"
            elif not self._may_pass(arrival):
                outcome, reason = Outcome.FAULT, self._not_ready()
            else:
                begun_ns = self._clock.now_ns()
                stages_ms["wait"] = (begun_ns - arrival.captured_ns) / 1e6
                scored = judge.scorer.score(arrival.image, deadline.remaining_s(begun_ns))
                stages_ms.update(scored.stages_ms)
                score = scored.value
                appearance = scored.appearance if isinstance(scored, Seen) else None
                outcome, reason = compare(score, judge.threshold)
                self._look()  # what went bad since the loop last turned counts too, such as a person's hold
        except TimeoutError as error:
            outcome, reason = Outcome.FAULT, f"{self._missed()}: {error}"
        except Exception as error:  # any failure of scoring is a FAULT, never a pass
            outcome, reason = Outcome.FAULT, f"{type(error).__name__}: {error}"
        now_ns = self._clock.now_ns()
        elapsed_ms = deadline.elapsed_ms(now_ns)
        if outcome is Outcome.PASS and deadline.passed(now_ns):
            outcome, reason = Outcome.FAULT, f"{self._missed()}: verdict after {elapsed_ms:.1f} ms"
        elif outcome is Outcome.PASS and not self._may_pass(arrival):  # something went bad while the part was scored
            outcome, reason = Outcome.FAULT, self._not_ready()
        return Verdict(
            arrival.part,
            outcome,
            score,
            judge.threshold,
            elapsed_ms,
            reason,
            arrival.source,
            judge.calibration.method,
            stages_ms,
            appearance,
        )

    def _look(self) -> None:
        """Leave the ready states where a condition went bad, and come back where all are good."""
        camera = self._camera
        if camera is None or self.state in (State.PREOPERATIONAL, State.HALTED, State.ERROR):
            return
        self._faults = self._found(camera)
        if self._faults and self.state.passes:
            self._to(State.INITIALIZED, self._bad())
        elif not self._faults and self.state is State.INITIALIZED:
            self._to(State.READY, "everything is good")

    def _found(self, camera: Camera) -> dict[str, str]:
        found = {"camera": "" if camera.healthy else camera.status or "it gives no pictures"}
        found["engine"] = self.judge_with.scorer.fault
        found |= {condition.name: condition.fault() for condition in self._conditions}
        return {name: fault for name, fault in found.items() if fault}

    def _bad(self) -> str:
        return "; ".join(f"{name}: {fault}" for name, fault in self._faults.items())

    def _to(self, state: State, reason: str) -> None:
        transition = self._machine.to(state, reason)
        self._since_ns = self._clock.now_ns()
        if state is State.READY:
            self._ready_ns = self._since_ns
        if state in (State.READY, State.INITIALIZED):
            self._rejector.set_ready(state.passes)  # before anything that takes time
        details = {"before": transition.before.value, "after": state.value, "reason": reason}
        if state is State.EXECUTING:  # with the row of the part that came, which must not wait for a write of its own
            self._journal.later("state", details)
        else:
            self.note("state", details)
        self._on_state(transition)

    def _may_pass(self, arrival: Arrival) -> bool:
        """Whether the station has been ready since the part triggered; to the rejector a part of before is lost too."""
        return self.state.passes and arrival.trigger_ns >= self._ready_ns

    def _not_ready(self) -> str:
        if self.state.passes:
            return "the part triggered before the station was ready"
        return f"the station is not ready: {self.reason}"

    def _fault(self, verdict: Verdict, reason: str, deadline: Deadline) -> Verdict:
        elapsed_ms = deadline.elapsed_ms(self._clock.now_ns())
        return dataclasses.replace(verdict, outcome=Outcome.FAULT, reason=reason, latency_ms=elapsed_ms)

    def _missed(self) -> str:
        return f"deadline of {self.deadline_ms:g} ms missed"

    def _replace(self, verdict: Verdict, reason: str, deadline: Deadline) -> Verdict:
        """Replace a verdict that is kept already; the row that replaces it may fail too, the FAULT stands anyway."""
        fault = self._fault(verdict, reason, deadline)
        try:
            self._journal.verdict(fault)
        except Exception as error:  # as in judge
            return self._fault(fault, f"{fault.reason}; journal failed: {error}", deadline)
        return fault
