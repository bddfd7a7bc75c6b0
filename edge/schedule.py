"""When the reject line rejects: a state machine without threads, clocks or input and output.

A part is known by its trigger. Its window is `[trigger + travel, trigger + travel + pulse)`, along an axis that is time in
nanoseconds or the count of an encoder. The line rejects in the window of every part, unless a PASS for it came by its
deadline, with vision alive from its trigger until its window opens. All times are monotonic nanoseconds.

Vision that is alive says with each beat whether the station is ready. While it is not, no PASS is taken and no part that is
in flight without one, or that triggers then, passes any more. Where a trigger line tells of each part, a PASS that was given
while the station was ready stands: it was decided on its own good picture, and what broke later does not make that untrue.
Where vision announces the parts, whatever comes by may be a part that nobody saw, so everything is rejected, passed parts too,
until what is under way then is past the ejector. The same goes for what is under way when the lines are taken.

Parts whose windows touch, or lie no farther apart than `separation`, share one fate: unless all of them passed, all are
rejected, and the line does not move between them. That is decided when a window opens; a part without a verdict counts as
rejected.
"""

from __future__ import annotations

import bisect
import dataclasses
import enum
from collections import Counter, deque
from dataclasses import dataclass, field

from edge import StationError
from edge.travel import RETIMED, Settings


class Count(enum.IntEnum):
    """What is counted; the numbers travel between processes. docs/guide.md says what to do about each."""

    TRIGGERED = 1
    """Parts that the trigger line saw, or that vision announced."""
    PASSED = 2
    """Parts whose windows opened and that the line let go."""
    REJECTED = 3
    """Parts whose windows opened and that it did not let go, those that only the exit sensor saw among them."""
    NO_VERDICT = 4
    """Rejected parts that no verdict named."""
    NEIGHBOURS = 5
    """Passed parts that were rejected together with a part, perhaps an unseen one, too close to be separated from."""
    REVOKED = 6
    """PASS verdicts that were taken back: vision was lost, stopped, or changed its mind before the window opened."""
    LATE = 7
    """PASS after the deadline, or for a part that was in flight when vision was lost or the station not ready."""
    DUPLICATE = 8
    """Further verdicts for a part that has one; a reject takes a PASS back."""
    UNKNOWN = 9
    """Verdicts for parts that never triggered or are long gone."""
    OUT_OF_ORDER = 10
    """PASS for a part after one for a later part; it is not taken."""
    VISION_LOST = 11
    """How often vision was lost without a goodbye: its heartbeats stayed away, or its process ended."""
    UNTRIGGERED = 12
    """Parts that only the exit sensor saw."""
    NOT_SEEN = 13
    """Parts that triggered and did not come by the exit sensor."""
    UNCONFIRMED = 14
    """Rejected parts that the confirm sensor did not see; the first one stops the station."""
    STRAY_CONFIRM = 15
    """Times that the confirm sensor saw something while no rejected part was expected."""
    MISSED = 16
    """Windows of rejected parts of which less than half was left when they could be opened; the first one stops the station."""
    BAD_TRIGGER = 17
    """Announcements in the future, or numbered out of order: such a part never passes."""
    CLOCK_BACK = 18
    """How often the clock went back; it is taken to stand still then."""
    NOT_READY = 19
    """How often the station, with vision alive, stopped being ready."""


_FIELDS = tuple(field.name for field in dataclasses.fields(Settings))


@dataclass(frozen=True)
class Outputs:
    """Levels wanted now. `fault` stays until the process is started again."""

    reject: bool
    ready: bool
    fault: bool


@dataclass(eq=False)
class _Part:
    number: int
    trigger_ns: int
    start: int
    end: int
    timing: Settings  # those that it triggered with
    hopeless: bool = False  # whatever comes, it is rejected
    passed: bool = False
    judged: bool = False
    seen: bool = False
    fate: bool | None = None  # once its window opened: True is rejected
    opened_ns: int = 0
    closed_ns: int | None = None


