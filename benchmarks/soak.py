"""Lets 100,000 parts come by a station while everything around it fails, and holds each one's fate against the rules.

`python -m benchmarks.soak` runs a simulated plant on a simulated clock (`benchmarks.soak_plant`) with the real station,
journal, triggers and rejector loop in it (`benchmarks.soak_station`), injects faults at random (`benchmarks.soak_faults`),
and holds the levels of the reject line and the rows of the journal against what must hold (`benchmarks.soak_check`): every
trigger has one verdict, every part that was not passed in time is rejected for all of its window, no passed part is touched
but by a rule, no PASS without a valid score of the part's own picture, the journal whole. One seed gives one run. It ends
with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak_check import Findings, check
from benchmarks.soak_faults import KINDS, RATES, Shift, make_shift
from benchmarks.soak_station import Vision
from benchmarks.stand_in import CALIBRATION
from calibration.record import Calibration
from engines import console
from engines.atomic import write_file
from engines.bench import machine

_SHIFT = 2500  # parts
_MEMORY = Path("/dev/shm")
_SHOWN = 20  # of what is wrong


@dataclass(frozen=True)
class Soak:
    """What a soak did and found.

    Attributes:
        parts: that came by.
        faults: injected, by name.
        found: what was looked at, let off and wrong.
        head: hash of the journal's newest row: of one seed always the same.
    """

    parts: int
    faults: dict[str, int]
    found: Findings
    head: str


def _calibration(recipe: str, threshold: float) -> Calibration:
    here = {"station": "plant", "camera": "plant", "who": "soak"}
    return CALIBRATION.model_copy(update={**here, "recipe": recipe, "threshold": threshold})


CALIBRATIONS = (_calibration("plain", 1.0), _calibration("strict", 0.8))
"""Of the two recipes that the plant changes between."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=console.positive_int, default=100_000, help="that come by (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="2,000 parts")
    parser.add_argument("--seed", type=console.count, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def memory_folder() -> Path | None:
    """A file system in memory, where an fsync costs nothing; None where there is none."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else None


def soak(
    parts: int,
    seed: int,
    path: Path,
    *,
    make: Callable[..., Vision] = Vision,
    tell: Callable[[int], None] = lambda done: None,
) -> Soak:
    """Let parts come by in shifts, on one journal.

    Args:
        parts: how many.
        seed: of all that is drawn.
        path: of the journal, which is made; in memory it is faster.
        make: starts vision; a test gives a broken one.
        tell: called with the parts that came by so far.
    """
    shifts: list[Shift] = []
    done = 0
    while done < parts:
        shift = make_shift(len(shifts), seed, path)
        size = min(_SHIFT, parts - done, -(-parts // KINDS))
        with contextlib.redirect_stderr(io.StringIO()):  # a rejector that stops says why
            shift.run(size, CALIBRATIONS, make)
        shifts.append(shift)
        done += size
        tell(done)
    found = check(shifts, path, {record.recipe: record.threshold for record in CALIBRATIONS})
    counted = sum((shift.plant.faults for shift in shifts), Counter[str]())
    return Soak(done, {fault: counted[fault] for fault in RATES}, found, found.head)


def _run(arguments: argparse.Namespace) -> int:
    parts = 2000 if arguments.quick else arguments.parts
    begun = time.monotonic()
    memory = memory_folder()
    with tempfile.TemporaryDirectory(dir=memory) as folder, console.progress("soaking") as advance:
        done = soak(parts, arguments.seed, Path(folder) / "journal.db", tell=lambda count: advance(count, parts))
    took_s = time.monotonic() - begun
    for line in done.found.wrong[:_SHOWN]:
        console.say(f"WRONG  {line}")
    console.table(f"faults injected into {done.parts} parts, seed {arguments.seed}", ("", "count"), list(done.faults.items()))
    counts = {**dict(sorted(done.found.counts.items())), "WRONG": len(done.found.wrong)}
    console.table("what was found", ("", "count"), list(counts.items()))
    where = "in memory" if memory is not None else "on the disk for temporary files"
    console.say(f"{took_s:.0f} s, journal {where}, its head {done.head[:16]}, on {machine()}")
    if arguments.json is not None:
        figures = {
            "parts": done.parts,
            "seed": arguments.seed,
            "faults": done.faults,
            "found": counts,
            "wrong": done.found.wrong,
        }
        write_file(arguments.json, (json.dumps({**figures, "head": done.head}, indent=1) + "\n").encode())
    return console.DONE if not done.found.wrong else console.NO


if __name__ == "__main__":
    sys.exit(main())
