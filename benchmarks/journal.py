"""What the journal costs a part: time of an announcement and of a verdict's row, rows a second, bytes a row, and an audit.

`python -m benchmarks.journal` writes parts as fast as it can, in the folder that is given, so that the disk is the one that the
station would write to; then again while pictures are written there as fast as they can be, the worst that evidence may do to a
verdict; and beside them, in the same run, the disk alone: 4 KiB appended to a file and fsynced.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.writers_journal import JUDGED_WITH
from edge.audit import audit
from edge.clock import SystemClock
from edge.evidence import Choice, EvidenceFolder
from edge.journal import SqliteJournal
from edge.verdict import Missing, Outcome, Verdict
from engines import console
from engines.atomic import write_file
from engines.bench import machine

_RUN = "20240101T000000.000000Z-1"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="journal", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows")
    parser.add_argument("--folder", type=Path, help="on the disk to time (default: the system's for temporary files)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    rows = 500 if arguments.quick else 5000
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        disk_ms = _time_disk(Path(name) / "bare", rows)
        path = Path(name) / "journal.db"
        announce_ms, verdict_ms = _time_rows(path, rows)
        busy_ms, pictures = _time_rows_with_evidence(Path(name), rows)
        size = path.stat().st_size
        begun = time.perf_counter()
        report = audit(path)
        audited = report.rows / (time.perf_counter() - begun)
    timed = {
        "announcement": announce_ms,
        "verdict row, with fsync": verdict_ms,
        f"the same beside {pictures} pictures": busy_ms,
        "4 KiB and fsync, no journal": disk_ms,
    }
    table = [(what, *(f"{np.percentile(times, q):.3f}" for q in (50, 95, 99, 100))) for what, times in timed.items()]
    console.table(f"{rows} parts", ("ms", "p50", "p95", "p99", "max"), table)
    second = rows / ((sum(announce_ms) + sum(verdict_ms)) / 1e3)
    console.say(f"{second:.0f} parts a second, {size / rows:.0f} bytes a part, audit of {audited:.0f} rows a second")
    console.say(f"on {machine()}")
    if arguments.json is not None:
        figures = {"parts_per_s": second, "bytes_per_part": size / rows, "audited_per_s": audited, "ms": timed}
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE if report.broken is None else console.NO


def _time_rows_with_evidence(folder: Path, rows: int) -> tuple[list[float], int]:
    """Milliseconds of each verdict while pictures of 0.8 MB wait to be written all the time, and how many were written."""
    picture = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    journal = SqliteJournal(folder / "busy.db", _RUN, SystemClock())
    evidence = EvidenceFolder(
        folder / "evidence", _RUN, journal, Choice(every=1, near=0), quota_bytes=10**9, waiting=2, complain=console.warn
    )
    _, verdict_ms = _time_parts(journal, rows, lambda verdict: evidence.offer(picture, verdict))
    evidence.close()
    journal.close()
    return verdict_ms, evidence.counts.written


def _time_rows(path: Path, rows: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each announcement and of each verdict."""
    journal = SqliteJournal(path, _RUN, SystemClock())
    times_ms = _time_parts(journal, rows, lambda verdict: None)
    journal.close()
    return times_ms


def _time_parts(journal: SqliteJournal, rows: int, after: Callable[[Verdict], None]) -> tuple[list[float], list[float]]:
    clock = SystemClock()
    announce_ms, verdict_ms = [], []
    for part in range(1, rows + 1):
        arrival = Missing(part, clock.now_ns(), f"line-1/parts/{part}.png", "")
        reason = "score 0.512345 is at or below the threshold 1.23457"
        verdict = Verdict(part, Outcome.PASS, 0.512345, 1.234567, 12.3, reason, arrival.source, "conformal")
        announce_ms.append(_time_ms(lambda arrival=arrival: journal.announce(arrival, JUDGED_WITH)))  # type: ignore[misc]
        verdict_ms.append(_time_ms(lambda verdict=verdict: journal.verdict(verdict)))  # type: ignore[misc]
        after(verdict)
    return announce_ms, verdict_ms


def _time_disk(path: Path, rows: int) -> list[float]:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    block = b"x" * 4096

    def write() -> None:
        os.write(handle, block)
        os.fsync(handle)

    times_ms = [_time_ms(write) for _ in range(rows)]
    os.close(handle)
    return times_ms


def _time_ms(call: Callable[[], None]) -> float:
    begun = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main())
