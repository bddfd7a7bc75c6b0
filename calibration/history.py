"""The history of a record: every threshold that was ever in force, why, and the scores that it is from.

It lies beside the record, one line of JSON an entry, each with its SHA-256 and that of the entry before; the record names its
own entry, which is the last. So an entry that was changed, taken out, moved or cut off is found. Somebody who writes record and
history anew, both, is found by what is kept elsewhere: the journal's event `started` has the record's entry.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from calibration import CalibrationError
from calibration.propose import Wishes
from calibration.record import Calibration, load_calibration, save_calibration, sha256
from calibration.scores import Scored
from engines.atomic import write_file
from engines.bundle import Record

SCHEMA: Final = 1


class Replaced(Record):
    """The record that stood there before: its threshold and digest, or why they could not be read."""

    threshold: float | None = None
    digest: str | None = None
    problem: str | None = None


class Entry(Record):
    """One calibration, and all that is needed to take its threshold again.

    Attributes:
        number: from 1.
        previous: digest of the entry before; None for the first.
        replaced: what stood in the record's place; None where nothing did.
        calibration: the record, without the entry's own digest.
        wishes: what was asked for; None where the threshold was set by hand.
        parts: every picture that it is from, with the digest of its pixels, its score and its part.
        warnings: that the person was shown.
    """

    schema_version: Literal[1] = SCHEMA
    number: int = Field(gt=0)
    previous: str | None
    replaced: Replaced | None
    calibration: Calibration
    wishes: Wishes | None
    parts: tuple[Scored, ...]
    warnings: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the entry's fields."""
        return sha256(self.model_dump(mode="json"))

    @property
    def record(self) -> Calibration:
        """The record that it put in force, which names it."""
        return self.calibration.model_copy(update={"entry": self.digest})


@dataclass(frozen=True)
class History:
    """What a history holds up to the first fault, and what is wrong with it, one line a fault."""

    entries: tuple[Entry, ...]
    faults: tuple[str, ...]

    def replaced_method(self, entry: Entry) -> str | None:
        """How the threshold that an entry replaced came about; None where the record was not of this history."""
        return None if entry.replaced is None else self._methods.get(entry.replaced.digest)

    @functools.cached_property  # each digest takes in all scores of its entry
    def _methods(self) -> dict[str | None, str]:
        return {entry.record.digest: entry.calibration.method for entry in self.entries}


def history_path(record: Path) -> Path:
    """Where the history of a record lies: `line-1.history.jsonl` beside `line-1.json`."""
    return record.with_name(f"{record.stem}.history.jsonl")


def write(
    record: Path,
    calibration: Calibration,
    *,
    wishes: Wishes | None = None,
    parts: Sequence[Scored] = (),
    warnings: Sequence[str] = (),
) -> Calibration:
    """Append a calibration to the history and put it in force.

    The entry is on the disk before the record names it. If the second fails, the old threshold stays in force, and
    `read_history` says that an entry was never put in force; writing again goes on from there.

    Args:
        record: the record's path.
        calibration: without an entry.
        wishes, parts, warnings: see `Entry`.

    Returns:
        The calibration as written, with its entry.

    Raises:
        CalibrationError: as `check_whole`; nothing is written.
        EngineError: the disk.
    """
    path = history_path(record)
    with _locked(record):
        data = _read(path)
        entries = _whole(record, data)
        entry = Entry(
            number=len(entries) + 1,
            previous=entries[-1].digest if entries else None,
            replaced=_replaced(record),
            calibration=calibration,
            wishes=wishes,
            parts=tuple(parts),
            warnings=tuple(warnings),
        )
        line = json.dumps({**entry.model_dump(mode="json"), "sha256": entry.digest}, sort_keys=True) + "\n"
        write_file(path, data + line.encode())
        save_calibration(record, entry.record)
    return entry.record


def check_whole(record: Path) -> None:
    """Could an entry be appended? To be asked before the work that leads to one.

    Raises:
        CalibrationError: a history that is damaged, or a record that it does not know: the next entry would hide that the end
            of the history was cut off, or that the record was changed. A file that is no record, without a history.
    """
    _whole(record, _read(history_path(record)))


