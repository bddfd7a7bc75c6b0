"""How exactly reject pulses start while all cores are busy: the rejector's process beside a thread of the vision process.

`python -m benchmarks.reject_timing` lets parts trigger on a beat, gives none a PASS, and compares when each pulse was stamped
with when it was due. Every core runs a busy process, and the vision process itself computes all the time. Lines are dry.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edge.lines import LineSpec
from edge.rejector import ProcessRejector
from edge.rejector_process import Setup
from edge.travel import Settings
from engines import console
from engines.atomic import write_file
from engines.bench import machine

MS = 10**6
# pulses so long that one more than 20 ms late is still a pulse; the process stops for good at one that is later
_PERIOD_NS, _TRAVEL_NS, _PULSE_NS = 50 * MS, 150 * MS, 40 * MS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="reject_timing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer parts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    parts = 100 if arguments.quick else 400
    cores = multiprocessing.cpu_count()
    load = [multiprocessing.get_context("spawn").Process(target=_burn, daemon=True) for _ in range(cores)]
    for process in load:
        process.start()
    results: dict[str, dict[str, float]] = {}
    try:
        for realtime in (True, False):
            late_ms, priority = _process(parts, realtime)
            asked = f"priority {priority}" if priority else "real time was refused" if realtime else "no real-time priority"
            results[f"process, {asked}"] = _summary(late_ms)
        results["thread in the vision process"] = _summary(_thread(parts))
    finally:
        for process in load:
            process.kill()
    rows = [
        (name, *(f"{values[key]:.3f}" for key in ("p50", "p99", "max")), int(values["pulses"]))
        for name, values in results.items()
    ]
    console.table(
        f"pulse start after it was due, {parts} parts, {cores} busy cores", ("ms", "p50", "p99", "max", "pulses"), rows
    )
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(results, indent=1) + "\n").encode())
    return console.DONE


def _process(parts: int, realtime: bool) -> tuple[list[float], int]:
    """Lateness of each pulse in ms, and the priority that was got."""
    settings = Settings(_TRAVEL_NS, _PULSE_NS, 0, _TRAVEL_NS, 10_000 * MS)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "lines.log"
        rejector = ProcessRejector(
            Setup("dry-run", (LineSpec("reject", True, "dry-run", "reject"),), settings, realtime=realtime, log=str(log))
        )
        try:
            rejector.set_ready(True)
            time.sleep(2 * (_TRAVEL_NS + _PULSE_NS) / 1e9)  # until then all is rejected, for something may be under way
            due = _trigger(parts, rejector.announce, rejector.beat)
            rejector.drain()
        finally:
            rejector.close()
        rows = [line.split() for line in log.read_text().splitlines()]
    return lateness_ms([(int(at_ns), level == "0") for at_ns, _, level in rows], due), rejector.priority


def lateness_ms(levels: Sequence[tuple[int, bool]], due: Sequence[int]) -> list[float]:
    """How long after it was due each pulse started, in ms.

    A window that opens while the line rejects already is no pulse of its own and is left out: windows touch where the busy
    loop was late to tell of a part, and a process that is held up over the end of one and the beginning of the next does not
    move the line between them.

    Args:
        levels: (monotonic ns, the line rejects), each time that it was set, in order; the last one rejects.
        due: monotonic ns of the windows' beginnings, in order.
    """
    times = [at_ns for at_ns, _ in levels]
    late_ms = []
    for when in due:
        after = bisect.bisect_right(times, when)
        if after == 0 or levels[after - 1][1]:
            continue
        start = next(at_ns for at_ns, rejects in levels[after:] if rejects)
        late_ms.append((start - when) / MS)
    return late_ms


def _thread(parts: int) -> list[float]:
    """The same by a thread that sleeps until the next pulse is due."""
    queue: list[int] = []
    fresh = threading.Condition()
    starts: list[int] = []

    def work() -> None:
        while len(starts) < parts:
            with fresh:
                fresh.wait_for(lambda: queue)
                due_ns = heapq.heappop(queue)
            time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            starts.append(time.monotonic_ns())

    thread = threading.Thread(target=work)
    thread.start()

    def announce(_part: int, trigger_ns: int) -> None:
        with fresh:
            heapq.heappush(queue, trigger_ns + _TRAVEL_NS)
            fresh.notify()

    due = _trigger(parts, announce, lambda: None)
    thread.join()
    return [(start - when) / MS for start, when in zip(starts, due, strict=True)]


def _trigger(parts: int, announce: Callable[[int, int], None], beat: Callable[[], None]) -> list[int]:
    """Compute as a vision process does, half in Python and half in NumPy; returns when each part's pulse is due."""
    bank = np.random.default_rng(0).normal(size=(256, 256))
    due: list[int] = []
    next_ns = time.monotonic_ns() + _PERIOD_NS
    while len(due) < parts:
        bank @ bank
        sum(range(20_000))
        if time.monotonic_ns() >= next_ns:
            now_ns = time.monotonic_ns()
            announce(len(due) + 1, now_ns)
            beat()
            due.append(now_ns + _TRAVEL_NS)
            next_ns += _PERIOD_NS
    end_ns = time.monotonic_ns() + _TRAVEL_NS + _PULSE_NS
    while time.monotonic_ns() < end_ns:
        bank @ bank
        sum(range(20_000))
    return due


def _summary(late_ms: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(late_ms, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "max": max(late_ms), "pulses": len(late_ms)}


def _burn() -> None:
    while True:
        sum(range(100_000))


if __name__ == "__main__":
    sys.exit(main())
