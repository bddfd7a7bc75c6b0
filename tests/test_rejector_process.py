"""The rejector's real process with dry-run lines, and what it does when either side dies or hangs.

Tests wait for rows of its log, and assert that levels follow, not when.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge import StationError
from edge.lines import LineSpec
from edge.rejector import ProcessRejector
from edge.rejector_process import Setup, take_over
from edge.schedule import Count
from edge.travel import Settings
from edge.verdict import Outcome, Verdict

MS = 10**6
LONG_S = 30.0
OUTPUTS = ("reject", "ready", "fault", "heartbeat")
# so slow that a busy machine is no fault
SETTINGS = Settings(travel=1000 * MS, pulse=200 * MS, separation=0, deadline_ns=900 * MS, heartbeat_ns=2000 * MS)
# what vision does in a process of its own: starts the rejector, says its number, tells of two parts that pass, then hangs
VISION = """
import sys, time
from pathlib import Path
from edge.rejector import ProcessRejector
from edge.rejector_process import Setup, take_over
rejector = ProcessRejector(Setup.from_json(sys.argv[1]))
print(rejector.pid, flush=True)
rejector.set_ready(True)
while True:
    rejector.beat()
    time.sleep(0.005)
"""

HOLDER = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(str(os.getpid()))
file.flush()
print(flush=True)
time.sleep(600)
"""


def setup(log: Path, settings: Settings = SETTINGS, inputs: int | None = None) -> Setup:
    specs = [LineSpec(name, True, "dry-run", name) for name in OUTPUTS]
    if inputs is not None:
        specs.append(LineSpec("trigger", False, "dry-run", "trigger"))
    return Setup("dry-run", tuple(specs), settings, realtime=False, log=str(log), inputs=inputs)


def verdict(part: int, outcome: Outcome) -> Verdict:
    return Verdict(part, outcome, 1.0, 2.0, 3.0, "a reason", "1.png", "conformal")


def levels(log: Path, name: str) -> list[bool]:
    """Every level of an output so far."""
    rows = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [level == "1" for _, row_name, level in rows if row_name == name]


