"""When a station is ready, what it does while it is not, how it changes its judge and how it ends; on a simulated clock."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest

from edge import StationError
from edge.states import State, Transition
from edge.station import Condition, Station
from edge.verdict import Arrival, Frame, Missing, Outcome, Verdict
from engines.images import Image
from engines.search import Score
from tests.fakes import FakeCamera, FakeClock, FakeJournal, FakeRejector, FakeScorer, Scoring, flat, judge_of, score_of

DEADLINE_MS = 100.0
PICTURE = flat(1, (16, 16))


class World:
    """A station with everything around it fake, whose camera gives what a script of steps says.

    A step is a number of milliseconds in which no part comes, or something to do between two parts, or an arrival.
    """

    def __init__(self, *scorings: Scoring) -> None:
        self.clock = FakeClock()
        self.journal = FakeJournal(self.clock)
        self.rejector = FakeRejector()
        self.scorer = FakeScorer(self.clock, scorings)
        self.disk = ""
        self.waiting = 0
        self.transitions: list[Transition] = []
        self.verdicts: list[Verdict] = []
        self.healthy, self.status = True, ""
        self.closed = 0
        self.script: list[float | Callable[[], None] | Arrival] = []
        self.station = Station(
            judge=judge_of(self.scorer, 2.5),
            rejector=self.rejector,
            journal=self.journal,
            clock=self.clock,
            deadline_ms=DEADLINE_MS,
            conditions=[Condition("disk", lambda: self.disk)],
            waiting=lambda: self.waiting,
            on_state=self.transitions.append,
        )

    def frames(self) -> Iterator[Arrival]:
        for step in self.script:
            if isinstance(step, Frame | Missing):
                self.waiting = max(0, self.waiting - 1)
                yield step
            elif callable(step):
                step()
            else:
                self.clock.advance_ms(step)
            self.station.turn()

    def close(self) -> None:
        self.closed += 1

    def part(self, number: int, age_ms: float = 0.0) -> Callable[[], None]:
        """A step that puts a part of now, triggered so long ago, behind itself."""

        def come() -> None:
            at_ns = self.clock.now_ns() - round(age_ms * 1e6)
            self.script.insert(self.script.index(come) + 1, Frame(PICTURE, number, at_ns, at_ns, f"{number}.png"))

        return come

    def run(self, *script: float | Callable[[], None] | Arrival) -> list[tuple[int, Outcome]]:
        self.script = list(script)
        self.station.run(self, self.verdicts.append)
        return [(verdict.part, verdict.outcome) for verdict in self.verdicts]

    def states(self) -> list[str]:
        return [transition.after.value for transition in self.transitions]

    def spoil(self, disk: str = "full") -> None:
        self.disk = disk

    def camera(self, healthy: bool, status: str = "") -> Callable[[], None]:
        def change() -> None:
            self.healthy, self.status = healthy, status

        return change


def test_a_run_from_start_to_end_and_each_change_is_journalled_with_its_reason() -> None:
    world = World(Scoring(), Scoring(9.0))
    assert world.run(world.part(1), world.part(2)) == [(1, Outcome.PASS), (2, Outcome.REJECT)]
    assert world.states() == ["initialized", "ready", "executing", "halted"]
    assert [(name, details["after"], details["reason"]) for name, details in world.journal.events] == [
        ("state", "initialized", "bundle, engine, calibration and lines are there, the self-test passed"),
        ("state", "ready", "everything is good"),
        ("state", "executing", "part 1 came"),
        ("state", "halted", "end of the source"),
    ]
    assert world.rejector.ready == [False, True]  # parts in flight may still pass


def test_what_goes_bad_while_a_part_is_scored_rejects_it_though_the_loop_did_not_turn_since() -> None:
    world = World()

    class Quick(FakeScorer):
        def score(self, image: Image, timeout_s: float) -> Score:
            world.spoil("somebody holds it")
            return score_of(1.0)

    world.station.change(judge_of(Quick(world.clock, []), 2.5))
    assert world.run(world.part(1), lambda: world.spoil(""), world.part(2)) == [(1, Outcome.FAULT), (2, Outcome.FAULT)]
    assert "disk: somebody holds it" in world.verdicts[0].reason
    assert world.rejector.ready[-1] is False


def test_a_camera_that_is_lost_leaves_ready_once_and_comes_back_by_itself() -> None:
    world = World(Scoring(), Scoring())
    found = world.run(
        world.part(1),
        world.camera(False, "camera 0: no frame for 2 s"),
        1000,
        Missing(2, world.clock.now_ns() + 1, "camera", "no picture"),
        1000,
        world.camera(True),
        10,
        world.part(3),
    )
    assert found == [(1, Outcome.PASS), (2, Outcome.FAULT), (3, Outcome.PASS)]
    assert world.states() == ["initialized", "ready", "executing", "initialized", "ready", "executing", "halted"]
    assert world.transitions[3].reason == "camera: camera 0: no frame for 2 s"
    assert world.rejector.ready == [False, True, False, True]


def test_while_the_disk_is_full_every_part_is_a_fault_and_none_is_scored() -> None:
    world = World(Scoring())
    found = world.run(world.spoil, world.part(1), lambda: world.spoil(""), 10, world.part(2))
    assert found == [(1, Outcome.FAULT), (2, Outcome.PASS)]
    assert world.verdicts[0].reason == "the station is not ready: disk: full"
    assert len(world.scorer.timeouts_s) == 1


@pytest.mark.parametrize("spoilt", ["camera", "disk", "engine"])
def test_nothing_is_ready_before_everything_is_good(spoilt: str) -> None:
    world = World(Scoring())
    world.healthy = spoilt != "camera"
    world.disk = "full" if spoilt == "disk" else ""
    world.scorer.fault = "hangs" if spoilt == "engine" else ""

    def mend() -> None:
        assert world.station.state is State.INITIALIZED
        assert list(world.station.status()["faults"]) == [spoilt]  # type: ignore[call-overload]
        world.healthy, world.disk, world.scorer.fault = True, "", ""

    assert world.run(world.part(1), mend, 10, world.part(2)) == [(1, Outcome.FAULT), (2, Outcome.PASS)]
    assert world.rejector.ready == [False, True]
    assert f"not good yet: {spoilt}: " in world.transitions[0].reason
    assert world.verdicts[0].reason.startswith(f"the station is not ready: {spoilt}: ")


def test_what_is_not_good_is_said_as_it_is_now_and_not_as_it_was_when_it_left_ready() -> None:
    world = World(Scoring())

    def more() -> None:
        world.healthy, world.status = False, "unplugged"

    world.run(world.spoil, more, world.part(1))
    assert world.verdicts[0].reason == "the station is not ready: camera: unplugged; disk: full"


def test_a_part_that_triggered_before_the_station_was_ready_does_not_pass() -> None:
    world = World(Scoring())
    assert world.run(50, world.part(1, age_ms=51), world.part(2, age_ms=50)) == [(1, Outcome.FAULT), (2, Outcome.PASS)]
    assert world.verdicts[0].reason == "the part triggered before the station was ready"


class Spoiling(FakeScorer):
    """While it scores, something goes bad, and perhaps good again; the loop turns meanwhile, as it does."""

    world: World
    mends = False

    def score(self, image: Image, timeout_s: float) -> Score:
        self.world.disk = "full"
        self.world.station.turn()
        if self.mends:
            self.world.clock.advance_ms(1)
            self.world.disk = ""
            self.world.station.turn()
        return score_of(0.0)


@pytest.mark.parametrize("mends", [False, True])
def test_a_part_during_whose_scoring_something_went_bad_does_not_pass(mends: bool) -> None:
    world = World()
    scorer = Spoiling(world.clock, [])
    scorer.world, scorer.mends = world, mends
    world.station.change(judge_of(scorer, 2.5))
    assert world.run(10, world.part(1)) == [(1, Outcome.FAULT)]
    assert world.rejector.trace == [(1, True)]


def test_a_rejector_that_is_lost_is_an_error_and_ends_the_run() -> None:
    class Dying(FakeRejector):
        def beat(self) -> None:
            super().beat()
            if self.beats > 2:
                raise StationError("the rejector is not there: signal 9")

    world = World(Scoring())
    world.station._rejector = Dying()
    with pytest.raises(StationError, match="the rejector is not there"):
        world.run(world.part(1), 10, world.part(2))
    assert world.states()[-1] == "error"
    assert world.transitions[-1].reason == "StationError: the rejector is not there: signal 9"
    assert world.journal.events[-1][1]["after"] == "error"


def test_an_interrupt_halts() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    world = World()
    with pytest.raises(KeyboardInterrupt):
        world.run(interrupt)
    assert world.transitions[-1] == Transition(State.READY, State.HALTED, "KeyboardInterrupt")


def test_a_change_of_state_that_cannot_be_kept_now_is_kept_with_the_next_row() -> None:
    class Full(FakeJournal):
        def event(self, name: str, details: object) -> None:
            raise StationError("disk full")

    world = World()
    world.station._journal = journal = Full(world.clock)
    world.run()
    assert [details["after"] for _, details in journal.events] == ["initialized", "ready", "halted"]


def test_a_judge_is_replaced_between_two_parts_and_each_row_has_its_own() -> None:
    world = World(Scoring(2.0))
    other = FakeScorer(world.clock, [Scoring(2.0)])
    found = world.run(world.part(1), lambda: world.station.change(judge_of(other, 1.5, "nut")), world.part(2))
    assert found == [(1, Outcome.PASS), (2, Outcome.REJECT)]
    assert world.journal.judged_with == ["tiny", "nut"]
    assert [verdict.threshold for verdict in world.verdicts] == [2.5, 1.5]
    assert world.station.status()["recipe"] == "nut"


def test_while_a_part_is_judged_the_judge_stays_and_what_is_posted_waits() -> None:
    world = World()
    done: list[int] = []

    class Asking(FakeScorer):
        def score(self, image: Image, timeout_s: float) -> Score:
            with pytest.raises(StationError, match="the judge cannot change while a part is judged"):
                world.station.change(judge_of(self, 9.0))
            world.station.post(lambda: done.append(len(world.verdicts)))
            world.station.turn()
            assert done == []
            return score_of(0.0)

    world.station.change(judge_of(Asking(world.clock, []), 2.5))
    world.run(world.part(1))
    assert done == [1]


def test_what_is_posted_from_another_thread_is_done_on_the_deciding_one() -> None:
    world = World()
    threads: list[threading.Thread] = []

    def ask() -> None:
        asking = threading.Thread(target=lambda: world.station.post(lambda: threads.append(threading.current_thread())))
        asking.start()
        asking.join()

    world.run(ask, 10)
    assert threads == [threading.current_thread()]


def test_what_is_posted_may_turn_the_loop_and_the_next_thing_waits_until_it_is_done() -> None:
    world = World()
    done: list[str] = []

    def change() -> None:
        done.append("change begun")
        world.station.turn()  # as a change does that waits for a camera
        done.append("change done")

    world.station.post(change)
    world.station.post(lambda: done.append("other"))
    world.run(10)
    assert done == ["change begun", "change done", "other"]


def test_a_stop_waits_for_the_parts_that_triggered_and_takes_no_others() -> None:
    world = World(Scoring())

    def stop() -> None:
        world.waiting = 2
        world.station.stop("SIGTERM")
        world.station.stop("again")

    def come(number: int, age_ms: float) -> Callable[[], None]:
        def step() -> None:
            at_ns = world.clock.now_ns() - round(age_ms * 1e6)
            world.script.insert(world.script.index(step) + 1, Frame(PICTURE, number, at_ns, at_ns, "1.png"))

        return step

    found = world.run(10, stop, 5, come(1, age_ms=6), come(2, age_ms=0), world.part(3))
    assert found == [(1, Outcome.PASS), (2, Outcome.FAULT)]
    assert world.verdicts[1].reason == "triggered after the station was told to end (SIGTERM)"
    assert world.transitions[-1].reason == "SIGTERM"
    assert world.rejector.ready == [False, True, False]


def test_a_stop_with_nothing_under_way_ends_the_wait_at_once() -> None:
    world = World()
    assert world.run(lambda: world.station.stop("SIGTERM"), world.part(1)) == []


def test_a_stop_does_not_wait_longer_than_the_deadline() -> None:
    world = World()

    def stop() -> None:
        world.waiting = 1
        world.station.stop("SIGTERM")

    assert world.run(stop, DEADLINE_MS, 1, world.part(1)) == []


def test_the_status_is_plain_json_by_hand() -> None:
    world = World(Scoring(ms=20.0), Scoring(9.0, ms=40.0))
    before = world.station.status()
    assert json.loads(json.dumps(before, allow_nan=False)) == before
    assert (before["state"], before["parts"], before["latency_ms"]) == (
        "preoperational",
        0,
        {"p50": None, "p95": None, "p99": None},
    )
    world.run(world.part(1, age_ms=0), 940, world.part(2))
    status = world.station.status()
    assert json.loads(json.dumps(status, allow_nan=False)) == status
    assert status["outcomes"] == {"PASS": 1, "REJECT": 1, "FAULT": 0}
    assert status["latency_ms"] == {"p50": 30.0, "p95": 39.0, "p99": 39.8}
    assert status["rate_per_minute"] == 120.0  # two in one second
    assert status["deadline_ms"] == DEADLINE_MS
    assert (status["state"], status["reason"]) == ("halted", "end of the source")
    assert list(status["stages_ms"]) == ["capture", "wait", "journal", "line"]  # type: ignore[call-overload]


def test_stages_are_those_of_the_part_and_in_its_row() -> None:
    class Timed(FakeScorer):
        def score(self, image: Image, timeout_s: float) -> Score:
            return Score(0.0, lambda: PICTURE, {"features": 3.0, "search": 1.0})  # type: ignore[arg-type,return-value]

    world = World()
    world.station.change(judge_of(Timed(world.clock, []), 2.5))
    at_ns = world.clock.now_ns() + 10 * 10**6
    world.run(15, Frame(PICTURE, 1, at_ns + 2 * 10**6, at_ns, "1.png"))
    assert world.journal.rows[0].stages_ms == {"capture": 2.0, "wait": 3.0, "features": 3.0, "search": 1.0}


def test_a_fake_camera_is_healthy_as_every_camera_says() -> None:
    camera = FakeCamera(FakeClock(), [])
    assert (camera.healthy, camera.status) == (True, "")


def test_what_was_posted_may_turn_the_loop_while_more_waits() -> None:
    world = World()
    done: list[str] = []

    def slow() -> None:
        world.station.turn()  # as a change of recipe does, to show that nothing passes meanwhile
        done.append("slow")

    def post() -> None:
        world.station.post(slow)
        world.station.post(lambda: done.append("second"))

    world.run(post, 10)
    assert done == ["slow", "second"]


def test_the_status_asks_nothing_that_belongs_to_the_deciding_thread() -> None:
    world = World()
    asking: list[str] = []

    def waiting() -> int:
        asking.append(threading.current_thread().name)
        return 3

    world.station._waiting = waiting
    said: list[object] = []

    def ask() -> None:
        other = threading.Thread(target=lambda: said.append(world.station.status()["waiting"]), name="http")
        other.start()
        other.join()

    world.run(10, ask)
    assert said == [3]
    assert "http" not in asking
