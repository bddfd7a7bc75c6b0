"""`station.yaml`: what a station runs, checked key by key, with the line of each fault."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edge import StationError
from edge.agreement import agree_on_stalls, camera_disagreements, disagreements, place_control, source_for
from edge.camera_sections import FolderSource
from edge.code_lines import CODE, STROBE
from edge.lines import OUTPUTS, LineSpec
from edge.rejector_process import Setup
from edge.sections import DryRun, FilePartRef, Gpio, Line, LinesSection, PresenceTrigger, Recipe, Recipes, StationConfig
from edge.travel import Settings


class ConfigError(StationError):
    """A configuration with faults; `faults` has one line each, with file and line number, in the order of the file's lines."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class UnreadableConfigError(ConfigError):
    """Nothing that could be a configuration: no file that can be read, no YAML, or no keys."""


Fault = tuple[int, str]
"""A line of the file, and what is wrong there."""


def load_config(path: Path) -> StationConfig:
    """Read and check a configuration: the station as it is set up for the recipe that the file names to start with.

    Raises:
        UnreadableConfigError: a file that cannot be read, or that is no YAML with keys.
        ConfigError: every fault at once: unknown, missing, doubled or wrong keys.
    """
    return next(iter(load_recipes(path).values()))


def load_recipes(path: Path) -> dict[str, StationConfig]:
    """The station as it is set up for each of its recipes; the one to start with comes first. Raises as `load_config`."""
    root, document, doubled = _compose(path)
    faults: list[Fault] = [(line, f"key '{key}' appears twice; remove one") for key, line in doubled]
    named = None
    if "recipes" in document:
        own = {key: document.pop(key) for key in Recipes.model_fields if key in document}
        faults += [
            (_line_of(root, [key]), f"key '{key}' does not go with 'recipes'; give it below each recipe")
            for key in ("bundle", "calibration", "code")
            if document.pop(key, None) is not None
        ]
        try:
            named = Recipes.model_validate(own)
            first = named.recipes.get(named.recipe)
            if first is None:
                known = ", ".join(named.recipes)
                faults.append((_line_of(root, ["recipe"]), f"'recipe' is {named.recipe!r}; expected one of: {known}"))
        except ValidationError as error:
            faults += [_fault(root, item, [Recipes]) for item in error.errors()]
        document |= {"bundle": ".", "calibration": "."}  # each recipe's own take their place
    try:
        shared = StationConfig.model_validate(document)
    except ValidationError as error:
        faults += [_fault(root, item, [StationConfig, Recipes]) for item in error.errors()]
        raise _refused(path, faults) from None
    faults += [(_line_of(root, keys), fault) for keys, fault in disagreements(shared)]
    if named is None:
        recipes = {shared.recipe or shared.bundle.name: shared}
    else:
        recipes = {name: _set_up(shared, recipe) for name, recipe in named.recipes.items()}
        faults += [(_line_of(root, keys), fault) for keys, fault in camera_disagreements(shared, named.recipes)]
    recipes = {name: config.model_copy(update={"recipe": name}) for name, config in recipes.items()}
    for name, config in recipes.items():
        where, says = ([], "") if named is None else (["recipes", name], f"recipe {name}: ")
        try:
            rejector_setup(config)
            agree_on_stalls(config)
            _agree_on_code(config, [other for other in recipes.values() if other is not config])
        except StationError as error:
            faults.append((_line_of(root, [*where, "rejector"]), f"{says}{error}"))
        if config.challenge is not None and config.challenge.path is None:
            keys = ["challenge"] if named is None else [*where]
            missing = f"{says}key '{_path_key(named)}' is missing: its labelled parts; add it"
            faults.append((_line_of(root, keys), missing))
    if named is not None:
        faults += [(_line_of(root, keys), fault) for keys, fault in _of_one_recipe(shared, named)]
    if faults:
        raise _refused(path, faults)
    start = next(iter(recipes)) if named is None else named.recipe
    return {name: _resolve(recipes[name], path.parent) for name in sorted(recipes, key=lambda name: name != start)}


def _refused(path: Path, faults: Sequence[Fault]) -> ConfigError:
    """All faults, from the first line to the last."""
    return ConfigError([f"{path}:{line}: {what}" for line, what in sorted(faults, key=lambda fault: fault[0])])


