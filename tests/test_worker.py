"""The scoring thread: deadlines hold whatever the backend does, and no result reaches the wrong part.

Waits that must end in a timeout are short; waits that must not are long, and end as soon as the thread answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from calibration.appearance import measure
from edge import StationError
from edge.worker import InspectorThread, Seen
from engines import EngineError
from engines.bundle import load_bundle
from engines.images import Image
from engines.inspector import Inspector, Score
from tests.fakes import flat, score_of, textured, write_tiny_bundle

SHORT_S, LONG_S = 0.05, 30.0


class FakeInspector(Inspector):
    """Scores a flat picture by its grey; grey 255 hangs until `release` is set.

    Attributes:
        threads: names of the threads that scored and closed.
        scored: greys in the order in which scoring began.
    """

    def __init__(self, error: BaseException | None = None) -> None:
        self.release = threading.Event()
        self.threads: list[str] = []
        self.scored: list[int] = []
        self.closed = 0
        self._error = error

    def score(self, image: Image) -> Score:
        self.threads.append(threading.current_thread().name)
        grey = int(image[0, 0, 0])
        self.scored.append(grey)
        if grey == 255:
            assert self.release.wait(LONG_S)
        if grey == 13 and self._error is not None:
            raise self._error
        return score_of(float(grey))

    def close(self) -> None:
        self.threads.append(threading.current_thread().name)
        self.closed += 1


@pytest.fixture
def start() -> Iterator[Callable[[FakeInspector], InspectorThread]]:
    """Starts threads, and ends them after the test."""
    started: list[tuple[FakeInspector, InspectorThread]] = []

    def begin(inspector: FakeInspector) -> InspectorThread:
        started.append((inspector, InspectorThread(lambda: inspector)))
        return started[-1][1]

    yield begin
    for inspector, thread in started:
        inspector.release.set()
        thread.close()


Start = Callable[[FakeInspector], InspectorThread]


def test_it_scores_and_closes_in_a_thread_of_its_own(start: Start) -> None:
    inspector = FakeInspector()
    worker = start(inspector)
    assert [worker.score(flat(grey), LONG_S).value for grey in (3, 1, 2)] == [3.0, 1.0, 2.0]
    worker.close()
    assert inspector.closed == 1
    assert set(inspector.threads) == {"inspector"}


def test_opening_happens_in_that_thread_too() -> None:
    opened_in: list[str] = []

    def open_inspector() -> Inspector:
        opened_in.append(threading.current_thread().name)
        return FakeInspector()

    InspectorThread(open_inspector).close()
    assert opened_in == ["inspector"]


@pytest.mark.parametrize("error", [EngineError("no such backend"), StationError("not trusted"), MemoryError(), SystemExit(3)])
def test_a_failure_to_open_is_raised_to_the_caller(error: BaseException) -> None:
    def refuse() -> Inspector:
        raise error

    with pytest.raises(type(error)) as raised:
        InspectorThread(refuse)
    assert raised.value is error


@pytest.mark.parametrize("error", [EngineError("bad image"), ValueError("x"), MemoryError(), StopIteration(), SystemExit(1)])
def test_what_scoring_raises_reaches_the_part_that_it_belongs_to_and_no_other(start: Start, error: BaseException) -> None:
    worker = start(FakeInspector(error))
    assert worker.score(flat(1), LONG_S).value == 1.0
    with pytest.raises(type(error)) as raised:
        worker.score(flat(13), LONG_S)
    assert raised.value is error
    assert worker.score(flat(2), LONG_S).value == 2.0


def test_a_hung_job_misses_its_deadline_and_so_does_every_part_while_it_hangs(start: Start) -> None:
    inspector = FakeInspector()
    worker = start(inspector)
    with pytest.raises(TimeoutError, match="no score by the deadline"):
        worker.score(flat(255), SHORT_S)
    for grey in (1, 2, 3):
        with pytest.raises(TimeoutError, match="still busy with an earlier part"):
            worker.score(flat(grey), SHORT_S)
    assert inspector.scored == [255]  # nothing piled up behind it


def test_it_recovers_and_a_late_result_is_taken_for_no_later_part(start: Start) -> None:
    inspector = FakeInspector()
    worker = start(inspector)
    with pytest.raises(TimeoutError):
        worker.score(flat(255), SHORT_S)
    threading.Timer(SHORT_S, inspector.release.set).start()  # while the next part waits
    assert worker.score(flat(1), LONG_S).value == 1.0
    assert worker.score(flat(2), LONG_S).value == 2.0


def test_a_late_error_is_taken_for_no_later_part(start: Start) -> None:
    inspector = FakeInspector()
    worker = start(inspector)
    inspector.score = hang_then_fail(inspector)  # type: ignore[method-assign,assignment]
    with pytest.raises(TimeoutError):
        worker.score(flat(255), SHORT_S)
    inspector.release.set()
    assert worker.score(flat(1), LONG_S).value == 1.0


def hang_then_fail(inspector: FakeInspector) -> Callable[[Image], Score]:
    def score(image: Image) -> Score:
        if image[0, 0, 0] == 255:
            inspector.release.wait(LONG_S)
            raise EngineError("too late to matter")
        return score_of(float(image[0, 0, 0]))

    return score


def test_a_result_that_came_right_after_its_deadline_is_dropped(start: Start) -> None:
    inspector = FakeInspector()
    worker = start(inspector)
    with pytest.raises(TimeoutError):
        worker.score(flat(255), SHORT_S)
    inspector.release.set()
    while len(inspector.scored) < 2:  # the thread is free and has taken up the next part
        assert worker.score(flat(7), LONG_S).value == 7.0
    assert inspector.scored == [255, 7]


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_a_part_that_is_late_already_is_not_scored_at_all(start: Start, timeout_s: float) -> None:
    inspector = FakeInspector()
    worker = start(inspector)
    with pytest.raises(TimeoutError, match="no time left"):
        worker.score(flat(1), timeout_s)
    assert worker.score(flat(2), LONG_S).value == 2.0
    assert inspector.scored == [2]


def test_after_close_nothing_is_scored(start: Start) -> None:
    worker = start(FakeInspector())
    worker.close()
    worker.close()
    with pytest.raises(StationError, match="the scoring thread has ended; start the station again"):
        worker.score(flat(1), LONG_S)


def test_closing_a_hung_backend_comes_back(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    inspector = FakeInspector()
    worker = start(inspector)
    with pytest.raises(TimeoutError):
        worker.score(flat(255), SHORT_S)
    real = threading.Thread.join
    waits: list[float | None] = []

    def join(thread: threading.Thread, timeout: float | None = None) -> None:
        waits.append(timeout)
        real(thread, SHORT_S)

    monkeypatch.setattr(threading.Thread, "join", join)
    worker.close()
    assert waits == [5]  # a bound, after which the thread, a daemon, is left to the end of the process
    with pytest.raises(TimeoutError):
        worker.score(flat(1), SHORT_S)


def test_the_thread_does_not_keep_the_process_alive(start: Start) -> None:
    start(FakeInspector())
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "inspector")


def test_the_loop_beats_while_it_waits_and_only_then() -> None:
    inspector, beats = FakeInspector(), []

    def beat() -> None:
        beats.append(threading.current_thread())
        if len(beats) == 3:
            inspector.release.set()

    worker = InspectorThread(lambda: inspector, beat)
    assert worker.score(flat(255), LONG_S).value == 255.0
    worker.close()
    assert len(beats) >= 3
    assert set(beats) == {threading.current_thread()}


def test_what_a_beat_raises_ends_the_wait() -> None:
    def beat() -> None:
        raise StationError("the rejector is not there")

    inspector = FakeInspector()
    worker = InspectorThread(lambda: inspector, beat)
    with pytest.raises(StationError, match="the rejector is not there"):
        worker.score(flat(255), LONG_S)
    inspector.release.set()
    worker.close()


def test_a_backend_that_hangs_on_past_its_deadline_is_a_fault_until_it_is_free(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = FakeInspector()
    worker = start(inspector)
    assert worker.fault == ""
    with pytest.raises(TimeoutError):
        worker.score(flat(255), SHORT_S)
    assert worker.fault == ""  # slow, so far
    job = worker._pending
    assert job is not None
    assert job.given_up_s is not None
    real, job.begun_s = time.monotonic, job.given_up_s - 0.15
    monkeypatch.setattr("edge.worker.time.monotonic", lambda: job.begun_s + 3.21)
    assert worker.fault == (
        "one image has been scored for 3210 ms without an end, expected were 150 ms at most: either the backend hangs"
        " (look at `dmesg` and the device), or other programs take the processor (look at `top`)"
    )
    monkeypatch.setattr("edge.worker.time.monotonic", real)
    inspector.release.set()
    assert worker.score(flat(1), LONG_S).value == 1.0
    assert worker.fault == ""
    worker.close()
    assert worker.fault == "the scoring thread has ended"


@pytest.fixture
def looking(tmp_path: Path) -> Iterator[InspectorThread]:
    """A thread with a real inspector that looks at what it scores."""
    write_tiny_bundle(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    worker = InspectorThread(lambda: Inspector(bundle, threads=1), look=True)
    yield worker
    worker.close()


def test_what_a_picture_looks_like_comes_with_its_score(looking: InspectorThread) -> None:
    picture = textured(3)
    seen = looking.score(picture, LONG_S)
    assert isinstance(seen, Seen)
    assert seen.appearance is not None
    measured = looking.ask(lambda inspector: measure(inspector.preprocessor, picture))
    assert np.allclose(seen.appearance, measured, rtol=1e-12)
    assert "appearance" in seen.stages_ms
    assert seen.value == looking.ask(lambda inspector: inspector.score(picture)).value


def test_other_work_is_done_in_the_inspectors_thread_and_its_failure_is_the_askers(start: Start) -> None:
    worker = start(FakeInspector())
    assert worker.ask(lambda _inspector: threading.current_thread().name) == "inspector"
    with pytest.raises(ZeroDivisionError):
        worker.ask(lambda _inspector: 1 // 0)
    assert worker.score(flat(4), LONG_S).value == 4.0


def test_nobody_waits_for_a_thread_that_has_ended(start: Start) -> None:
    worker = start(FakeInspector())
    worker.close()
    with pytest.raises(StationError, match="the scoring thread has ended"):
        worker.ask(lambda _inspector: 1)
