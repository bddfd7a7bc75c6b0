"""What a journal holds and whether it is whole, for the auditor who comes later; and its export."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibration.record import MANUAL, show_threshold
from edge import StationError
from edge.chain import EVENT, EVIDENCE, GENESIS, PART, PART_KEYS, ChainError, Head, Row, open_for_reading, walk
from edge.csv_file import write_csv
from edge.truth import labels_path, read_label_rows
from edge.verdict import Outcome
from engines import EngineError
from engines.images import pixel_digest, read_image

TRUTH_COLUMNS = ("truth", "truth_kind", "truth_by", "truth_note", "truth_recorded")


@dataclass
class Run:
    """One start of the station.

    Attributes:
        name: of the run, which begins with the time of its start, UTC.
        ended: how.
        outcomes: parts by outcome; a row that replaces another of its part counts alone.
        missing: parts before its last one that have no row.
        by_hand: parts that were decided by a threshold that a person had set.
    """

    name: str
    ended: str = "not stopped"
    outcomes: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    by_hand: int = 0
    _last: tuple[int, str, bool] = (0, "", False)

    def add(self, part: int, outcome: str, by_hand: bool) -> None:
        """Count one part."""
        last, replaced, was_by_hand = self._last
        if part == last:
            self.outcomes[replaced] -= 1
            self.by_hand -= was_by_hand
        self.missing += max(0, part - last - 1)
        self.outcomes[outcome] += 1
        self.by_hand += by_hand
        self._last = (max(part, last), outcome, by_hand)


@dataclass
class Report:
    """What an audit found.

    Attributes:
        rows: that are whole.
        kinds: of rows, by kind.
        runs: by name, in order.
        gaps: what the station noted about parts that it could not record, and runs that were interrupted; one line each.
        set_by_hand: where a threshold came in force that a person had set, who set it and why; one line each.
        labels: the newest label's row.
        noted: hashes of labels that the journal holds, by their rows.
        broken: the first bad row and how it is bad, or which head is not in the chain; None where all is whole.
    """

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    runs: dict[str, Run] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)
    set_by_hand: list[str] = field(default_factory=list)
    head: Head = Head(0, GENESIS)  # noqa: RUF009
    labels: Head = Head(0, GENESIS)  # noqa: RUF009
    noted: dict[int, str] = field(default_factory=dict)
    broken: str | None = None


def audit(path: Path, heads: Sequence[Head] = (), digests: Sequence[str] = ()) -> Report:
    """Check every row of a journal and of its labels, and that they hold each other.

    Args:
        path: the journal; a station may be writing to it.
        heads: kept elsewhere; each must be the row that it names.
        digests: hashes kept without a row's number; each must be some row's, or some label's.

    Raises:
        StationError: not a journal.
    """
    report = Report()
    wanted = {head.row: head for head in heads if head.row > 0}
    unseen = set(digests)
    methods = _Methods()
    conflict = next((f"the heads give row {head.row} two hashes" for head in heads if wanted.get(head.row, head) != head), None)
    try:  # before the journal is read, so that it has the row that each is about
        labels = _Labels(path)
        labels_broken = None
    except ChainError as error:
        labels, labels_broken = None, f"{labels_path(path).name}: {error}"
    with contextlib.closing(open_for_reading(path)) as connection:
        try:
            for row in walk(connection):
                _add(report, row, methods)
                unseen.discard(row.hash)
                head = wanted.pop(row.number, row.head)
                if head != row.head and conflict is None:
                    conflict = f"row {row.number}: not the row that was there when its head was kept: rewritten"
                if labels is not None:
                    labels.compare(row)
        except ChainError as error:
            report.broken = str(error)
            return report
    if labels is not None:
        unseen -= labels.hashes()
    report.broken = conflict
    if wanted and conflict is None:
        report.broken = f"row {report.rows + 1}: missing, a head of row {max(wanted)} was kept: the end was cut off"
    elif unseen and conflict is None:
        report.broken = f"no row or label has the hash {min(unseen)}: the end was cut off, or rows were rewritten"
    if labels is not None:
        report.labels, labels_broken = labels.head, labels.fault(report.noted)
    report.broken = report.broken or labels_broken
    return report


class _Labels:
    """The labels of a journal, held against it row by row."""

    def __init__(self, journal: Path) -> None:
        """Read them. Raises ChainError for the first bad one, StationError where the file is none of labels."""
        self._journal = journal
        rows = read_label_rows(journal)
        self.head = rows[-1].head if rows else Head(0, GENESIS)
        self._hashes = {row.number: row.hash for row in rows}
        self._about: dict[int, list[tuple[int, dict[str, object]]]] = {}
        for row in rows:
            content = json.loads(row.body)
            self._about.setdefault(content["row"], []).append((row.number, content))
        self._wrong: str | None = None

    def hashes(self) -> set[str]:
        """Of all labels."""
        return set(self._hashes.values())

    def compare(self, row: Row) -> None:
        """Is this row of the journal the one that its labels are about?"""
        for number, label in self._about.pop(row.number, ()):
            content = json.loads(row.body)
            same = row.kind == PART and all(content[key] == label[key] for key in ("run", "part"))
            if self._wrong is None and (row.hash != label["hash"] or not same):
                self._wrong = f"label {number}: row {row.number} of the journal is not the verdict that it is about: rewritten"

    def fault(self, noted: Mapping[int, str]) -> str | None:
        """What is wrong once all rows were compared; `noted` are hashes of labels that the journal holds."""
        name = labels_path(self._journal).name
        if self._wrong is not None:
            return f"{name}: {self._wrong}"
        if self._about:
            row, ((number, _), *_) = min(self._about.items())
            return f"{name}: label {number}: the journal has no row {row}: cut off, or another journal's labels"
        if noted and max(noted) > self.head.row:  # given while the journal was read?
            self._hashes = {row.number: row.hash for row in read_label_rows(self._journal)}
        for row, digest in sorted(noted.items()):
            if self._hashes.get(row) != digest:
                return f"{name}: label {row}: not there as the journal holds it: cut off, removed or rewritten"
        return None


class _Methods:
    """How the threshold came about that a part was decided by. Rows of before do not say it, but the events of their run do."""

    def __init__(self) -> None:
        self._of_run: dict[object, str] = {}

    def see(self, content: Mapping[str, object]) -> None:
        """Take in an event."""
        record = _record(content)
        if record is not None:
            self._of_run[content["run"]] = str(record.get("method"))

    def of(self, content: Mapping[str, object]) -> str:
        """Of a part's row; "" where there was none."""
        if content.get("threshold") is None:
            return ""
        return str(content.get("threshold_method", self._of_run.get(content["run"], "")))


