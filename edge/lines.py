"""Digital lines: named inputs whose edges are stamped, and named outputs that start, and end, de-energised."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from edge import StationError

Driver = Literal["dry-run", "gpiod", "jetson"]
OUTPUTS = ("reject", "ready", "fault", "heartbeat")


@dataclass(frozen=True)
class LineSpec:
    """One line.

    Attributes:
        name: what it is for, such as `reject`.
        output: driven by us.
        chip: a GPIO chip's path; with Jetson.GPIO not used.
        line: offset on the chip or the line's name; with Jetson.GPIO a number on the 40-pin header or a Tegra signal's name.
        active_low: energised, or true, at the low level.
        bias: the input's internal resistor.
        debounce_us: edges that follow sooner are left out, by the kernel.
    """

    name: str
    output: bool
    chip: str
    line: int | str
    active_low: bool = False
    bias: Literal["as-is", "disabled", "pull-up", "pull-down"] = "as-is"
    debounce_us: int = 0


@dataclass(frozen=True)
class Edge:
    """An input changed at `at_ns`, monotonic; `active` is its level from then on."""

    name: str
    active: bool
    at_ns: int


class Lines(Protocol):
    """Lines that are open. Outputs are inactive until they are set; what is not named in the specifications is a KeyError."""

    def set(self, name: str, active: bool) -> None:
        """Drive an output. Raises StationError when that fails."""

    def get(self, name: str) -> bool:
        """Level of a line, True where active. Raises StationError when it cannot be read."""

    def edges(self) -> list[Edge]:
        """Edges of all inputs since the last call, by time; never waits. Raises StationError."""

    def filenos(self) -> list[int]:
        """File descriptors that can be read when there are edges."""

    def close(self) -> None:
        """Make all outputs inactive and release all lines; may be called twice."""


def open_lines(driver: Driver, specs: Sequence[LineSpec], *, log: str | None = None, inputs: int | None = None) -> Lines:
    """Open lines with a driver.

    Args:
        driver: `dry-run`, `gpiod` or `jetson`.
        specs: the lines.
        log: dry run: file to append a row to for each level that would have been driven.
        inputs: dry run: descriptor from which rows `name 0|1 nanoseconds` are read as edges.

    Raises:
        StationError: no such driver, chip or line, or one that another program holds.
    """
    if driver == "gpiod":
        return GpiodLines(specs)
    if driver == "jetson":
        return JetsonLines(specs)
    return DryRunLines(specs, log, inputs)


def describe_line(spec: LineSpec) -> str:
    """One line for a person: what it is, where, and which level means what."""
    level = "low" if spec.active_low else "high"
    if spec.name == "reject":
        means = f"{level} lets parts pass, {'high' if spec.active_low else 'low'} (de-energised) rejects"
    else:
        means = f"active {level}"
    return f"{spec.name}: {'output' if spec.output else 'input'} {spec.line} of {spec.chip}, {means}"


class DryRunLines:
    """Drives nothing, and stamps what it would have driven.

    Attributes:
        levels: of all lines now.
    """

    def __init__(self, specs: Sequence[LineSpec], log: str | None = None, inputs: int | None = None) -> None:
        """`log` and `inputs` as in `open_lines`. Raises StationError when the file cannot be opened."""
        self.levels = {spec.name: False for spec in specs}
        self._outputs = [spec.name for spec in specs if spec.output]
        self._inputs = inputs
        self._rest = b""
        self._log = -1
        if log is not None:
            try:
                self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            except OSError as error:
                raise StationError(f"{log}: cannot be written ({error.strerror}); check the folder and permissions") from None
        for name in self._outputs:
            self._stamp(name, False)

    def set(self, name: str, active: bool) -> None:
        """Note the level, and stamp it if it is another one."""
        if active != self.levels[name]:
            self.levels[name] = active
            self._stamp(name, active)

    def get(self, name: str) -> bool:
        """The level noted."""
        return self.levels[name]

    def edges(self) -> list[Edge]:
        """Rows that came in."""
        if self._inputs is None:
            return []
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._inputs, 65536)
            if data == b"":
                self._inputs = None
            self._rest += data
        *rows, self._rest = self._rest.split(b"\n")
        found = []
        for row in rows:
            name, level, at_ns = row.decode().split()
            self.levels[name] = level == "1"
            found.append(Edge(name, level == "1", int(at_ns)))
        return sorted(found, key=lambda edge: edge.at_ns)

    def filenos(self) -> list[int]:
        """The descriptor of the rows, until its other side is closed."""
        return [] if self._inputs is None else [self._inputs]

    def close(self) -> None:
        """Stamp that all outputs are inactive; may be called twice."""
        for name in self._outputs:
            self.set(name, False)
        if self._log >= 0:
            handle, self._log = self._log, -1
            os.close(handle)

    def _stamp(self, name: str, active: bool) -> None:
        if self._log >= 0:
            os.write(self._log, f"{time.monotonic_ns()} {name} {int(active)}\n".encode())


class GpiodLines:
    """Lines by libgpiod 2, one request a chip. Edges carry the kernel's monotonic stamp."""

    def __init__(self, specs: Sequence[LineSpec]) -> None:
        """Request all lines, outputs inactive from the first moment. Raises StationError as `open_lines` says."""
        self._gpiod = _import_gpiod()
        self._requests: list[Any] = []
        self._where: dict[str, tuple[Any, int]] = {}
        self._names: list[dict[int, str]] = []
        self._outputs = [spec.name for spec in specs if spec.output]
        try:
            for chip in dict.fromkeys(spec.chip for spec in specs):
                self._request(chip, [spec for spec in specs if spec.chip == chip])
        except BaseException:
            self.close()
            raise

    def set(self, name: str, active: bool) -> None:
        """Drive an output."""
        request, offset = self._where[name]
        value = self._gpiod.line.Value
        try:
            request.set_value(offset, value.ACTIVE if active else value.INACTIVE)
        except OSError as error:
            raise _refused(f"line '{name}' cannot be driven", error) from None

    def get(self, name: str) -> bool:
        """Read a line."""
        request, offset = self._where[name]
        try:
            return bool(request.get_value(offset) == self._gpiod.line.Value.ACTIVE)
        except OSError as error:
            raise _refused(f"line '{name}' cannot be read", error) from None

    def edges(self) -> list[Edge]:
        """Edges of all chips."""
        rising = self._gpiod.EdgeEvent.Type.RISING_EDGE  # of the logical level: active-low is turned round by the kernel
        found = []
        try:
            for request, names in zip(self._requests, self._names, strict=True):
                while request.wait_edge_events(0):
                    for event in request.read_edge_events():
                        found.append(Edge(names[event.line_offset], event.event_type == rising, event.timestamp_ns))
        except OSError as error:
            raise _refused("edges cannot be read", error) from None
        return sorted(found, key=lambda edge: edge.at_ns)

    def filenos(self) -> list[int]:
        """One descriptor a chip."""
        return [request.fd for request in self._requests]

    def close(self) -> None:
        """Make all outputs inactive and release all lines; may be called twice."""
        for name in self._outputs:
            if name in self._where:
                with contextlib.suppress(StationError):
                    self.set(name, False)
        self._outputs, self._where = [], {}
        for request in self._requests:
            request.release()
        self._requests, self._names = [], []

    def _request(self, chip: str, specs: Sequence[LineSpec]) -> None:
        try:
            with self._gpiod.Chip(chip) as opened:
                offsets = [opened.line_offset_from_id(spec.line) for spec in specs]
                if len(set(offsets)) < len(offsets):
                    raise StationError(f"{chip}: two of the lines {[spec.line for spec in specs]} are one; give each its own")
                config = {offset: self._settings(spec) for offset, spec in zip(offsets, specs, strict=True)}
                request = opened.request_lines(config, consumer="reb-rejector", event_buffer_size=1024)
        except (OSError, ValueError) as error:
            raise _refused(f"{chip}: the lines {', '.join(str(spec.line) for spec in specs)} cannot be opened", error) from None
        self._requests.append(request)
        self._names.append({offset: spec.name for offset, spec in zip(offsets, specs, strict=True)})
        self._where.update({spec.name: (request, offset) for offset, spec in zip(offsets, specs, strict=True)})

    def _settings(self, spec: LineSpec) -> Any:
        line = self._gpiod.line
        if spec.output:
            return self._gpiod.LineSettings(
                direction=line.Direction.OUTPUT, output_value=line.Value.INACTIVE, active_low=spec.active_low
            )
        return self._gpiod.LineSettings(
            direction=line.Direction.INPUT,
            edge_detection=line.Edge.BOTH,
            bias=getattr(line.Bias, spec.bias.replace("-", "_").upper()),
            active_low=spec.active_low,
            debounce_period=datetime.timedelta(microseconds=spec.debounce_us),
            event_clock=line.Clock.MONOTONIC,
        )