def _compose(path: Path) -> tuple[yaml.MappingNode, dict[str, Any], list[tuple[str, int]]]:
    """The file's nodes, which know their lines, its values, and the keys that appear twice. Raises UnreadableConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableConfigError(
            [f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); give a YAML file"]
        ) from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
        doubled = [] if root is None else list(_doubled(root))
    except (ValueError, RecursionError) as error:  # a date such as 2024-13-45, or a section inside itself
        raise UnreadableConfigError([f"{path}: not YAML that can be read ({error}); correct it"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UnreadableConfigError([f"{path}{line}: not YAML ({problem}); correct it"]) from None
    if not isinstance(root, yaml.MappingNode):
        got = "nothing" if document is None else type(document).__name__
        raise UnreadableConfigError([f"{path}:1: expected keys such as 'station:' and 'bundle:', got {got}"])
    return root, document, doubled


def _path_key(named: Recipes | None) -> str:
    return "challenge.path" if named is None else "challenge"


def _of_one_recipe(shared: StationConfig, named: Recipes) -> Iterator[tuple[list[str], str]]:
    """Paths that can hold for one recipe alone, and parts without the section that has them judged."""
    if shared.drift is not None and shared.drift.reference is not None:
        yield (
            ["drift", "reference"],
            "key 'drift.reference' does not go with 'recipes'; each has its own beside its calibration",
        )
    if shared.challenge is not None and shared.challenge.path is not None:
        yield ["challenge", "path"], "key 'challenge.path' does not go with 'recipes'; give each recipe its own 'challenge'"
    for name, recipe in named.recipes.items():
        if recipe.challenge is not None and shared.challenge is None:
            yield ["recipes", name, "challenge"], f"recipe {name}: key 'challenge' needs the section 'challenge'; add it"


def _set_up(shared: StationConfig, recipe: Recipe) -> StationConfig:
    """The station for one recipe."""
    timing = recipe.rejector.model_dump(exclude_none=True)
    changes: dict[str, object] = {"bundle": recipe.bundle, "calibration": recipe.calibration, "code": recipe.code}
    if recipe.deadline_ms is not None:
        changes["deadline_ms"] = recipe.deadline_ms
    changes["rejector"] = shared.rejector.model_copy(update=timing)
    changes["source"] = source_for(shared, recipe)
    if shared.challenge is not None:
        changes["challenge"] = shared.challenge.model_copy(update={"path": recipe.challenge})
    return shared.model_copy(update=changes)


def rejector_setup(config: StationConfig) -> Setup:
    """What the rejector's process is told. Raises StationError: keys that do not go together."""
    rejector = config.rejector
    unknown = rejector.model_fields_set - type(rejector).model_fields.keys()
    if unknown:
        raise StationError(f"{', '.join(sorted(unknown))} in a recipe, which a rejector of kind {rejector.kind} does not have")
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
    return Setup(
        rejector.driver,
        line_specs(rejector),
        settings,
        realtime=rejector.realtime,
        settle_ns=None if rejector.recipe_strobe is not None else _ns(rejector.recipe_settle_ms),
        claim=_claim(config),
    )


def _claim(config: StationConfig) -> str:
    """A file beside the journal, since only a station that has that one may take another's lines."""
    return f"{config.journal}-rejector"


def line_specs(rejector: Gpio) -> tuple[LineSpec, ...]:
    """Its lines, in the order of the section's keys; those of a recipe's code are `code-0` and so on, and `strobe`."""
    named: dict[str, Line | None] = {name: getattr(rejector.lines, name) for name in LinesSection.model_fields}
    named |= {f"{CODE}{bit}": line for bit, line in enumerate(rejector.recipe_lines)} | {STROBE: rejector.recipe_strobe}
    return tuple(
        LineSpec(
            name,
            name in OUTPUTS,
            line.chip or rejector.chip,
            line.line,
            line.active == "low",
            line.bias,
            round(line.debounce_ms * 1e3),
        )
        for name, line in named.items()
        if line is not None
    )


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


def _agree_on_code(config: StationConfig, others: Sequence[StationConfig]) -> None:
    """Each recipe has a code of its own where lines can say one, and none otherwise. Raises StationError."""
    lines = config.rejector.recipe_lines if isinstance(config.rejector, Gpio) else ()
    if isinstance(config.rejector, Gpio) and config.rejector.recipe_strobe is not None and not lines:
        raise StationError("'rejector.recipe_strobe' needs 'rejector.recipe_lines'; give both or none")
    if not lines:
        if config.code is not None:
            raise StationError(f"code {config.code} can't be given by any line; add 'rejector.recipe_lines' or leave it out")
        return
    highest = 2 ** len(lines) - 1
    if config.code is None or config.code > highest:
        raise StationError(
            f"code is {config.code}, expected 0 to {highest} for {len(lines)} recipe_lines; give each recipe one"
        )
    for other in others:
        if other.code == config.code:
            raise StationError(f"code {config.code} is also that of recipe {other.recipe}; give each its own")


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
    if config.drift is not None and config.drift.reference is not None:
        changes["drift"] = config.drift.model_copy(update={"reference": folder / config.drift.reference})
    if config.challenge is not None and config.challenge.path is not None:
        changes["challenge"] = config.challenge.model_copy(update={"path": folder / config.challenge.path})
    if config.control is not None:
        changes["control"] = place_control(config.control, folder)
    return config.model_copy(update=changes)


def _fault(root: yaml.MappingNode, item: ErrorDetails, models: Sequence[type[BaseModel]]) -> Fault:
    """One error of the models that the file's keys were held against."""
    unknown = item["type"] == "extra_forbidden"
    location, models = _follow(item["loc"], models, ends_with_key=unknown or item["type"] == "invalid_key")
    line = _line_of(root, location)
    name = ".".join(location) or "the file"
    if unknown:
        expected = ", ".join(sorted({field for model in models for field in model.model_fields}))
        return line, f"unknown key '{name}'; expected one of: {expected}"
    if item["type"] == "union_tag_invalid":
        return line, f"'{name}' is of kind {item['ctx']['tag']!r}, expected one of: {item['ctx']['expected_tags']}"
    if item["type"] == "missing":
        return line, f"key '{name}' is missing; add it"
    if item["type"] == "path_type":
        return line, f"'{name}' is {item['input']!r}; expected the name of a file, folder or device"
    problem = item["msg"].removeprefix("Value error, ")
    return line, f"'{name}' is {item['input']!r}; {problem[0].lower()}{problem[1:]}"


def _follow(
    location: Sequence[str | int], models: Sequence[type[BaseModel]], *, ends_with_key: bool
) -> tuple[list[str], Sequence[type[BaseModel]]]:
    """The keys of a location below `models`, and the models that the last one may be a field of.

    For a union pydantic names the kind or the type that was tried as well; these are no keys of the file.
    """
    keys: list[str] = []
    owners, free = models, False
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
