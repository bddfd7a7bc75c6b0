"""Which triggers, references, control and camera settings go together, and with what else."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge import StationError
from edge.camera_sections import AnySource, CameraSettings, GenicamSource, LiveSource
from edge.sections import (
    ControlSection,
    FrameTrigger,
    Gpio,
    HttpPartRef,
    LineTrigger,
    PresenceTrigger,
    Recipe,
    SoftwareTrigger,
    StationConfig,
)

UNIX = "unix:"
_NOTICE_MS = 50  # within which a station that is not ready any more has told the reject line, and the line has moved


@dataclass(frozen=True)
class Address:
    """Where the control listens: `host` and `port`, or the `path` of a Unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @property
    def local(self) -> bool:
        """Only programs of this machine can reach it."""
        return self.path is not None or self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback


def parse_address(text: str) -> Address:
    """`HOST:PORT` with a numeric address or `localhost`, or `unix:PATH`. Raises StationError."""
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path or len(path.encode()) > 100:  # the kernel takes 107 bytes
            raise StationError(f"address {text!r} has a path of {len(path.encode())} bytes, expected 1 to 100")
        return Address(path=Path(path))
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise StationError(f"address {text!r}, expected HOST:PORT such as 127.0.0.1:8090, or {UNIX} and a path")
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise StationError(f"address {text!r} has the host {host!r}, expected an IP address or localhost") from None
    return Address(host, int(port))


def place_control(control: ControlSection, folder: Path) -> ControlSection:
    """The section with paths that count from `folder`."""
    changes: dict[str, object] = {}
    if control.token is not None:
        changes["token"] = folder / control.token
    if control.address.startswith(UNIX):
        changes["address"] = f"{UNIX}{folder / control.address.removeprefix(UNIX)}"
    return control.model_copy(update=changes)


def disagreements(config: StationConfig) -> Iterator[tuple[list[str], str]]:
    """What does not go together: the keys of its place, and the fault in words."""
    yield from _trigger(config)
    if isinstance(config.part_ref, HttpPartRef) and config.control is None:
        yield ["part_ref"], "a reference by http needs the section 'control'; add it"
    if config.control is None:
        return
    try:
        address = parse_address(config.control.address)
    except StationError as error:
        yield ["control", "address"], str(error)
        return
    if not address.local and config.control.token is None:
        yield (
            ["control", "address"],
            f"{config.control.address} can be reached from other machines, and whoever reaches it can trigger and halt;"
            " add 'control.token', or use 127.0.0.1",
        )


def source_for(config: StationConfig, recipe: Recipe) -> AnySource:
    """The source with what a recipe gives in place of what the top of the file gives."""
    own = {name: value for name in CameraSettings.model_fields if (value := getattr(recipe.source, name)) is not None}
    return config.source.model_copy(update=own) if isinstance(config.source, LiveSource) else config.source


def camera_disagreements(config: StationConfig, recipes: Mapping[str, Recipe]) -> Iterator[tuple[list[str], str]]:
    """Camera settings of recipes that could not be changed between two parts: the keys of their place, and the fault."""
    given = {}
    for name, recipe in recipes.items():
        own = _given(recipe.source)
        if own and not isinstance(config.source, LiveSource):
            yield (
                ["recipes", name, "source"],
                f"recipe {name}: a source of kind {config.source.kind} has no camera settings; remove {', '.join(own)}",
            )
            return
        if own and isinstance(config.trigger, PresenceTrigger):
            yield (
                ["recipes", name, "source"],
                f"recipe {name}: a trigger of kind presence knows its empty scene as one setting of the camera shows it;"
                f" give {', '.join(own)} at the top, for all recipes",
            )
            return
        source = source_for(config, recipe)
        given[name] = _given(source) if isinstance(source, LiveSource) else {}
    for name, settings in given.items():
        for other, others in given.items():
            lacking = [key for key in others if key not in settings]
            if lacking:
                yield (
                    ["recipes", name],
                    f"recipe {name} does not give source.{', source.'.join(lacking)}, which {other} does, and a camera keeps"
                    " what it was last told; give it in each recipe, or at the top",
                )
                break


def _given(settings: CameraSettings) -> dict[str, object]:
    """What is set, by key; of a white balance each of its own keys as well."""
    found = {name: value for name in CameraSettings.model_fields if (value := getattr(settings, name)) is not None}
    balance = settings.white_balance
    if balance is not None:
        found |= {f"white_balance.{key}": value for key, value in balance.model_dump(exclude_none=True).items()}
    return found


def agree_on_stalls(config: StationConfig) -> None:
    """Where the camera alone tells of parts, the line rejects before one that a stalled camera missed is at the ejector.

    A camera that waits for a signal may be silent, so that nobody can tell there. Raises StationError.
    """
    source, rejector = config.source, config.rejector
    watched = isinstance(config.triggered, (FrameTrigger, PresenceTrigger)) and isinstance(source, LiveSource)
    if not watched or (isinstance(source, GenicamSource) and source.trigger is not None):
        return
    assert isinstance(source, LiveSource)
    if not isinstance(rejector, Gpio) or rejector.travel_ms is None or rejector.lines.trigger is not None:
        return
    most = rejector.travel_ms - _NOTICE_MS
    if source.timeout_ms > most:
        raise StationError(
            f"'source.timeout_ms' is {source.timeout_ms:g}, expected at most {most:g}, travel_ms less {_NOTICE_MS}: a part that"
            " comes by while the camera stalls would pass the ejector before anybody noticed; lower it, or give a trigger line"
        )


def _trigger(config: StationConfig) -> Iterator[tuple[list[str], str]]:
    trigger = config.triggered
    lined = isinstance(config.rejector, Gpio) and config.rejector.lines.trigger is not None
    if isinstance(trigger, LineTrigger) and not lined:
        yield ["trigger"], "a trigger of kind line needs 'rejector.lines.trigger'; add that line"
    if not isinstance(trigger, LineTrigger) and lined:
        yield (
            ["trigger"],
            f"a trigger of kind {trigger.kind} beside 'rejector.lines.trigger': parts would come from two places; remove one",
        )
    if isinstance(trigger, SoftwareTrigger) and trigger.by is not None:
        if len(set(trigger.by)) < len(trigger.by):
            yield ["trigger", "by"], f"'trigger.by' is {list(trigger.by)}; name each once"
        if "http" in trigger.by and config.control is None:
            yield ["trigger", "by"], "a trigger by http needs the section 'control'; add it"
