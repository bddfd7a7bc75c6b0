"""Every order of events for station, journal, talk and rejector together, each of them the real one, on the soak's plant.

The rules after every run are those of `benchmarks.soak_check`: one verdict for each trigger, every part that was not passed in
time rejected for all of its window, and nothing else touched but by a rule.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from benchmarks.soak import CALIBRATIONS, memory_folder
from benchmarks.soak_check import check
from benchmarks.soak_faults import KINDS, Shift, make_shift
from benchmarks.soak_plant import EXIT_NS, MS, START_NS, Part, Treatment

TREATMENTS = {
    "good": Treatment(),
    "bad": Treatment(score=2.0),
    "no frame": Treatment(frame="lost"),
    "torn": Treatment(frame="torn"),
    "picture late": Treatment(late_ms=400),
    "slow": Treatment(ms=200.0),
    "late": Treatment(ms=170.0, heeds=False),
    "raises": Treatment(error="the backend is out of order"),
    "NaN": Treatment(score=float("nan")),
}


class AnyOrder(RuleBasedStateMachine):
    """Lays events on a time axis in any order, and lets them happen at the end."""

    @initialize(kind=st.integers(0, KINDS - 1), seed=st.integers(0, 7))
    def begin(self, kind: int, seed: int) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=memory_folder())
        self.shift: Shift = make_shift(kind, seed, Path(self.folder.name) / "journal.db")
        self.at_ns = self.shift.plant.now_ns + 800 * MS

    @rule(ms=st.sampled_from((1, 7, 20, 60, 110, 400)))
    def wait(self, ms: int) -> None:
        self.at_ns += ms * MS

    @rule(
        gap_ms=st.sampled_from((8, 13, 20, 45)),
        treatment=st.sampled_from(("good", "good", *TREATMENTS)),
        bounce_ms=st.sampled_from((0, 0, 0, 2)),
    )
    def part(self, gap_ms: int, treatment: str, bounce_ms: int) -> None:
        self.at_ns += gap_ms * MS
        number = len(self.shift.plant.parts) + 1
        period_ns = self.shift.plant.period_ns
        if period_ns:  # a thing each period, and no line that bounces
            self.at_ns += (START_NS - self.at_ns) % period_ns
            bounce_ms = 0
        self.shift.lay(Part(number, self.at_ns, TREATMENTS[treatment], bounce_ns=bounce_ms * MS))

    @rule()
    def part_that_does_not_trigger(self) -> None:
        if not self.shift.plant.announced:  # without an exit sensor nobody would know
            self.at_ns += 20 * MS
            self.shift.lay(Part(len(self.shift.plant.parts) + 1, self.at_ns, Treatment(), triggers=False))
            self.at_ns += EXIT_NS // 50

    @rule(
        fault=st.sampled_from(
            (
                "camera lost",
                "disk full",
                "journal locked",
                "kill -9 of vision",
                "SIGSTOP of vision",
                "SIGTERM of vision",
                "kill -9 of the rejector",
                "SIGSTOP of the rejector",
                "halt and resume",
                "change of recipe",
            )
        )
    )
    def fault(self, fault: str) -> None:
        self.shift.lay_fault(fault, self.at_ns)

    def teardown(self) -> None:
        if not hasattr(self, "shift"):
            return
        with self.folder, contextlib.redirect_stderr(io.StringIO()):
            self.shift.live(self.at_ns + 10**9, CALIBRATIONS)
            found = check([self.shift], self.shift.path, {record.recipe: record.threshold for record in CALIBRATIONS})
        assert found.wrong == []


AnyOrder.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyOrder = AnyOrder.TestCase
