"""The doors that try the wiring, and a run whose rejector dies."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

import edge.__main__ as door
import edge.run as assembly
from edge.rejector import ProcessRejector
from edge.rejector_process import Setup
from edge.verdict import Verdict
from tests.fake_gpio import FakeChip, gpiod_module
from tests.fakes import write_station

GPIO = """\
rejector:
  kind: gpio
  lines: {reject: 1, ready: {line: 2, active: low}, trigger: 4}
  travel_ms: 60000
  pulse_ms: 20
"""


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> FakeChip:
    """What the station's lines are on."""
    made = FakeChip()
    monkeypatch.setitem(sys.modules, "gpiod", gpiod_module({"/dev/gpiochip0": made}))
    return made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A station with lines."""
    path = write_station(tmp_path)
    path.write_text(path.read_text() + GPIO)
    return path


def test_lines_shows_each_level(config: Path, chip: FakeChip, capsys: pytest.CaptureFixture[str]) -> None:
    chip.levels[4] = True
    assert door.main(["lines", "--config", str(config), "--seconds", "0.01"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "reject: output 1 of /dev/gpiochip0, high lets parts pass, low (de-energised) rejects: inactive",
        "ready: output 2 of /dev/gpiochip0, active low: inactive",
        "trigger: input 4 of /dev/gpiochip0, active high: active",
    ]
    assert not chip.held


def test_pulse_energises_once(config: Path, chip: FakeChip) -> None:
    assert door.main(["pulse", "--config", str(config), "--line", "ready", "--ms", "1", "--yes"]) == 0
    assert [level for offset, level in chip.trace if offset == 2] == [True, False, True, True]
    assert [level for offset, level in chip.trace if offset == 1] == [False, False]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--line", "reject"], "keep clear, then add --yes"),
        (["--line", "fault", "--yes"], "'fault' is not in the configuration"),
    ],
)
def test_pulse_refuses(config: Path, chip: FakeChip, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["pulse", "--config", str(config), *argv]) == 2
    assert message in capsys.readouterr().err
    assert chip.trace == []


def test_check_explains_the_lines(config: Path, chip: FakeChip, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["check", "--config", str(config)]) == 0
    assert "reject: output 1 of /dev/gpiochip0, high lets parts pass" in capsys.readouterr().out
    chip.held.add(1)
    assert door.main(["check", "--config", str(config)]) == 1
    assert "another program holds it" in capsys.readouterr().out


def test_a_run_whose_rejector_is_killed_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_station(tmp_path)
    opened: list[ProcessRejector] = []

    class Remembered(ProcessRejector):
        def __init__(self, setup: Setup, *, waiting_parts: int) -> None:
            super().__init__(setup, waiting_parts=waiting_parts)
            opened.append(self)

    def kill(verdict: Verdict) -> None:
        if verdict.part == 2:
            os.kill(opened[0].pid, signal.SIGKILL)
            opened[0]._process.wait()

    monkeypatch.setattr(door, "ProcessRejector", Remembered)
    monkeypatch.setattr(assembly, "_print_verdict", kill)
    assert door.main(["run", "--config", str(config)]) == 2
    said = capsys.readouterr()
    assert "its process ended (signal 9)" in said.err
    assert "2 parts in" in said.out
