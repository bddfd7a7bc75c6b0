"""The reject line as the deciding loop sees it: a process that rejects by itself, and the count that stands in for it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import edge
from edge import StationError
from edge.rejector_process import Setup
from edge.schedule import Count
from edge.travel import RETIMED, Settings
from edge.verdict import Verdict
from edge.wire import Flag, Kind, Message, pair, receive, send

_START_NS = 10 * 10**9
_END_S = 2.0
_END_NS = round(_END_S * 1e9)
_DRAIN_NS = 5 * 10**9
_HUNG = 10  # heartbeats that the rejector may be silent for


class Rejector(Protocol):
    """Acts on verdicts. Rejects until told otherwise: only a PASS lets a part go."""

    def beat(self) -> None:
        """Called by the deciding loop, also while it waits: without this every part is rejected. Raises StationError."""

    def set_ready(self, ready: bool) -> None:
        """From now on the station is ready, or nothing may pass; it is not, until this is called. Raises StationError."""

    def announce(self, part: int, trigger_ns: int) -> None:
        """A part triggered, monotonic ns. Raises StationError when the line cannot be driven."""

    def retime(self, settings: Settings) -> None:
        """Parts that trigger from now on travel so; those in flight keep what they triggered with. Raises StationError."""

    def apply(self, verdict: Verdict) -> None:
        """Act on one part. Raises StationError when the line cannot be driven."""

    def close(self) -> None:
        """Return to rejecting and release the line; may be called twice."""


class DryRunRejector:
    """Drives no line and counts what it would have done.

    Attributes:
        passed, rejected: parts so far.
        rejecting: the level the line would have now; True before the first part and after `close`.
    """

    def __init__(self) -> None:
        self.passed = 0
        self.rejected = 0
        self.rejecting = True

    def beat(self) -> None:
        """Nothing watches."""

    def set_ready(self, ready: bool) -> None:
        """Reject from here on where the station is not ready."""
        self.rejecting = self.rejecting or not ready

    def announce(self, part: int, trigger_ns: int) -> None:
        """Nothing travels."""

    def retime(self, settings: Settings) -> None:
        """Nothing travels."""

    def apply(self, verdict: Verdict) -> None:
        """Count one part."""
        self.rejecting = verdict.outcome.rejects
        if self.rejecting:
            self.rejected += 1
        else:
            self.passed += 1

    def close(self) -> None:
        """Reject from here on."""
        self.rejecting = True


class WireRejector:
    """Tells the process at the other end of a socket what was decided. Once anything fails, every call raises StationError.

    Attributes:
        priority: real-time priority that the process got, 0 for none.
        locked: its memory stays in RAM.
        announced: parts are announced by the station, not by a trigger line.
        ready: the level of the ready line, as last heard.
        counts: what it counted, complete after `close`.
        triggers: parts of the trigger line that nobody took yet: (number, monotonic ns).
        codes: that the recipe lines said and nobody took yet.
    """

    def __init__(self, settings: Settings, vision: socket.socket, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Talk by `vision`, which is closed with this; nothing is awaited yet."""
        self._settings = settings
        self._heartbeat_ns = settings.heartbeat_ns
        self.announced = settings.announced
        self.priority = 0
        self.locked = False
        self.ready = False
        self.counts: Counter[Count] = Counter()
        self.triggers: deque[tuple[int, int]] = deque()
        self._station_ready = False
        self.codes: deque[int] = deque()
        self._failure = ""
        self._said_bye = self._closed = False
        self._beat_ns = self._heard_ns = self._looked_ns = 0
        self._told_ns = 0  # it told of all parts that triggered by then
        self._socket = vision
        self._now_ns = now_ns

    def beat(self) -> None:
        """Tell that the deciding loop turns, and hear what the process has to say."""
        now_ns = self._now_ns()
        if now_ns - self._looked_ns > _HUNG * self._heartbeat_ns // 2:
            self._heard_ns = now_ns  # this side was held up itself
        self._looked_ns = now_ns
        self._hear()
        if now_ns - self._heard_ns > _HUNG * self._heartbeat_ns:
            self._failure = f"it has been silent for {(now_ns - self._heard_ns) / 1e6:.0f} ms"
        if now_ns >= self._beat_ns:
            self._beat_ns = now_ns + self._heartbeat_ns // 4
            self._tell(Message(Kind.BEAT, int(self._station_ready)))
        self._refuse()

    def set_ready(self, ready: bool) -> None:
        """Tell at once, and with each beat from now on, whether the station is ready."""
        if ready != self._station_ready:
            self._station_ready = ready
            self._beat_ns = 0
            self.beat()

    def announce(self, part: int, trigger_ns: int) -> None:
        """Tell of a part, unless a trigger line tells the process itself."""
        if self.announced:
            self._tell(Message(Kind.ANNOUNCE, part, trigger_ns))
            self._refuse()

    def retime(self, settings: Settings) -> None:
        """Tell how parts that trigger from now on travel."""
        for name, number in RETIMED.items():
            self._tell(Message(Kind.TIMING, number, getattr(settings, name)))
        self._settings = settings
        self._refuse()

    def apply(self, verdict: Verdict) -> None:
        """Tell one verdict."""
        self._hear()
        self._tell(Message(Kind.VERDICT, verdict.part, int(not verdict.outcome.rejects)))
        self._refuse()

    def next_trigger(self, timeout_s: float) -> tuple[int, int] | None:
        """The next part of the trigger line, (number, monotonic ns); None when there was none in time.

        Raises StationError: the rejector is lost, and no part is left that was heard of before.
        """
        end_ns = self._now_ns() + round(timeout_s * 1e9)
        while True:
            if not self.triggers:
                self.beat()
            if self.triggers:
                return self.triggers.popleft()
            left_ns = end_ns - self._now_ns()
            if left_ns <= 0:
                return None
            self._wait(min(left_ns, self._heartbeat_ns // 4))

    def told_until(self, at_ns: int, timeout_s: float) -> bool:
        """Whether it has told of every part of the trigger line up to `at_ns`, monotonic ns; asks it where that is not known.

        Raises StationError: the rejector is lost.
        """
        end_ns = self._now_ns() + round(timeout_s * 1e9)
        self._hear()
        if self._told_ns < at_ns:
            self._tell(Message(Kind.BEAT, int(self._station_ready)))  # which it answers at once
        while True:
            self._refuse()
            left_ns = end_ns - self._now_ns()
            if self._told_ns >= at_ns or left_ns <= 0:
                return self._told_ns >= at_ns
            self._wait(left_ns)
            self._hear()

    def drain(self) -> None:
        """Wait, beating, until the parts in flight are past the ejector, where that takes no more than five seconds."""
        settings = self._settings
        flight_ns = settings.travel + settings.pulse
        if not settings.encoder and flight_ns <= _DRAIN_NS:
            end_ns = self._now_ns() + flight_ns
            while self._now_ns() < end_ns:
                self._wait(settings.heartbeat_ns // 8)
                self.beat()

    def close(self) -> None:
        """Have all parts rejected, take the report and end the process; may be called twice."""
        if self._closed:
            return
        self._closed = True
        if not self._failure:
            self._tell(Message(Kind.BYE))
        end_ns = self._now_ns() + _END_NS
        while not self._failure and not self._said_bye and self._now_ns() < end_ns:
            self._wait(10**8)
            self._hear()
        self._socket.close()
        self._end_process()
        self._failure = self._failure or "it was closed"

    def _wait(self, timeout_ns: int) -> None:
        """Until there is something to hear, or the time is over."""
        select.select([self._socket], [], [], timeout_ns / 1e9)

    def _end_process(self) -> None:
        """The socket was closed: see to it that the process ends."""

    def _how_it_ended(self) -> str:
        """What became of the process, which closed its end."""
        return "it closed its socket"

    def _complaint(self) -> str:
        """What the process said last."""
        return "it said nothing"

    def _greet(self) -> None:
        end_ns = self._now_ns() + _START_NS
        while self._heard_ns == 0 and not self._failure:
            left_ns = end_ns - self._now_ns()
            if left_ns <= 0:
                self._failure = f"it did not start within {_START_NS / 1e9:g} s"
            self._wait(max(0, left_ns))
            self._hear()
        self._looked_ns = self._heard_ns
        self._refuse()

    def _hear(self) -> None:
        if self._failure:
            return
        messages, gone = receive(self._socket)
        for message in messages:
            self._heard_ns = self._now_ns()
            if message.kind is Kind.HELLO:
                self.priority, self.locked = message.value, message.number == 1
            elif message.kind is Kind.BEAT:
                self.ready = bool(message.number & Flag.READY)
                self._told_ns = message.value
                if message.number & Flag.FAULT:
                    self._failure = self._complaint()
            elif message.kind is Kind.TRIGGER:
                self.triggers.append((message.number, message.value))
            elif message.kind is Kind.CODE:
                self.codes.append(message.number)
            elif message.kind is Kind.COUNT:
                self.counts[Count(message.number)] = message.value
            elif message.kind is Kind.BYE:
                self._said_bye = True
        if gone and not self._said_bye:
            self._failure = self._how_it_ended()

    def _tell(self, message: Message) -> None:
        if self._failure:
            return
        try:
            send(self._socket, message)
        except BlockingIOError:
            self._failure = "it does not read what it is told"
        except OSError:
            self._failure = self._how_it_ended()

    def _refuse(self) -> None:
        if self._failure:
            self.ready = False
            raise StationError(
                f"the rejector is not there: {self._failure}; every part counts as rejected, start the station again"
            )


class ProcessRejector(WireRejector):
    """Starts the rejector's process and tells it what was decided."""

    def __init__(self, setup: Setup) -> None:
        """Start the process and wait until it drives its lines. Raises StationError: it does not start."""
        ours, theirs = pair()
        super().__init__(setup.settings, ours)
        passed = [theirs.fileno()] + ([] if setup.inputs is None else [setup.inputs])
        command = ["-m", "edge.rejector_process", "--socket", str(theirs.fileno()), "--setup", setup.to_json()]
        root = str(Path(edge.__file__).parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, *command],
            pass_fds=passed,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the station alone
        )
        theirs.close()
        try:
            self._greet()
            self.beat()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _end_process(self) -> None:
        try:
            self._process.wait(0.0 if not self._said_bye else _END_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()  # it makes the outputs inactive
            self._process.send_signal(signal.SIGCONT)  # also where it was stopped, and its lines stand as they stood
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "it closed its socket"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended ({how}): {self._complaint()}"

    def _complaint(self) -> str:
        """The last line of its standard error, as far as it is there."""
        stderr = self._process.stderr
        assert stderr is not None
        os.set_blocking(stderr.fileno(), False)
        lines = (stderr.read() or b"").decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
