"""The commands of the calibration door that deal with records: `set`, `show`, `history`, `diff`, `export`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calibration import CalibrationError
from calibration.fit import set_by_hand
from calibration.history import Entry, History, history_path, newest_parts, read_history, write
from calibration.record import MANUAL, Calibration, load_calibration, show_threshold
from engines import console
from engines.atomic import write_file

_CSV = (
    "entry",
    "when",
    "who",
    "why",
    "method",
    "old_threshold",
    "old_method",
    "threshold",
    "false_reject",
    "false_reject_low",
    "false_reject_high",
    "escape",
    "escape_low",
    "escape_high",
    "n",
    "rate",
    "images",
    "station",
    "camera",
    "recipe",
    "bundle_digest",
    "backend",
    "precision",
    "engine_digest",
    "sha256",
)
_METHODS = {"threshold": "method", "old_threshold": "old_method"}


def add_commands(commands: Any, account: Callable[[], str]) -> None:
    """Add the commands to the door's; `account` names the person."""
    by_hand = commands.add_parser("set", help="set a threshold by hand, with a reason")
    by_hand.add_argument("--threshold", required=True, type=float)
    by_hand.add_argument("--why", required=True, help="reason, for the history and whoever starts the station")
    by_hand.set_defaults(run=lambda arguments: _set(arguments, account()))
    show = commands.add_parser("show", help="the threshold in force, and what to expect of it")
    show.set_defaults(run=_show)
    history = commands.add_parser("history", help="every threshold that was in force; 1 where the history is not whole")
    history.add_argument("--head", metavar="SHA256", help="an entry that was noted elsewhere, which must be there")
    history.set_defaults(run=_history)
    diff = commands.add_parser("diff", help="what changed between two entries")
    diff.add_argument("entries", nargs="*", type=console.positive_int, metavar="ENTRY", help="two (default: the last two)")
    diff.set_defaults(run=_diff)
    export = commands.add_parser("export", help="copy the history to CSV, a line an entry, or to JSON with all scores")
    export.add_argument("--csv", type=Path, metavar="OUT")
    export.add_argument("--json", type=Path, metavar="OUT")
    export.set_defaults(run=_export)
    for command in (by_hand, show, history, diff, export):
        command.add_argument("--record", required=True, type=Path, help="the record, a .json file")


def _set(arguments: argparse.Namespace, who: str) -> int:
    old = load_calibration(arguments.record)
    parts = newest_parts(arguments.record, old)
    new = set_by_hand(old, arguments.threshold, parts, who=who, why=arguments.why)
    warnings = ["set by hand: no statistics stand behind this threshold"]
    if not parts:
        warnings.append(
            "no scores are known for this bundle and engine, so nobody can say what it will do; run `calibration fit`"
        )
    for warning in warnings:
        console.warn(warning)
    written = write(arguments.record, new, parts=parts, warnings=warnings)
    console.say(f"threshold {old.threshold:.6g} ({old.origin}) is now {written.threshold:.6g}, {written.origin}")
    _say_rates(written)
    console.say(f"wrote {arguments.record} and {history_path(arguments.record)}")
    console.say("a station that runs takes it at SIGHUP, one that remembers a chosen recipe also by `edge recipe`")
    return console.DONE


def _show(arguments: argparse.Namespace) -> int:
    calibration = load_calibration(arguments.record)
    console.say(f"threshold {calibration.threshold:.6g}, {calibration.origin}")
    _say_rates(calibration)
    hidden = {"threshold", "method", "false_reject", "escape"}
    for name, value in calibration.fields().items():
        if name not in hidden and value not in (None, ""):
            console.say(f"{name:15} {value}")
    console.say(f"{'sha256':15} {calibration.digest}")
    return console.DONE


def _say_rates(calibration: Calibration) -> None:
    for rate, what in ((calibration.false_reject, "good parts rejected"), (calibration.escape, "bad parts passed")):
        said = f"{rate}, 95 % confidence" if rate is not None else "not known"
        console.say(f"{what:20} {said}")


def _history(arguments: argparse.Namespace) -> int:
    found = read_history(arguments.record, arguments.head)
    for entry in found.entries:
        console.say(_line(found, entry))
    for fault in found.faults:
        console.warn(fault)
    if found.faults:
        return console.NO
    head = found.entries[-1].digest if found.entries else "none: the record is older than histories"
    console.say(f"{len(found.entries)} {'entry' if len(found.entries) == 1 else 'entries'}, whole; the newest is {head}")
    return console.DONE