class JetsonLines:
    """Lines by Jetson.GPIO, numbered as on the 40-pin header. It keeps no kernel stamps: an edge has the time of its call."""

    def __init__(self, specs: Sequence[LineSpec]) -> None:
        """Set up all lines, outputs inactive from the first moment. Raises StationError as `open_lines` says."""
        self._gpio = _import_jetson()
        self._specs = {spec.name: spec for spec in specs}
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._found: list[Edge] = []  # appended to by the library's thread
        try:
            tegra = isinstance(next(iter(specs)).line, str)
            self._gpio.setmode(self._gpio.TEGRA_SOC if tegra else self._gpio.BOARD)
            for spec in specs:
                if spec.output:
                    self._gpio.setup(spec.line, self._gpio.OUT, initial=self._physical(spec, False))
                else:
                    self._gpio.setup(spec.line, self._gpio.IN)
                    self._gpio.add_event_detect(spec.line, self._gpio.BOTH, callback=self._callback(spec))
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            raise _refused("Jetson.GPIO cannot set the lines up", error) from None

    def set(self, name: str, active: bool) -> None:
        """Drive an output."""
        spec = self._specs[name]
        try:
            self._gpio.output(spec.line, self._physical(spec, active))
        except (OSError, RuntimeError) as error:
            raise _refused(f"line '{name}' cannot be driven", error) from None

    def get(self, name: str) -> bool:
        """Read a line."""
        spec = self._specs[name]
        try:
            return bool(self._gpio.input(spec.line) == self._physical(spec, True))
        except (OSError, RuntimeError) as error:
            raise _refused(f"line '{name}' cannot be read", error) from None

    def edges(self) -> list[Edge]:
        """Edges that the library called back for."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 65536)
        found = []
        while self._found:
            found.append(self._found.pop(0))
        return sorted(found, key=lambda edge: edge.at_ns)

    def filenos(self) -> list[int]:
        """A pipe that the library's thread writes to."""
        return [self._read] if self._read >= 0 else []

    def close(self) -> None:
        """Make all outputs inactive and release all lines; may be called twice."""
        if self._read < 0:
            return
        for spec in self._specs.values():
            with contextlib.suppress(StationError, ValueError):
                if spec.output:
                    self.set(spec.name, False)
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self._gpio.cleanup(spec.line)
        os.close(self._read)
        os.close(self._write)
        self._read = -1

    def _physical(self, spec: LineSpec, active: bool) -> Any:
        return self._gpio.HIGH if active != spec.active_low else self._gpio.LOW

    def _callback(self, spec: LineSpec) -> Callable[[object], None]:
        def note(_channel: object) -> None:
            at_ns = time.monotonic_ns()
            self._found.append(Edge(spec.name, self.get(spec.name), at_ns))
            with contextlib.suppress(OSError):
                os.write(self._write, b".")

        return note


