"""What a person says of judged parts: labels, chained in a file of their own beside the journal.

The journal has one writer, the station, and nothing may stand in the way of its verdicts; labels are given while it runs, and
after, by several people. So they have a file of their own, `JOURNAL-labels`, to which SQLite lets one program at a time add.
Each label is a row of a chain like the journal's, and names the row of the verdict that it is about with that row's hash: an
audit finds a label that was changed or removed, and a verdict that was rewritten after a person looked at it. The chain's
own end is held by the journal, in which each start of the station notes the newest label.

A later label of a part replaces an earlier one, which stays.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge import StationError
from edge.chain import (
    EVIDENCE,
    LABEL,
    LABELS,
    PART,
    ChainError,
    EmptyError,
    Head,
    Row,
    canonical,
    create,
    follow,
    is_new,
    last_head,
    open_for_reading,
    refuse_other_files,
    walk,
)
from edge.verdict import Outcome

OK, NG = "OK", "NG"
_WAIT_S = 10.0  # for another person's labels
_AGAIN_S = 0.01
_NAMED = 10  # faults of one list

Key = tuple[str, int]  # a run and a part's number in it


@dataclass(frozen=True)
class Label:
    """A person's word on one part.

    Attributes:
        run, part: which.
        truth: `OK` or `NG`.
        kind: of defect; None where it is OK, or not said.
        by: who says so.
        note: in words; may be empty.
    """

    run: str
    part: int
    truth: str
    kind: str | None
    by: str
    note: str = ""

    @property
    def key(self) -> Key:
        """Which part it is about."""
        return self.run, self.part


@dataclass(frozen=True)
class Judged:
    """A part's verdict as the journal has it; where it has two, the second holds.

    Attributes:
        row: of the journal.
        score: None where there was none.
        threshold_method: `manual` where a person set the threshold; "" where the row does not say.
        engine: digests and names of what gave the score: bundle, backend, precision, engine.
        picture: of the evidence folder; None where none was kept.
    """

    row: Head
    run: str
    part: int
    outcome: Outcome
    score: float | None
    threshold: float | None
    recorded: str
    source: str
    engine: tuple[str, str, str, str]
    threshold_method: str = ""
    picture: str | None = None

    @property
    def below(self) -> float:
        """How far the score is below the threshold; infinite where there is none."""
        return float("inf") if self.score is None or self.threshold is None else self.threshold - self.score


@dataclass(frozen=True)
class LabelledScore:
    """The score of a part that a person looked at: what a calibration can learn from.

    Attributes:
        part: `RUN/NUMBER`.
        group: the run: its parts were made and pictured in one go.
        good: what the person said.
        engine: as in `Judged`; scores of two engines do not compare.
    """

    part: str
    score: float
    group: str
    good: bool
    engine: tuple[str, str, str, str]


def labels_path(journal: Path) -> Path:
    """Where a journal's labels are."""
    return Path(f"{journal}-labels")


def read_parts(journal: Path) -> dict[Key, Judged]:
    """All verdicts of a journal, in the order of their parts' first rows.

    Raises:
        StationError: not a journal, or not whole: what a person says of a row that was tampered with is worth nothing.
    """
    parts: dict[Key, Judged] = {}
    with contextlib.closing(open_for_reading(journal)) as connection:
        try:
            for row in walk(connection):
                content = json.loads(row.body)
                if row.kind == PART:
                    parts[content["run"], content["part"]] = _judged(row, content)
                elif row.kind == EVIDENCE and (content["run"], content["part"]) in parts:
                    key = content["run"], content["part"]
                    parts[key] = replace(parts[key], picture=content["path"])
        except ChainError as error:
            raise StationError(f"{journal}: {error}; see `edge audit`") from None
    return parts


def read_label_rows(journal: Path) -> list[Row]:
    """All rows of a journal's labels; none where nobody labelled. Raises ChainError for the first bad one, StationError."""
    path = labels_path(journal)
    if not path.exists() or path.stat().st_size == 0:
        return []
    try:
        with contextlib.closing(_open_whole(path)) as connection:
            return list(walk(connection, LABELS))
    except EmptyError:
        return []


def read_labels(journal: Path) -> dict[Key, Label]:
    """The label that holds for each part that has one. Raises StationError: not labels, or not whole."""
    try:
        return {label.key: label for label in map(_label, read_label_rows(journal))}
    except ChainError as error:
        raise StationError(f"{labels_path(journal)}: {error}; see `edge audit`") from None


def newest_label(journal: Path) -> dict[str, object] | None:
    """Row and hash of the newest label, for the journal to hold; None where there are none, else why they cannot be read."""
    path = labels_path(journal)
    if not path.exists():
        return None
    try:
        with contextlib.closing(_open_whole(path)) as connection:
            head = last_head(connection)
    except EmptyError:
        return None
    except (StationError, sqlite3.Error) as error:  # no reason to keep a station from starting; the audit finds it
        return {"error": str(error)}
    return {"row": head.row, "hash": head.hash} if head.row > 0 else None


