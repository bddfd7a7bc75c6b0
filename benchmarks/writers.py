"""Programs that write what a station writes, round after round, and what must be true of what they left when they were cut off.

`python -m benchmarks.writers NAME FOLDER` writes a `.` to its standard output when it begins, a `+` before each round, and a
`-` once the round is promised to last. `benchmarks.crashes` kills it, `benchmarks.power_loss` records its system calls.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edge.journal
import engines.atomic
from calibration.record import Calibration, load_calibration, save_calibration
from edge.audit import audit, export_images
from edge.chain import EVENT, PART, open_for_reading, walk
from edge.clock import SystemClock
from edge.evidence import Choice, EvidenceFolder
from edge.heads import HeadKeeper, read_heads
from edge.journal import SqliteJournal
from edge.judge import row_fields
from edge.training_folder import Refused, TrainingFolder
from edge.truth import Label, add_labels, read_labels, read_parts
from edge.verdict import Missing, Outcome, Verdict
from engines import InspectionError
from engines.bundle import Bank, Golden, GoldenCheck, Input, Method, Provenance, ProvisionalThreshold, load_bundle, write_bundle
from engines.images import Image, list_images, read_image

Rounds = Iterator[int]

CALIBRATION = Calibration(
    station="line-1",
    camera="camera-1",
    recipe="none",
    threshold=1.0,
    bundle_digest="0" * 64,
    backend="none",
    precision="fp32",
    engine_digest="0" * 64,
    n=1,
    rate=0.5,
    method="none",
    when="2024-01-01T00:00:00+00:00",
    who="benchmark",
)
JUDGED_WITH = row_fields("none", CALIBRATION)


@dataclass(frozen=True)
class Writer:
    """One kind of what is written.

    Attributes:
        write: does a round for each number that it is given, from 1, below a folder.
        check: starts again on what is there, after `begun` rounds were begun and `acked` were promised to last; returns what is
            wrong, None where all is well.
    """

    write: Callable[[Path, Rounds], None]
    check: Callable[[Path, int, int], str | None]


def _write_journal(folder: Path, rounds: Rounds) -> None:
    journal = SqliteJournal(folder / "station/journal.db", "run", SystemClock())
    heads = HeadKeeper(folder / "office/heads.txt", lambda line: None, _fail)
    journal.event("started", {})
    for part in rounds:
        _judge(journal, part)
        heads.note(journal.head, due=True)
    heads.close()
    journal.event("stopped", {"reason": "end"})
    journal.close()


def _check_journal(folder: Path, begun: int, acked: int) -> str | None:
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


def _write_evidence(folder: Path, rounds: Rounds) -> None:
    journal = SqliteJournal(folder / "journal.db", "run", SystemClock())
    evidence = _evidence(folder, journal)
    for part in rounds:
        _judge(journal, part, evidence)
    evidence.close()
    journal.close()


def _check_evidence(folder: Path, begun: int, acked: int) -> str | None:
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
    for picture in list_images(folder / "evidence", recursive=True) if (folder / "evidence").is_dir() else []:
        read_image(picture)
    return None


def _write_labels(folder: Path, rounds: Rounds) -> None:
    path = folder / "journal.db"
    journal = SqliteJournal(path, "run", SystemClock())
    for part in range(1, 4):
        _judge(journal, part)
    journal.close()
    parts = read_parts(path)
    for number in rounds:
        add_labels(path, [("here", _label(number))], parts)


def _label(number: int) -> Label:
    return Label("run", 1 + number % 3, "NG", f"kind {number}", "benchmark", "n" * 200)


def _check_labels(folder: Path, begun: int, acked: int) -> str | None:
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


def _write_calibration(folder: Path, rounds: Rounds) -> None:
    for number in rounds:
        save_calibration(folder / "records/line-1.json", CALIBRATION.model_copy(update={"n": number}))


def _check_calibration(folder: Path, begun: int, acked: int) -> str | None:
    path = folder / "records/line-1.json"
    number = load_calibration(path).n if path.exists() else 0
    if number is None or not acked <= number <= begun:
        return f"the record of round {number} is there, expected one of rounds {acked} to {begun}"
    save_calibration(path, CALIBRATION)
    return None


def _write_bundle(folder: Path, rounds: Rounds) -> None:
    for number in rounds:
        _tiny_bundle(folder / "bundles/part", number)


def _check_bundle(folder: Path, begun: int, acked: int) -> str | None:
    path = folder / "bundles/part"
    threshold = load_bundle(path).manifest.threshold if path.exists() else None
    number = 0 if threshold is None else int(threshold.value)
    if number is None or not acked <= number <= begun:
        return f"the bundle of round {number} is there, expected one of rounds {acked} to {begun}"
    _tiny_bundle(path, 1)
    return None


def _tiny_bundle(path: Path, number: int) -> None:
    """A bundle that loads; nothing scores with it, so that its graph may be any bytes."""
    write_bundle(
        path,
        spec=Input(size=(64, 64), roi=None, frame_size=None, mm_per_pixel=None),
        method=Method(backbone="none", dim=3, grid=(8, 8), k=1),
        threshold=ProvisionalThreshold(value=float(number), n=50, rate=0.01),
        golden_check=GoldenCheck(images=1, spread=1.0, max_difference=0.0, flips=0),
        provenance=Provenance(
            created="2024-01-01T00:00:00+00:00",
            recipe="none",
            command="none",
            seed=0,
            weights="none",
            weights_sha256=None,
            coreset=1.0,
            patches=4,
            images=(),
            versions={},
        ),
        features=bytes(range(256)) * 8 + bytes([number % 256]),
        bank=Bank(np.zeros((4, 3), np.float32), np.zeros(4, np.float32), np.zeros(4, np.int32), np.arange(4, dtype=np.int32)),
        mask=None,
        golden=Golden(names=("one.png",), images=(_picture(number),), scores=np.array([float(number)])),
    )


def _write_recording(folder: Path, rounds: Rounds) -> None:
    recording = TrainingFolder(folder / "images", {"station": "line-1"})
    for number in rounds:
        if isinstance(recording.offer(_picture(number), "camera"), Refused):
            raise SystemExit(f"picture {number} was refused")
    recording.close("end")


def _check_recording(folder: Path, begun: int, acked: int) -> str | None:
    recording = TrainingFolder(folder / "images", {"station": "line-1"})
    recording.close("end")
    if recording.unreadable:
        return "; ".join(recording.unreadable)
    for notes in (folder / "images").glob("*.json"):
        json.loads(notes.read_text())
    if not acked <= recording.there <= begun:
        return f"{recording.there} pictures are there, expected {acked} to {begun}"
    return None


WRITERS = {
    "journal": Writer(_write_journal, _check_journal),
    "evidence": Writer(_write_evidence, _check_evidence),
    "labels": Writer(_write_labels, _check_labels),
    "calibration": Writer(_write_calibration, _check_calibration),
    "bundle": Writer(_write_bundle, _check_bundle),
    "recording": Writer(_write_recording, _check_recording),
}


def check(name: str, folder: Path, begun: int, acked: int) -> str | None:
    """What is wrong with what a writer left below a folder; that it cannot be started again is wrong too."""
    try:
        return WRITERS[name].check(folder, begun, acked)
    except Exception as error:  # whatever is raised, the station would not have started or would have read half of something
        return f"does not start again: {type(error).__name__}: {error}"


def _forget_fsync() -> None:
    os.fsync = lambda fd: None


def _forget_folders() -> None:
    engines.atomic.sync_folder = lambda folder: None


def _forget_synchronous() -> None:
    usual = SqliteJournal._transaction
    SqliteJournal._transaction = lambda self, synchronous: usual(self, synchronous="OFF")  # type: ignore[method-assign]


# what a careless change would do to the program; each must be found out
MUTANTS: dict[str, Callable[[], None]] = {
    "without fsync": _forget_fsync,
    "without fsync of folders": _forget_folders,
    "synchronous=OFF": _forget_synchronous,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write until killed, or so many rounds."""
    parser = argparse.ArgumentParser(prog="writers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=WRITERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--mutant", choices=MUTANTS)
    arguments = parser.parse_args(argv)
    if arguments.mutant is not None:
        MUTANTS[arguments.mutant]()
    edge.journal._CHECKPOINT_ROWS = 4  # so that a short record sees checkpoints
    os.write(1, b".")
    WRITERS[arguments.name].write(arguments.folder, _rounds(arguments.rounds))
    return 0


