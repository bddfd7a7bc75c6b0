"""Kills processes that write what a station writes, at random points, and looks at what they left.

`python -m benchmarks.crashes --points 200` starts a writer on one journal again and again, kills it with SIGKILL at a random
time, and checks the journal each time: it opens, its chain is whole, every part that was acted on has its row, no row is
there twice, and at most one part, the one in flight, has no verdict of its own and is recorded as FAULT by the next start.
Then the same number of kills for each of `benchmarks.writers`, each in a folder of its own: the journal with its heads,
evidence, labels, a calibration that is written again and again, a bundle that is replaced, pictures that are recorded, a recipe
that is changed to and fro. It ends with 1 if anything is wrong.

SIGKILL leaves the operating system running; `benchmarks.power_loss` cuts the power, on a model of the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.writers import WRITERS, check
from edge.audit import audit
from edge.chain import PART, open_for_reading, walk
from edge.clock import SystemClock
from edge.journal import SqliteJournal
from edge.verdict import Outcome
from engines import console
from engines.atomic import write_file
from engines.bench import machine

_LONGEST_S = 0.15
_WRITER = """
import os, sys
from pathlib import Path
from benchmarks.writers import rounds
from benchmarks.writers_journal import judge
from edge.clock import SystemClock
from edge.journal import SqliteJournal
os.write(1, b".")
journal = SqliteJournal(Path(sys.argv[1]), sys.argv[2], SystemClock())
journal.event("started", {})
for part in rounds():
    judge(journal, part)
"""


@dataclass(frozen=True)
class Crash:
    """What one kill left.

    Attributes:
        begun, acted: parts that the writer began, and that it acted on after their rows were on the disk.
        kept, recovered: parts with a verdict of their own, and with the FAULT of the restart.
        wrong: what should not be; None where all is well.
    """

    begun: int
    acted: int
    kept: int
    recovered: int
    wrong: str | None


@dataclass(frozen=True)
class Kill:
    """What one kill of one of `benchmarks.writers` left: rounds begun, rounds promised to last, and what is wrong."""

    writer: str
    begun: int
    acked: int
    wrong: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if any kill left something that should not be."""
    parser = argparse.ArgumentParser(prog="crashes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=console.positive_int, default=200, help="kills (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="10 kills")
    parser.add_argument("--seed", type=console.count, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def crash(path: Path, run: str, delay_s: float) -> Crash:
    """Start a writer, kill it `delay_s` after it begins to open the journal, restart, and look."""
    begun, acted, wrong = _cut_off(["-c", _WRITER, str(path), run], delay_s)
    if wrong is not None:
        return Crash(0, 0, 0, 0, wrong)
    SqliteJournal(path, f"{run}-restart", SystemClock()).close()
    broken = audit(path).broken
    outcomes: Counter[str] = Counter()
    parts = []
    with contextlib.closing(open_for_reading(path)) as connection:
        for row in walk(connection):
            content = json.loads(row.body)
            if row.kind == PART and content["run"] == run:
                outcomes[content["outcome"]] += 1
                parts.append(content["part"])
    kept, recovered = outcomes[Outcome.PASS.value], outcomes[Outcome.FAULT.value]
    if broken is not None:
        wrong = broken
    elif parts != list(range(1, len(parts) + 1)):
        wrong = f"parts {parts[-5:]} at the end, expected each once and in order"
    elif not (acted <= kept <= acted + 1 and recovered <= 1 and begun - 1 <= kept + recovered <= begun):
        wrong = f"{kept} kept and {recovered} recovered of {begun} begun and {acted} acted on"
    return Crash(begun, acted, kept, recovered, wrong)


def kill(writer: str, folder: Path, delay_s: float) -> Kill:
    """Start a writer below an empty folder, kill it `delay_s` after it begins, start again, and look."""
    begun, acked, wrong = _cut_off(["-m", "benchmarks.writers", writer, str(folder)], delay_s)
    return Kill(writer, begun, acked, check(writer, folder, begun, acked) if wrong is None else wrong)


def _cut_off(program: Sequence[str], delay_s: float) -> tuple[int, int, str | None]:
    """Start a program of `benchmarks.writers`' kind and kill it `delay_s` after it begins.

    Returns:
        Rounds begun and rounds promised to last, and why the kill came too late; None where it did not.
    """
    with subprocess.Popen([sys.executable, *program], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent) as process:
        assert process.stdout is not None
        ready = process.stdout.read(1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay_s)
        process.kill()
        trace = process.stdout.read().decode()
    if ready != b"." or process.returncode != -9:
        return 0, 0, f"the writer ended by itself, with {process.returncode}"
    return trace.count("+"), trace.count("-"), None


def _run(arguments: argparse.Namespace) -> int:
    draw = random.Random(arguments.seed)
    points = 10 if arguments.quick else arguments.points
    crashes = []
    with tempfile.TemporaryDirectory() as folder, console.progress("killing") as advance:
        for point in range(points):
            delay_s = draw.uniform(0, _LONGEST_S) if point % 3 else draw.uniform(0, 0.02)  # a third while it opens the journal
            crashes.append(crash(Path(folder) / "journal.db", f"run-{point}", delay_s))
            advance(point + 1, points)
        kills = []
        for number, writer in enumerate(name for name in WRITERS for _ in range(points)):
            advance(number, points * len(WRITERS), writer)
            with tempfile.TemporaryDirectory(dir=folder) as own:
                kills.append(kill(writer, Path(own), draw.uniform(0, _LONGEST_S)))
    wrong = [found.wrong for found in crashes if found.wrong is not None]
    for line in (*wrong, *(f"{found.writer}: {found.wrong}" for found in kills if found.wrong is not None)):
        console.say(f"WRONG  {line}")
    rows = [
        ("kills", len(crashes)),
        ("before the first part", sum(found.begun == 0 for found in crashes)),
        ("parts acted on", sum(found.acted for found in crashes)),
        ("of these without a row", sum(max(0, found.acted - found.kept) for found in crashes)),
        ("parts in flight, recorded as FAULT", sum(found.recovered for found in crashes)),
        ("parts begun and not yet announced", sum(found.begun - found.kept - found.recovered for found in crashes)),
        ("journals that were not as they should be", len(wrong)),
    ]
    console.table("kill -9 of a writer of one journal", ("", "count"), rows)
    columns = ("writer", "kills", "rounds begun", "promised to last", "wrong")
    console.table("kill -9 of other writers", columns, [_row(name, kills) for name in WRITERS])
    console.say(f"on {machine()}")
    if arguments.json is not None:
        figures = {"journal": [asdict(found) for found in crashes], "writers": [asdict(found) for found in kills]}
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE if not wrong and all(found.wrong is None for found in kills) else console.NO


def _row(writer: str, kills: Sequence[Kill]) -> tuple[str, int, int, int, int]:
    of = [found for found in kills if found.writer == writer]
    wrong = sum(found.wrong is not None for found in of)
    return writer, len(of), sum(found.begun for found in of), sum(found.acked for found in of), wrong


if __name__ == "__main__":
    sys.exit(main())