def _line(found: History, entry: Entry) -> str:
    """One entry as a line for a person, a manual one marked."""
    new, old = entry.calibration, entry.replaced
    before = "none" if old is None else "unreadable" if old.threshold is None else f"{old.threshold:.6g}"
    before += " (MANUAL)" if found.replaced_method(entry) == MANUAL else ""
    method = "MANUAL" if new.manual else new.method
    rejected = f", good parts rejected {new.false_reject}" if new.false_reject is not None else ""
    why = f"; {new.why}" if new.why else ""
    return f"{entry.number}: {new.when} {new.who}: {before} -> {new.threshold:.6g}, {method}{rejected}{why}"


def _diff(arguments: argparse.Namespace) -> int:
    if len(arguments.entries) not in (0, 2):
        raise CalibrationError(f"{len(arguments.entries)} entries, expected two, such as 1 2, or none for the last two")
    found = _readable(arguments.record)
    numbers = arguments.entries or [len(found.entries) - 1, len(found.entries)]
    for number in numbers:
        if not 1 <= number <= len(found.entries):
            raise CalibrationError(f"no entry {number} in {history_path(arguments.record)}, which has {len(found.entries)}")
    one, other = (found.entries[number - 1] for number in numbers)
    before, after = _flat(found, one), _flat(found, other)
    rows = [(name, _cell(before, name), _cell(after, name)) for name in _CSV[1:] if before[name] != after[name]]
    console.table("what differs", ("", f"entry {numbers[0]}", f"entry {numbers[1]}"), rows)
    old, new = ({(part.pixels or part.name, part.score) for part in entry.parts} for entry in (one, other))
    console.say(
        f"pictures: {len(old & new)} in both, {len(old - new)} only in {numbers[0]}, {len(new - old)} only in {numbers[1]}"
    )
    return console.DONE


def _export(arguments: argparse.Namespace) -> int:
    if arguments.csv is None and arguments.json is None:
        raise CalibrationError("nothing to export; give --csv FILE, --json FILE, or both")
    for out in (arguments.csv, arguments.json):
        if out is not None and out.resolve() in (arguments.record.resolve(), history_path(arguments.record).resolve()):
            raise CalibrationError(f"{out}: the record or its history, which a copy would replace; give another file")
    found = _readable(arguments.record)
    if arguments.csv is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, _CSV)
        writer.writeheader()
        writer.writerows(_flat(found, entry) for entry in found.entries)
        write_file(arguments.csv, text.getvalue().encode())
        console.say(f"wrote {arguments.csv}, {len(found.entries)} entries")
    if arguments.json is not None:
        documents = [{**entry.model_dump(mode="json"), "sha256": entry.digest} for entry in found.entries]
        write_file(arguments.json, (json.dumps(documents, indent=1) + "\n").encode())
        console.say(f"wrote {arguments.json}, {len(found.entries)} entries")
    return console.NO if found.faults else console.DONE


def _readable(record: Path) -> History:
    """The history as far as it is whole, with a warning where it is not."""
    found = read_history(record)
    for fault in found.faults:
        console.warn(fault)
    return found


def _flat(found: History, entry: Entry) -> dict[str, object]:
    """One entry as a line of `_CSV`; None is an empty cell."""
    fields = entry.calibration.fields()
    rates: dict[str, object] = {}
    for name in ("false_reject", "escape"):
        rate = fields.pop(name)
        rates |= dict(zip((name, f"{name}_low", f"{name}_high"), rate.values() if rate else (None,) * 3, strict=True))
    return {
        **{name: fields.get(name) for name in _CSV},
        **rates,
        "entry": entry.number,
        "old_threshold": entry.replaced.threshold if entry.replaced is not None else None,
        "old_method": found.replaced_method(entry),
        "images": len(entry.parts),
        "sha256": entry.digest,
    }


def _cell(flat: Mapping[str, object], name: str) -> str:
    """A value of `_flat` for a person; a threshold that was set by hand is marked, whatever else differs."""
    value = flat[name]
    if isinstance(value, float):
        return show_threshold(value, str(flat[_METHODS[name]])) if name in _METHODS else f"{value:.6g}"
    text = "" if value is None else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text
