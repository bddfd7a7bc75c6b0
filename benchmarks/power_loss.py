"""Cuts the power of a station, on a model of its disk, at every point and in every way that the model has.

`python -m benchmarks.power_loss` runs each of `benchmarks.writers` under strace, takes the system calls that it made, and
stops after each of them. There it builds what the disk may show: writes and names that were not synced kept, lost, in part, or
in another order (`benchmarks.disk` has the model). On each such disk the station starts again, and it is checked that nothing
half-written is read and that all that was promised to last is there. The same for programs with a mistake in them, such as a
forgotten fsync: there something must be found, or the model sees nothing. It ends with 1 otherwise.

It needs strace (apt-get install strace) and leave to trace, which some containers do not give.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.disk import Disk, digest, materialise
from benchmarks.strace import DiskError, read_log, record
from benchmarks.writers import WRITERS, check
from engines import console
from engines.atomic import write_file
from engines.bench import machine

MUTATIONS = (
    ("journal", "synchronous=OFF"),
    ("evidence", "without fsync"),
    ("calibration", "without fsync"),
    ("calibration", "without fsync of folders"),
    ("bundle", "without fsync"),
    ("recording", "without fsync"),
    ("recipe", "without fsync"),
    ("recipe", "without fsync of folders"),
    ("recipe", "synchronous=OFF"),
    ("recipe", "choice before its row"),
)
_SHOWN = 3  # violations of one writer


@dataclass(frozen=True)
class Found:
    """What came of cutting the power of one writer.

    Attributes:
        calls: of the record that change what is on the disk.
        cuts: points at which the power was cut, between two calls.
        states: different disks that the station was started on.
        wrong: number of these on which something was not as it must be, and the first of them, a line each.
    """

    writer: str
    mutant: str | None
    calls: int
    cuts: int
    states: int
    wrong: int
    first: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if anything was wrong, or a mistake was not found out."""
    parser = argparse.ArgumentParser(prog="power_loss", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--writers", nargs="+", choices=WRITERS, default=list(WRITERS), metavar="NAME", help="default: all")
    parser.add_argument("--rounds", type=console.positive_int, default=12, help="that each writer does (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="4 rounds, and every fifth state")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def cut_power(writer: str, folder: Path, rounds: int, mutant: str | None = None, every: int = 1) -> Found:
    """Record a writer and start the station on what the disk may show at each cut.

    Args:
        writer: one of `WRITERS`.
        folder: empty; the record and the writer's files go there.
        rounds: that the writer does.
        mutant: a mistake of `benchmarks.writers.MUTANTS` to make.
        every: try each so-manieth state alone.

    Raises:
        DiskError: no strace, or a record that the model does not understand.
    """
    root, log = folder / "root", folder / "calls.log"
    root.mkdir()
    mistake = [] if mutant is None else ["--mutant", mutant]
    command = [sys.executable, "-m", "benchmarks.writers", writer, str(root), "--rounds", str(rounds), *mistake]
    record(command, log, Path(__file__).parent.parent)
    disk = Disk(root)
    shutil.rmtree(root)
    seen: set[tuple[bytes, int, int]] = set()
    calls = cuts = states = 0
    wrong: list[str] = []
    for number, call in enumerate(read_log(log)):
        before = disk.begun, disk.acked
        disk.execute(call, number)
        if not disk.touched and (disk.begun, disk.acked) == before:
            continue
        calls += disk.touched
        cuts += 1
        for state in disk.states():
            key = digest(state), disk.begun, disk.acked
            if key in seen:
                continue
            seen.add(key)
            if len(seen) % every:
                continue
            states += 1
            root.mkdir()  # where the writer's was: what a station writes may name its own files
            materialise(state, root)
            fault = check(writer, root, disk.begun, disk.acked)
            shutil.rmtree(root)
            if fault is not None:
                wrong.append(f"after call {number} ({call.name}), {disk.begun} rounds begun, {disk.acked} done: {fault}")
    if disk.acked != rounds:
        raise DiskError(f"{disk.acked} rounds in the record, expected {rounds}")
    return Found(writer, mutant, calls, cuts, states, len(wrong), tuple(wrong[:_SHOWN]))


def _run(arguments: argparse.Namespace) -> int:
    rounds, every = (4, 5) if arguments.quick else (arguments.rounds, 1)
    jobs = [(name, None) for name in arguments.writers] + [job for job in MUTATIONS if job[0] in arguments.writers]
    memory = Path("/dev/shm")  # thousands of disks are built: in memory, where there is some to build them in
    found = []
    with console.progress("cutting the power") as advance:
        for number, (name, mutant) in enumerate(jobs):
            advance(number, len(jobs), name)
            with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
                try:
                    found.append(cut_power(name, Path(folder), rounds if mutant is None else 4, mutant, every))
                except DiskError as error:
                    console.warn(f"{name}: {error}")
                    return console.BAD_INPUT
    good = True
    rows = []
    for one in found:
        as_it_must = (one.wrong > 0) == (one.mutant is not None)
        good = good and as_it_must
        if not as_it_must:
            for line in one.first or (f"{one.mutant} was not found out",):
                console.say(f"WRONG  {one.writer}: {line}")
        name = one.writer if one.mutant is None else f"{one.writer}, {one.mutant}"
        must = "none" if one.mutant is None else "some"
        rows.append((name, one.calls, one.cuts, one.states, one.wrong, must))
    columns = ("writer", "calls", "cut points", "disks started on", "wrong", "must be")
    console.table("power cuts on the model of a disk", columns, rows)
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps([asdict(one) for one in found], indent=1) + "\n").encode())
    return console.DONE if good else console.NO


if __name__ == "__main__":
    sys.exit(main())
