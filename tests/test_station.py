"""The loop: one verdict for each arrival, and a PASS only where nothing at all was wrong."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import StationError
from edge.camera import Camera
from edge.judge import Judge
from edge.rejector import Rejector
from edge.station import Station
from edge.statistics import Statistics
from edge.verdict import Arrival, Missing, Outcome, Verdict
from engines import EngineError
from engines.images import Image
from engines.search import Score
from tests.fakes import (
    FakeCamera,
    FakeClock,
    FakeJournal,
    FakeRejector,
    FakeScorer,
    Keeping,
    Scoring,
    flat,
    judge_of,
    score_of,
    tiny_calibration,
)

THRESHOLD, DEADLINE_MS = 2.5, 100.0
PICTURE = flat(1, (16, 16))


def build(scorer: FakeScorer, rejector: Rejector, journal: FakeJournal, clock: FakeClock) -> Station:
    judge = judge_of(scorer, THRESHOLD)
    return Station(judge=judge, rejector=rejector, journal=journal, clock=clock, deadline_ms=DEADLINE_MS)


@dataclass(frozen=True)
class Part:
    """Everything that may happen to one part; `scoring` None means that it has no picture."""

    scoring: Scoring | None = Scoring()  # noqa: RUF009
    keeping: Keeping = Keeping()  # noqa: RUF009
    age_ms: float = 0.0

    @property
    def ought_to_pass(self) -> bool:
        """The rule, written down a second time: announced, scored, finite, not above the threshold, in time,
        and kept in time."""
        if self.scoring is None or self.scoring.error is not None:
            return False
        if self.keeping.announce_error is not None or self.keeping.error is not None:
            return False
        decided_ms = self.age_ms + self.scoring.ms
        in_time = decided_ms >= 0 and decided_ms + self.keeping.ms <= DEADLINE_MS
        return in_time and math.isfinite(self.scoring.score) and self.scoring.score <= THRESHOLD


@dataclass
class Ran:
    """What came of a run."""

    verdicts: list[Verdict] = field(default_factory=list)
    rejector: FakeRejector = field(default_factory=FakeRejector)
    journal: FakeJournal = field(default_factory=lambda: FakeJournal(FakeClock()))
    statistics: Statistics = field(default_factory=Statistics)
    timeouts_s: list[float] = field(default_factory=list)


def run(parts: list[Part]) -> Ran:
    """Run a station over these parts, everything around it fake, the clock too."""
    clock = FakeClock()
    ran = Ran(journal=FakeJournal(clock, {number: part.keeping for number, part in enumerate(parts, start=1)}))
    scored = [part.scoring for part in parts if part.keeping.announce_error is None and part.scoring is not None]
    scorer = FakeScorer(clock, scored)
    camera = FakeCamera(clock, [None if part.scoring is None else PICTURE for part in parts], [part.age_ms for part in parts])
    ran.statistics = build(scorer, ran.rejector, ran.journal, clock).run(camera, ran.verdicts.append)
    ran.timeouts_s = scorer.timeouts_s
    return ran


ERRORS = (
    EngineError("bad image"),
    StationError("the scoring thread has ended"),
    RuntimeError("x"),
    ValueError("x"),
    KeyError("x"),
    MemoryError(),
    RecursionError(),
    StopIteration(),
    OSError(5, "I/O error"),
    TimeoutError("late"),
    AssertionError(),
    ZeroDivisionError(),
    type("Odd", (Exception,), {"__str__": lambda self: "{%s}\n"})(),
)
TIMES_MS = (0.0, 1.0, 60.0, 99.0, 100.0, 100.001, 101.0, 5000.0)
scorings = st.builds(
    Scoring,
    score=st.sampled_from([-7.0, 0.0, 2.5, math.nextafter(2.5, 3), 9.0, math.nan, math.inf, -math.inf])
    | st.floats(allow_nan=True, allow_infinity=True),
    ms=st.sampled_from(TIMES_MS),
    error=st.none() | st.none() | st.sampled_from(ERRORS),
    heeds=st.booleans(),
)
keepings = st.builds(
    Keeping,
    ms=st.sampled_from((0.0, *TIMES_MS)),
    announce_error=st.none() | st.none() | st.sampled_from(ERRORS),
    error=st.none() | st.none() | st.sampled_from(ERRORS),
    second_error=st.none() | st.sampled_from(ERRORS),
)
parts_of_any_kind = st.builds(
    Part,
    scoring=scorings | scorings | scorings | st.none(),
    keeping=st.just(Keeping()) | keepings,
    age_ms=st.just(0.0) | st.sampled_from([-1000.0, 40.0, 100.0, 200.0]),
)


@settings(max_examples=400)
@given(st.lists(parts_of_any_kind, max_size=12))
def test_every_arrival_gets_one_verdict_and_only_a_faultless_part_passes(parts: list[Part]) -> None:
    ran = run(parts)
    numbers = list(range(1, len(parts) + 1))
    assert [verdict.part for verdict in ran.verdicts] == numbers
    assert [verdict.outcome is Outcome.PASS for verdict in ran.verdicts] == [part.ought_to_pass for part in parts]
    # the whole trace of the line, and no more than it
    assert ran.rejector.trace == [(number, not part.ought_to_pass) for number, part in zip(numbers, parts, strict=True)]
    assert ran.statistics.parts == len(parts)
    assert ran.statistics.outcomes[Outcome.PASS] == sum(part.ought_to_pass for part in parts)
    # the journal's last row of a part is its verdict, wherever a row could be kept; a PASS is always kept
    kept = {row.part: row for row in ran.journal.rows}
    for verdict, part in zip(ran.verdicts, parts, strict=True):
        if part.keeping.error is not None:
            assert verdict.part not in kept
        elif part.keeping.second_error is None or verdict.outcome is Outcome.PASS:
            assert kept[verdict.part] == verdict
    assert [row.part for row in ran.journal.rows] == sorted(row.part for row in ran.journal.rows)


def only(part: Part) -> Verdict:
    (verdict,) = run([part]).verdicts
    return verdict


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_at_the_threshold_passes_and_the_next_number_above_rejects(threshold: float) -> None:
    above = math.nextafter(threshold, math.inf)
    clock = FakeClock()
    station = Station(
        judge=judge_of(FakeScorer(clock, [Scoring(threshold), Scoring(above)]), threshold),
        rejector=FakeRejector(),
        journal=FakeJournal(clock),
        clock=clock,
        deadline_ms=DEADLINE_MS,
    )
    verdicts: list[Verdict] = []
    station.run(FakeCamera(clock, [PICTURE, PICTURE]), verdicts.append)
    assert verdicts[0].outcome is Outcome.PASS
    assert verdicts[1].outcome is (Outcome.REJECT if math.isfinite(above) else Outcome.FAULT)


@pytest.mark.parametrize(
    ("part", "outcome", "reason"),
    [
        (Part(Scoring(1.0)), Outcome.PASS, "score 1 is at or below the threshold 2.5"),
        (Part(Scoring(3.0)), Outcome.REJECT, "score 3 is above the threshold 2.5"),
        (Part(None), Outcome.FAULT, "no picture"),
        (Part(Scoring(math.nan)), Outcome.FAULT, "score is nan, not a finite number"),
        (Part(Scoring(-math.inf)), Outcome.FAULT, "score is -inf, not a finite number"),
        (Part(Scoring(error=EngineError("bad image"))), Outcome.FAULT, "EngineError: bad image"),
        (Part(Scoring(1.0, ms=150)), Outcome.FAULT, "deadline of 100 ms missed: no score by the deadline"),
        (Part(Scoring(1.0, ms=150, heeds=False)), Outcome.FAULT, "deadline of 100 ms missed: verdict after 150.0 ms"),
        (Part(Scoring(3.0, ms=150, heeds=False)), Outcome.REJECT, "score 3 is above the threshold 2.5"),
        (Part(Scoring(1.0), age_ms=150), Outcome.FAULT, "deadline of 100 ms missed: verdict after 150.0 ms"),
        (Part(Scoring(1.0), age_ms=-50), Outcome.FAULT, "deadline of 100 ms missed: verdict after -50.0 ms"),
        (Part(Scoring(1.0), Keeping(announce_error=StationError("locked"))), Outcome.FAULT, "StationError: locked"),
        (Part(Scoring(1.0), Keeping(error=StationError("disk full"))), Outcome.FAULT, "journal failed: disk full"),
        (Part(Scoring(3.0), Keeping(error=OSError(28, "full"))), Outcome.FAULT, "journal failed: [Errno 28] full"),
        (Part(Scoring(1.0), Keeping(ms=150)), Outcome.FAULT, "deadline of 100 ms missed: the journal held the verdict up"),
        (Part(Scoring(3.0), Keeping(ms=150)), Outcome.REJECT, "score 3 is above the threshold 2.5"),
    ],
)
def test_each_outcome_says_why(part: Part, outcome: Outcome, reason: str) -> None:
    verdict = only(part)
    assert (verdict.outcome, verdict.reason) == (outcome, reason)


def test_a_pass_that_the_journal_held_up_is_replaced_there() -> None:
    ran = run([Part(Scoring(1.0), Keeping(ms=150))])
    assert [(row.part, row.outcome) for row in ran.journal.rows] == [(1, Outcome.PASS), (1, Outcome.FAULT)]


def test_a_verdict_is_kept_before_the_line_is_told() -> None:
    clock = FakeClock()
    journal, order = FakeJournal(clock), []

    class Watching(FakeRejector):
        def apply(self, verdict: Verdict) -> None:
            order.append((verdict.part, [row.part for row in journal.rows]))

    station = build(FakeScorer(clock, [Scoring(), Scoring()]), Watching(), journal, clock)
    station.run(FakeCamera(clock, [PICTURE, PICTURE]), lambda verdict: None)
    assert order == [(1, [1]), (2, [1, 2])]


def test_a_part_is_announced_before_it_is_judged() -> None:
    clock = FakeClock()
    journal = FakeJournal(clock)
    seen: list[list[int]] = []

    class Watching(FakeScorer):
        def score(self, image: Image, timeout_s: float) -> Score:
            seen.append(list(journal.announced))
            return score_of(0.0)

    station = build(Watching(clock, []), FakeRejector(), journal, clock)
    station.run(FakeCamera(clock, [PICTURE, None, PICTURE]), lambda verdict: None)
    assert seen == [[1], [1, 2, 3]]


def test_pictures_are_offered_after_the_line_was_told() -> None:
    clock, rejector = FakeClock(), FakeRejector()
    offered: list[tuple[Verdict, int, list[tuple[int, bool]]]] = []

    class Watching:
        def offer(self, image: Image, verdict: Verdict) -> None:
            offered.append((verdict, int(image[0, 0, 0]), list(rejector.trace)))

    station = Station(
        judge=judge_of(FakeScorer(clock, [Scoring(0.0), Scoring(9.0)]), THRESHOLD),
        rejector=rejector,
        journal=FakeJournal(clock),
        clock=clock,
        deadline_ms=DEADLINE_MS,
        evidence=Watching(),
    )
    verdicts: list[Verdict] = []
    station.run(FakeCamera(clock, [PICTURE, None, flat(7, (16, 16))]), verdicts.append)
    told = [(1, False), (2, True), (3, True)]
    assert offered == [(verdicts[0], 1, told[:1]), (verdicts[2], 7, told)]  # a part without a picture has none to offer


def test_the_scorer_gets_the_time_that_is_left() -> None:
    ran = run([Part(), Part(age_ms=40.0), Part(age_ms=100.0), Part(age_ms=500.0), Part(age_ms=-500.0)])
    assert ran.timeouts_s == pytest.approx([0.1, 0.06, 0, 0, 0.1])


def test_the_latency_counts_from_the_trigger() -> None:
    assert only(Part(Scoring(1.0, ms=20), age_ms=30.0)).latency_ms == pytest.approx(50)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_ends_the_run_before_the_line_is_told(interrupt: type[BaseException]) -> None:
    clock, rejector = FakeClock(), FakeRejector()
    station = build(FakeScorer(clock, [Scoring(), Scoring(error=interrupt())]), rejector, FakeJournal(clock), clock)
    with pytest.raises(interrupt):
        station.run(FakeCamera(clock, [PICTURE] * 3), lambda verdict: None)
    assert rejector.trace == [(1, False)]


@pytest.mark.parametrize("error", [StationError("no line"), OSError(19, "no such device"), RuntimeError("x")])
def test_a_line_that_fails_ends_the_run_and_the_journal_says_that_the_part_did_not_pass(error: Exception) -> None:
    clock = FakeClock()
    journal = FakeJournal(clock)
    rejector = FakeRejector(error, fail_at=2)
    station = build(FakeScorer(clock, [Scoring()] * 3), rejector, journal, clock)
    with pytest.raises(StationError, match=r"part 2: the reject line cannot be driven .*; stop the conveyor"):
        station.run(FakeCamera(clock, [PICTURE] * 3), lambda verdict: None)
    assert rejector.trace == [(1, False)]
    assert [(row.part, row.outcome) for row in journal.rows] == [(1, Outcome.PASS), (2, Outcome.PASS), (2, Outcome.FAULT)]
    assert journal.rows[-1].reason == f"reject line failed: {error}"


def test_a_line_that_fails_is_told_even_where_the_journal_fails_as_well() -> None:
    clock = FakeClock()
    journal = FakeJournal(clock, {1: Keeping(second_error=OSError("full"))})
    station = build(FakeScorer(clock, [Scoring()]), FakeRejector(OSError("gone"), fail_at=1), journal, clock)
    with pytest.raises(StationError, match="the reject line cannot be driven"):
        station.run(FakeCamera(clock, [PICTURE]), lambda verdict: None)


def test_whoever_listens_is_told_after_the_line_and_may_end_the_run() -> None:
    clock, rejector = FakeClock(), FakeRejector()
    told: list[list[tuple[int, bool]]] = []

    def listen(verdict: Verdict) -> None:
        told.append(list(rejector.trace))
        if verdict.part == 2:
            raise BrokenPipeError

    station = build(FakeScorer(clock, [Scoring()] * 3), rejector, FakeJournal(clock), clock)
    with pytest.raises(BrokenPipeError):
        station.run(FakeCamera(clock, [PICTURE] * 3), listen)
    assert told == [[(1, False)], [(1, False), (2, False)]]


def test_a_camera_that_is_lost_ends_the_run_and_nothing_passes_after_it() -> None:
    class Lost(FakeCamera):
        def frames(self) -> Iterator[Arrival]:
            yield from super().frames()
            raise StationError("camera 0: no frame")

    clock, rejector = FakeClock(), FakeRejector()
    camera: Camera = Lost(clock, [PICTURE])
    with pytest.raises(StationError, match="no frame"):
        build(FakeScorer(clock, [Scoring()]), rejector, FakeJournal(clock), clock).run(camera, lambda verdict: None)
    assert rejector.trace == [(1, False)]


def test_a_clock_that_goes_back_while_a_part_is_scored_faults_it() -> None:
    class Back(FakeScorer):
        def score(self, image: object, timeout_s: float) -> Score:
            clock.advance_ms(-10_000)
            return score_of(0.0)

    clock = FakeClock()
    verdicts: list[Verdict] = []
    station = build(Back(clock, []), FakeRejector(), FakeJournal(clock), clock)
    station.run(FakeCamera(clock, [PICTURE]), verdicts.append)
    assert [verdict.outcome for verdict in verdicts] == [Outcome.FAULT]


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf])
def test_without_a_threshold_nothing_is_judged(threshold: float) -> None:
    clock = FakeClock()
    with pytest.raises(StationError, match="expected a finite number; calibrate this station"):
        Judge("tiny", FakeScorer(clock, []), tiny_calibration().model_copy(update={"threshold": threshold}))


@pytest.mark.parametrize("deadline_ms", [math.nan, math.inf, -math.inf, 0, -1])
def test_without_a_deadline_nothing_is_judged(deadline_ms: float) -> None:
    clock = FakeClock()
    with pytest.raises(StationError, match="ms, expected above 0"):
        Station(
            judge=judge_of(FakeScorer(clock, []), 1.0),
            rejector=FakeRejector(),
            journal=FakeJournal(clock),
            clock=clock,
            deadline_ms=deadline_ms,
        )


def test_statistics_by_hand() -> None:
    statistics = Statistics()
    assert math.isnan(statistics.latency_ms(50))
    base = Verdict(1, Outcome.PASS, 1.0, 2.0, 10.0, "r", "good/1.png", "conformal")
    for part, (outcome, source, ms) in enumerate(
        [
            (Outcome.PASS, "good/1.png", 10.0),
            (Outcome.REJECT, "bad/hole/1.png", 20.0),
            (Outcome.FAULT, "bad/hole/2.png", 30.0),
            (Outcome.PASS, "1.png", 40.0),
        ],
        start=1,
    ):
        statistics.add(dataclasses.replace(base, part=part, outcome=outcome, source=source, latency_ms=ms))
    assert statistics.parts == 4
    assert statistics.outcomes == {Outcome.PASS: 2, Outcome.REJECT: 1, Outcome.FAULT: 1}
    assert statistics.by_folder == {
        ("good", Outcome.PASS): 1,
        ("bad/hole", Outcome.REJECT): 1,
        ("bad/hole", Outcome.FAULT): 1,
        (".", Outcome.PASS): 1,
    }
    assert statistics.latency_ms(50) == 25.0
    assert statistics.latency_ms(100) == 40.0


def test_the_memory_of_a_long_run_stays_flat() -> None:
    statistics = Statistics()
    base = Verdict(1, Outcome.PASS, 1.0, 2.0, 0.0, "r", "1.png", "conformal")
    for part in range(25_000):
        statistics.add(dataclasses.replace(base, part=part, latency_ms=float(part)))
    assert statistics.parts == 25_000
    assert len(statistics.latencies_ms) <= 10_000
    assert statistics.latencies_ms[-1] == 24_999.0
    assert statistics.latency_ms(0) >= 15_000  # the latest are kept


def test_a_missing_part_asks_the_scorer_nothing() -> None:
    clock = FakeClock()
    scorer = FakeScorer(clock, [])
    verdict = build(scorer, FakeRejector(), FakeJournal(clock), clock).judge(Missing(1, clock.now_ns(), "a.png", "truncated"))
    assert (verdict.outcome, verdict.score, verdict.reason, verdict.source) == (Outcome.FAULT, None, "truncated", "a.png")
    assert scorer.timeouts_s == []


def test_each_part_is_announced_with_its_trigger_before_it_is_judged_and_the_loop_beats() -> None:
    ran = run([Part(), Part(None), Part(age_ms=40.0)])
    assert [part for part, _ in ran.rejector.announced] == [1, 2, 3]
    assert len({trigger_ns for _, trigger_ns in ran.rejector.announced}) == 2  # the clock stood, and one part was older
    assert ran.rejector.beats == 4  # before each part, and before the end


def test_a_part_that_cannot_be_announced_is_a_fault() -> None:
    class Deaf(FakeRejector):
        def announce(self, part: int, trigger_ns: int) -> None:
            raise StationError("the rejector is not there")

    clock, rejector = FakeClock(), Deaf()
    verdicts: list[Verdict] = []
    build(FakeScorer(clock, []), rejector, FakeJournal(clock), clock).run(FakeCamera(clock, [PICTURE]), verdicts.append)
    assert [(verdict.outcome, verdict.reason) for verdict in verdicts] == [
        (Outcome.FAULT, "StationError: the rejector is not there")
    ]
    assert rejector.trace == [(1, True)]


class WaitingParts:
    """Parts that triggered, of which none has its arrival yet."""

    def __init__(self, count: int) -> None:
        self.left = [Missing(number, 0, "trigger", "given up") for number in range(2, 2 + count)]

    def rest(self, reason: str) -> Iterator[Arrival]:
        """All that wait, once."""
        while self.left:
            yield dataclasses.replace(self.left.pop(0), reason=reason)


def with_waiting(rejector: FakeRejector, journal: FakeJournal, clock: FakeClock, waiting: WaitingParts) -> Station:
    return Station(
        judge=judge_of(FakeScorer(clock, itertools.repeat(Scoring())), THRESHOLD),
        rejector=rejector,
        journal=journal,
        clock=clock,
        deadline_ms=DEADLINE_MS,
        waiting=lambda: len(waiting.left),
        rest=waiting.rest,
    )


def test_parts_that_wait_when_the_station_fails_get_a_fault_each() -> None:
    clock = FakeClock()
    rejector, journal, waiting = FakeRejector(OSError("gone"), fail_at=1), FakeJournal(clock), WaitingParts(2)
    with pytest.raises(StationError, match="the reject line cannot be driven"):
        with_waiting(rejector, journal, clock, waiting).run(FakeCamera(clock, [PICTURE]), lambda verdict: None)
    rows = {row.part: row for row in journal.rows}
    assert list(rows) == [1, 2, 3]
    assert {row.outcome for row in rows.values()} == {Outcome.FAULT}
    assert "the station ended before its turn (StationError: part 1: the reject line cannot be driven" in rows[3].reason


def test_parts_that_wait_when_the_journal_fails_as_well_do_not_hide_what_ended_the_station() -> None:
    clock = FakeClock()
    plan = {2: Keeping(announce_error=OSError("full"), error=OSError("full")), 3: Keeping(error=OSError("full"))}
    rejector, journal, waiting = FakeRejector(OSError("gone"), fail_at=1), FakeJournal(clock, plan), WaitingParts(3)
    station = with_waiting(rejector, journal, clock, waiting)
    with pytest.raises(StationError, match="the reject line cannot be driven"):
        station.run(FakeCamera(clock, [PICTURE]), lambda verdict: None)
    assert [row.part for row in journal.rows] == [1, 1, 4]
    assert station.statistics.outcomes[Outcome.FAULT] == 3


def test_parts_that_wait_when_the_station_is_told_to_end_while_it_runs_get_a_fault_each() -> None:
    clock = FakeClock()
    rejector, journal, waiting = FakeRejector(), FakeJournal(clock), WaitingParts(2)
    station = with_waiting(rejector, journal, clock, waiting)

    def tell(verdict: Verdict) -> None:
        if verdict.part == 1:
            station.stop("enough")
            clock.advance_ms(DEADLINE_MS + 1)  # no time is left for those that wait

    statistics = station.run(FakeCamera(clock, [PICTURE] * 5), tell)
    assert [(row.part, row.outcome) for row in journal.rows] == [(1, Outcome.PASS), (2, Outcome.FAULT), (3, Outcome.FAULT)]
    assert journal.rows[-1].reason == "the station was told to end (enough) before its turn"
    assert statistics.parts == 3
    assert rejector.trace[-1] == (3, True)
