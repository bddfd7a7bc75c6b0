"""The sections of `station.yaml` as frozen models: each key, its type and its bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from calibration.reference import reference_path
from edge.camera_sections import AnySource, CameraSettings
from edge.section import CountFromOne, CountFromZero, NumberFromZero, PositiveNumber, Section
from edge.watch_sections import ChallengeSection, DriftSection
from engines.bundle import Precision

# the deciding loop shows that it turns every 20 ms while it waits
HeartbeatMs = Annotated[float, Field(ge=50, allow_inf_nan=False, strict=True)]


def _line_id(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value:
        return value
    raise ValueError("expected an offset, 0 or more, or a line's name")


def _short_line(value: object) -> object:
    return value if isinstance(value, dict) else {"line": value}


class Line(Section):
    """One line; `7` or `NAME` is short for `{line: 7}`."""

    line: Annotated[int | str, PlainValidator(_line_id)]
    chip: str | None = None
    active: Literal["high", "low"] = "high"
    bias: Literal["as-is", "disabled", "pull-up", "pull-down"] = "as-is"
    debounce_ms: NumberFromZero = 0


AnyLine = Annotated[Line, BeforeValidator(_short_line)]


class LinesSection(Section):
    """Inputs and outputs by what they are for. An output that is left out is not driven; `reject` must be there."""

    reject: AnyLine
    ready: AnyLine | None = None
    fault: AnyLine | None = None
    heartbeat: AnyLine | None = None
    trigger: AnyLine | None = None
    encoder: AnyLine | None = None
    confirm: AnyLine | None = None
    exit: AnyLine | None = None


Lines = Annotated[tuple[AnyLine, ...], Field(max_length=8)]


class DryRun(Section):
    """No line is driven; the rejector's process stamps what it would do."""

    kind: Literal["dry-run"]
    travel_ms: PositiveNumber | None = None
    """From trigger to ejector; none: the deadline."""
    pulse_ms: PositiveNumber = 20
    separation_ms: NumberFromZero = 0
    heartbeat_ms: HeartbeatMs = 100
    log: Path | None = None
    """File for a row at each level that would have been driven."""


class Gpio(Section):
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
    recipe_lines: Lines = ()
    """Inputs that say the wanted recipe's `code` in binary, the lowest bit first."""
    recipe_strobe: AnyLine | None = None
    """Input whose rising edge says that the code is valid; none: a code is valid that stood still for `recipe_settle_ms`."""
    recipe_settle_ms: PositiveNumber = 50
    realtime: Annotated[bool, Field(strict=True)] = True


class EvidenceConfig(Section):
    """Pictures that are kept: of every REJECT and FAULT, of every so many parts, and of those that nearly were rejected."""

    folder: Path = Path("evidence")
    quota_mb: PositiveNumber = 2000
    every: CountFromZero = 100
    """Parts whose number is a multiple; 0 for none of them."""
    near_spreads: NumberFromZero = 0.5
    """How far below the threshold a PASS is kept too, in standard deviations of the scores of good parts."""
    waiting: Annotated[int, Field(gt=0, strict=True)] = 8
    """Pictures that may wait in memory to be written; further ones are dropped."""


class LineTrigger(Section):
    """Each edge of the rejector's line `trigger` is a part."""

    kind: Literal["line"]
    waiting: CountFromOne = 8
    """Parts that may wait to be judged; further ones are FAULTs. So below."""


class FrameTrigger(Section):
    """Each frame that the station takes is a part."""

    kind: Literal["frame"]


class SoftwareTrigger(Section):
    """Each POST to `/trigger`, or each line of standard input, is a part."""

    kind: Literal["software"]
    by: Annotated[tuple[Literal["http", "stdin"], ...], Field(min_length=1)] | None = None
    """None: `http` where there is a section `control`, `stdin` otherwise."""
    waiting: CountFromOne = 8


class TimerTrigger(Section):
    """A part each period."""

    kind: Literal["timer"]
    period_ms: PositiveNumber


Side = Literal["any", "left", "right", "top", "bottom"]


class PresenceTrigger(Section):
    """A part each time that something comes fully into view before an empty scene, which `edge empty` learnt."""

    kind: Literal["presence"]
    empty: Path
    region: tuple[CountFromZero, CountFromZero, CountFromOne, CountFromOne] | None = None
    """x, y, width, height in source pixels; none: the whole frame."""
    enters: Side = "any"
    """Where parts come from; with a side, one may come in before the one before it left."""
    share: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.02
    """Of the region, that a part changes at least."""
    blind_s: PositiveNumber = 30
    """A scene that is changed for so long is reported; where parts could not be told apart meanwhile, the run ends."""
    waiting: CountFromOne = 4


AnyTrigger = LineTrigger | FrameTrigger | SoftwareTrigger | TimerTrigger | PresenceTrigger


class HttpPartRef(Section):
    """`POST /part_ref` sets the reference of the parts that trigger after it."""

    kind: Literal["http"]


