"""Kills a process that writes a journal, at random points, and looks at what it left.

`python -m benchmarks.crashes --points 200` starts a writer on one journal again and again, kills it with SIGKILL at a random
time, and checks the journal each time: it opens, its chain is whole, every part that was acted on has its row, no row is
there twice, and at most one part, the one in flight, has no verdict of its own and is recorded as FAULT by the next start.
It ends with 1 if anything else is found.

SIGKILL leaves the operating system running. Power cuts are not tried here: that the rows survive them is SQLite's promise for
`synchronous=FULL` in WAL mode, and the disk's, which must not lie about its cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from calibration.record import Calibration
from edge.audit import audit
from edge.chain import PART, open_for_reading, walk
from edge.clock import SystemClock
from edge.journal import SqliteJournal
from edge.judge import row_fields
from edge.verdict import Outcome
from engines import console
from engines.atomic import write_file
from engines.bench import machine

_LONGEST_S = 0.15
_WRITER = """
import os, sys
from pathlib import Path
from benchmarks.crashes import JUDGED_WITH
from edge.clock import SystemClock
from edge.journal import SqliteJournal
from edge.verdict import Missing, Outcome, Verdict
clock, part = SystemClock(), 0
os.write(1, b".")
journal = SqliteJournal(Path(sys.argv[1]), sys.argv[2], clock)
journal.event("started", {})
while True:
    part += 1
    os.write(1, b"+")
    journal.announce(Missing(part, clock.now_ns(), "part.png", "no picture"), JUDGED_WITH)
    journal.verdict(Verdict(part, Outcome.PASS, 0.5, 1.0, 1.0, "r" * (part % 50), "part.png"))
    os.write(1, b"-")
"""

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
    command = [sys.executable, "-c", _WRITER, str(path), run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent) as process:
        assert process.stdout is not None
        ready = process.stdout.read(1)
        time.sleep(delay_s)
        process.kill()
        trace = process.stdout.read().decode()
    if ready != b"." or process.returncode != -9:
        return Crash(0, 0, 0, 0, f"the writer ended by itself, with {process.returncode}")
    begun, acted = trace.count("+"), trace.count("-")
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
    wrong = None
    if broken is not None:
        wrong = broken
    elif parts != list(range(1, len(parts) + 1)):
        wrong = f"parts {parts[-5:]} at the end, expected each once and in order"
    elif not (acted <= kept <= acted + 1 and recovered <= 1 and begun - 1 <= kept + recovered <= begun):
        wrong = f"{kept} kept and {recovered} recovered of {begun} begun and {acted} acted on"
    return Crash(begun, acted, kept, recovered, wrong)


def _run(arguments: argparse.Namespace) -> int:
    draw = random.Random(arguments.seed)
    points = 10 if arguments.quick else arguments.points
    crashes = []
    with tempfile.TemporaryDirectory() as folder, console.progress("killing") as advance:
        for point in range(points):
            delay_s = draw.uniform(0, _LONGEST_S) if point % 3 else draw.uniform(0, 0.02)  # a third while it opens the journal
            crashes.append(crash(Path(folder) / "journal.db", f"run-{point}", delay_s))
            advance(point + 1, points)
    wrong = [found.wrong for found in crashes if found.wrong is not None]
    for line in wrong:
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
    console.table("kill -9 of a writer", ("", "count"), rows)
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps([asdict(found) for found in crashes], indent=1) + "\n").encode())
    return console.DONE if not wrong else console.NO


if __name__ == "__main__":
    sys.exit(main())
