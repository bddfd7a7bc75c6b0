"""`edge audit`, `edge events` and `edge export`: what a journal holds, for the auditor and for other programs."""

from __future__ import annotations

import argparse
import datetime
import re
from pathlib import Path

from edge import StationError
from edge.audit import audit, export_csv, export_images
from edge.events import choose_events, export_events, read_events
from edge.heads import read_heads
from edge.verdict import Outcome
from engines import console


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the door."""
    audit_ = commands.add_parser("audit", help="say whether a journal is whole, and what it holds")
    audit_.add_argument("--journal", required=True, type=Path, metavar="FILE")
    kept = audit_.add_mutually_exclusive_group()
    kept.add_argument("--head", type=_sha256, metavar="HASH", help="of a row or label, kept elsewhere: shows an end cut off")
    kept.add_argument("--heads", type=Path, metavar="FILE", help="that the station kept (journal_heads)")
    audit_.set_defaults(run=_audit)
    events = commands.add_parser(
        "events", help="who did what and when: recipes, holds, drift, challenges, each run's configuration"
    )
    events.add_argument("--journal", required=True, type=Path, metavar="FILE")
    events.add_argument("--run", dest="run_name", metavar="NAME", help="of this start alone, as `edge audit` lists them")
    events.add_argument("--since", type=_time, metavar="TIME", help="from then on: 2024-05-31 or 2024-05-31T14:00, UTC")
    events.add_argument("--event", action="append", default=[], metavar="NAME", help="of this kind alone; may be given again")
    events.set_defaults(run=_events)
    export = commands.add_parser("export", help="copy verdicts and events to CSV files, pictures to folders by outcome")
    export.add_argument("--journal", required=True, type=Path, metavar="FILE")
    export.add_argument("--csv", type=Path, metavar="OUT")
    export.add_argument("--events", type=Path, metavar="OUT", help="a CSV file too")
    export.add_argument("--images", type=Path, metavar="DIR")
    export.add_argument("--evidence", type=Path, metavar="DIR", help="default: evidence beside the journal")
    export.set_defaults(run=_export)


def _audit(arguments: argparse.Namespace) -> int:
    heads = [] if arguments.heads is None else read_heads(arguments.heads)
    report = audit(arguments.journal, heads, [] if arguments.head is None else [arguments.head])
    for run in report.runs.values():
        counts = ", ".join(f"{run.outcomes[outcome.value]} {outcome.value}" for outcome in Outcome)
        missing = f", {run.missing} without a row" if run.missing > 0 else ""
        by_hand = f"; {run.by_hand} by a threshold SET BY HAND" if run.by_hand > 0 else ""
        console.say(f"run {run.name}: {counts}{missing}{by_hand}; {run.ended}")
    for by_hand in report.set_by_hand:
        console.say(f"by hand: {by_hand}")
    for gap in report.gaps:
        console.say(f"gap: {gap}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items()))
    console.say(f"{report.rows} rows ({kinds}), head: row {report.head.row} {report.head.hash}")
    if report.labels.row > 0:
        console.say(f"{report.labels.row} labels, head: row {report.labels.row} {report.labels.hash}")
    if report.broken is not None:
        console.say(f"BROKEN  {arguments.journal}: {report.broken}")
        return console.NO
    against = "" if arguments.head is None and arguments.heads is None else ", and so is every head that was kept"
    console.say(f"whole   {arguments.journal}: each row follows from the one before{against}")
    return console.DONE


def _events(arguments: argparse.Namespace) -> int:
    found, broken = read_events(arguments.journal)
    chosen = choose_events(found, run=arguments.run_name, since=arguments.since, names=arguments.event)
    names, people = (max(map(len, column), default=0) for column in ([e.name for e in chosen], [e.who for e in chosen]))
    run = None
    for event in chosen:
        if event.run != run:
            run = event.run
            console.say(f"run {run}")
        when = event.recorded.replace("T", " ").replace("+00:00", " UTC")
        console.say(f"  {when}  {event.name:{names}}  {event.who:{people}}  {event.what}  (row {event.row})")
    kinds = ", ".join(sorted({event.name for event in found}))
    console.say(f"{len(chosen)} events of {len(found)} in the journal{f', which are: {kinds}' if not chosen and found else ''}")
    if broken:
        console.say(f"BROKEN  {arguments.journal}: {broken}; only events before that are shown")
        return console.NO
    return console.DONE


def _export(arguments: argparse.Namespace) -> int:
    if arguments.csv is None and arguments.events is None and arguments.images is None:
        raise StationError("nothing to export; give --csv FILE, --events FILE, --images DIR, or several of them")
    good = True
    broken = audit(arguments.journal).broken
    if broken is not None:
        console.warn(f"{arguments.journal}: {broken}; rows before that are exported")
        good = False
    if arguments.csv is not None:
        console.say(f"wrote {arguments.csv}, {export_csv(arguments.journal, arguments.csv)} rows")
    if arguments.events is not None:
        console.say(f"wrote {arguments.events}, {export_events(read_events(arguments.journal)[0], arguments.events)} rows")
    if arguments.images is not None:
        folder = arguments.evidence or arguments.journal.parent / "evidence"
        if not folder.is_dir():
            raise StationError(f"{folder}: no such folder; give the one that the station keeps its pictures in with --evidence")
        copied = export_images(arguments.journal, folder, arguments.images)
        for name in copied.changed:
            console.warn(f"{folder / name}: not the picture that the journal has; not copied")
        console.say(f"copied {copied.copied} pictures to {arguments.images}; not there any more: {copied.gone}")
        good = good and not copied.changed
    return console.DONE if good else console.NO


def _time(text: str) -> datetime.datetime:
    """argparse type: a day or a time, UTC unless it names its zone."""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}, expected a day or time such as 2024-05-31 or 2024-05-31T14:00") from None
    return when if when.tzinfo is not None else when.replace(tzinfo=datetime.timezone.utc)


def _sha256(text: str) -> str:
    if re.fullmatch("[0-9a-f]{64}", text) is None:
        raise argparse.ArgumentTypeError(f"{text}, expected 64 hexadecimal digits")
    return text
