"""`station.yaml`: what a station runs, checked key by key, with the line of each fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from edge import StationError
from edge.lines import OUTPUTS, LineSpec
from edge.rejector_process import Setup
from edge.schedule import Settings
from engines.bundle import Precision

# strict: YAML reads `yes` as true, which would count as 1
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NumberFromZero = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
# the deciding loop shows that it turns every 20 ms while it waits
HeartbeatMs = Annotated[float, Field(ge=50, allow_inf_nan=False, strict=True)]
CountFromOne = Annotated[int, Field(ge=1, strict=True)]
CountFromZero = Annotated[int, Field(ge=0, strict=True)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FolderSource(_Section):
    """Replay the images below a folder, or the frames of a video file."""

    kind: Literal["replay"]
    path: Path
    fps: PositiveNumber | None = None
    """Triggers a second, kept whether the station keeps up or not; none: each part waits for the one before."""


class CameraSource(_Section):
    """A live camera that OpenCV opens: a number, a device path or a URL."""

    kind: Literal["camera"]
    device: CountFromZero | str
    timeout_ms: PositiveNumber = 2000


def _line_id(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value:
        return value
    raise ValueError("expected an offset, 0 or more, or a line's name")


def _short_line(value: object) -> object:
    return value if isinstance(value, dict) else {"line": value}


class Line(_Section):
    """One line; `7` or `NAME` is short for `{line: 7}`."""

    line: Annotated[int | str, PlainValidator(_line_id)]
    chip: str | None = None
    active: Literal["high", "low"] = "high"
    bias: Literal["as-is", "disabled", "pull-up", "pull-down"] = "as-is"
    debounce_ms: NumberFromZero = 0


AnyLine = Annotated[Line, BeforeValidator(_short_line)]


class LinesSection(_Section):
    """Inputs and outputs by what they are for. An output that is left out is not driven; `reject` must be there."""

    reject: AnyLine
    ready: AnyLine | None = None
    fault: AnyLine | None = None
    heartbeat: AnyLine | None = None
    trigger: AnyLine | None = None
    encoder: AnyLine | None = None
    confirm: AnyLine | None = None
    exit: AnyLine | None = None


class DryRun(_Section):
    """No line is driven; the rejector's process stamps what it would do."""

    kind: Literal["dry-run"]
    travel_ms: PositiveNumber | None = None
    """From trigger to ejector; none: the deadline."""
    pulse_ms: PositiveNumber = 20
    separation_ms: NumberFromZero = 0
    heartbeat_ms: HeartbeatMs = 100
    log: Path | None = None
    """File for a row at each level that would have been driven."""


class Gpio(_Section):
    """Real lines. Distances are in milliseconds, or in pulses of the line `encoder`."""

    kind: Literal["gpio"]
    driver: Literal["gpiod", "jetson"] = "gpiod"
    chip: str = "/dev/gpiochip0"
    lines: LinesSection
    travel_ms: PositiveNumber | None = None
    pulse_ms: PositiveNumber | None = None
    separation_ms: NumberFromZero = 0
    travel_pulses: CountFromOne | None = None
    pulse_pulses: CountFromOne | None = None
    separation_pulses: CountFromZero = 0
    heartbeat_ms: HeartbeatMs = 100
    confirm_ms: PositiveNumber | None = None
    exit_ms: PositiveNumber | None = None
    exit_tolerance_ms: NumberFromZero = 5
    exit_pulses: CountFromOne | None = None
    exit_tolerance_pulses: CountFromZero = 5
    realtime: Annotated[bool, Field(strict=True)] = True


class EvidenceConfig(_Section):
    """Pictures that are kept: of every REJECT and FAULT, of every so many parts, and of those that nearly were rejected."""

    folder: Path = Path("evidence")
    quota_mb: PositiveNumber = 2000
    every: CountFromZero = 100
    """Parts whose number is a multiple; 0 for none of them."""
    near_spreads: NumberFromZero = 0.5
    """How far below the threshold a PASS is kept too, in standard deviations of the scores of good parts."""
    waiting: Annotated[int, Field(gt=0, strict=True)] = 8
    """Pictures that may wait in memory to be written; further ones are dropped."""


