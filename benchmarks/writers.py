"""Programs that write what a station writes, round after round, and what must be true of what they left when they were cut off.

`python -m benchmarks.writers NAME FOLDER` writes a `.` to its standard output when it begins, a `+` before each round, and a
`-` once the round is promised to last. `benchmarks.crashes` kills it, `benchmarks.power_loss` records its system calls.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import edge.changeover
import edge.journal
import engines.atomic
from benchmarks.writers_files import (
    check_bundles,
    check_calibration,
    check_recording,
    write_bundles,
    write_calibration,
    write_recording,
)
from benchmarks.writers_journal import check_evidence, check_journal, check_labels, write_evidence, write_journal, write_labels
from benchmarks.writers_recipe import check_recipe, write_recipe
from edge.active import Active
from edge.journal import SqliteJournal


@dataclass(frozen=True)
class Writer:
    """One kind of what is written.

    Attributes:
        write: does a round for each number that it is given, from 1, below a folder.
        check: starts again on what is there, after `begun` rounds were begun and `acked` were promised to last; returns what is
            wrong, None where all is well.
    """

    write: Callable[[Path, Iterator[int]], None]
    check: Callable[[Path, int, int], str | None]


WRITERS = {
    "journal": Writer(write_journal, check_journal),
    "evidence": Writer(write_evidence, check_evidence),
    "labels": Writer(write_labels, check_labels),
    "calibration": Writer(write_calibration, check_calibration),
    "bundle": Writer(write_bundles, check_bundles),
    "recording": Writer(write_recording, check_recording),
    "recipe": Writer(write_recipe, check_recipe),
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


def _choose_before_row() -> None:
    """The choice is saved first, and the journal has the change after that."""
    held: list[Callable[[], None]] = []
    usual, save = SqliteJournal.event, edge.changeover.save_active

    def event(self: SqliteJournal, name: str, details: Mapping[str, object]) -> None:
        if name == "recipe":
            held.append(lambda: usual(self, name, details))
        else:
            usual(self, name, details)

    def save_first(path: Path, active: Active) -> None:
        save(path, active)
        held.pop()()

    SqliteJournal.event = event  # type: ignore[method-assign]
    edge.changeover.save_active = save_first


# what a careless change would do to the program; each must be found out
MUTANTS: dict[str, Callable[[], None]] = {
    "without fsync": _forget_fsync,
    "without fsync of folders": _forget_folders,
    "synchronous=OFF": _forget_synchronous,
    "choice before its row": _choose_before_row,
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
    WRITERS[arguments.name].write(arguments.folder, rounds(arguments.rounds))
    return 0


def rounds(count: int | None = None) -> Iterator[int]:
    """Numbers from 1, so many or without an end; tells standard output before and after each."""
    for number in itertools.count(1) if count is None else range(1, count + 1):
        os.write(1, b"+")
        yield number
        os.write(1, b"-")


if __name__ == "__main__":
    sys.exit(main())
