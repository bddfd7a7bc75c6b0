"""One thread that owns the inspector, so that the deciding loop can stop waiting when a deadline passes."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from calibration.appearance import measure_resized
from edge import StationError
from edge.clock import SLICE_S
from engines.images import Image
from engines.inspector import Inspector
from engines.search import Score, elapsed_ms

_LOOKED_S = 0.1
_HUNG_S = 1.0  # a job given up that runs on for so much longer is more than a slow one


class Scorer(Protocol):
    """Scores one image within a time.

    Attributes:
        fault: why no part can be scored now, "" where it can; read by the deciding loop, and so at once.
    """

    @property
    def fault(self) -> str: ...

    def score(self, image: Image, timeout_s: float) -> Score:
        """The score. Raises TimeoutError when there is none in time, or what scoring raised."""

    def close(self) -> None:
        """Release the backend; may be called twice."""


@dataclass(frozen=True)
class Seen(Score):
    """A score, and beside it what the picture looked like: float64 (6,), of `calibration.appearance.measure`."""

    appearance: npt.NDArray[np.float64] | None = field(default=None, compare=False)


_T = TypeVar("_T")


class _Job(Generic[_T]):
    def __init__(self, work: Callable[[Inspector], _T]) -> None:
        self.work = work
        self.done = threading.Event()
        self.result: _T | None = None
        self.begun_s = time.monotonic()
        self.given_up_s: float | None = None
        self.error: BaseException | None = None

    def taken(self) -> _T:
        """The result of a job that is done, or what it raised."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class InspectorThread:
    """Opens an inspector in a thread of its own and scores there.

    A job that misses its time is given up: its late result goes nowhere. Until the thread is free again, every further
    part waits out its own time and misses it too, so a hung backend rejects parts rather than passing them.
    """

    def __init__(
        self, open_inspector: Callable[[], Inspector], beat: Callable[[], None] = lambda: None, *, look: bool = False
    ) -> None:
        """Start the thread and wait until the inspector is open. Raises what opening raised.

        Args:
            open_inspector: called in the thread.
            beat: called again and again while somebody waits for a score; what it raises ends the wait.
            look: give `Seen`, with what each picture looked like, for drift to be watched.
        """
        self._beat = beat
        self._work_on = _score_and_look if look else _score
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._pending: _Job[Score] | None = None
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(open_inspector,), name="inspector", daemon=True)
        self._thread.start()
        self._opened.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def fault(self) -> str:
        """That the thread has ended, or hangs in a job that was given up a second ago; "" otherwise."""
        if not self._thread.is_alive():
            return "the scoring thread has ended"
        job = self._pending
        if job is None or job.given_up_s is None or job.done.is_set():
            return ""
        now_s = time.monotonic()
        if now_s - job.given_up_s <= _HUNG_S:
            return ""
        took_ms, allowed_ms = 1e3 * (now_s - job.begun_s), 1e3 * (job.given_up_s - job.begun_s)
        return (
            f"one image has been scored for {took_ms:.0f} ms without an end, expected were {allowed_ms:.0f} ms at most: either"
            " the backend hangs (look at `dmesg` and the device), or other programs take the processor (look at `top`)"
        )

    def score(self, image: Image, timeout_s: float) -> Score:
        """Score uint8 RGB (H, W, 3). Raises TimeoutError when late, StationError after close, or what scoring raised."""
        if not self._thread.is_alive():
            raise StationError("the scoring thread has ended; start the station again")
        end = time.monotonic() + timeout_s
        if self._pending is not None and not self._wait(self._pending, end):
            raise TimeoutError("still busy with an earlier part")
        if time.monotonic() >= end:  # a job that is late already would only hold up the next part
            raise TimeoutError("no time left to score")
        job = _Job(functools.partial(self._work_on, image))
        self._pending = job
        self._jobs.put(job)
        if not self._wait(job, end):
            job.given_up_s = time.monotonic()
            raise TimeoutError("no score by the deadline")
        self._pending = None
        return job.taken()

    def ask(self, work: Callable[[Inspector], _T]) -> _T:
        """Have something else done with the inspector, between two images, however long it takes.

        For any thread but the deciding one, while no part can pass: a part that comes meanwhile misses its time.

        Raises:
            StationError: the thread has ended. Whatever else `work` raises.
        """
        job = _Job(work)
        self._jobs.put(job)
        while not job.done.wait(_LOOKED_S):
            if not self._thread.is_alive() and not job.done.is_set():
                raise StationError("the scoring thread has ended; start the station again")
        return job.taken()

    def close(self) -> None:
        """End the thread after the job at hand; may be called twice."""
        self._jobs.put(None)
        self._thread.join(timeout=5)

    def _wait(self, job: _Job[Any], end: float) -> bool:
        while not job.done.wait(max(0.0, min(SLICE_S, end - time.monotonic()))):
            if time.monotonic() >= end:
                return False
            self._beat()
        return True

    def _work(self, open_inspector: Callable[[], Inspector]) -> None:
        try:
            inspector = open_inspector()
        except BaseException as error:  # handed to the thread that waits
            self._failure = error
            self._opened.set()
            return
        self._opened.set()
        with inspector:
            while (job := self._jobs.get()) is not None:
                try:
                    job.result = job.work(inspector)
                except BaseException as error:  # handed to the thread that waits; the station goes on
                    job.error = error
                job.done.set()


def _score(image: Image, inspector: Inspector) -> Score:
    return inspector.score(image)


def _score_and_look(image: Image, inspector: Inspector) -> Score:
    begun_ns = time.perf_counter_ns()
    resized = inspector.preprocessor.resized(image)
    resize_ms = elapsed_ms(begun_ns)
    score = inspector.score_resized(resized)
    begun_ns = time.perf_counter_ns()
    appearance = measure_resized(inspector.preprocessor, resized)
    stages_ms = {**score.stages_ms, "appearance": elapsed_ms(begun_ns)}
    stages_ms["preprocess"] += resize_ms
    return Seen(score.value, score.patches, stages_ms, appearance)