class StationConfig(_Section):
    """Everything that `edge run` needs. Relative paths count from the configuration file's folder."""

    station: Annotated[str, Field(min_length=1)]
    camera: Annotated[str, Field(min_length=1)] = "camera-1"
    bundle: Path
    calibration: Path
    backend: str = "onnxruntime"
    precision: Precision = "fp32"
    threads: CountFromZero = 0
    search: Literal["cpu", "gpu"] | None = None
    deadline_ms: PositiveNumber = 1000
    source: Annotated[FolderSource | CameraSource, Field(discriminator="kind")]
    rejector: Annotated[DryRun | Gpio, Field(discriminator="kind")] = DryRun(kind="dry-run")
    journal: Path
    journal_heads: Path | None = None
    """File, best on another machine's disk, that shows whether the journal's end was cut off."""
    journal_timeout_ms: PositiveNumber = 200
    """How long another program's lock may hold up a row; its part is a FAULT then."""
    evidence: EvidenceConfig | None = None


class ConfigError(StationError):
    """A configuration with faults; `faults` has one line each, with file and line number."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def load_config(path: Path) -> StationConfig:
    """Read and check a configuration.

    Raises:
        ConfigError: every fault at once: unreadable file, YAML that does not parse, unknown, missing, doubled or wrong
            keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); give a YAML file"]) from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
        doubled = [] if root is None else list(_doubled(root))
    except (ValueError, RecursionError) as error:  # a date such as 2024-13-45, or a section inside itself
        raise ConfigError([f"{path}: not YAML that can be read ({error}); correct it"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError([f"{path}{line}: not YAML ({problem}); correct it"]) from None
    if not isinstance(root, yaml.MappingNode):
        got = "nothing" if document is None else type(document).__name__
        raise ConfigError([f"{path}:1: expected keys such as 'station:' and 'bundle:', got {got}"])
    faults = [f"{path}:{line}: key '{key}' appears twice; remove one" for key, line in doubled]
    try:
        config = StationConfig.model_validate(document)
    except ValidationError as error:
        faults += [_fault(path, root, item) for item in error.errors()]
        raise ConfigError(faults) from None
    try:
        rejector_setup(config)
    except StationError as error:
        faults.append(f"{path}:{_line_of(root, ['rejector'])}: {error}")
    if faults:
        raise ConfigError(faults)
    return _resolve(config, path.parent)


def rejector_setup(config: StationConfig) -> Setup:
    """What the rejector's process is told. Raises StationError: keys that do not go together."""
    rejector = config.rejector
    deadline_ns, heartbeat_ns = _ns(config.deadline_ms), _ns(rejector.heartbeat_ms)
    if isinstance(rejector, DryRun):
        settings = Settings(
            travel=deadline_ns if rejector.travel_ms is None else _ns(rejector.travel_ms),
            pulse=_ns(rejector.pulse_ms),
            separation=_ns(rejector.separation_ms),
            deadline_ns=deadline_ns,
            heartbeat_ns=heartbeat_ns,
        )
        outputs = tuple(LineSpec(name, True, "dry-run", name) for name in OUTPUTS)
        return Setup("dry-run", outputs, settings, log=None if rejector.log is None else str(rejector.log))
    _agree(rejector)
    encoder = rejector.lines.encoder is not None
    settings = Settings(
        travel=_distance(rejector.travel_ms, rejector.travel_pulses),
        pulse=_distance(rejector.pulse_ms, rejector.pulse_pulses),
        separation=rejector.separation_pulses if encoder else _ns(rejector.separation_ms),
        deadline_ns=deadline_ns,
        heartbeat_ns=heartbeat_ns,
        encoder=encoder,
        announced=rejector.lines.trigger is None,
        confirm_ns=None if rejector.confirm_ms is None else _ns(rejector.confirm_ms),
        exit=None if rejector.lines.exit is None else _distance(rejector.exit_ms, rejector.exit_pulses),
        tolerance=rejector.exit_tolerance_pulses if encoder else _ns(rejector.exit_tolerance_ms),
    )
    return Setup(rejector.driver, line_specs(rejector), settings, realtime=rejector.realtime)


def line_specs(rejector: Gpio) -> tuple[LineSpec, ...]:
    """Its lines, in the order of the section's keys."""
    specs = []
    for name in LinesSection.model_fields:
        line: Line | None = getattr(rejector.lines, name)
        if line is not None:
            output = name in OUTPUTS
            chip = line.chip or rejector.chip
            specs.append(
                LineSpec(name, output, chip, line.line, line.active == "low", line.bias, round(line.debounce_ms * 1e3))
            )
    return tuple(specs)


def _agree(rejector: Gpio) -> None:
    encoder = rejector.lines.encoder is not None
    unit, other = ("pulses", "ms") if encoder else ("ms", "pulses")
    why = "the line encoder is there" if encoder else "there is no line encoder"
    for key in ("travel", "pulse", "exit"):
        needed = key != "exit" or rejector.lines.exit is not None
        if needed and getattr(rejector, f"{key}_{unit}") is None:
            raise StationError(f"key 'rejector.{key}_{unit}' is missing: {why}; add it")
        if getattr(rejector, f"{key}_{other}") is not None:
            raise StationError(f"key 'rejector.{key}_{other}' does not go with its lines: {why}; give {key}_{unit}")
    if (rejector.lines.confirm is None) != (rejector.confirm_ms is None):
        raise StationError("'rejector.lines.confirm' and 'rejector.confirm_ms' go together; give both or none")
    if rejector.lines.exit is None and getattr(rejector, f"exit_{unit}") is not None:
        raise StationError(f"key 'rejector.exit_{unit}' needs the line exit; add 'rejector.lines.exit'")
    specs = line_specs(rejector)
    for index, spec in enumerate(specs):
        for before in specs[:index]:
            if (before.chip, before.line) == (spec.chip, spec.line):
                raise StationError(f"lines '{before.name}' and '{spec.name}' are both {spec.line!r}; give each its own")
    if rejector.driver == "jetson" and any(spec.bias != "as-is" or spec.debounce_us for spec in specs):
        raise StationError("Jetson.GPIO sets neither bias nor debounce; use the driver gpiod, or leave them out")
    if rejector.driver == "jetson" and len({type(spec.line) for spec in specs}) > 1:
        raise StationError("Jetson.GPIO numbers all pins in one way; give all lines by number or all by name")


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


def _distance(milliseconds: float | None, pulses: int | None) -> int:
    """The one that is given, which `_agree` saw to."""
    return _ns(milliseconds) if milliseconds is not None else pulses or 0


def _resolve(config: StationConfig, folder: Path) -> StationConfig:
    changes: dict[str, object] = {name: folder / getattr(config, name) for name in ("bundle", "calibration", "journal")}
    if config.journal_heads is not None:
        changes["journal_heads"] = folder / config.journal_heads
    if config.evidence is not None:
        changes["evidence"] = config.evidence.model_copy(update={"folder": folder / config.evidence.folder})
    if isinstance(config.source, FolderSource):
        changes["source"] = config.source.model_copy(update={"path": folder / config.source.path})
    if isinstance(config.rejector, DryRun) and config.rejector.log is not None:
        changes["rejector"] = config.rejector.model_copy(update={"log": folder / config.rejector.log})
    return config.model_copy(update=changes)


def _fault(path: Path, root: yaml.MappingNode, item) -> str:  # type: ignore[no-untyped-def]
    # the union of sources adds the chosen kind to the location, and that of devices a type: they are no keys of the file
    location = [str(part) for part in item["loc"]]
    if location[:1] == ["source"]:
        location = location[:1] + location[2:3]
    if location[:1] == ["rejector"]:
        location = location[:1] + location[2:]
    line = _line_of(root, location)
    name = ".".join(location) or "the file"
    if item["type"] == "extra_forbidden":
        return f"{path}:{line}: unknown key '{name}'; expected one of: {', '.join(_known(location))}"
    if item["type"] == "union_tag_invalid":
        return f"{path}:{line}: '{name}' is of kind {item['ctx']['tag']!r}, expected one of: {item['ctx']['expected_tags']}"
    if item["type"] == "missing":
        return f"{path}:{line}: key '{name}' is missing; add it"
    problem = item["msg"].removeprefix("Value error, ")
    return f"{path}:{line}: '{name}' is {item['input']!r}; {problem[0].lower()}{problem[1:]}"


def _known(location: list[str]) -> list[str]:
    if len(location) == 1:
        return list(StationConfig.model_fields)
    sections: tuple[type[BaseModel], ...] = (FolderSource, CameraSource)
    if location[0] != "source":
        sections = (DryRun, Gpio) if location[0] == "rejector" else (EvidenceConfig,)
    if location[1:2] == ["lines"]:
        sections = (LinesSection,) if len(location) == 3 else (Line,)
    return sorted({name for section in sections for name in section.model_fields})


def _line_of(node: yaml.Node, location: list[str]) -> int:
    """Line of the innermost key of `location` that the file has."""
    line = node.start_mark.line + 1
    for name in location:
        if not isinstance(node, yaml.MappingNode):
            break
        found = [(key, value) for key, value in node.value if key.value == name]
        if not found:
            break
        key, node = found[-1]
        line = key.start_mark.line + 1
    return line


def _doubled(node: yaml.Node) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _doubled(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _doubled(value)