class FilePartRef(Section):
    """A file that another system rewrites holds the reference of the parts that trigger after the station saw it."""

    kind: Literal["file"]
    path: Path


class SerialPartRef(Section):
    """A scanner on a serial port reads each part before it triggers."""

    kind: Literal["serial"]
    device: Path
    baud: CountFromOne = 9600
    min_age_ms: NumberFromZero = 0
    max_age_ms: PositiveNumber
    """A part takes the first reference that was read so long before its trigger."""

    @model_validator(mode="after")
    def _ages(self) -> SerialPartRef:
        if self.min_age_ms >= self.max_age_ms:
            raise ValueError(f"min_age_ms {self.min_age_ms:g} must be below max_age_ms {self.max_age_ms:g}")
        return self


class ControlSection(Section):
    """HTTP for the machine around the station."""

    address: Annotated[str, Field(min_length=1)] = "127.0.0.1:8090"
    """HOST:PORT, or `unix:` and the path of a socket. A host that is not this machine's own needs a token."""
    token: Path | None = None
    """File that holds the token, readable by its owner alone."""


class Timing(Section):
    """Keys of `rejector:` that hold for one recipe; what is left out is as there."""

    travel_ms: PositiveNumber | None = None
    pulse_ms: PositiveNumber | None = None
    separation_ms: NumberFromZero | None = None
    travel_pulses: CountFromOne | None = None
    pulse_pulses: CountFromOne | None = None
    separation_pulses: CountFromZero | None = None


class Recipe(Section):
    """One product of a station: what it is judged by, and what is otherwise than at the top of the file."""

    bundle: Path
    calibration: Path
    deadline_ms: PositiveNumber | None = None
    source: CameraSettings = CameraSettings()
    """Keys of `source:` that hold for this recipe; each of them is given by all recipes, or at the top."""
    rejector: Timing = Timing()
    code: CountFromZero | None = None
    """What `rejector.recipe_lines` say when it is wanted."""
    challenge: Path | None = None
    """Its labelled parts, where there is a section `challenge`."""


class Recipes(Section):
    """The keys of a file that names its products, in place of `bundle` and `calibration` at the top."""

    recipe: Annotated[str, Field(min_length=1)]
    """The one to start with, until another one is chosen."""
    recipes: Annotated[dict[Annotated[str, Field(min_length=1)], Recipe], Field(min_length=1)]


class StationConfig(Section):
    """Everything that `edge run` needs for one recipe. Relative paths count from the configuration file's folder."""

    station: Annotated[str, Field(min_length=1)]
    camera: Annotated[str, Field(min_length=1)] = "camera-1"
    recipe: str = ""
    """Name of the recipe that this is for; the name of the bundle's folder unless given."""
    bundle: Path
    calibration: Path
    backend: str = "onnxruntime"
    precision: Precision = "fp32"
    threads: CountFromZero = 0
    search: Literal["cpu", "gpu"] | None = None
    deadline_ms: PositiveNumber = 1000
    source: Annotated[AnySource, Field(discriminator="kind")]
    rejector: Annotated[DryRun | Gpio, Field(discriminator="kind")] = DryRun(kind="dry-run")
    trigger: Annotated[AnyTrigger, Field(discriminator="kind")] | None = None
    """None: by line where the rejector has a line `trigger`, otherwise each frame."""
    part_ref: Annotated[HttpPartRef | FilePartRef | SerialPartRef, Field(discriminator="kind")] | None = None
    control: ControlSection | None = None
    code: CountFromZero | None = None
    keep_loaded: CountFromOne | None = None
    """Recipes that stay loaded, for a changeover without waiting; none: as many as leave a quarter of the memory free."""
    journal: Path
    journal_heads: Path | None = None
    """File, best on another machine's disk, that shows whether the journal's end was cut off."""
    journal_timeout_ms: PositiveNumber = 200
    """How long another program's lock may hold up a row; its part is a FAULT then."""
    evidence: EvidenceConfig | None = None
    drift: DriftSection | None = None
    challenge: ChallengeSection | None = None

    @property
    def drift_reference(self) -> Path:
        """What drift is measured against."""
        named = None if self.drift is None else self.drift.reference
        return reference_path(self.calibration) if named is None else named

    @property
    def triggered(self) -> AnyTrigger:
        """What makes a part, with what was left out filled in."""
        trigger = self.trigger
        if trigger is None:
            lined = isinstance(self.rejector, Gpio) and self.rejector.lines.trigger is not None
            return LineTrigger(kind="line") if lined else FrameTrigger(kind="frame")
        if isinstance(trigger, SoftwareTrigger) and trigger.by is None:
            return trigger.model_copy(update={"by": ("stdin",) if self.control is None else ("http",)})
        return trigger

    @property
    def active(self) -> Path:
        """File that remembers which recipe was chosen last: beside the journal, which is one station's alone."""
        return self.journal.with_name(f"{self.journal.stem}-active.json")