def _import_gpiod() -> Any:
    try:
        gpiod = importlib.import_module("gpiod")
    except ImportError as error:
        raise StationError(f"gpiod cannot be imported ({error}); install it with `pip install 'gpiod>=2'`") from None
    version = str(getattr(gpiod, "__version__", "1"))
    if version.split(".", maxsplit=1)[0] in ("0", "1") or not hasattr(gpiod, "request_lines"):
        raise StationError(
            f"gpiod at {getattr(gpiod, '__file__', '?')} is version {version}, expected 2 or newer: the distribution's bindings"
            " have the same name; install `gpiod>=2` in an environment of its own"
        )
    return gpiod


def _import_jetson() -> Any:
    try:
        return importlib.import_module("Jetson.GPIO")
    except ImportError as error:
        raise StationError(f"Jetson.GPIO cannot be imported ({error}); install it, or use the driver gpiod") from None
    except Exception as error:  # away from a Jetson it raises whatever it stumbles over
        raise StationError(f"Jetson.GPIO does not work here ({error}); use the driver gpiod, or a Jetson") from None


def _refused(what: str, error: Exception) -> StationError:
    reason = getattr(error, "strerror", None) or str(error)
    hint = "another program holds it, stop that" if getattr(error, "errno", None) == 16 else "check chip, line and permissions"
    return StationError(f"{what} ({reason}); {hint}")
