"""What a configuration would do, in plain words, for the person who wired the station and has to answer for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibration.record import load_calibration
from edge.camera_sections import CameraSettings, FolderSource
from edge.config import line_specs, rejector_setup
from edge.lines import LineSpec
from edge.sections import DryRun, FrameTrigger, Gpio, LineTrigger, Section, StationConfig
from engines import InspectionError

_WIDTH = 48
_SHORT_DIGEST = 12
_LINES = {
    "reject": ("lets parts pass", "rejects, and so does a station without power or a dead program"),
    "ready": ("the station judges: the conveyor may run", "stop the conveyor"),
    "fault": ("the station stopped itself", "no fault, or no program"),
    "heartbeat": ("changes all the time while the station is ready", "changes all the time while the station is ready"),
    "trigger": ("a part is there: the change to this is the trigger", "no part"),
    "encoder": ("each change to this is one pulse of travel", "between two pulses"),
    "confirm": ("sees a rejected part", "sees none"),
    "exit": ("sees a part before the ejector", "sees none"),
    "strobe": ("the recipe's code is valid: it is read at the change to this", "the code does not count"),
}


@dataclass(frozen=True)
class Topic:
    """A heading and its lines."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Span:
    """Something on a time line, from `start` to `end` on its axis; `text` says what it means."""

    name: str
    start: float
    end: float
    text: str


def explain(recipes: Mapping[str, StationConfig]) -> list[Topic]:
    """What the station would do; nothing is opened but the calibration records.

    Args:
        recipes: the station as it is set up for each, the one to start with first.
    """
    first = next(iter(recipes.values()))
    own = _own_settings(recipes)
    topics = [
        Topic("Pictures", tuple(_pictures(first, own))),
        Topic("Parts", tuple(_parts(first))),
        Topic("Lines", tuple(_lines(first))),
    ]
    for name, config in recipes.items():
        topics.append(Topic(f"Recipe {name}", tuple(_recipe(config, own))))
        topics.append(Topic(f"Timing of {name}", tuple(_timing(config))))
    topics.append(Topic("Watched", tuple(_watched(recipes))))
    return [*topics, Topic("Kept", tuple(_kept(first))), Topic("Control", tuple(_control(recipes)))]


def draw(spans: Sequence[Span], unit: str) -> list[str]:
    """A bar a span, all on one axis from 0, with its ends in numbers and what it means."""
    longest = max(span.end for span in spans)
    names = max(len(span.name) for span in spans)
    bars = []
    for span in spans:
        first = round(span.start / longest * (_WIDTH - 1))
        last = max(first, round(span.end / longest * (_WIDTH - 1)))
        bar = " " * first + ("|" if span.start == span.end else "=" * (last - first + 1))
        numbers = f"{span.start:g}" if span.start == span.end else f"{span.start:g} to {span.end:g}"
        bars.append((span, bar, f"{numbers} {unit}"))
    wide = max(len(numbers) for _, _, numbers in bars)
    return [f"{span.name:{names}}  |{bar:{_WIDTH}}|  {numbers:{wide}}  {span.text}" for span, bar, numbers in bars]


def _own_settings(recipes: Mapping[str, StationConfig]) -> frozenset[str]:
    """Keys of the source that recipes give in different ways."""
    dumps = [config.source.model_dump() for config in recipes.values()]
    return frozenset(key for key in CameraSettings.model_fields if any(dump.get(key) != dumps[0].get(key) for dump in dumps))


def _pictures(config: StationConfig, own: frozenset[str]) -> list[str]:
    source = config.source
    settings = [f"{key}: {value}" for key, value in _settings(source) if key.partition(".")[0] not in own]
    by_recipe = [f"{', '.join(sorted(own))}: as each recipe says; the camera is opened again at a change"] if own else []
    return [f"{config.camera}: {_said(source)}", *settings, *by_recipe]


def _said(section: Section) -> str:
    """What a section is, as its class says it."""
    return (type(section).__doc__ or "").strip().splitlines()[0]


def _settings(section: Section, prefix: str = "") -> list[tuple[str, object]]:
    """Keys and values in the file's words; what is not set is left out."""
    rows: list[tuple[str, object]] = []
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Section):
            rows += _settings(value, f"{prefix}{key}.")
        elif value is not None and key != "kind":
            rows.append((f"{prefix}{key}", value))
    return rows