def _record(event: Mapping[str, object]) -> Mapping[str, object] | None:
    """The calibration that came in force with an event, a start or a change of recipe; None for others."""
    details = event["details"]
    found = details.get("calibration") if isinstance(details, dict) else None
    return found if isinstance(found, dict) else None


def _add(report: Report, row: Row, methods: _Methods) -> None:
    content = json.loads(row.body)
    report.rows += 1
    report.head = row.head
    report.kinds[row.kind] += 1
    run = report.runs.setdefault(content["run"], Run(content["run"]))
    if row.kind == PART:
        run.add(content["part"], content["outcome"], methods.of(content) == MANUAL)
    elif row.kind == EVENT:
        details = content["details"]
        methods.see(content)
        record = _record(content)
        if record is not None and record.get("method") == MANUAL:
            threshold, who = record.get("threshold"), f"by {record.get('who')}, {record.get('when')}: {record.get('why')}"
            shown = show_threshold(threshold, MANUAL) if isinstance(threshold, float) else f"{threshold}"
            report.set_by_hand.append(f"row {row.number}: run {content['run']}, threshold {shown} {who}")
        labels = details.get("labels")
        if content["event"] == "started" and isinstance(labels, dict) and labels.keys() == {"row", "hash"}:
            report.noted[labels["row"]] = labels["hash"]
        if content["event"] == "stopped":
            run.ended = str(details.get("reason"))
        elif content["event"] == "recipe-chosen":  # by `edge recipe`, in the name of no start
            run.ended = "no station ran, recipes were chosen"
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
    """Write one line for each part row, with what a person said of it; returns how many. Stops at the first bad row.

    Raises:
        StationError: not a journal, or `out` cannot be written; what stood there still stands.
    """
    return write_csv(out, ("row", *PART_KEYS, *TRUTH_COLUMNS), _part_lines(path))


def _part_lines(path: Path) -> Iterator[dict[str, object]]:
    truths, methods = _truths(path), _Methods()
    for row, content in _rows(path, PART, EVENT):
        if row.kind == EVENT:
            methods.see(content)
            continue
        content["threshold_method"] = methods.of(content)
        truth = dict(zip(TRUTH_COLUMNS, truths.get(row.number, ()), strict=False))
        yield {"row": row.number} | {key: content.get(key) for key in PART_KEYS} | truth


def _truths(path: Path) -> dict[int, tuple[str | None, ...]]:
    """What a person said, by the journal's rows: the columns `TRUTH_COLUMNS`."""
    found = {}
    with contextlib.suppress(ChainError):  # the audit says which
        for row in read_label_rows(path):
            label = json.loads(row.body)
            found[label["row"]] = tuple(label[key] for key in ("truth", "kind", "by", "note", "recorded"))
    return found


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


def _rows(path: Path, *kinds: str) -> Iterator[tuple[Row, dict[str, object]]]:
    """Rows of some kinds up to the first bad one."""
    with contextlib.closing(open_for_reading(path)) as connection, contextlib.suppress(ChainError):
        for row in walk(connection):
            if row.kind in kinds:
                yield row, json.loads(row.body)
