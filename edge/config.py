"""`station.yaml`: what a station runs, checked key by key, with the line of each fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge import StationError
from engines.bundle import Precision

# strict: YAML reads `yes` as true, which would count as 1
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NumberFromZero = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
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


class DryRun(_Section):
    """No line is driven; what would be done is counted."""

    kind: Literal["dry-run"]


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
    rejector: DryRun = DryRun(kind="dry-run")
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
    if faults:
        raise ConfigError(faults)
    return _resolve(config, path.parent)


def _resolve(config: StationConfig, folder: Path) -> StationConfig:
    changes: dict[str, object] = {name: folder / getattr(config, name) for name in ("bundle", "calibration", "journal")}
    if config.journal_heads is not None:
        changes["journal_heads"] = folder / config.journal_heads
    if config.evidence is not None:
        changes["evidence"] = config.evidence.model_copy(update={"folder": folder / config.evidence.folder})
    if isinstance(config.source, FolderSource):
        changes["source"] = config.source.model_copy(update={"path": folder / config.source.path})
    return config.model_copy(update=changes)


def _fault(path: Path, root: yaml.MappingNode, item) -> str:  # type: ignore[no-untyped-def]
    # the union of sources adds the chosen kind to the location, and that of devices a type: they are no keys of the file
    location = [str(part) for part in item["loc"]]
    if location[:1] == ["source"]:
        location = location[:1] + location[2:3]
    line = _line_of(root, location)
    name = ".".join(location) or "the file"
    if item["type"] == "extra_forbidden":
        return f"{path}:{line}: unknown key '{name}'; expected one of: {', '.join(_known(location))}"
    if item["type"] == "union_tag_invalid":
        return f"{path}:{line}: '{name}' is of kind {item['ctx']['tag']!r}, expected one of: {item['ctx']['expected_tags']}"
    if item["type"] == "missing":
        return f"{path}:{line}: key '{name}' is missing; add it"
    return f"{path}:{line}: '{name}' is {item['input']!r}; {item['msg'][0].lower()}{item['msg'][1:]}"


def _known(location: list[str]) -> list[str]:
    if len(location) == 1:
        return list(StationConfig.model_fields)
    sections = {"source": (FolderSource, CameraSource), "rejector": (DryRun,), "evidence": (EvidenceConfig,)}
    return sorted({name for section in sections.get(location[0], ()) for name in section.model_fields})


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