@dataclass
class Schedule:
    """The state machine. Call `advance` at `next_ns` at the latest, and after every other call look at `outputs`.

    Attributes:
        counts: what happened so far.
        stopped: why it stopped for good, "" while it works.
    """

    settings: Settings
    counts: Counter[Count] = field(default_factory=Counter)
    stopped: str = ""

    def __post_init__(self) -> None:
        """Start without parts and with vision not alive."""
        self._parts: list[_Part] = []  # in flight, by start
        self._unconfirmed: deque[_Part] = deque()
        self._now_ns = 0
        self._count = 0
        self._longest = self.settings.separation + self.settings.pulse  # of all timings so far
        self._alive = False
        self._ready = False  # as the last beat said
        self._clear = 0  # position up to which there may be parts under way that nobody told of
        self._silent_ns = 0  # vision is lost from then on
        self._triggered = 0  # the last part's number
        self._passed = 0  # the highest number that a PASS named

    @property
    def outputs(self) -> Outputs:
        """The levels now."""
        stopped, ready = self.stopped != "", self._passes()
        everything = stopped or (self.settings.announced and not ready) or self._position < self._clear
        return Outputs(reject=everything or self._in_window(), ready=ready and not stopped, fault=stopped)

    @property
    def in_flight(self) -> int:
        """Parts whose windows have not closed."""
        return sum(part.closed_ns is None for part in self._parts)

    @property
    def next_ns(self) -> int | None:
        """When to call `advance` next at the latest; None when nothing is due."""
        due = [self._silent_ns] if self._alive else []
        if not self.settings.encoder:
            due += [self._clear] if self._position < self._clear else []
            due += [part.start if part.fate is None else part.end for part in self._parts if part.closed_ns is None]
        if self.settings.confirm_ns is not None:
            due += [part.closed_ns + self.settings.confirm_ns for part in self._unconfirmed if part.closed_ns is not None]
        return min(due, default=None)

    def begin(self, now_ns: int) -> None:
        """The lines were taken just now: whatever is between trigger and ejector already is rejected."""
        self.advance(now_ns)
        self._distrust()

    def retime(self, now_ns: int, settings: Settings) -> None:
        """Parts that trigger from now on travel otherwise; those in flight keep what they triggered with.

        Raises:
            StationError: more than travel, pulse, separation and deadline would change.
        """
        self.advance(now_ns)
        changed = {name for name in _FIELDS if getattr(settings, name) != getattr(self.settings, name)}
        if changed - RETIMED.keys():
            raise StationError(
                f"{', '.join(sorted(changed - RETIMED.keys()))} cannot change while it runs; start the station again"
            )
        self._longest = max(self._longest, settings.separation + settings.pulse)
        if self.settings.announced:
            self._distrust()  # what nobody told of may still travel as before
        self.settings = settings

    def trigger(self, now_ns: int, at_ns: int) -> int:
        """A part passed the trigger line at `at_ns`; returns its number."""
        self.advance(now_ns)
        self._triggered += 1
        at_ns = min(at_ns, self._now_ns)  # a stamp of another clock must not put the window off
        self._add(self._triggered, at_ns, self._count if self.settings.encoder else at_ns)
        return self._triggered

    def announce(self, now_ns: int, number: int, trigger_ns: int) -> None:
        """Vision says that a part triggered at `trigger_ns`. One that cannot be right is rejected."""
        self.advance(now_ns)
        part = self._add(number, min(trigger_ns, self._now_ns), min(trigger_ns, self._now_ns))
        if number <= self._triggered or trigger_ns > self._now_ns:
            part.hopeless = True
            self.counts[Count.BAD_TRIGGER] += 1
        self._triggered = max(self._triggered, number)

    def verdict(self, now_ns: int, number: int, passed: bool) -> None:
        """Vision's verdict. Only the first one of a part, in order and in time, makes it pass; a reject always holds.

        A PASS out of order is taken for one of another part. A reject may come ahead of its turn, as that of a part does
        which was given up because too many wait.
        """
        self.advance(now_ns)
        in_order = number > self._passed
        if passed:
            self._passed = max(number, self._passed)
        part = next((part for part in self._parts if part.number == number and number > 0), None)
        if part is None:
            self.counts[Count.UNKNOWN] += 1
        elif part.judged:
            self.counts[Count.DUPLICATE] += 1
        elif passed and not in_order:
            self.counts[Count.OUT_OF_ORDER] += 1
        elif passed:
            in_time = self._now_ns - part.trigger_ns <= part.timing.deadline_ns and part.fate is None
            part.passed = in_time and not part.hopeless
            self.counts[Count.LATE] += not part.passed
        if part is not None:
            part.judged = True
            if not passed:
                self._revoke(part)

    def heartbeat(self, now_ns: int, ready: bool) -> None:
        """Vision's deciding loop turns, and its station is ready or not."""
        self.advance(now_ns)
        before = self._passes()
        self._alive, self._ready = True, ready
        self._silent_ns = self._now_ns + self.settings.heartbeat_ns
        if before and not ready:
            self.counts[Count.NOT_READY] += 1
            self._give_up(keep_passed=not self.settings.announced)
        if ready and not before and self.settings.announced:
            self._distrust()

    def lose(self, now_ns: int, *, goodbye: bool = False) -> None:
        """Vision is gone: no part in flight passes any more, nor does one that triggers before its next heartbeat.

        It counts as lost unless it said goodbye.
        """
        self.advance(now_ns)
        self._alive = self._alive and not goodbye
        self._lose()

    def encode(self, now_ns: int, pulses: int = 1) -> None:
        """The encoder moved on."""
        self.advance(now_ns)
        for _ in range(pulses):
            self._count += 1
            self._move()

    def confirm(self, now_ns: int, at_ns: int) -> None:
        """The confirm sensor saw a rejected part; to be told before anything else of the same time."""
        self._tick(now_ns)
        part = next((part for part in self._unconfirmed if part.opened_ns <= at_ns), None)
        if part is None:
            self.counts[Count.STRAY_CONFIRM] += 1
        else:
            self._unconfirmed.remove(part)
        self.advance(now_ns)

    def exit(self, now_ns: int, at_ns: int) -> None:
        """The exit sensor saw a part at `at_ns`; one that no trigger announced is rejected."""
        self.advance(now_ns)
        assert self.settings.exit is not None
        at = self._count if self.settings.encoder else min(at_ns, self._now_ns)
        trigger = at - self.settings.exit
        for part in self._parts:
            if not part.seen and abs(part.start - part.timing.travel - trigger) <= self.settings.tolerance:
                part.seen = True
                return
        self.counts[Count.UNTRIGGERED] += 1
        self._add(0, self._now_ns, trigger).seen = True  # no verdict can name it

    def advance(self, now_ns: int) -> None:
        """Bring everything up to now. A clock that went back is taken to stand still."""
        self._tick(now_ns)
        confirm_ns = self.settings.confirm_ns
        if confirm_ns is not None:
            while self._unconfirmed and self._overdue(self._unconfirmed[0], confirm_ns):
                part = self._unconfirmed.popleft()
                self.counts[Count.UNCONFIRMED] += 1
                self._stop(f"{_name(part)} was rejected and the confirm sensor did not see it")

    @property
    def _position(self) -> int:
        return self._count if self.settings.encoder else self._now_ns

    def _passes(self) -> bool:
        """Whether a part that triggers now may pass."""
        return self._alive and self._ready

    def _distrust(self) -> None:
        settings = self.settings
        self._clear = max(self._clear, self._position + settings.travel + settings.pulse + settings.separation)

    def _doomed(self, part: _Part) -> bool:
        """Whether a part is rejected, neighbours apart: for itself, or because one that nobody told of may be beside it."""
        return not part.passed or part.start < self._clear

    def _tick(self, now_ns: int) -> None:
        if now_ns < self._now_ns:
            self.counts[Count.CLOCK_BACK] += 1
        self._now_ns = max(now_ns, self._now_ns)
        if self._alive and self._now_ns >= self._silent_ns:
            self._lose()
        self._move()

    def _overdue(self, part: _Part, confirm_ns: int) -> bool:
        return part.closed_ns is not None and self._now_ns >= part.closed_ns + confirm_ns

    def _add(self, number: int, trigger_ns: int, trigger: int) -> _Part:
        start = trigger + self.settings.travel
        hopeless = not self._passes() or self.stopped != ""
        part = _Part(number, trigger_ns, start, start + self.settings.pulse, self.settings, hopeless)
        bisect.insort(self._parts, part, key=lambda other: other.start)
        self.counts[Count.TRIGGERED] += number > 0
        return part

    def _move(self) -> None:
        """Open and close windows up to the position now."""
        position = self._position
        for index, part in enumerate(self._parts):
            if part.start > position:
                break
            if part.fate is None:
                self._settle(index, position)
            if part.closed_ns is None and part.end <= position:
                part.closed_ns = self._now_ns if self.settings.encoder else part.end
        reach = position - self._longest  # what ended before has no neighbour yet to come
        while self._parts and self._parts[0].closed_ns is not None and self._parts[0].end < reach:
            self._parts.pop(0)

    def _settle(self, index: int, position: int) -> None:
        part = self._parts[index]
        part.fate = self._doomed(part) or self._shares_a_reject(index)
        part.opened_ns = self._now_ns if self.settings.encoder else part.start
        self.counts[Count.NOT_SEEN] += self.settings.exit is not None and not part.seen
        if not part.fate:
            self.counts[Count.PASSED] += 1
            return
        self.counts[Count.REJECTED] += 1
        self.counts[Count.NO_VERDICT] += not part.judged
        self.counts[Count.NEIGHBOURS] += part.passed
        if 2 * (position - part.start) > part.timing.pulse:
            self.counts[Count.MISSED] += 1
            self._stop(f"{_name(part)} was at the ejector before the line could reject it")
        if self.settings.confirm_ns is not None:
            self._unconfirmed.append(part)

    def _shares_a_reject(self, index: int) -> bool:
        """Whether a part that cannot be separated from this one is rejected, through neighbours of neighbours."""
        group: list[_Part] = []
        end = reach = 0
        for number, part in enumerate(self._parts):
            if group and part.start > reach and part.start - part.timing.separation > end:
                if number > index:
                    break
                group = []
            end = max(end, part.end) if group else part.end
            reach = max(reach, part.end + part.timing.separation) if group else part.end + part.timing.separation
            group.append(part)
        return any(part.fate or (part.fate is None and self._doomed(part)) for part in group if part is not self._parts[index])

    def _in_window(self) -> bool:
        position = self._position
        following = next((part for part in self._parts if part.fate is None), None)
        for part in self._parts:
            if not part.fate:
                continue
            held = following is not None and following.start - part.end <= _separation(part, following)
            if part.start <= position < part.end or (held and following is not None and position < following.start):
                return True
        return False

    def _lose(self) -> None:
        self.counts[Count.VISION_LOST] += self._alive
        self._alive = False
        self._give_up()

    def _stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        self._give_up()

    def _give_up(self, *, keep_passed: bool = False) -> None:
        """No part whose window has not opened passes any more, but for those that have their PASS where that is kept."""
        for part in self._parts:
            if not (keep_passed and part.passed):
                part.hopeless = True
                self._revoke(part)

    def _revoke(self, part: _Part) -> None:
        if part.passed and part.fate is None:
            part.passed = False
            self.counts[Count.REVOKED] += 1


def _separation(one: _Part, other: _Part) -> int:
    """How far apart the line can tell the two: of different timings the larger distance holds."""
    return max(one.timing.separation, other.timing.separation)


def _name(part: _Part) -> str:
    return f"part {part.number}" if part.number > 0 else "a part that never triggered"