def _parts(config: StationConfig) -> list[str]:
    trigger = config.triggered
    if isinstance(trigger, LineTrigger):
        begins = "each pulse of the line trigger is a part; it gets the first picture taken after it"
    elif not isinstance(trigger, FrameTrigger):
        begins = f"{_said(trigger)[0].lower()}{_said(trigger)[1:]}".rstrip(".")
        settings = ", ".join(f"{key} {value}" for key, value in _settings(trigger))
        begins += f" ({settings})" if settings else ""
    elif isinstance(config.source, FolderSource):
        begins = "each file, or frame of the video, is a part"
        begins += (
            f", {config.source.fps:g} a second" if config.source.fps is not None else ", as soon as the one before is judged"
        )
    else:
        begins = "each picture that the station takes is a part; while it is busy, pictures are let go"
    named = [] if config.part_ref is None else [f"named by: {_said(config.part_ref)}"]
    return [
        begins,
        *named,
        "PASS: its score is at or below the recipe's threshold, in time, and the journal has it",
        "REJECT: its score is above the threshold",
        "FAULT: anything else, such as no picture, a failure or a verdict that is late; it is rejected too",
    ]


def _lines(config: StationConfig) -> list[str]:
    rejector = config.rejector
    if isinstance(rejector, DryRun):
        log = f"; what would have been driven is written to {rejector.log}" if rejector.log is not None else ""
        return [f"dry run: no line is driven, so nothing is ever rejected{log}"]
    specs = line_specs(rejector)
    if any(spec.name not in _LINES for spec in specs if not spec.name.startswith("code-")):
        raise AssertionError(f"a line is not described: {[spec.name for spec in specs]}")
    lines = [text for spec in specs for text in _line(spec)]
    if rejector.lines.ready is None:
        lines.append("no line ready: nothing stops the conveyor when the station cannot judge; add rejector.lines.ready")
    if rejector.lines.confirm is None:
        lines.append("no line confirm: nobody sees whether a rejected part really left; add rejector.lines.confirm")
    return lines


def _line(spec: LineSpec) -> list[str]:
    """Where it is, and what each level means."""
    if spec.name.startswith("code-"):
        bit = int(spec.name.removeprefix("code-"))
        means = (f"counts {2**bit} in the recipe's code", "counts 0")
    else:
        means = _LINES[spec.name]
    where = f"{spec.line}" if spec.chip == "" else f"{spec.line} of {spec.chip}"
    extra = [f"bias {spec.bias}"] if spec.bias != "as-is" else []
    extra += [f"debounced for {spec.debounce_us / 1e3:g} ms"] if spec.debounce_us else []
    levels = ("low", "high") if spec.active_low else ("high", "low")
    head = f"{spec.name}: {'output' if spec.output else 'input'} {where}{''.join(f', {word}' for word in extra)}"
    if means[0] == means[1]:
        return [head, f"    {means[0]}"]
    return [head, *(f"    {level:4}  {text}" for level, text in zip(levels, means, strict=True))]


def _recipe(config: StationConfig, own: frozenset[str]) -> list[str]:
    lines = [f"bundle {config.bundle}", f"run by {config.backend} in {config.precision}"]
    told = [f"{key} {value}" for key, value in _settings(config.source) if key.partition(".")[0] in own]
    lines += [f"camera told {', '.join(told)}; refused unless that reads back"] if told else []
    try:
        record = load_calibration(config.calibration)
    except InspectionError:
        lines.append(f"calibration {config.calibration}: cannot be used, see below")
    else:
        lines += [
            f"calibration {config.calibration}, made {record.when} by {record.who}"
            f" for bundle {record.bundle_digest[:_SHORT_DIGEST]}",
            f"threshold {record.threshold:.6g}, {record.origin}",
        ]
        if record.rate is not None:
            lines.append(
                f"it was taken so that {100 * record.rate:g} % of good parts or fewer are rejected: on average over such"
                " calibrations, and as long as parts and light stay as they were"
            )
    if config.code is not None:
        lines.append(f"asked for by code {config.code} on the recipe lines")
    return lines