def add_labels(journal: Path, entries: Sequence[tuple[str, Label]], parts: dict[Key, Judged]) -> int:
    """Chain labels to the disk, all or none of them; those that say what holds already are left out.

    Args:
        journal: a station may be writing to it.
        entries: where each label comes from, for messages, and the label.
        parts: what the journal has, from `read_parts`.

    Returns:
        How many were added.

    Raises:
        StationError: labels of parts that the journal does not have or that were not scored, named with where they come
            from; or the file cannot be written. Nothing is added then.
    """
    faults = [f"{where}: {fault}" for where, label in entries if (fault := _fault(label, parts)) is not None]
    refuse_all(faults)
    with _open(labels_path(journal)) as connection:
        holds: dict[Key, Label] = {}
        head = last_head(connection)
        for row in walk(connection, LABELS):
            label = _label(row)
            holds[label.key] = label
        added = 0
        for _, label in entries:
            if holds.get(label.key) == label:
                continue
            about = parts[label.key].row
            body = {**vars(label), "recorded": _now(), "row": about.row, "hash": about.hash}
            row = follow(head, LABEL, canonical(body))
            connection.execute("INSERT INTO chain VALUES (?, ?, ?, ?)", (row.number, row.kind, row.body, row.hash))
            head, added = row.head, added + 1
            holds[label.key] = label
    return added


def refuse_all(faults: Sequence[str]) -> None:
    """Raises StationError with the first faults of a list, a line each, and how many more there are."""
    if faults:
        more = [f"and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
        raise StationError("\n".join([*faults[:_NAMED], *more]) + "\nnothing was labelled")


def unlabelled(parts: dict[Key, Judged], labels: dict[Key, Label]) -> list[Judged]:
    """Scored parts that nobody looked at: rejected ones first, then those closest below the threshold."""
    left = [part for key, part in parts.items() if key not in labels and part.score is not None]
    return sorted(left, key=lambda part: (not part.outcome.rejects, part.below, part.row.row))


def tally(parts: dict[Key, Judged], labels: dict[Key, Label]) -> Counter[tuple[Outcome, str]]:
    """Labelled parts by (outcome, truth): (REJECT, OK) is overkill, (PASS, NG) an escape."""
    return Counter((parts[key].outcome, label.truth) for key, label in labels.items() if key in parts)


def labelled_scores(journal: Path) -> list[LabelledScore]:
    """Scores of parts that a person found good or bad, in the order of the journal.

    Raises:
        StationError: not a journal, or the journal or its labels are not whole.
    """
    parts, labels = read_parts(journal), read_labels(journal)
    return [
        LabelledScore(f"{part.run}/{part.part}", part.score, part.run, labels[key].truth == OK, part.engine)
        for key, part in parts.items()
        if key in labels and part.score is not None
    ]


def _fault(label: Label, parts: dict[Key, Judged]) -> str | None:
    part = parts.get(label.key)
    if part is None:
        numbers = [number for run, number in parts if run == label.run]
        if not numbers:
            runs = list(dict.fromkeys(run for run, _ in parts))[-3:]
            return f"run '{label.run}' is not in the journal; expected a run such as {', '.join(runs) or 'none yet'}"
        return f"run {label.run} has no part {label.part}; its parts go from {min(numbers)} to {max(numbers)}"
    if part.score is None:
        return (
            f"part {label.part} of run {label.run} was a {part.outcome.value} without a score; expected a part that was judged"
        )
    return None


def _open_whole(path: Path) -> sqlite3.Connection:
    """Open for reading; a file that was cut off while it was made is first made empty again, which reading alone cannot."""
    if os.path.exists(f"{path}-journal"):
        try:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                is_new(connection, path, LABELS)
        except sqlite3.Error as error:
            raise StationError(f"{path}: cannot be read ({error}); check the disk and permissions") from None
    return open_for_reading(path, LABELS)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """One transaction that is on the disk when it is over."""
    refuse_other_files(path)
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)) as connection:
            new = is_new(connection, path, LABELS)
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                if new and is_new(connection, path, LABELS):  # and nobody else was quicker
                    create(connection, LABELS)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
    except ChainError as error:
        raise StationError(f"{path}: {error}; see `edge audit`") from None
    except (sqlite3.Error, OSError) as error:
        raise StationError(f"{path}: labels cannot be written ({error}); check the disk and permissions") from None


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Set the log mode; where several make the file at once, SQLite refuses at once what it could wait for."""
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(_AGAIN_S)


def _judged(row: Row, content: dict[str, Any]) -> Judged:
    names = ("bundle", "backend", "precision", "engine")
    return Judged(
        row.head,
        content["run"],
        content["part"],
        Outcome(content["outcome"]),
        content.get("score"),
        content.get("threshold"),
        content["recorded"],
        str(content.get("source")),
        (str(content.get(names[0])), str(content.get(names[1])), str(content.get(names[2])), str(content.get(names[3]))),
        str(content.get("threshold_method", "")),
    )


def _label(row: Row) -> Label:
    content = json.loads(row.body)
    return Label(content["run"], content["part"], content["truth"], content["kind"], content["by"], content["note"])


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
