"""Whether a station's memory stays flat: resident memory of both its processes while it judges parts as fast as it can.

`python -m benchmarks.memory` runs the station as `edge run` does (ResNet18, 256 x 256, 2,048 rows) for an hour over pictures
in memory, with pictures of every tenth part within a quota that soon is full, the journal's heads, and somebody who asks for
its status once a second. Lists that keep the latest parts are full after the first 10,000; growth is counted from there on.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.endless import EndlessCamera, good_pictures, run_over, where, write_station
from edge.config import load_config
from edge.statistics import RECENT
from engines import console
from engines.atomic import write_file

_SAMPLES = 120
_SHOWN = 12


@dataclass(frozen=True)
class Sample:
    """Resident memory after so many seconds and parts, in kB, of the vision process and the rejector's."""

    seconds: float
    parts: int
    vision_kb: int
    rejector_kb: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", default=60.0, type=console.positive_float, help="default: %(default)g")
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    seconds = 30.0 if arguments.quick else 60 * arguments.minutes
    samples: list[Sample] = []
    try:
        with tempfile.TemporaryDirectory() as name:
            counts = _measure(Path(name), seconds, samples)
        decided = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        console.say(f"{samples[-1].parts} parts in {samples[-1].seconds / 60:.1f} minutes: {decided}")
    finally:  # what was seen of an hour is worth something, however it ended
        _show(samples)
        if arguments.json is not None:
            write_file(arguments.json, (json.dumps([asdict(one) for one in samples], indent=1) + "\n").encode())
    return console.DONE


def _show(samples: Sequence[Sample]) -> None:
    shown = [samples[round(at)] for at in np.linspace(0, len(samples) - 1, min(_SHOWN, len(samples)))]
    rows = [
        (f"{one.seconds / 60:.1f}", one.parts, f"{one.vision_kb / 1e3:.1f}", f"{one.rejector_kb / 1e3:.1f}") for one in shown
    ]
    console.table("resident memory", ("minutes", "parts", "vision, MB", "rejector, MB"), rows)
    warm = [one for one in samples if one.parts >= RECENT]
    if len(warm) > 1:
        grown = {name: getattr(warm[-1], name) - getattr(warm[0], name) for name in ("vision_kb", "rejector_kb")}
        both = f"vision {grown['vision_kb']:+} kB, rejector {grown['rejector_kb']:+} kB"
        console.say(f"from part {warm[0].parts} to {warm[-1].parts}: {both}")
    else:
        console.say(f"fewer than {RECENT} parts: too short to tell growth from filling")
    console.say(f"on {where()}")


def _measure(folder: Path, seconds: float, samples: list[Sample]) -> dict[str, int]:
    path = write_station(folder, ", every: 10, quota_mb: 20")
    address = folder / "control"
    path.write_text(f"{path.read_text()}journal_heads: heads.jsonl\ncontrol: {{address: 'unix:{address}'}}\n")
    images = good_pictures(load_config(path))
    rejectors: list[int] = []
    over = threading.Event()
    begun = time.monotonic()

    def more(part: int) -> bool:
        nonlocal begun
        if part == 1:
            begun = time.monotonic()
        taken = time.monotonic() - begun
        last = taken >= seconds
        if last or taken >= len(samples) * seconds / _SAMPLES:
            samples.append(Sample(taken, part - 1, _resident_kb("self"), _resident_kb(str(rejectors[0]))))
        return not last

    asking = threading.Thread(target=_ask, args=(address, over), name="asking")
    asking.start()
    try:
        return run_over(path, lambda beat: EndlessCamera(images, more), folder / "station.log", rejectors.append)
    finally:
        over.set()
        asking.join()


def _resident_kb(process: str) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return 0 if found is None else int(found[1])


def _ask(address: Path, over: threading.Event) -> None:
    """Ask for the status once a second, as whoever watches a line does."""
    while not over.wait(1.0):
        with socket.socket(socket.AF_UNIX) as asked:
            try:
                asked.connect(str(address))
                asked.sendall(b"GET /status HTTP/1.0\r\n\r\n")
                while asked.recv(65536):
                    pass
            except OSError:  # not there yet, or any more
                continue


if __name__ == "__main__":
    sys.exit(main())
