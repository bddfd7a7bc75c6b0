"""What a station writes while it judges, as some of `benchmarks.writers`: the journal with its heads, evidence, labels."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.stand_in import CALIBRATION
from benchmarks.writers_files import picture
from edge.audit import audit, export_images
from edge.chain import EVENT, PART, open_for_reading, walk
from edge.clock import SystemClock
from edge.evidence import Choice, EvidenceFolder
from edge.heads import HeadKeeper, read_heads
from edge.journal import SqliteJournal
from edge.judge import row_fields
from edge.truth import Label, add_labels, read_labels, read_parts
from edge.verdict import Missing, Outcome, Verdict
from engines import InspectionError
from engines.images import list_images, read_image

JUDGED_WITH = row_fields("none", CALIBRATION)


def write_journal(folder: Path, rounds: Iterator[int]) -> None:
    """A part judged and acted on each round, and the head of the chain noted elsewhere."""
    journal = SqliteJournal(folder / "station/journal.db", "run", SystemClock())
    heads = HeadKeeper(folder / "office/heads.txt", lambda line: None, _fail)
    journal.event("started", {})
    for part in rounds:
        judge(journal, part)
        heads.note(journal.head, due=True)
    heads.close()
    journal.event("stopped", {"reason": "end"})
    journal.close()


def check_journal(folder: Path, begun: int, acked: int) -> str | None:
    """Every part that was acted on has its row, once; the chain is whole and fits the heads; the one in flight is a FAULT."""
    path, office = folder / "station/journal.db", folder / "office/heads.txt"
    SqliteJournal(path, "restart", SystemClock()).close()
    heads = []
    with contextlib.suppress(InspectionError):  # no line is whole yet
        heads = read_heads(office)
    broken = audit(path, heads).broken
    if broken is not None:
        return broken
    rows, events = [], []
    with contextlib.closing(open_for_reading(path)) as connection:
        for row in walk(connection):
            content = json.loads(row.body)
            if row.kind == PART:
                rows.append((content["part"], content["outcome"]))
            elif row.kind == EVENT:
                events.append(content["event"])
    kept = [part for part, outcome in rows if outcome != Outcome.FAULT.value]
    if [part for part, _ in rows] != list(range(1, len(rows) + 1)) or kept != list(range(1, len(kept) + 1)):
        return f"parts {rows[-5:]} at the end, expected each once and in order, and FAULT the last alone"
    if not (acked <= len(kept) and len(rows) <= min(begun, len(kept) + 1)):
        return f"{len(kept)} kept and {len(rows) - len(kept)} recorded as FAULT of {begun} begun and {acked} acted on"
    if acked > 0 and not {"interrupted", "stopped"} & set(events):
        return "nothing says that the run was interrupted"
    return None


def write_evidence(folder: Path, rounds: Iterator[int]) -> None:
    """A part rejected each round, and its picture kept."""
    journal = SqliteJournal(folder / "journal.db", "run", SystemClock())
    evidence = _evidence(folder, journal)
    for part in rounds:
        judge(journal, part, evidence)
    evidence.close()
    journal.close()


def check_evidence(folder: Path, begun: int, acked: int) -> str | None:
    """Each picture that the journal has is there and is that one, none is left under a temporary name, all can be read."""
    path = folder / "journal.db"
    journal = SqliteJournal(path, "restart", SystemClock())
    evidence = _evidence(folder, journal)
    evidence.close()
    journal.close()
    copied = export_images(path, folder / "evidence", folder / "exported")
    if copied.changed or copied.gone > 0:
        return f"of the pictures that the journal has, {copied.gone} are gone and {copied.changed} are others"
    left = [path.name for path in (folder / "evidence").glob("*/.*")] if (folder / "evidence").is_dir() else []
    if left:
        return f"left behind: {left}"
    for kept in list_images(folder / "evidence", recursive=True) if (folder / "evidence").is_dir() else []:
        read_image(kept)
    return None


def write_labels(folder: Path, rounds: Iterator[int]) -> None:
    """A label a round for one of three parts."""
    path = folder / "journal.db"
    journal = SqliteJournal(path, "run", SystemClock())
    for part in range(1, 4):
        judge(journal, part)
    journal.close()
    parts = read_parts(path)
    for number in rounds:
        add_labels(path, [("here", _label(number))], parts)


def _label(number: int) -> Label:
    return Label("run", 1 + number % 3, "NG", f"kind {number}", "benchmark", "n" * 200)


def check_labels(folder: Path, begun: int, acked: int) -> str | None:
    """The labels of a number of whole rounds are there, and one more can be given."""
    path = folder / "journal.db"
    SqliteJournal(path, "restart", SystemClock()).close()
    broken = audit(path).broken
    if broken is not None:
        return broken
    labels = read_labels(path)
    for done in range(acked, begun + 1):
        if labels == {label.key: label for label in map(_label, range(1, done + 1))}:
            if begun > 0:  # and one more can be given
                add_labels(path, [("here", _label(begun + 1))], read_parts(path))
            return None
    return f"{len(labels)} parts have labels, expected those of {acked} to {begun} rounds"


def judge(journal: SqliteJournal, part: int, evidence: EvidenceFolder | None = None) -> None:
    """Announce a part and keep its verdict: PASS, or where pictures are kept REJECT, with its picture."""
    journal.announce(Missing(part, SystemClock().now_ns(), "part.png", "no picture"), JUDGED_WITH)
    outcome = Outcome.PASS if evidence is None else Outcome.REJECT
    verdict = Verdict(part, outcome, 0.5, 1.0, 1.0, "r" * (part % 50), "part.png", "conformal")
    journal.verdict(verdict)
    if evidence is not None:
        evidence.offer(picture(part), verdict)


def _evidence(folder: Path, journal: SqliteJournal) -> EvidenceFolder:
    choice = Choice(every=1, near=0.0)
    return EvidenceFolder(folder / "evidence", "run", journal, choice, quota_bytes=10**9, waiting=64, complain=_fail)


def _fail(line: str) -> None:
    raise SystemExit(line)
