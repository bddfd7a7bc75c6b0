"""What `fit` costs: time and peak memory for a product of 300 images, each step with an untrained network.

`python -m benchmarks.training` draws the images first. The cost does not depend on the weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from engines import EngineError, console
from engines.atomic import write_file
from engines.bench import machine
from train.sample import write_sample

_PEAK = """
import pathlib, sys
from train.__main__ import main
code = main(sys.argv[1:])
print(next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="30 images")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    images = 30 if arguments.quick else 300
    with tempfile.TemporaryDirectory() as name:
        product, bundle = Path(name) / "product", Path(name) / "bundle"
        with console.progress("drawing") as advance:
            write_sample(product, train=images, calibration=0, test_good=1, per_defect=1, progress=advance)
        words = ["fit", "--data", product, "--out", bundle, "--weights", "none"]
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-c", _PEAK, *map(str, words)], stdout=subprocess.PIPE, text=True, check=False)
        seconds = time.monotonic() - begun
    peak = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("VmHWM")]
    if done.returncode != 0 or not peak:
        raise EngineError(f"fit ended with {done.returncode}; its message stands above")
    figures = {"images": images, "seconds": seconds, "peak_gib": int(peak[0]) / 2**20}
    console.say(f"fit of {images} images at 256x256: {seconds:.0f} s, peak memory {figures['peak_gib']:.2f} GiB")
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE


if __name__ == "__main__":
    sys.exit(main())
