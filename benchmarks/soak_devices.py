"""What vision is joined to in the simulated plant: its process, its clock, a camera, a scorer, and calls of software."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.soak_plant import MS, Part, Plant
from edge.clock import SLICE_S
from edge.trigger import SoftwareTriggers, Trigger
from edge.verdict import Arrival, Frame, Missing
from engines.images import Image
from engines.search import Score

CAMERA_TIMEOUT_NS = 100 * MS
_SLICE_NS = round(SLICE_S * 1e9)
_HUNG_NS = 10**9
_HELD = 32  # frames that wait for the station


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
    """A camera that the trigger line exposes; lost and silent as a live one."""

    def __init__(self, machine: Machine, beat: Callable[[], None]) -> None:
        self._machine = machine
        self._beat = beat
        self.held: deque[tuple[int, Image | str]] = deque(maxlen=_HELD)

    @property
    def healthy(self) -> bool:
        """It was not lost."""
        return not self._machine.plant.camera_fault

    @property
    def status(self) -> str:
        """Why it is not healthy."""
        return self._machine.plant.camera_fault

    def frames(self) -> Iterator[Arrival]:
        """Frames, and a missing one where a part waits for longer than the camera may be silent."""
        plant = self._machine.plant
        while True:
            begun_ns = plant.now_ns
            while not self.held:
                if not self.healthy:
                    yield Missing(0, plant.now_ns, "camera", self.status)
                elif plant.now_ns - begun_ns >= CAMERA_TIMEOUT_NS:
                    yield Missing(0, plant.now_ns, "camera", "no new frame for 0.1 s")
                else:
                    self._machine.wait(plant.now_ns + _SLICE_NS, lambda: len(self.held) > 0)
                    self._beat()
                    continue
                begun_ns = plant.now_ns
            captured_ns, what = self.held.popleft()
            if isinstance(what, str):
                yield Missing(0, captured_ns, "camera", what)
            else:
                yield Frame(what, 0, captured_ns, captured_ns, str(shown(what)))

    def close(self) -> None:
        """Nothing to release."""


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
        done_ns = plant.now_ns + round(treatment.ms * MS)
        if treatment.heeds and done_ns > end_ns:
            self._wait(end_ns)
            self._given_up_ns, self._busy_until_ns = end_ns, max(done_ns, self._busy_until_ns)
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


class CalledTriggers(SoftwareTriggers):
    """The real triggers by software, waited for on the plant's clock."""

    def __init__(self, machine: Machine, clock: VisionClock, beat: Callable[[], None]) -> None:
        super().__init__(clock, beat)
        self._machine = machine

    def next(self, timeout_s: float) -> Trigger | None:
        """The next one, None when there was none in time."""
        found = super().next(0.0)
        if found is None and timeout_s > 0 and not self.ended:
            self._machine.wait(self._machine.plant.now_ns + round(timeout_s * 1e9), lambda: len(self.pending()) > 0)
            found = super().next(0.0)
        return found
