"""A chip with lines, and stand-ins for the two libraries that drive one; nothing of this ships.

`gpiod` here is what the documentation of libgpiod's Python bindings 2 says of the part that is used; `Jetson.GPIO` the same.
"""

from __future__ import annotations

import datetime
import enum
import os
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class FakeChip:
    """Lines with a physical level each.

    Attributes:
        levels: physical level by offset.
        trace: (offset, level) of each output in order, its level when it became an output first.
        held: offsets that some program holds.
        broken: offsets whose driving fails.
    """

    names: dict[str, int] = {"PH.00": 3}  # noqa: RUF012

    def __init__(self) -> None:
        self.levels: dict[int, bool] = {}
        self.trace: list[tuple[int, bool]] = []
        self.held: set[int] = set()
        self.broken: set[int] = set()
        self.listeners: dict[int, Callable[[bool, int], None]] = {}

    def drive(self, offset: int, level: bool) -> None:
        """As an output."""
        if offset in self.broken:
            raise OSError(5, "Input/output error")
        self.levels[offset] = level
        self.trace.append((offset, level))

    def sense(self, offset: int, level: bool) -> None:
        """The world changes an input."""
        self.levels[offset] = level
        if offset in self.listeners:
            self.listeners[offset](level, time.monotonic_ns())


class Value(enum.Enum):
    INACTIVE = 0
    ACTIVE = 1


class Direction(enum.Enum):
    AS_IS = 1
    INPUT = 2
    OUTPUT = 3


class EdgeKind(enum.Enum):
    NONE = 1
    BOTH = 4


class Bias(enum.Enum):
    AS_IS = 1
    DISABLED = 3
    PULL_UP = 4
    PULL_DOWN = 5


class Clock(enum.Enum):
    MONOTONIC = 1
    REALTIME = 2


@dataclass
class LineSettings:
    direction: Direction = Direction.AS_IS
    edge_detection: EdgeKind = EdgeKind.NONE
    bias: Bias = Bias.AS_IS
    active_low: bool = False
    debounce_period: datetime.timedelta = datetime.timedelta()
    event_clock: Clock = Clock.REALTIME  # not the library's own: it must be asked for
    output_value: Value = Value.INACTIVE


class EdgeType(enum.Enum):
    RISING_EDGE = 1
    FALLING_EDGE = 2


@dataclass
class EdgeEvent:
    event_type: EdgeType
    timestamp_ns: int
    line_offset: int
    Type = EdgeType


@dataclass
class _Request:
    chip: FakeChip
    config: dict[int, LineSettings]
    events: list[EdgeEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fd, self._signal = os.pipe2(os.O_NONBLOCK)
        for offset, settings in self.config.items():
            self.chip.held.add(offset)
            if settings.direction is Direction.OUTPUT:
                self.set_value(offset, settings.output_value)
            elif settings.edge_detection is EdgeKind.BOTH and settings.event_clock is Clock.MONOTONIC:
                self.chip.listeners[offset] = self._listen(offset, settings)

    def _listen(self, offset: int, settings: LineSettings) -> Callable[[bool, int], None]:
        def note(level: bool, at_ns: int) -> None:
            kind = EdgeType.RISING_EDGE if level != settings.active_low else EdgeType.FALLING_EDGE
            self.events.append(EdgeEvent(kind, at_ns, offset))
            os.write(self._signal, b".")

        return note

    def set_value(self, line: int, value: Value) -> None:
        self.chip.drive(line, (value is Value.ACTIVE) != self.config[line].active_low)

    def get_value(self, line: int) -> Value:
        active = self.chip.levels.get(line, False) != self.config[line].active_low
        return Value.ACTIVE if active else Value.INACTIVE

    def wait_edge_events(self, timeout: float) -> bool:
        return bool(self.events)

    def read_edge_events(self) -> list[EdgeEvent]:
        found, self.events = self.events, []
        os.read(self.fd, 1000)
        return found

    def release(self) -> None:
        self.chip.held -= set(self.config)
        os.close(self.fd)
        os.close(self._signal)


def gpiod_module(chips: dict[str, FakeChip]) -> Any:
    """`gpiod` 2 over these chips, by path."""

    class Chip:
        def __init__(self, path: str) -> None:
            if path not in chips:
                raise FileNotFoundError(2, "No such file or directory")
            self._chip = chips[path]

        def __enter__(self) -> Chip:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def line_offset_from_id(self, line: int | str) -> int:
            if isinstance(line, str):
                if line not in self._chip.names:
                    raise OSError(2, "No such file or directory")
                return self._chip.names[line]
            return line

        def request_lines(self, config: dict[int, LineSettings], consumer: str, event_buffer_size: int) -> _Request:
            if set(config) & self._chip.held:
                raise OSError(16, "Device or resource busy")
            if max(config) >= 32:
                raise ValueError("line offset is out of range")
            return _Request(self._chip, config)

    module = types.SimpleNamespace(Chip=Chip, LineSettings=LineSettings, EdgeEvent=EdgeEvent, request_lines=None)
    module.__version__ = "2.2.0"
    module.line = types.SimpleNamespace(Value=Value, Direction=Direction, Edge=EdgeKind, Bias=Bias, Clock=Clock)
    return module


def jetson_module(chip: FakeChip) -> Any:
    """`Jetson.GPIO` over a chip whose offsets are the pins."""
    outputs: set[int] = set()

    def setup(pin: int, direction: int, initial: int | None = None) -> None:
        if pin in chip.held:
            raise OSError(16, "Device or resource busy")
        chip.held.add(pin)
        if direction == 0:
            outputs.add(pin)
            chip.drive(pin, initial is None or initial == 1)  # without `initial` it starts high

    def output(pin: int, level: int) -> None:
        if pin not in outputs:
            raise RuntimeError("The GPIO channel has not been set up as an OUTPUT")
        chip.drive(pin, level == 1)

    def detect(pin: int, edge: int, callback: Callable[[int], None]) -> None:
        chip.listeners[pin] = lambda level, at_ns: callback(pin)

    def cleanup(pin: int) -> None:
        chip.held.discard(pin)
        outputs.discard(pin)

    return types.SimpleNamespace(
        BOARD=10,
        TEGRA_SOC=1000,
        OUT=0,
        IN=1,
        HIGH=1,
        LOW=0,
        BOTH=33,
        setmode=lambda mode: None,
        setup=setup,
        output=output,
        input=lambda pin: int(chip.levels.get(pin, False)),
        add_event_detect=detect,
        cleanup=cleanup,
    )
