"""What vision is joined to in the simulated plant: its process, its clock, a camera, a scorer, and calls of software."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.soak_plant import MS, START_NS, Part, Plant
from edge.clock import SLICE_S
from edge.trigger import SoftwareTriggers, TimerTriggers
from edge.verdict import Arrival, Frame, Missing
from engines.images import Image
from engines.search import Score

_SLICE_NS = round(SLICE_S * 1e9)
_HUNG_NS = 10**9
_HELD = 8  # frames that wait for the station, as many as `edge.live` holds


class KilledError(BaseException):
    """SIGKILL."""


def picture(part: Part) -> Image:
    """A picture that shows which part it is of, uint8 RGB (1, 2, 3)."""
    image = np.frombuffer(part.number.to_bytes(6, "big"), np.uint8).reshape(1, 2, 3)
    assert not image.flags.writeable
    return image


def shown(image: Image) -> int:
    """The number of the part that a picture is of."""
    return int.from_bytes(image.tobytes(), "big")


class Machine:
    """The vision process as an operating system sees it: it waits, is stopped, is killed."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.killed = False
        self.stopped_until_ns = self.stopped_for_ns = 0
        self.steps_left: int | None = None  # until a kill that was aimed at a step of the journal or of the talk
        self.on_kill: Callable[[], None] = lambda: None

    def kill(self) -> None:
        """Now, wherever it is."""
        self.killed = True
        self.plant.losses.append(self.plant.now_ns)
        self.on_kill()

    def stop(self, for_ns: int) -> None:
        """SIGSTOP, and SIGCONT so much later."""
        self.stopped_for_ns, self.stopped_until_ns = for_ns, self.plant.now_ns + for_ns
        self.plant.losses.append(self.plant.now_ns)

    def step(self) -> None:
        """Something of it becomes visible outside: one of the places where a kill may come."""
        if self.steps_left is not None and not self.killed:
            self.steps_left -= 1
            if self.steps_left <= 0:
                self.kill()
        if self.killed:
            raise KilledError

    def wait(self, until_ns: int, ready: Callable[[], bool] = lambda: False) -> None:
        """Let time go on. A stopped process returns late, a killed one never."""
        plant = self.plant
        plant.run_until(until_ns, lambda: self.killed or self.stopped_until_ns > plant.now_ns or ready())
        if self.stopped_until_ns > plant.now_ns:
            plant.run_until(self.stopped_until_ns, lambda: self.killed)
        if self.killed:
            raise KilledError


class VisionClock:
    """The plant's clock; it beats while somebody sleeps."""

    def __init__(self, machine: Machine, beat: Callable[[], None]) -> None:
        self._machine = machine
        self._beat = beat

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""
        return self._machine.plant.now_ns

    def sleep_until_ns(self, when_ns: int) -> None:
        """Return at `when_ns`, at once if it is past."""
        while (now_ns := self.now_ns()) < when_ns:
            self._machine.wait(min(when_ns, now_ns + _SLICE_NS))
            self._beat()


class PlantCamera:
    """A camera that the trigger line exposes; lost, silent and holding its newest frames as a live one."""

    def __init__(self, machine: Machine, beat: Callable[[], None]) -> None:
        self._machine = machine
        self._beat = beat
        self._held: deque[tuple[int, Image | str]] = deque(maxlen=_HELD)
        self._gone_ns = 0  # when the last frame was taken that was let go, until it is told

    @property
    def healthy(self) -> bool:
        """It was not lost."""
        return not self._machine.plant.camera_fault

    @property
    def status(self) -> str:
        """Why it is not healthy."""
        return self._machine.plant.camera_fault

    def hold(self, captured_ns: int, what: Image | str) -> None:
        """A frame came, or one that is torn. One too many takes the place of the oldest."""
        if len(self._held) == _HELD:
            self._gone_ns = self._held[0][0]
        self._held.append((captured_ns, what))

    def frames(self) -> Iterator[Arrival]:
        """Frames, and a missing one where a part waits for longer than the camera may be silent, or its frame was let go."""
        while True:
            captured_ns, what = self._take()
            if isinstance(what, str):
                yield Missing(0, captured_ns, "camera", what)
            else:
                yield Frame(what, 0, captured_ns, captured_ns, str(shown(what)))

    def close(self) -> None:
        """Nothing to release."""

    def _take(self) -> tuple[int, Image | str]:
        """As a live camera's: no beat between a frame that comes and its being taken."""
        plant = self._machine.plant
        begun_ns = plant.now_ns
        while True:
            if not self._held:
                self._machine.wait(plant.now_ns + _SLICE_NS, lambda: len(self._held) > 0)
            if self._gone_ns > 0:
                gone_ns, self._gone_ns = self._gone_ns, 0
                return gone_ns, "its picture was let go"
            if self._held:
                return self._held.popleft()
            if not self.healthy:
                return plant.now_ns, self.status
            if plant.now_ns - begun_ns >= plant.camera_timeout_ns:
                return plant.now_ns, f"no new frame for {plant.camera_timeout_ns / 1e9:g} s"
            self._beat()


