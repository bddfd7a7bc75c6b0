"""The rejector's real process and recipes: the code on its lines comes up, another recipe's timing goes down."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge import StationError
from edge.lines import LineSpec
from edge.rejector import ProcessRejector
from edge.rejector_process import Setup
from edge.travel import Settings
from edge.verdict import Outcome
from tests.test_rejector_process import LONG_S, MS, SETTINGS, levels, verdict, wait_for

INPUTS = ("trigger", "code-0", "code-1")


class Wired:
    """A rejector whose inputs tests move."""

    def __init__(self, log: Path, settings: Settings = SETTINGS, settle_ns: int | None = MS, strobe: bool = False) -> None:
        read, self._write = os.pipe2(os.O_NONBLOCK)
        inputs = (*INPUTS, *(["strobe"] if strobe else []))
        specs = [LineSpec(name, True, "dry-run", name) for name in ("reject", "ready")]
        specs += [LineSpec(name, False, "dry-run", name) for name in inputs]
        setup = Setup("dry-run", tuple(specs), settings, realtime=False, settle_ns=settle_ns, log=str(log), inputs=read)
        self.rejector = ProcessRejector(setup)
        os.close(read)

    def move(self, *levels: tuple[str, int]) -> None:
        now_ns = time.monotonic_ns()
        os.write(self._write, "".join(f"{name} {level} {now_ns}\n" for name, level in levels).encode())

    def codes(self, count: int) -> list[int]:
        """The next ones."""
        wait_for(lambda: len(self.rejector.codes) >= count, self.rejector.beat)
        return [self.rejector.codes.popleft() for _ in range(count)]

    def close(self) -> None:
        self.rejector.close()
        os.close(self._write)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Callable[..., Wired]]:
    made: list[Wired] = []

    def begin(**more: object) -> Wired:
        made.append(Wired(tmp_path / "lines.log", **more))  # type: ignore[arg-type]
        return made[-1]

    yield begin
    for wired in made:
        wired.close()


def test_the_code_comes_up_at_the_start_and_when_it_changed(wire: Callable[..., Wired]) -> None:
    wired = wire()
    assert wired.codes(1) == [0]
    wired.move(("code-0", 1), ("code-1", 1))  # together, so that no code in between could settle
    assert wired.codes(1) == [3]
    wired.move(("code-0", 0))
    assert wired.codes(1) == [2]
    assert not wired.rejector.codes


def test_with_a_strobe_it_comes_up_with_each_strobe_alone(wire: Callable[..., Wired]) -> None:
    wired = wire(settle_ns=None, strobe=True)
    wired.move(("code-1", 1))
    wired.move(("strobe", 1))
    assert wired.codes(1) == [2]
    wired.move(("strobe", 0), ("code-1", 0), ("code-0", 1))
    wired.move(("strobe", 1))
    assert wired.codes(1) == [1]
    wired.move(("strobe", 0))
    wired.move(("strobe", 1))
    assert wired.codes(1) == [1]


def test_a_new_timing_holds_for_parts_that_trigger_after_it(wire: Callable[..., Wired], tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, announced=False)
    wired = wire(settings=settings)
    rejector = wired.rejector
    rejector.set_ready(True)
    # what was under way when the lines were taken is past the ejector
    wait_for(lambda: rejector.ready and levels(tmp_path / "lines.log", "reject") == [False, True], rejector.beat)
    slow = dataclasses.replace(settings, travel=1500 * MS, pulse=300 * MS)
    wired.move(("trigger", 1), ("trigger", 0))
    first = rejector.next_trigger(LONG_S)
    rejector.retime(slow)
    rejector.set_ready(False)
    wait_for(lambda: not rejector.ready, rejector.beat)  # it has read what it was told
    wired.move(("trigger", 1), ("trigger", 0))
    second = rejector.next_trigger(LONG_S)
    assert first is not None
    assert second is not None
    rejector.apply(verdict(1, Outcome.REJECT))
    rejector.apply(verdict(2, Outcome.REJECT))
    wait_for(lambda: levels(tmp_path / "lines.log", "reject") == [False, True, False, True, False, True], rejector.beat)
    rows = [line.split() for line in (tmp_path / "lines.log").read_text().splitlines()]
    at_ns = [int(at) for at, name, _ in rows if name == "reject"][2:]
    # no pulse starts before its window or ends before it: a busy machine is late, never early
    due_ns = [first[1] + settings.travel, first[1] + settings.travel + settings.pulse]
    due_ns += [second[1] + slow.travel, second[1] + slow.travel + slow.pulse]
    assert [at >= due for at, due in zip(at_ns, due_ns, strict=True)] == [True] * 4
    # and the first one's window was its own: with the new timing it would have begun half a second later
    assert at_ns[0] < first[1] + slow.travel


def test_a_timing_that_cannot_be_is_refused_before_it_is_sent(wire: Callable[..., Wired]) -> None:
    with pytest.raises(StationError, match="deadline"):
        dataclasses.replace(SETTINGS, travel=1)


def test_a_timing_after_the_process_ended_is_an_error(wire: Callable[..., Wired]) -> None:
    wired = wire()
    os.kill(wired.rejector.pid, 9)
    wired.rejector._process.wait()
    with pytest.raises(StationError, match="the rejector is not there"):
        wired.rejector.retime(SETTINGS)
