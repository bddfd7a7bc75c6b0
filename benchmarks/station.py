"""What the station costs: time per image against the features alone, and peak memory of `edge run`.

`python -m benchmarks.station` draws a product, fits bundles of 2,048 and 6,000 rows with an untrained network (the cost
does not depend on the weights), and measures both in this run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engines import EngineError, console
from engines.atomic import write_file
from engines.bench import bench, machine
from engines.bundle import load_bundle
from engines.inspector import Inspector
from train.fit import fit
from train.product import Console, Settings
from train.sample import write_sample

_LATENCY_ROWS, _MEMORY_ROWS = 2048, 6000
_PEAK = """
import pathlib, sys
from edge.__main__ import main
code = main(sys.argv[1:])
# not getrusage: its maximum counts what the parent held when it started this process
print(next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="station", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.progress("drawing") as advance:
            write_sample(folder / "product", progress=advance)
        with Inspector(load_bundle(_fit(folder, _LATENCY_ROWS))) as inspector, console.progress("timing") as advance:
            timing = bench(inspector, 50 if arguments.quick else 300, advance)
        rows = [(stage, *(f"{values[f'p{q}']:.2f}" for q in (50, 95, 99))) for stage, values in timing.stages_ms.items()]
        console.table(timing.title, ("stage, ms", "p50", "p95", "p99"), rows)
        console.say(f"total over features alone: {timing.ratio:.2f}")
        peak_mb = _peak_memory_mb(folder, _fit(folder, _MEMORY_ROWS))
    console.say(f"peak memory of `edge run`, {_MEMORY_ROWS} rows: {peak_mb:.0f} MB")
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps({**timing.as_dict(), "peak_mb": peak_mb}, indent=1) + "\n").encode())
    return console.DONE


def _fit(folder: Path, rows: int) -> Path:
    """A bundle of exactly so many rows: of 54 images with 1,024 patches each."""
    out = folder / f"bundle-{rows}"
    settings = Settings(data=folder / "product", weights="none", coreset=rows / (54 * 1024))
    fit(settings, out, Console(lambda line: None, lambda line: None, console.progress))
    return out


def _peak_memory_mb(folder: Path, bundle: Path) -> float:
    """Peak resident memory of a station process from start to end, in MB."""
    record, config = folder / "line.json", folder / "station.yaml"
    good = folder / "product" / "calibration" / "good"
    words = ["fit", "--bundle", bundle, "--images", good, "--station", "line", "--out", record]
    subprocess.run([sys.executable, "-m", "calibration", *map(str, words)], check=True, capture_output=True)
    config.write_text(
        f"station: line\nbundle: {bundle}\ncalibration: {record}\njournal: journal.db\n"
        f"source:\n  kind: replay\n  path: {folder / 'product' / 'test'}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, "run", "--config", str(config)], capture_output=True, text=True, check=False
    )
    peak = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("VmHWM")]
    if done.returncode != 0 or not peak:
        raise EngineError(f"edge run ended with {done.returncode}: {done.stderr.strip()}")
    return int(peak[0]) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