def _rounds(count: int | None) -> Rounds:
    for number in itertools.count(1) if count is None else range(1, count + 1):
        os.write(1, b"+")
        yield number
        os.write(1, b"-")


def _judge(journal: SqliteJournal, part: int, evidence: EvidenceFolder | None = None) -> None:
    journal.announce(Missing(part, SystemClock().now_ns(), "part.png", "no picture"), JUDGED_WITH)
    outcome = Outcome.PASS if evidence is None else Outcome.REJECT
    verdict = Verdict(part, outcome, 0.5, 1.0, 1.0, "r" * (part % 50), "part.png")
    journal.verdict(verdict)
    if evidence is not None:
        evidence.offer(_picture(part), verdict)


def _evidence(folder: Path, journal: SqliteJournal) -> EvidenceFolder:
    choice = Choice(every=1, near=0.0)
    return EvidenceFolder(folder / "evidence", "run", journal, choice, quota_bytes=10**9, waiting=64, complain=_fail)


def _picture(number: int) -> Image:
    """uint8 RGB (32, 32, 3): noise, a different one for each number, and three sectors as a PNG file."""
    return np.random.default_rng(number).integers(60, 190, (32, 32, 3)).astype(np.uint8)


def _fail(line: str) -> None:
    raise SystemExit(line)


if __name__ == "__main__":
    sys.exit(main())
