"""What all lines must do, over each driver: outputs start and end de-energised, edges are stamped, polarity is heeded."""

from __future__ import annotations

import os
import select
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import StationError
from edge.lines import Driver, Edge, Lines, LineSpec, describe_line, open_lines
from tests.fake_gpio import FakeChip, gpiod_module, jetson_module

PATH = "/dev/gpiochip0"
SPECS = (
    LineSpec("reject", True, PATH, 1),
    LineSpec("ready", True, PATH, 2, active_low=True),
    LineSpec("trigger", False, PATH, 4),
    LineSpec("confirm", False, PATH, 5, active_low=True),
)


class World:
    """A driver's lines and what is wired to them."""

    def __init__(self, driver: Driver, monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
        self.driver = driver
        self.chip = FakeChip()
        monkeypatch.setitem(sys.modules, "gpiod", gpiod_module({PATH: self.chip}))
        monkeypatch.setitem(sys.modules, "Jetson", types.ModuleType("Jetson"))
        monkeypatch.setitem(sys.modules, "Jetson.GPIO", jetson_module(self.chip))
        self._read, self._write = os.pipe2(os.O_NONBLOCK)
        self._log = log

    def open(self) -> Lines:
        dry = self.driver == "dry-run"
        return open_lines(self.driver, SPECS, log=str(self._log) if dry else None, inputs=self._read if dry else None)

    def sense(self, name: str, active: bool) -> None:
        """The world makes an input active, whatever level that is."""
        if self.driver == "dry-run":
            os.write(self._write, f"{name} {int(active)} {time.monotonic_ns()}\n".encode())
        else:
            spec = next(spec for spec in SPECS if spec.name == name)
            assert isinstance(spec.line, int)
            self.chip.sense(spec.line, active != spec.active_low)

    def trace(self, name: str) -> list[bool]:
        """Whether an output was active, at each time it was driven."""
        spec = next(spec for spec in SPECS if spec.name == name)
        if self.driver == "dry-run":
            rows = [row.split() for row in self._log.read_text().splitlines()]
            return [level == "1" for _, row_name, level in rows if row_name == name]
        return [level != spec.active_low for offset, level in self.chip.trace if offset == spec.line]


@pytest.fixture(params=["dry-run", "gpiod", "jetson"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Each driver there is."""
    return World(request.param, monkeypatch, tmp_path / "lines.log")


@pytest.fixture
def lines(world: World) -> Iterator[Lines]:
    """Its lines, open."""
    opened = world.open()
    yield opened
    opened.close()


def test_outputs_are_inactive_from_the_first_moment(world: World, lines: Lines) -> None:
    assert world.trace("reject") == [False]
    assert world.trace("ready") == [False]
    assert not lines.get("reject")
    assert not lines.get("ready")


def test_outputs_follow_and_end_inactive(world: World, lines: Lines) -> None:
    for name in ("reject", "ready"):
        for active in (True, False, True):
            lines.set(name, active)
            assert lines.get(name) is active
    lines.close()
    lines.close()
    assert world.trace("reject") == world.trace("ready") == [False, True, False, True, False]
    assert not world.chip.held


def test_edges_of_all_inputs_by_time_with_stamps(world: World, lines: Lines) -> None:
    assert lines.edges() == []
    world.sense("confirm", False)
    lines.edges()  # at rest from here on
    before = time.monotonic_ns()
    sensed = [("trigger", True), ("confirm", True), ("trigger", False), ("confirm", False)]
    for name, active in sensed:
        world.sense(name, active)
    assert select.select(lines.filenos(), [], [], 5)[0] != []
    found = lines.edges()
    assert [(edge.name, edge.active) for edge in found] == sensed
    stamps = [before, *(edge.at_ns for edge in found), time.monotonic_ns()]
    assert stamps == sorted(stamps)
    assert lines.edges() == []


def test_the_level_of_an_input(world: World, lines: Lines) -> None:
    for name in ("trigger", "confirm"):
        for active in (True, False):
            world.sense(name, active)
            lines.edges()
            assert lines.get(name) is active


def test_a_line_that_nobody_named_is_a_bug(lines: Lines) -> None:
    for call in (lambda: lines.set("eject", True), lambda: lines.get("eject")):
        with pytest.raises(KeyError):
            call()


@pytest.mark.parametrize("driver", ["gpiod", "jetson"])
def test_a_line_that_another_program_holds(driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(driver, monkeypatch, tmp_path / "log")
    world.chip.held.add(2)
    with pytest.raises(StationError, match=r"Device or resource busy.*another program holds it, stop that"):
        world.open()
    assert world.chip.held <= {2}


@pytest.mark.parametrize("driver", ["gpiod", "jetson"])
def test_a_line_that_cannot_be_driven(driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(driver, monkeypatch, tmp_path / "log")
    lines = world.open()
    world.chip.broken.add(1)
    with pytest.raises(StationError, match="line 'reject' cannot be driven"):
        lines.set("reject", True)
    lines.close()
    assert world.trace("ready") == [False, False]  # the others are made inactive all the same


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LineSpec("ready", True, "/dev/gpiochip9", 1), r"/dev/gpiochip9: the lines 1 cannot be opened \(No such file"),
        (LineSpec("ready", True, PATH, "PX.9"), "the lines 1, PX.9 cannot be opened"),
        (LineSpec("ready", True, PATH, 99), "out of range"),
        (LineSpec("ready", True, PATH, 1), "are one; give each its own"),
    ],
)
def test_chips_and_lines_that_are_none(spec: LineSpec, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chip = FakeChip()
    monkeypatch.setitem(sys.modules, "gpiod", gpiod_module({PATH: chip}))
    with pytest.raises(StationError, match=message):
        open_lines("gpiod", [LineSpec("reject", True, PATH, 1), spec])
    assert not chip.held


def test_a_line_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = FakeChip()
    monkeypatch.setitem(sys.modules, "gpiod", gpiod_module({PATH: chip}))
    lines = open_lines("gpiod", [LineSpec("trigger", False, PATH, "PH.00")])
    chip.sense(3, True)
    (edge,) = lines.edges()
    assert edge == Edge("trigger", True, edge.at_ns)
    lines.close()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (types.SimpleNamespace(__file__="/usr/lib/gpiod.so"), "at /usr/lib/gpiod.so is version 1"),
        (types.SimpleNamespace(__version__="1.5.4", request_lines=None), "version 1.5.4, expected 2 or newer"),
        (None, "gpiod cannot be imported .*pip install 'gpiod>=2'"),
    ],
)
def test_the_bindings_of_version_1_are_told_apart(module: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpiod", module)
    with pytest.raises(StationError, match=message):
        open_lines("gpiod", SPECS)


def test_away_from_a_jetson_its_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Jetson.GPIO", None)
    with pytest.raises(StationError, match=r"Jetson\.GPIO cannot be imported"):
        open_lines("jetson", SPECS)

    def stumble(name: str) -> object:
        raise RuntimeError("Could not determine Jetson model")

    monkeypatch.setattr("edge.lines.importlib.import_module", stumble)
    with pytest.raises(StationError, match=r"does not work here \(Could not determine Jetson model\); use the driver gpiod"):
        open_lines("jetson", SPECS)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (SPECS[0], "reject: output 1 of /dev/gpiochip0, high lets parts pass, low (de-energised) rejects"),
        (SPECS[3], "confirm: input 5 of /dev/gpiochip0, active low"),
    ],
)
def test_a_line_in_words(spec: LineSpec, text: str) -> None:
    assert describe_line(spec) == text
