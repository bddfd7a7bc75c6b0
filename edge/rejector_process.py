"""The process that owns all lines. It is small, imports no model and no NumPy, and rejects whatever vision does.

`python -m edge.rejector_process` is started by `edge.rejector`, at the other end of whose socket it listens.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge import StationError
from edge.code_lines import CODE, CodeLines
from edge.lines import Driver, Edge, Lines, LineSpec, open_lines
from edge.schedule import Count, Schedule
from edge.travel import RETIMED, Settings
from edge.wire import Flag, Kind, Message, receive, send

_PRIORITY = 49  # below the kernel's interrupt threads, which have 50 and stamp the edges
_MCL_CURRENT_AND_FUTURE = 3
_PR_SET_TIMERSLACK = 29
_LEAVE_S = 2.0


@dataclass(frozen=True)
class Setup:
    """All that the process is told.

    Attributes:
        driver: of the lines.
        lines: named `trigger`, `encoder`, `confirm`, `exit`, `code-0` and so on, `strobe` (inputs), `reject`, `ready`, `fault`,
            `heartbeat` (outputs).
        settings: of the schedule.
        realtime: ask for real-time priority.
        settle_ns: how long the lines of a recipe's code must stand still; None where there is a strobe.
        log, inputs: of a dry run, as in `edge.lines.open_lines`.
        claim: file that the process holds while it has the lines, with its number in it; None takes no turns.
    """

    driver: Driver
    lines: tuple[LineSpec, ...]
    settings: Settings
    realtime: bool = True
    settle_ns: int | None = None
    log: str | None = None
    inputs: int | None = None
    claim: str | None = None

    def to_json(self) -> str:
        """As text for a command line."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Setup:
        """The same from its text."""
        values = json.loads(text)
        lines = tuple(LineSpec(**spec) for spec in values.pop("lines"))
        return Setup(lines=lines, settings=Settings(**values.pop("settings")), **values)