class PlantScorer:
    """Does with each picture what its part's treatment says, as the thread of an inspector would."""

    def __init__(self, machine: Machine, beat: Callable[[], None]) -> None:
        self._machine = machine
        self._beat = beat
        self._busy_until_ns = self._given_up_ns = 0

    @property
    def fault(self) -> str:
        """That it hangs."""
        now_ns = self._machine.plant.now_ns
        hangs = now_ns < self._busy_until_ns and now_ns - self._given_up_ns > _HUNG_NS
        return "the backend hangs in one image" if hangs else ""

    def score(self, image: Image, timeout_s: float) -> Score:
        """Raises TimeoutError where its time is over first, or what the part's treatment says."""
        plant = self._machine.plant
        end_ns = plant.now_ns + round(timeout_s * 1e9)
        treatment = plant.parts[shown(image)].treatment
        if self._busy_until_ns > plant.now_ns:
            self._wait(min(self._busy_until_ns, end_ns))
        if treatment.heeds and plant.now_ns >= end_ns:
            raise TimeoutError("no time left to score")
        done_ns = plant.now_ns + round(treatment.ms * MS)
        if treatment.heeds and done_ns > end_ns:
            self._wait(end_ns)
            self._given_up_ns, self._busy_until_ns = end_ns, done_ns
            raise TimeoutError("no score by the deadline")
        self._wait(done_ns)
        if treatment.error == "memory":
            raise MemoryError
        if treatment.error:
            raise RuntimeError(treatment.error)
        return Score(treatment.score, lambda: np.zeros(1, np.float32))

    def close(self) -> None:
        """Nothing to release."""

    def _wait(self, until_ns: int) -> None:
        while (now_ns := self._machine.plant.now_ns) < until_ns:
            self._machine.wait(min(until_ns, now_ns + _SLICE_NS))
            if self._machine.plant.now_ns < until_ns:
                self._beat()


class _Changed(threading.Condition):
    """A condition that is waited for on the plant's clock."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:  # type: ignore[override]
        """Whether it holds by then. Everything is one thread, so that the lock keeps nobody out meanwhile."""
        assert timeout is not None
        self._machine.wait(self._machine.plant.now_ns + round(timeout * 1e9), predicate)
        return predicate()


class CalledTriggers(SoftwareTriggers):
    """The real triggers by software, waited for on the plant's clock and otherwise as they are."""

    def __init__(self, machine: Machine, clock: VisionClock, beat: Callable[[], None]) -> None:
        super().__init__(clock, beat)
        self._changed = _Changed(machine)


class TimedTriggers(TimerTriggers):
    """The real triggers by a timer, on the grid that the plant's things come by on."""

    def __init__(self, clock: VisionClock, period_ns: int) -> None:
        super().__init__(clock, period_ns)
        self._begun_ns -= (self._begun_ns - START_NS) % period_ns

    def number_at(self, at_ns: int) -> int | None:
        """Number of the part that is due then, None once it takes no more."""
        return None if self._last is not None else (at_ns - self._begun_ns) // self._period_ns