def _timing(config: StationConfig) -> list[str]:
    setup = rejector_setup(config)
    settings = setup.settings
    scale, unit = (1, "pulses") if settings.encoder else (1e6, "ms")
    travel, pulse = settings.travel / scale, settings.pulse / scale
    deadline = Span("verdict", 0, config.deadline_ms, "a PASS that comes later does not count")
    spans = [Span("trigger", 0, 0, "the part is seen")]
    if not settings.encoder:
        spans.append(deadline)
    if settings.exit is not None:
        place, tolerance = settings.exit / scale, settings.tolerance / scale
        spans.append(
            Span("exit", max(0, place - tolerance), place + tolerance, "the exit sensor sees it; one unannounced is rejected")
        )
    spans.append(Span("ejector", travel, travel + pulse, "rejected, unless a PASS came"))
    if settings.confirm_ns is not None and not settings.encoder:
        spans.append(Span("confirm", travel, travel + pulse + settings.confirm_ns / 1e6, "the sensor must see a rejected part"))
    lines = draw(spans, unit)
    if settings.encoder:
        lines.append(f"a PASS counts until {config.deadline_ms:g} ms after the trigger, and before the part is at the ejector")
        if settings.confirm_ns is not None:
            lines.append(f"a rejected part must be seen until {settings.confirm_ns / 1e6:g} ms after its window")
    if settings.separation > 0:
        lines.append(f"parts whose windows are no more than {settings.separation / scale:g} {unit} apart are rejected together")
    beat = f"without a sign of life from the program for {settings.heartbeat_ns / 1e6:g} ms"
    lines.append(
        f"{beat} everything is rejected" + (" and ready drops" if "ready" in [spec.name for spec in setup.lines] else "")
    )
    return lines


def _watched(recipes: Mapping[str, StationConfig]) -> list[str]:
    first = next(iter(recipes.values()))
    drift, challenge = first.drift, first.challenge
    lines = []
    if drift is None:
        lines.append("no drift: nobody sees light, focus or parts change; add the section drift")
    else:
        then = "the station is not ready, until a person resets it" if drift.on_alarm == "stop" else "it is said, and judged on"
        lines.append(
            "each part that passes, for light, focus, colour, position and score: on average at most a false warning in"
            f" {drift.warning_parts:g} parts and a false alarm in {drift.alarm_parts:g}"
        )
        lines.append(f"at an alarm {then}")
        if drift.reject_run > 0:
            lines.append(f"{drift.reject_run} rejects in a row are an alarm too")
        lines += [f"{name} is measured against {config.drift_reference}" for name, config in recipes.items()]
    if challenge is None:
        lines.append("no labelled parts: nobody sees that bad ones pass; add the section challenge")
        return lines
    times = ["at each start"] if challenge.at_start else []
    times += [f"every {challenge.every_hours:g} h"] if challenge.every_hours is not None else []
    lines.append(f"labelled parts, {' and '.join(times)} and after a change of recipe: while they are judged nothing passes,")
    lines.append("    and where one is judged wrongly the station is not ready")
    return [
        *lines,
        *(f"{name} is challenged with {config.challenge.path}" for name, config in recipes.items() if config.challenge),
    ]


def _kept(config: StationConfig) -> list[str]:
    lines = [f"journal {config.journal}: a row for each part, for ever", f"chosen recipe {config.active}"]
    if config.journal_heads is None:
        lines.append("no journal_heads: nobody would see the end of the journal cut off")
    else:
        lines.append(f"heads of the journal {config.journal_heads}")
    evidence = config.evidence
    if evidence is None:
        return [*lines, "no pictures: the section evidence is not there"]
    also = [f"of each part whose number is a multiple of {evidence.every}"] if evidence.every > 0 else []
    also += [f"of each PASS within {evidence.near_spreads:g} spreads of the threshold"] if evidence.near_spreads > 0 else []
    lines.append(f"pictures {evidence.folder}: of every REJECT and FAULT{''.join(f', {text}' for text in also)}")
    return [*lines, f"    up to {evidence.quota_mb:g} MB; the oldest passes are deleted first"]


def _control(recipes: Mapping[str, StationConfig]) -> list[str]:
    first = next(iter(recipes.values()))
    lines = ["whoever may send its process a signal: SIGTERM stops it, SIGHUP has this file read again"]
    if first.control is None:
        lines.append("nobody by HTTP: the section control is not there")
    else:
        who = "reaches it" if first.control.token is None else f"has the token in {first.control.token}"
        lines.append(
            f"by HTTP at {first.control.address} whoever {who}: halt and resume, change the recipe, trigger, see the state"
        )
    if len(recipes) > 1:
        keep = first.keep_loaded
        how_many = "as many as leave a quarter of the memory free" if keep is None else f"{keep}"
        lines.append(f"starts with recipe {first.recipe}, or with the one that was chosen last; loaded are {how_many}")
    if isinstance(first.rejector, Gpio) and first.rejector.recipe_lines:
        valid = (
            "at the strobe"
            if first.rejector.recipe_strobe
            else f"once it stood still for {first.rejector.recipe_settle_ms:g} ms"
        )
        codes = ", ".join(
            f"{config.code} {name}" for name, config in sorted(recipes.items(), key=lambda item: item[1].code or 0)
        )
        lines.append(f"whoever drives the recipe lines, {valid}: {codes}; any other code and the station is not ready")
    return lines