class Loop:
    """Turns edges and messages into calls of the schedule, and its outputs into levels."""

    def __init__(
        self, setup: Setup, lines: Lines, vision: socket.socket, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """Join the pieces; the lines and the socket are closed by the caller."""
        self._setup = setup
        self._lines = lines
        self._vision: socket.socket | None = vision
        self._now_ns = now_ns
        self._schedule = Schedule(setup.settings)
        self._schedule.begin(now_ns())
        self._outputs = {spec.name for spec in setup.lines if spec.output}
        self._levels = dict.fromkeys(self._outputs, False)
        self._beat_ns = 0  # when to send the next
        self._toggle_ns = 0
        self._told = False
        self._timing: dict[str, int] = {}
        bits = sum(spec.name.startswith(CODE) for spec in setup.lines)
        self._code = CodeLines(bits, setup.settle_ns, lines.get, now_ns())

    @property
    def due_ns(self) -> int | None:
        """When there is something to do, should nothing come before; None when nothing is due."""
        beat_ns, code_ns = (self._beat_ns, self._code.due_ns) if self._vision else (None, None)
        return min((due for due in (self._schedule.next_ns, beat_ns, code_ns) if due is not None), default=None)

    def run(self) -> None:
        """Serve until vision says goodbye. Without vision go on, for parts still come. Raises StationError."""
        while self.step():
            pass

    def step(self) -> bool:
        """Wait for the next thing to do and do it; False at the end."""
        self._wait()
        now_ns = self._now_ns()
        # confirmations first: what came in time must not count as missing because this process was held up
        for edge in sorted(self._lines.edges(), key=lambda edge: edge.name != "confirm"):
            self._edge(edge, now_ns)
        code = self._code.read(now_ns)
        if code is not None:
            self._send(Message(Kind.CODE, code, now_ns))
        goes_on = self._listen(now_ns)
        self._schedule.advance(self._now_ns())
        self._drive(now_ns)
        self._report(now_ns)
        return goes_on and (self._vision is not None or self._still_needed())

    def _wait(self) -> None:
        due_ns = self.due_ns
        timeout_s = None if due_ns is None else max(0, due_ns - self._now_ns()) / 1e9
        watched = self._lines.filenos() + ([] if self._vision is None else [self._vision.fileno()])
        select.select(watched, [], [], timeout_s)  # not poll, which counts milliseconds

    def _edge(self, edge: Edge, now_ns: int) -> None:
        self._code.edge(edge.name, edge.active, edge.at_ns)
        if not edge.active:
            return
        if edge.name == "trigger":
            self._send(Message(Kind.TRIGGER, self._schedule.trigger(now_ns, edge.at_ns), edge.at_ns))
        elif edge.name == "encoder":
            self._schedule.encode(now_ns)
        elif edge.name == "confirm":
            self._schedule.confirm(now_ns, edge.at_ns)
        elif edge.name == "exit":
            self._schedule.exit(now_ns, edge.at_ns)

    def _listen(self, now_ns: int) -> bool:
        if self._vision is None:
            return True
        messages, gone = receive(self._vision)
        for message in messages:
            if message.kind is Kind.BEAT:
                self._schedule.heartbeat(now_ns, message.number == 1)
                self._beat_ns = 0  # vision may wait to hear that no other part triggered
            elif message.kind is Kind.ANNOUNCE:
                self._schedule.announce(now_ns, message.number, message.value)
            elif message.kind is Kind.VERDICT:
                self._schedule.verdict(now_ns, message.number, message.value == 1)
            elif message.kind is Kind.TIMING:
                self._retime(now_ns, message.number, message.value)
            elif message.kind is Kind.BYE:
                self._schedule.lose(now_ns, goodbye=True)
                self._send_counts()
                self._send(Message(Kind.BYE))
                return False
        if gone:
            self._schedule.lose(now_ns)
            self._vision = None
        return True

    def _retime(self, now_ns: int, number: int, value: int) -> None:
        name = next((name for name, known in RETIMED.items() if known == number), None)
        if name is None:
            raise StationError(f"timing number {number}, expected one of: {', '.join(map(str, RETIMED.values()))}")
        self._timing[name] = value
        if number == max(RETIMED.values()):
            self._schedule.retime(now_ns, dataclasses.replace(self._schedule.settings, **self._timing))  # type: ignore[arg-type]
            self._timing = {}

    def _still_needed(self) -> bool:
        """A dry run ends when nothing can come any more; real lines are held, rejecting, until the next station's process
        takes them, or somebody ends this one."""
        return self._setup.driver != "dry-run" or self._schedule.in_flight > 0 or bool(self._lines.filenos())

    def _drive(self, now_ns: int) -> None:
        wanted = self._schedule.outputs
        self._set("reject", not wanted.reject)  # energised lets pass
        self._set("ready", wanted.ready)
        self._set("fault", wanted.fault)
        if wanted.ready and now_ns >= self._toggle_ns:
            self._toggle_ns = now_ns + self._setup.settings.heartbeat_ns // 2
            self._set("heartbeat", not self._levels.get("heartbeat", False))

    def _set(self, name: str, active: bool) -> None:
        if name in self._outputs and self._levels[name] != active:
            self._lines.set(name, active)
            self._levels[name] = active

    def _report(self, now_ns: int) -> None:
        stopped = self._schedule.stopped
        if stopped and not self._told:
            self._told = True
            print(f"the rejector stopped: {stopped}", file=sys.stderr, flush=True)  # noqa: T201
            self._beat_ns = 0
            self._send_counts()
        if now_ns >= self._beat_ns:
            self._beat_ns = now_ns + self._setup.settings.heartbeat_ns // 4
            outputs = self._schedule.outputs
            flags = (Flag.READY if outputs.ready else Flag(0)) | (Flag.FAULT if outputs.fault else Flag(0))
            self._send(Message(Kind.BEAT, int(flags), now_ns))

    def _send_counts(self) -> None:
        for count in Count:
            self._send(Message(Kind.COUNT, int(count), self._schedule.counts[count]))

    def _send(self, message: Message) -> None:
        if self._vision is not None:
            # a hung vision does not read: its parts are rejected without it
            with contextlib.suppress(OSError):
                send(self._vision, message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; returns 0, or 2 when the lines cannot be had or driven, with one line on standard error."""
    parser = argparse.ArgumentParser(prog="rejector_process", description="Own the lines of a station; started by it.")
    parser.add_argument("--socket", required=True, type=int, metavar="FD")
    parser.add_argument("--setup", required=True, type=Setup.from_json, metavar="JSON")
    arguments = parser.parse_args(argv)
    setup: Setup = arguments.setup
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the station's to heed; it says goodbye
    signal.signal(signal.SIGTERM, _leave)
    vision = socket.socket(fileno=arguments.socket)
    vision.setblocking(False)
    try:
        if setup.claim is not None:
            take_over(setup.claim)
        lines = open_lines(setup.driver, setup.lines, log=setup.log, inputs=setup.inputs)
        try:
            priority, locked = raise_priority() if setup.realtime else (0, False)
            gc.collect()
            gc.freeze()
            gc.disable()  # nothing here makes cycles
            with contextlib.suppress(OSError):
                send(vision, Message(Kind.HELLO, int(locked), priority))
            Loop(setup, lines, vision).run()
        finally:
            lines.close()
    except StationError as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201
        return 2
    return 0


def take_over(claim: str) -> int:
    """Hold a file for as long as this process lives, and end the process that holds it, which its station left behind.

    That one rejects until then, and leaves its outputs inactive, which rejects. Only a station that holds its journal's lock
    gets here, so no station lives that would still need it. Returns the file's descriptor. Raises StationError when the file
    cannot be had.
    """
    try:
        held = os.open(claim, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StationError(f"{claim}: cannot be opened ({error.strerror}); check the folder and permissions") from None
    for number in (signal.SIGTERM, signal.SIGKILL):
        _ask_to_leave(held, number)
        end = time.monotonic() + _LEAVE_S
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(held, 0)
                os.pwrite(held, f"{os.getpid()}\n".encode(), 0)
                return held
            time.sleep(0.002)
    raise StationError(
        f"{claim}: the rejector of an earlier station holds the lines and does not end; end it, then start again"
    )


def _ask_to_leave(held: int, number: signal.Signals) -> None:
    """Signal whoever holds the file, by a handle, so that a number that was given anew in the meantime is left alone."""
    with contextlib.suppress(ValueError, OSError):
        handle = os.pidfd_open(int(os.pread(held, 32, 0)))
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            signal.pidfd_send_signal(handle, number)
            signal.pidfd_send_signal(handle, signal.SIGCONT)  # one that is stopped heeds nothing else
        finally:
            os.close(handle)


def raise_priority() -> tuple[int, bool]:
    """Ask for real-time priority, memory that stays, and exact timers; returns the priority, 0 if refused, and if locked."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    locked = libc.mlockall(_MCL_CURRENT_AND_FUTURE) == 0
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    except OSError:
        return 0, locked
    return _PRIORITY, locked


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
