"""What a journal holds and whether it is whole, for the auditor who comes later; and its export."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge import StationError
from edge.chain import EVENT, EVIDENCE, GENESIS, PART, PART_KEYS, ChainError, Head, Row, open_for_reading, walk
from edge.verdict import Outcome
from engines import EngineError
from engines.images import pixel_digest, read_image


@dataclass
class Run:
    """One start of the station.

    Attributes:
        name: of the run, which begins with the time of its start, UTC.
        ended: how.
        outcomes: parts by outcome; a row that replaces another of its part counts alone.
        missing: parts before its last one that have no row.
    """

    name: str
    ended: str = "not stopped"
    outcomes: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    _last: tuple[int, str] = (0, "")

    def add(self, part: int, outcome: str) -> None:
        """Count one part."""
        last, replaced = self._last
        if part == last:
            self.outcomes[replaced] -= 1
        self.missing += max(0, part - last - 1)
        self.outcomes[outcome] += 1
        self._last = (max(part, last), outcome)


@dataclass
class Report:
    """What an audit found.

    Attributes:
        rows: that are whole.
        kinds: of rows, by kind.
        runs: by name, in order.
        gaps: what the station noted about parts that it could not record, and runs that were interrupted; one line each.
        broken: the first bad row and how it is bad, or which head is not in the chain; None where all is whole.
    """

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    runs: dict[str, Run] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)
    head: Head = Head(0, GENESIS)  # noqa: RUF009
    broken: str | None = None


def audit(path: Path, heads: Sequence[Head] = (), digests: Sequence[str] = ()) -> Report:
    """Check every row of a journal.

    Args:
        path: the journal; a station may be writing to it.
        heads: kept elsewhere; each must be the row that it names.
        digests: hashes kept without a row's number; each must be some row's.

    Raises:
        StationError: not a journal.
    """
    report = Report()
    wanted = {head.row: head for head in heads if head.row > 0}
    unseen = set(digests)
    conflict = next((f"the heads give row {head.row} two hashes" for head in heads if wanted.get(head.row, head) != head), None)
    with contextlib.closing(open_for_reading(path)) as connection:
        try:
            for row in walk(connection):
                _add(report, row)
                unseen.discard(row.hash)
                head = wanted.pop(row.number, row.head)
                if head != row.head and conflict is None:
                    conflict = f"row {row.number}: not the row that was there when its head was kept: rewritten"
        except ChainError as error:
            report.broken = str(error)
            return report
    report.broken = conflict
    if wanted and conflict is None:
        report.broken = f"row {report.rows + 1}: missing, a head of row {max(wanted)} was kept: the end was cut off"
    elif unseen and conflict is None:
        report.broken = f"no row has the hash {min(unseen)}: the end was cut off, or rows were rewritten"
    return report


def _add(report: Report, row: Row) -> None:
    content = json.loads(row.body)
    report.rows += 1
    report.head = row.head
    report.kinds[row.kind] += 1
    run = report.runs.setdefault(content["run"], Run(content["run"]))
    if row.kind == PART:
        run.add(content["part"], content["outcome"])
    elif row.kind == EVENT:
        details = content["details"]
        if content["event"] == "stopped":
            run.ended = str(details.get("reason"))
        elif content["event"] == "interrupted":
            lost = report.runs.get(str(details.get("run")))
            if lost is not None:
                lost.ended = "interrupted"
            what = f"was interrupted after part {details.get('last_part')}, parts in flight: {details.get('in_flight')}"
            report.gaps.append(f"row {row.number}: run {details.get('run')} {what}")
        elif content["event"] == "gap":
            span = f"{details.get('parts')} parts from {details.get('first')} to {details.get('last')}"
            why = details.get("reason")
            report.gaps.append(f"row {row.number}: run {content['run']}, {span} were FAULT and could not be recorded: {why}")


def export_csv(path: Path, out: Path) -> int:
    """Write one line for each part row; returns how many. Stops at the first bad row of a broken chain.

    Raises:
        StationError: not a journal, or `out` cannot be written; what stood there still stands.
    """
    count = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=out.parent, prefix=f".{out.name}.", newline="", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            try:
                writer = csv.DictWriter(file, ("row", *PART_KEYS))
                writer.writeheader()
                for row, content in _rows(path, PART):
                    writer.writerow({"row": row.number} | {key: content.get(key) for key in PART_KEYS})
                    count += 1
                file.flush()
                os.chmod(file.name, 0o644)
                os.replace(file.name, out)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise StationError(f"{out}: cannot be written ({error.strerror or error}); check the folder and the disk") from None
    return count


@dataclass
class Copied:
    """Pictures that were copied, that are gone (the quota deletes old ones), and that are not as the journal has them."""

    copied: int = 0
    gone: int = 0
    changed: list[str] = field(default_factory=list)


def export_images(path: Path, evidence: Path, out: Path) -> Copied:
    """Copy pictures into folders by outcome, each compared with the journal's digest of its pixels.

    Args:
        path: the journal.
        evidence: the station's evidence folder.
        out: gets `PASS`, `REJECT` and `FAULT`.

    Raises:
        StationError: not a journal, or `out` cannot be written.
    """
    found = Copied()
    names = {outcome.value for outcome in Outcome}
    for _, content in _rows(path, EVIDENCE):
        name = str(content["path"])
        source = evidence / name
        if content["outcome"] not in names or ".." in Path(name).parts or Path(name).is_absolute():
            found.changed.append(name)
            continue
        if not source.is_file():
            found.gone += 1
            continue
        try:
            same = pixel_digest(read_image(source)) == content["pixels"]
        except EngineError:
            same = False
        if not same:
            found.changed.append(name)
            continue
        target = out / str(content["outcome"]) / name.replace("/", "-")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise StationError(f"{target}: cannot be written ({error.strerror or error}); check the folder and disk") from None
        found.copied += 1
    return found


def _rows(path: Path, kind: str) -> Iterator[tuple[Row, dict[str, object]]]:
    """Rows of one kind up to the first bad one."""
    with contextlib.closing(open_for_reading(path)) as connection, contextlib.suppress(ChainError):
        for row in walk(connection):
            if row.kind == kind:
                yield row, json.loads(row.body)