def wait_for(what: Callable[[], bool], beat: Callable[[], None] = lambda: None) -> None:
    end = time.monotonic() + LONG_S
    while not what():
        assert time.monotonic() < end, "it did not happen"
        beat()
        time.sleep(0.005)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where levels are stamped."""
    return tmp_path / "lines.log"


@pytest.fixture
def start(log: Path) -> Iterator[Callable[..., ProcessRejector]]:
    """Starts rejectors and ends them after the test."""
    started: list[ProcessRejector] = []

    def begin(settings: Settings = SETTINGS, inputs: int | None = None) -> ProcessRejector:
        started.append(ProcessRejector(setup(log, settings, inputs)))
        started[-1].set_ready(True)
        return started[-1]

    yield begin
    for rejector in started:
        if rejector._process.poll() is None:
            os.kill(rejector.pid, signal.SIGCONT)
        rejector.close()


Start = Callable[..., ProcessRejector]


def test_it_passes_and_rejects_as_told_and_reports(start: Start, log: Path) -> None:
    rejector = start()
    wait_for(lambda: levels(log, "reject") == [False, True], rejector.beat)  # what was under way is past the ejector
    assert rejector.ready
    for part, outcome in enumerate([Outcome.PASS, Outcome.REJECT, Outcome.FAULT, Outcome.PASS], start=1):
        rejector.announce(part, time.monotonic_ns())
        rejector.apply(verdict(part, outcome))
        end = time.monotonic() + 0.3
        wait_for(lambda end=end: time.monotonic() > end, rejector.beat)  # type: ignore[misc]
    rejector.drain()
    rejector.close()
    counts = {count.name: number for count, number in rejector.counts.items() if number}
    assert counts == {"TRIGGERED": 4, "PASSED": 2, "REJECTED": 2}
    # inactive at the start, energised when vision is there, a pulse for each of two parts, inactive at the end
    assert levels(log, "reject") == [False, True, False, True, False, True, False]
    assert levels(log, "ready") == [False, True, False]
    assert levels(log, "fault") == [False]


def test_a_part_without_a_verdict_is_rejected(start: Start, log: Path) -> None:
    rejector = start()
    wait_for(lambda: levels(log, "reject") == [False, True], rejector.beat)
    rejector.announce(1, time.monotonic_ns())
    rejector.drain()
    assert levels(log, "reject") == [False, True, False, True]


def test_a_lost_heartbeat_rejects_and_ready_drops_and_comes_back(start: Start, log: Path) -> None:
    rejector = start(dataclasses.replace(SETTINGS, heartbeat_ns=100 * MS))
    wait_for(lambda: rejector.ready, rejector.beat)
    wait_for(lambda: levels(log, "ready")[-1] is False)  # no beat meanwhile
    assert levels(log, "reject")[-1] is False
    wait_for(lambda: levels(log, "ready")[-1] and levels(log, "reject")[-1], rejector.beat)


def test_triggers_of_the_line_come_up_with_their_numbers(start: Start, log: Path) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    rejector = start(dataclasses.replace(SETTINGS, announced=False), read)
    wait_for(lambda: levels(log, "reject") == [False, True], rejector.beat)
    stamps = [time.monotonic_ns(), time.monotonic_ns() + 1]
    os.write(write, "".join(f"trigger 1 {at}\ntrigger 0 {at}\n" for at in stamps).encode())
    assert [rejector.next_trigger(LONG_S) for _ in stamps] == [(1, stamps[0]), (2, stamps[1])]
    assert rejector.next_trigger(0.01) is None
    rejector.announce(3, 7)  # the line told already
    rejector.drain()
    assert levels(log, "reject") == [False, True, False, True]
    rejector.close()
    assert rejector.counts[Count.TRIGGERED] == 2
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("triggered", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_vision_that_dies_or_hangs_leaves_every_part_rejected(log: Path, how: signal.Signals, triggered: bool) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    settings = dataclasses.replace(SETTINGS, heartbeat_ns=1000 * MS, announced=not triggered)
    words = setup(log, settings, read).to_json()
    vision = subprocess.Popen([sys.executable, "-c", VISION, words], stdout=subprocess.PIPE, text=True, pass_fds=[read])
    os.close(read)
    assert vision.stdout is not None
    pid = int(vision.stdout.readline())
    try:
        wait_for(lambda: levels(log, "ready") == [False, True] == levels(log, "reject"))
        vision.send_signal(how)
        wait_for(lambda: levels(log, "ready") == [False, True, False])
        if triggered:  # parts still come: the rejector rejects each by itself
            for pulses in (1, 2):
                os.write(write, f"trigger 1 {time.monotonic_ns()}\n".encode())
                wait_for(lambda pulses=pulses: levels(log, "reject").count(False) == 1 + pulses)  # type: ignore[misc]
                wait_for(lambda: levels(log, "reject")[-1])
            assert levels(log, "reject") == [False, True, False, True, False, True]
        else:
            assert levels(log, "reject") == [False, True, False]
    finally:
        os.close(write)
        vision.kill()
        vision.wait()
        vision.stdout.close()
    # with its inputs closed and vision gone, a dry run ends by itself
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_a_rejector_that_is_killed_ends_the_station_at_once(start: Start) -> None:
    rejector = start()
    os.kill(rejector.pid, signal.SIGKILL)
    rejector._process.wait()
    for call in (rejector.beat, lambda: rejector.apply(verdict(1, Outcome.PASS)), lambda: rejector.announce(1, 0)):
        with pytest.raises(StationError, match=r"the rejector is not there: its process ended \(signal 9\).*start the station"):
            call()
    assert not rejector.ready
    rejector.close()
    rejector.close()


def test_it_says_when_asked_that_it_told_of_all_parts(start: Start) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    seldom = dataclasses.replace(SETTINGS, heartbeat_ns=10**13, announced=False)  # by itself it would say so in 40 minutes
    rejector = start(seldom, inputs=read)
    assert rejector.told_until(time.monotonic_ns(), LONG_S)
    os.kill(rejector.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, rejector.pid, os.WSTOPPED | os.WNOWAIT)
    at_ns = time.monotonic_ns()
    os.write(write, f"trigger 1 {at_ns}\n".encode())
    assert not rejector.told_until(at_ns, 0.05)
    os.kill(rejector.pid, signal.SIGCONT)
    assert rejector.told_until(at_ns, LONG_S)
    assert list(rejector.triggers) == [(1, at_ns)]
    for end in (read, write):
        os.close(end)


def test_a_rejector_that_hangs_ends_the_station(start: Start) -> None:
    rejector = start(dataclasses.replace(SETTINGS, heartbeat_ns=50 * MS))
    os.kill(rejector.pid, signal.SIGSTOP)
    with pytest.raises(StationError, match="it has been silent for"):
        wait_for(lambda: False, rejector.beat)


def test_one_that_is_stopped_is_woken_to_let_its_lines_go(start: Start, log: Path) -> None:
    rejector = start(dataclasses.replace(SETTINGS, heartbeat_ns=50 * MS))
    wait_for(lambda: levels(log, "reject")[-1:] == [True], rejector.beat)
    os.kill(rejector.pid, signal.SIGSTOP)
    with pytest.raises(StationError, match="it has been silent for"):
        wait_for(lambda: False, rejector.beat)
    assert levels(log, "reject")[-1] is True  # its lines stand as they stood
    rejector.close()
    assert rejector._process.returncode == 0
    assert levels(log, "reject")[-1] is False


def test_a_part_told_of_too_late_stops_the_rejector_and_it_says_why(start: Start, log: Path) -> None:
    rejector = start()
    rejector.announce(1, time.monotonic_ns() - 1300 * MS)
    with pytest.raises(StationError, match="part 1 was at the ejector before the line could reject it"):
        wait_for(lambda: False, rejector.beat)
    assert levels(log, "fault")[:2] == [False, True]


def test_one_that_is_told_to_end_leaves_its_outputs_inactive(start: Start, log: Path) -> None:
    rejector = start()
    wait_for(lambda: levels(log, "ready") == [False, True], rejector.beat)
    os.kill(rejector.pid, signal.SIGTERM)
    assert rejector._process.wait(LONG_S) == 0
    assert [levels(log, name)[-1] for name in OUTPUTS] == [False] * 4


def test_lines_that_cannot_be_had_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StationError, match=r"exit code 2.*cannot be written \(No such file or directory\)"):
        ProcessRejector(setup(tmp_path / "none" / "lines.log"))


def test_it_imports_no_model_and_no_numpy() -> None:
    code = """
