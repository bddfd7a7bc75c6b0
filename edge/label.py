"""`edge label`: what a person says of judged parts, from options or a CSV file, and what that makes of the verdicts."""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from calibration.record import MANUAL
from edge import StationError
from edge.truth import (
    NG,
    OK,
    Judged,
    Label,
    LabelledScore,
    add_labels,
    labelled_scores,
    labels_path,
    read_labels,
    read_parts,
    refuse_all,
    tally,
    unlabelled,
)
from edge.verdict import Outcome
from engines import console
from engines.atomic import write_file

_COLUMNS = ("run", "part", "truth", "kind", "by", "note")
_SCORE_COLUMNS = ("part", "score", "group", "label")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the door."""
    label = commands.add_parser("label", help="say of judged parts whether they are good or bad")
    label.add_argument("--journal", required=True, type=Path, metavar="FILE")
    what = label.add_mutually_exclusive_group(required=True)
    what.add_argument("--part", type=console.positive_int, help="one part, with --run")
    what.add_argument("--csv", type=Path, metavar="FILE", help=f"many parts; columns {', '.join(_COLUMNS)}")
    what.add_argument("--list", action="store_true", help="show parts that nobody looked at, rejected and close ones first")
    what.add_argument("--scores", type=Path, metavar="OUT", help="write the labelled parts' scores for a calibration")
    label.add_argument("--run", dest="run_name", metavar="NAME", help="start of the station, as `edge audit` lists them")
    truth = label.add_mutually_exclusive_group()
    truth.add_argument("--ok", action="store_true", help="the part is good")
    truth.add_argument("--ng", action="store_true", help="the part is bad")
    label.add_argument("--kind", help="of defect")
    label.add_argument("--by", metavar="NAME", help="who says so; in a CSV file, where its column is empty")
    label.add_argument("--note", default="")
    label.add_argument("--first", type=console.positive_int, default=50, help="with --list (default: %(default)s)")
    label.set_defaults(run=_label)


def _label(arguments: argparse.Namespace) -> int:
    if arguments.scores is not None:
        return _write_scores(arguments.journal, arguments.scores)
    entries: list[tuple[str, Label]] = []
    if arguments.csv is not None:
        entries = read_csv(arguments.csv, arguments.by)
    elif arguments.part is not None:
        entries = [(f"part {arguments.part}", _from_options(arguments))]
    parts = read_parts(arguments.journal)
    if entries:
        added = add_labels(arguments.journal, entries, parts)
        console.say(f"wrote {labels_path(arguments.journal)}: {added} labels; {len(entries) - added} said what holds already")
    labels = read_labels(arguments.journal)
    if arguments.list:
        _print_list(unlabelled(parts, labels), arguments.first)
    _print_tally(tally(parts, labels), sum(part.score is not None for part in parts.values()))
    return console.DONE


def read_csv(path: Path, by: str | None) -> list[tuple[str, Label]]:
    """Labels of a CSV file, each with its file and line.

    Args:
        path: UTF-8, a header with exactly the columns run, part, truth, kind, by and note, in any order.
        by: who says so where a row does not.

    Raises:
        StationError: unreadable, not UTF-8, another header, or rows that are wrong or contradict each other,
            each with its line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise StationError(f"{path}: cannot be read ({error.strerror or error}); expected a CSV file") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise StationError(f"{path}:{line}: not UTF-8; save it as CSV UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise StationError(f"{path}:{reader.line_num}: not CSV ({error}); correct it") from None
    header = [] if not rows else [name.strip() for name in rows[0][1]]
    if sorted(header) != sorted(_COLUMNS):
        got = ",".join(header) or "nothing"
        raise StationError(f"{path}:1: columns are {got}; expected {','.join(_COLUMNS)}, with commas between them")
    entries: dict[tuple[str, int], tuple[int, Label]] = {}
    faults = []
    for line, row in rows[1:]:
        try:
            label = _from_row(header, row, by)
            before = entries.setdefault(label.key, (line, label))
            if (before[1].truth, before[1].kind) != (label.truth, label.kind):
                raise ValueError(f"contradicts line {before[0]} about part {label.part} of run {label.run}; remove one")
        except ValueError as error:
            faults.append(f"{path}:{line}: {error}")
    refuse_all(faults)
    if not entries:
        raise StationError(f"{path}: no labels below the header; expected a row for each part")
    return [(f"{path}:{line}", label) for line, label in entries.values()]


def _from_row(header: Sequence[str], row: Sequence[str], by: str | None) -> Label:
    if len(row) != len(header):
        raise ValueError(f"{len(row)} values, expected {len(header)}: {','.join(header)}")
    values = {name: value.strip() for name, value in zip(header, row, strict=True)}
    if not (values["part"].isascii() and values["part"].isdecimal() and int(values["part"]) > 0):
        raise ValueError(f"part is '{values['part']}', expected a number from 1")
    truth = values["truth"].upper()
    if truth not in (OK, NG):
        raise ValueError(f"truth is '{values['truth']}', expected {OK} or {NG}")
    if not values["run"]:
        raise ValueError("no run; expected its name, as `edge audit` lists them")
    return _checked(values["run"], int(values["part"]), truth, values["kind"], values["by"] or by, values["note"])


def _from_options(arguments: argparse.Namespace) -> Label:
    if arguments.run_name is None or not (arguments.ok or arguments.ng):
        raise StationError("--part needs --run NAME, and --ok or --ng")
    truth = OK if arguments.ok else NG
    try:
        return _checked(arguments.run_name, arguments.part, truth, arguments.kind, arguments.by, arguments.note)
    except ValueError as error:
        raise StationError(str(error)) from None


def _checked(run: str, part: int, truth: str, kind: str | None, by: str | None, note: str) -> Label:
    if truth == OK and kind:
        raise ValueError(f"a part that is {OK} has no kind of defect, got '{kind}'; leave it out, or say {NG}")
    if not by or not by.strip():
        raise ValueError("nobody is named who says so; add --by NAME")
    return Label(run, part, truth, kind or None, by.strip(), note)


def _print_list(left: Sequence[Judged], first: int) -> None:
    for part in left[:first]:  # no table: it would shorten a run's name, which a label needs
        line = f"{part.run}  part {part.part:6d}  {part.outcome.value:6}  score {part.score:.6g}"
        mark = " SET BY HAND" if part.threshold_method == MANUAL else ""
        side = f"{part.below:.4g} below" if part.below >= 0 else f"{-part.below:.4g} above"
        console.say(f"{line}, {side} the threshold{mark}  {part.picture or part.source}")
    more = f", and {len(left) - first} more (--first {len(left)})" if len(left) > first else ""
    console.say(f"{min(first, len(left))} parts that nobody looked at{more}")


def _print_tally(counts: Counter[tuple[Outcome, str]], scored: int) -> None:
    rejects = {truth: counts[Outcome.REJECT, truth] for truth in (OK, NG)}
    faults = counts[Outcome.FAULT, OK] + counts[Outcome.FAULT, NG]
    console.say(
        f"{counts.total()} of {scored} scored parts are labelled: {rejects[NG]} rejects confirmed, {rejects[OK]} overkill,"
        f" {counts[Outcome.PASS, NG]} escapes, {counts[Outcome.PASS, OK]} passes confirmed, {faults} faults"
    )


def _write_scores(journal: Path, out: Path) -> int:
    """Those of the engine that gave the newest labelled score: others do not compare with them."""
    scores = labelled_scores(journal)
    if not scores:
        raise StationError(f"{journal}: no labelled parts; label some first")
    same = [score for score in scores if score.engine == scores[-1].engine]
    write_file(out, _scores_csv(same).encode())
    good = sum(score.good for score in same)
    left_out = f"; {len(scores) - len(same)} of other bundles or engines are left out" if len(same) < len(scores) else ""
    console.say(
        f"wrote {out}: scores of {good} good and {len(same) - good} bad parts by bundle {same[-1].engine[0][:12]}{left_out}"
    )
    return console.DONE


def _scores_csv(scores: Sequence[LabelledScore]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_SCORE_COLUMNS)
    writer.writerows((score.part, repr(score.score), score.group, "good" if score.good else "bad") for score in scores)
    return text.getvalue()
