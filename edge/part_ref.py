"""The factory's own name for a part (lot, serial number, order): where it comes from, and which part it belongs to."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from edge import StationError
from edge.camera import Camera, Wrapped
from edge.clock import Clock
from edge.verdict import Arrival

LONGEST = 128
Note = Callable[[str, Mapping[str, object]], None]
"""Journals an event from any thread: its name and details."""

_HELD = 64  # references in a queue, or changes of one that holds
_NOTE_NS = 10 * 10**9  # events wait in memory for the next part's row
_POLL_S = 0.1
_FILE_BYTES = 4096


def check_ref(text: str) -> str:
    """A reference without blanks around it. Raises StationError: empty, above 128 characters, or not printable."""
    text = text.strip(" \t\r\n")
    if not 0 < len(text) <= LONGEST:
        raise StationError(f"a part's reference of {len(text)} characters, expected 1 to {LONGEST}")
    bad = next((character for character in text if not character.isprintable()), None)
    if bad is not None:
        raise StationError(f"a part's reference with the character U+{ord(bad):04X}, expected printable ones")
    return text


class Refusals:
    """Journals what was refused, from any thread: at most one event in 10 s, with how many there were since the last."""

    def __init__(self, note: Note, clock: Clock) -> None:
        """`note` journals; `clock` spaces the events."""
        self._note = note
        self._clock = clock
        self._lock = threading.Lock()
        self._next_ns = 0
        self._since = 0
        self.count = 0

    def add(self, source: str, reason: str) -> None:
        """One was refused."""
        with self._lock:
            self.count += 1
            self._since += 1
            now_ns = self._clock.now_ns()
            if now_ns >= self._next_ns:
                self._next_ns = now_ns + _NOTE_NS
                self._note("part_ref refused", {"source": source, "reason": reason, "refused": self._since})
                self._since = 0


class References(Protocol):
    """Gives each part its reference. Parts are asked for in the order of their triggers.

    Attributes:
        counts: what became of references, by name.
    """

    counts: Counter[str]

    def take(self, trigger_ns: int) -> str | None:
        """The reference of the part that triggered at `trigger_ns`, monotonic; None where it has none."""

    def close(self) -> None:
        """End what reads them; may be called twice."""


class HeldReferences:
    """A reference that holds for all parts that trigger after it was set, until it is set again. From any thread."""

    def __init__(self, clock: Clock) -> None:
        """Start without one; `clock` is the one that triggers were taken with."""
        self._clock = clock
        self._lock = threading.Lock()
        self._changes: deque[tuple[int, str | None]] = deque(maxlen=_HELD)
        self.counts: Counter[str] = Counter()

    def set(self, part_ref: str | None) -> None:
        """From now on this one; None for none. It was checked."""
        with self._lock:
            self._changes.append((self._clock.now_ns(), part_ref))
            self.counts["references set"] += 1

    def take(self, trigger_ns: int) -> str | None:
        """The one that was set last before the trigger."""
        with self._lock:
            while len(self._changes) > 1 and self._changes[1][0] <= trigger_ns:
                self._changes.popleft()
            return self._changes[0][1] if self._changes and self._changes[0][0] <= trigger_ns else None

    def close(self) -> None:
        """Nothing to end."""


class QueuedReferences:
    """References in order, one for each part: of a scanner that every part passes before it triggers.

    A reference belongs to the first part that triggers between `min_age` and `max_age` after it was read. With these set to
    the way from scanner to trigger, a label that was not read leaves its own part without a reference and moves no other's.
    One that no part took in its time is dropped and counted as surplus.
    """

    def __init__(self, clock: Clock, *, min_age_ns: int, max_age_ns: int) -> None:
        """Start without one; `clock` is the one that triggers were taken with."""
        self._clock = clock
        self._min_age_ns = min_age_ns
        self._max_age_ns = max_age_ns
        self._lock = threading.Lock()
        self._read: deque[tuple[int, str]] = deque()
        self.counts: Counter[str] = Counter()

    def add(self, part_ref: str) -> None:
        """One was read now, by any thread. It was checked."""
        with self._lock:
            self.counts["references read"] += 1
            if len(self._read) == _HELD:
                self._drop()
            self._read.append((self._clock.now_ns(), part_ref))

    def take(self, trigger_ns: int) -> str | None:
        """The first one that is neither too old nor too young."""
        with self._lock:
            while self._read and trigger_ns - self._read[0][0] > self._max_age_ns:
                self._drop()
            if not self._read or trigger_ns - self._read[0][0] < self._min_age_ns:
                self.counts["parts without reference"] += 1
                return None
            return self._read.popleft()[1]

    def close(self) -> None:
        """Nothing to end."""

    def _drop(self) -> None:
        self._read.popleft()
        self.counts["references surplus"] += 1


class FileReferences:
    """The content of a file that another system rewrites: it holds for parts that trigger after the station saw it.

    The station looks every 100 ms and takes what it saw unchanged twice, so that a file that is half written is not believed.
    Without the file, or with a content that is refused, parts have no reference rather than the last one.
    """

    def __init__(self, path: Path, clock: Clock, refusals: Refusals, *, poll_s: float = _POLL_S) -> None:
        """Start to look, in a thread: a file on a share that hangs holds up no part."""
        self._path = path
        self._refusals = refusals
        self._held = HeldReferences(clock)
        self.counts = self._held.counts
        self._seen: bytes | None = None  # what the last look found, and whether it was taken
        self._taken = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if poll_s > 0:
            self._thread = threading.Thread(target=self._poll, args=(poll_s,), name="part_ref", daemon=True)
            self._thread.start()

    def look(self) -> None:
        """Look once."""
        reason = ""
        try:
            with self._path.open("rb") as file:
                content = file.read(_FILE_BYTES)
        except OSError as error:
            content, reason = None, f"cannot be read ({error.strerror or error})"
        if content != self._seen:
            self._seen, self._taken = content, False
            return
        if self._taken:
            return
        self._taken = True
        if content is not None:
            try:
                self._held.set(check_ref(content.decode("utf-8", errors="surrogateescape")) if content.strip() else None)
                return
            except StationError as error:
                reason = str(error)
        self._held.set(None)
        self._refusals.add(str(self._path), reason)

    def take(self, trigger_ns: int) -> str | None:
        """What the file held when the part triggered."""
        return self._held.take(trigger_ns)

    def close(self) -> None:
        """End the thread; may be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1)

    def _poll(self, poll_s: float) -> None:
        self.look()
        while not self._stop.wait(poll_s):
            self.look()


class ReferencedCamera(Wrapped):
    """A camera whose parts have references. One that came with a trigger is kept, and uses up the one of its turn."""

    def __init__(self, camera: Camera, references: References) -> None:
        """Join the two; the camera is closed with this."""
        super().__init__(camera)
        self._references = references

    def frames(self) -> Iterator[Arrival]:
        """The camera's arrivals. Raises StationError when it is lost."""
        return self.refer(self._camera.frames())

    def refer(self, arrivals: Iterable[Arrival]) -> Iterator[Arrival]:
        """Arrivals with their references: the camera's, or those that it has not given when the station ends."""
        for arrival in arrivals:
            part_ref = self._references.take(arrival.trigger_ns)
            yield arrival if arrival.part_ref is not None else dataclasses.replace(arrival, part_ref=part_ref)