import sys, edge.rejector_process
heavy = ("numpy", "cv2", "onnxruntime", "pydantic", "yaml", "rich", "calibration")
print([name for name in sys.modules if name.split(".")[0] in heavy or name.startswith("engines.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_next_station_takes_the_lines_over_from_the_process_that_a_dead_one_left_behind(tmp_path: Path) -> None:
    old, new, claim = tmp_path / "old.log", tmp_path / "new.log", str(tmp_path / "journal.db-rejector")
    read, write = os.pipe2(os.O_NONBLOCK)  # parts could still come: it stays
    left = dataclasses.replace(setup(old, dataclasses.replace(SETTINGS, announced=False), read), claim=claim)
    vision = subprocess.Popen(
        [sys.executable, "-c", VISION, left.to_json()], stdout=subprocess.PIPE, text=True, pass_fds=[read]
    )
    os.close(read)
    assert vision.stdout is not None
    pid = int(vision.stdout.readline())
    wait_for(lambda: levels(old, "reject") == [False, True])
    vision.kill()
    vision.wait()
    vision.stdout.close()
    wait_for(lambda: levels(old, "ready")[-1] is False)
    assert Path(f"/proc/{pid}").exists()
    settings = dataclasses.replace(SETTINGS, announced=False)
    rejector = ProcessRejector(dataclasses.replace(setup(new, settings), claim=claim))
    try:
        # the old one is gone before the new one drives anything, with its outputs left rejecting
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
        assert levels(old, "reject")[-1] is False
        assert Path(claim).read_text() == f"{rejector.pid}\n"
        rejector.set_ready(True)
        wait_for(lambda: levels(new, "reject") == [False, True], rejector.beat)
        rows = [line.split() for line in new.read_text().splitlines()]
        taken, passes = (int(next(at for at, name, level in rows if name == "reject" and level == wanted)) for wanted in "01")
        assert passes - taken >= SETTINGS.travel + SETTINGS.pulse  # what was under way is past the ejector
    finally:
        os.close(write)
        rejector.close()


def test_a_process_that_does_not_heed_is_ended_by_force_and_a_number_given_anew_is_left_alone(tmp_path: Path) -> None:
    claim = tmp_path / "claim"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(claim)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    os.close(take_over(str(claim)))
    assert holder.wait(LONG_S) == -signal.SIGKILL
    holder.stdout.close()
    claim.write_text(f"{os.getppid()}\n")  # nobody holds it: whoever has that number now has nothing to do with it
    os.close(take_over(str(claim)))
    assert claim.read_text() == f"{os.getpid()}\n"
    assert Path(f"/proc/{os.getppid()}").exists()
