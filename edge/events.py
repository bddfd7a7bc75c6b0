"""What happened at a station besides its parts, in words: starts and their configuration, choices of recipe, holds, drift."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.record import Calibration
from edge.chain import EVENT, ChainError, open_for_reading, walk
from edge.csv_file import write_csv

Details = Mapping[str, Any]
COLUMNS = ("row", "recorded", "run", "event", "who", "what", "details")


@dataclass(frozen=True)
class Event:
    """One event of a journal.

    Attributes:
        row: its number in the journal.
        recorded: when, UTC, ISO 8601.
        run: start of the station; `recipe` where somebody chose a recipe while none ran.
        name: of its kind.
        who: a person or what stood for one, as they were named; "" where nobody did it.
        what: in words.
        details: as the journal has them.
    """

    row: int
    recorded: str
    run: str
    name: str
    who: str
    what: str
    details: Details


def read_events(path: Path) -> tuple[list[Event], str]:
    """All events of a journal up to its first bad row, and how that one is bad; "" where all is whole.

    Raises:
        StationError: not a journal.
    """
    found: list[Event] = []
    with contextlib.closing(open_for_reading(path)) as connection:
        try:
            for row in walk(connection):
                if row.kind == EVENT:
                    body = json.loads(row.body)
                    name, details = body["event"], body["details"]
                    found.append(
                        Event(row.number, body["recorded"], body["run"], name, _who(details), _what(name, details), details)
                    )
        except ChainError as error:
            return found, str(error)
    return found, ""


def choose_events(
    events: Sequence[Event],
    *,
    run: str | None = None,
    since: datetime.datetime | None = None,
    names: Collection[str] = (),
) -> list[Event]:
    """Those of one run, from a time on and of some kinds; all where nothing is asked for."""
    return [
        event
        for event in events
        if (run is None or event.run == run) and (not names or event.name in names) and (since is None or _from(event, since))
    ]


def export_events(events: Iterable[Event], out: Path) -> int:
    """Write one line for each event; returns how many. Raises StationError: `out` cannot be written."""
    return write_csv(
        out,
        COLUMNS,
        (
            {
                "row": event.row,
                "recorded": event.recorded,
                "run": event.run,
                "event": event.name,
                "who": event.who,
                "what": event.what,
                "details": json.dumps(event.details, sort_keys=True),
            }
            for event in events
        ),
    )


def _from(event: Event, since: datetime.datetime) -> bool:
    try:
        return datetime.datetime.fromisoformat(event.recorded) >= since
    except (ValueError, TypeError):  # not a time, or one without its zone: a doubt hides nothing
        return True


def _who(details: Details) -> str:
    for place in (details, details.get("chosen"), details.get("after")):
        if isinstance(place, dict) and isinstance(place.get("who"), str):
            return str(place["who"])
    return ""


def _what(name: str, details: Details) -> str:
    """In words; as it stands for events that this program does not know, or that another version wrote otherwise."""
    try:
        return _WORDS[name](details)
    except (KeyError, TypeError, ValueError, AttributeError):
        return "; ".join(f"{key} {_plain(value)}" for key, value in details.items() if key != "who")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _started(details: Details) -> str:
    station = f"station {details['station']}, program {details['version']}"
    if "chosen" not in details:  # as earlier versions wrote it
        return f"bundle {details['calibration']['bundle_digest'][:12]}; {_threshold(details)}; {station}"
    chosen = details["chosen"]
    return f"{_choice(chosen)}, chosen {chosen['when']}: {chosen['why']}; {_threshold(details)}; {station}"


def _stopped(details: Details) -> str:
    counts = (
        f"; {of}: " + ", ".join(f"{name} {count}" for name, count in details[of].items())
        for of in ("intake", "rejector")
        if details.get(of)
    )
    return f"{details['reason']}; {details['parts']} parts{''.join(counts)}"


def _recipe(details: Details) -> str:
    before, after = details["before"], details["after"]
    return f"{_choice(after)} in place of {_choice(before)}: {after['why']}; {_threshold(details)}"


def _choice(chosen: Details) -> str:
    return _files(chosen["recipe"], chosen["bundle_digest"], chosen["calibration_digest"])


def _files(recipe: str, bundle: str, calibration: str) -> str:
    return f"{recipe} (bundle {bundle[:12]}, calibration {calibration[:12]})"


def _threshold(details: Details) -> str:
    """Of a start or a change of recipe, with its origin; records of every age serve, so nothing is checked."""
    record = Calibration.model_construct(**details["calibration"])
    return f"threshold {record.threshold:.6g}, {record.origin}"


def _challenge(details: Details) -> str:
    if "counts" not in details:
        return f"FAILED: {details['reason']}"
    wrong = ", ".join(part["name"] for part in details["wrong"])
    return f"{'passed' if details['passed'] else 'FAILED'}: {details['counts']}{f'; wrong: {wrong}' if wrong else ''}"


_WORDS: dict[str, Callable[[Details], str]] = {
    "started": _started,
    "stopped": _stopped,
    "state": lambda details: f"{details['before']} to {details['after']}: {details['reason']}",
    "recipe": _recipe,
    "recipe-chosen": lambda details: (
        f"{_files(details['recipe'], details['bundle'], details['calibration'])} from the next start on: {details['why']}"
    ),
    "recipe-refused": lambda details: f"{details['recipe']}: {details['why']}; refused: {details['reason']}",
    "recipe-rolled-back": lambda details: str(details["reason"]),
    "halt": lambda details: str(details["why"]),
    "resume": lambda details: str(details["why"]),
    "challenge": _challenge,
    "drift-warning": lambda details: f"part {details['part']}: {details['message']}",
    "drift-alarm": lambda details: f"part {details['part']}: {details['message']} (on_alarm: {details['on_alarm']})",
    "drift-reset": lambda details: f"{details['why']}; what stood: {details['alarm'] or 'nothing'}",
    "reloaded": lambda details: f"changed: {', '.join(details['changed']) or 'nothing'}",
    "reload refused": lambda details: str(details["reason"]),
    "calibration-history": lambda details: f"recipe {details['recipe']}: {details['fault']}",
}
