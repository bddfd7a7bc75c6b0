"""`station.yaml`: what a station runs, checked key by key, with the line of each fault."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from edge import StationError
from edge.agreement import disagreements, place_control
from edge.lines import OUTPUTS, LineSpec
from edge.rejector_process import Setup
from edge.schedule import Settings
from edge.sections import (
    DryRun,
    FilePartRef,
    FolderSource,
    Gpio,
    Line,
    LinesSection,
    PresenceTrigger,
    StationConfig,
)


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
    faults += [f"{path}:{_line_of(root, keys)}: {fault}" for keys, fault in disagreements(config)]
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
        log = None if rejector.log is None else str(rejector.log)
        return Setup("dry-run", outputs, settings, log=log, claim=_claim(config))
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
    return Setup(rejector.driver, line_specs(rejector), settings, realtime=rejector.realtime, claim=_claim(config))


def _claim(config: StationConfig) -> str:
    """A file beside the journal, since only a station that has that one may take another's lines."""
    return f"{config.journal}-rejector"


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
    if isinstance(config.trigger, PresenceTrigger):
        changes["trigger"] = config.trigger.model_copy(update={"empty": folder / config.trigger.empty})
    if isinstance(config.part_ref, FilePartRef):
        changes["part_ref"] = config.part_ref.model_copy(update={"path": folder / config.part_ref.path})
    if config.control is not None:
        changes["control"] = place_control(config.control, folder)
    return config.model_copy(update=changes)


def _fault(path: Path, root: yaml.MappingNode, item) -> str:  # type: ignore[no-untyped-def]
    unknown = item["type"] == "extra_forbidden"
    location, models = _follow(item["loc"], ends_with_key=unknown or item["type"] == "invalid_key")
    line = _line_of(root, location)
    name = ".".join(location) or "the file"
    if unknown:
        expected = ", ".join(sorted({field for model in models for field in model.model_fields}))
        return f"{path}:{line}: unknown key '{name}'; expected one of: {expected}"
    if item["type"] == "union_tag_invalid":
        return f"{path}:{line}: '{name}' is of kind {item['ctx']['tag']!r}, expected one of: {item['ctx']['expected_tags']}"
    if item["type"] == "missing":
        return f"{path}:{line}: key '{name}' is missing; add it"
    problem = item["msg"].removeprefix("Value error, ")
    return f"{path}:{line}: '{name}' is {item['input']!r}; {problem[0].lower()}{problem[1:]}"


def _follow(location: Sequence[str | int], *, ends_with_key: bool) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys of a location, and the models that the last one may be a field of.

    For a union pydantic names the kind or the type that was tried as well; these are no keys of the file.
    """
    keys: list[str] = []
    owners: list[type[BaseModel]] = [StationConfig]
    models, free = owners, False
    for number, part in enumerate(location):
        annotations = [model.model_fields[str(part)].annotation for model in models if part in model.model_fields]
        if annotations:
            owners, models = models, [inner for annotation in annotations for inner in _models(annotation)]
            free = any(get_origin(annotation) is dict for annotation in annotations)
        elif free:  # the names of a mapping are the file's own
            free = False
        elif ends_with_key and number == len(location) - 1:
            owners = models
        else:
            models = [model for model in models if _is_kind(model, part)] or models
            continue
        keys.append(str(part))
    return keys, owners


def _is_kind(model: type[BaseModel], name: str | int) -> bool:
    field = model.model_fields.get("kind")
    return field is not None and get_args(field.annotation) == (name,)


def _models(annotation: object) -> list[type[BaseModel]]:
    """The sections in an annotation such as `FolderSource | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models(argument)]


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