def read_history(record: Path, head: str | None = None) -> History:
    """Read the history of a record and look whether both are whole and belong together.

    Args:
        record: the record's path.
        head: digest of an entry that was noted elsewhere, which the history must hold.

    Raises:
        CalibrationError: neither a record nor a history is there.
    """
    path = history_path(record)
    if not record.exists() and not path.exists():
        raise CalibrationError(f"{record}: no record and no history there; run `calibration fit` first")
    entries, faults = _chain(path, _read(path))
    known = {entry.digest: entry for entry in entries}
    if head is not None and head not in known:
        faults = [*faults, f"{path}: no entry {head[:12]}, which was noted elsewhere; it was cut off, or all was written anew"]
    try:
        calibration = load_calibration(record)
    except CalibrationError as error:
        return History(tuple(entries), (*faults, str(error)))
    if calibration.entry is None:
        if entries:
            faults = [*faults, f"{record}: names no entry, but there is a history; an older record was put in its place"]
    elif calibration.entry not in known:
        if not path.exists():
            faults = [*faults, _not_there(path, record)]
        elif not faults:
            faults = [
                f"{path}: no entry {calibration.entry[:12]}, which {record.name} names; the end of the history was cut off"
            ]
    elif known[calibration.entry].calibration.fields() != {**calibration.fields(), "entry": None}:
        faults = [*faults, f"{record}: differs from entry {known[calibration.entry].number}, which it names"]
    elif known[calibration.entry] is not entries[-1]:
        at = known[calibration.entry].number
        faults = [
            *faults,
            f"{record}: is entry {at} of {len(entries)}; an older record was put in its place, or a later one was never"
            " put in force because the disk failed",
        ]
    return History(tuple(entries), tuple(faults))


def history_fault(record: Path) -> str:
    """What is wrong with the history of a record, in one line; "" where nothing is, or the record itself cannot be read."""
    try:
        load_calibration(record)
    except CalibrationError:  # whoever uses it is told
        return ""
    try:
        return "; ".join(read_history(record).faults)
    except CalibrationError as error:
        return str(error)


def newest_parts(record: Path, calibration: Calibration) -> tuple[Scored, ...]:
    """Pictures of the newest entry that has some and whose scores hold for what a calibration is bound to; else none."""
    bound = ("station", "camera", "bundle_digest", "backend", "precision", "engine_digest")
    for entry in reversed(read_history(record).entries):
        if entry.parts and all(getattr(entry.calibration, name) == getattr(calibration, name) for name in bound):
            return entry.parts
    return ()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None


def _chain(path: Path, data: bytes) -> tuple[list[Entry], list[str]]:
    """Entries up to the first fault, and that fault."""
    entries: list[Entry] = []
    if data and not data.endswith(b"\n"):
        return entries, [f"{path}: its last line is cut off"]
    for number, line in enumerate(data.splitlines(), 1):
        try:
            document = json.loads(line)
            written = document.pop("sha256", None)
            entry = Entry.model_validate(document)
        except (ValueError, TypeError, AttributeError, RecursionError, ValidationError):
            return entries, [f"{path}: line {number} is no entry; it was damaged or changed"]
        if written != sha256(document) or written != entry.digest:
            return entries, [f"{path}: entry {number} was changed, its SHA-256 does not match"]
        if entry.number != number or entry.previous != (entries[-1].digest if entries else None):
            return entries, [f"{path}: line {number} does not follow the one before; an entry was removed, inserted or moved"]
        entries.append(entry)
    return entries, []


def _whole(record: Path, data: bytes) -> list[Entry]:
    """Entries of a history that a further one may follow. Raises CalibrationError as `check_whole`."""
    path = history_path(record)
    entries, faults = _chain(path, data)
    if not faults and not _known(record, entries):
        if not path.exists():
            raise CalibrationError(f"{_not_there(path, record)}, or calibrate to a record of another name")
        faults = [f"{record}: no entry of {path.name} put it in force; its end was cut off, or the record was changed"]
    if faults:
        raise CalibrationError(
            f"{faults[0]}; keep both files for whoever looks into it, and calibrate to a record of another name"
        )
    return entries


def _not_there(path: Path, record: Path) -> str:
    return (
        f"{path}: not there, and {record.name} is an entry of it; the record was copied without its history, or that was"
        " removed: copy it from where the record was made"
    )


def _known(record: Path, entries: Sequence[Entry]) -> bool:
    """Whether a record is as one of the entries put it in force, or found it: the disk may have failed in between."""
    try:
        found = load_calibration(record)
    except CalibrationError as error:
        if record.exists() and not entries:
            raise CalibrationError(f"{error}; what stands there would be lost: move it away, or give another path") from None
        return True  # none there, or a damaged one: the next entry says so
    if not entries:
        return found.entry is None
    replaced = (entry.replaced.digest for entry in entries if entry.replaced is not None)
    return found.digest in {*(entry.record.digest for entry in entries), *replaced}


def _replaced(record: Path) -> Replaced | None:
    if not record.exists():
        return None
    try:
        old = load_calibration(record)
    except CalibrationError as error:
        return Replaced(problem=str(error))
    return Replaced(threshold=old.threshold, digest=old.digest)


@contextlib.contextmanager
def _locked(record: Path) -> Iterator[None]:
    """Keep other writers of the same folder waiting: an entry must not be lost between reading and writing."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(record.parent, os.O_RDONLY)
    except OSError as error:
        raise CalibrationError(f"{record}: could not be written ({error.strerror or error}); check the folder") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
