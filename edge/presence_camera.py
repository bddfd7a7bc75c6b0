"""A camera whose parts are what comes into view: beside the deciding loop where frames come by themselves."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator

from edge import StationError
from edge.camera import Camera, Wrapped
from edge.clock import SLICE_S, Clock
from edge.presence import Presence
from edge.trigger import Trigger
from edge.verdict import Arrival, Frame, Missing


class PresenceCamera(Wrapped):
    """Looks for parts in frames that wait until they are asked for, as a replay's do."""

    def __init__(self, camera: Camera, presence: Presence, clock: Clock, beat: Callable[[], None] = lambda: None) -> None:
        """Join them; the camera is closed with this. `beat` is called at each frame; what it raises ends the run."""
        super().__init__(camera)
        self._presence = presence
        self._clock = clock
        self._beat = beat

    def frames(self) -> Iterator[Arrival]:
        """One arrival for each part. Raises StationError: the camera is lost, or parts cannot be told apart any more."""
        try:
            for frame in self._camera.frames():
                self._beat()
                part = self._presence.see(frame)
                if part is not None:
                    yield part
        except StationError:
            yield from self._last()
            raise
        yield from self._last()

    def _last(self) -> Iterator[Missing]:
        left = self._presence.end(self._clock.now_ns())
        if left is not None:
            yield left


class AheadCamera(Wrapped):
    """Takes the parts of another camera in a thread of its own, so that none is overlooked while another one is judged.

    Attributes:
        counts: `triggered`, and `overflow`: parts that came while `waiting` others waited, which are FAULTs.
    """

    def __init__(
        self, open_camera: Callable[[Callable[[], None]], Camera], beat: Callable[[], None] = lambda: None, waiting: int = 4
    ) -> None:
        """Start the thread.

        Args:
            open_camera: gives the camera; it is told what to call at each frame, which raises to end the thread.
            beat: called again and again while the deciding loop waits for a part; what it raises ends the wait.
            waiting: pictures that may wait to be judged.
        """
        super().__init__(open_camera(self._stop_or_go))
        self._beat = beat
        self._limit = waiting
        self.counts: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._arrivals: deque[Arrival] = deque()
        self._pictures = 0
        self._over = self._stopping = False
        self._failure: StationError | None = None
        self._thread = threading.Thread(target=self._work, name="presence", daemon=True)
        self._thread.start()

    def frames(self) -> Iterator[Arrival]:
        """The parts, in order. Raises StationError: the camera is lost; all parts before that had their arrival."""
        while True:
            self._beat()
            with self._changed:
                self._changed.wait_for(lambda: bool(self._arrivals) or self._over, SLICE_S)
                arrival = self._arrivals.popleft() if self._arrivals else None
                self._pictures -= isinstance(arrival, Frame)
                over = self._over
            if arrival is not None:
                yield arrival
            elif over:
                if self._failure is not None:
                    raise self._failure
                return

    def pending(self) -> list[Trigger]:
        """Parts that came and were not taken yet."""
        with self._changed:
            return [Trigger(arrival.part, arrival.trigger_ns) for arrival in self._arrivals]

    def rest(self, reason: str) -> Iterator[Missing]:
        """Take no more parts; arrivals without a picture for all that came before."""
        self._stopping = True
        with self._changed:
            left = list(self._arrivals)
            self._arrivals.clear()
            self._pictures = 0
        for arrival in left:
            why = arrival.reason if isinstance(arrival, Missing) else reason
            yield Missing(arrival.part, arrival.trigger_ns, arrival.source, why, arrival.part_ref)

    def close(self) -> None:
        """End the thread at its next frame and close the camera; may be called twice."""
        self._stopping = True
        self._camera.close()
        self._thread.join(timeout=5)

    def _stop_or_go(self) -> None:
        if self._stopping:
            raise StationError("closed")

    def _work(self) -> None:
        try:
            for arrival in self._camera.frames():
                self._add(arrival)
        except StationError as error:
            self._failure = error
        except Exception as error:  # whatever a driver raises is handed to the thread that waits
            self._failure = StationError(f"looking for parts failed ({type(error).__name__}: {error}); start the station again")
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _add(self, arrival: Arrival) -> None:
        with self._changed:
            self.counts["triggered"] += 1
            if isinstance(arrival, Frame) and self._pictures >= self._limit:
                self.counts["overflow"] += 1
                fault = f"parts come faster than the station serves them: {self._pictures} waited already"
                arrival = Missing(arrival.part, arrival.trigger_ns, arrival.source, fault)
            self._pictures += isinstance(arrival, Frame)
            self._arrivals.append(arrival)
            self._changed.notify_all()
