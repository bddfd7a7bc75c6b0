"""What synthetic defects cost: each maker's kinds on one core, at 256 x 256 RGB, without decoding.

`python -m benchmarks.defects` draws the normal images first; 600 a second keep a training step from waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from calibration.defects import MAKERS, Maker, make_maker
from engines import console
from engines.atomic import write_file
from engines.bench import machine
from train.sample import draw_part

_SIZE_PX, _IMAGES, _WARM_UP = 256, 16, 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="defects", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50 defects of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    on = machine()
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    cv2.setNumThreads(1)
    draws = 50 if arguments.quick else 500
    images = [draw_part(np.random.default_rng(number), _SIZE_PX)[0] for number in range(_IMAGES)]
    figures: dict[str, dict[str, float]] = {}
    rows = []
    with console.progress("drawing") as advance:
        for number, name in enumerate(MAKERS):
            figures[name] = {kind: _ms(make_maker(name, images), kind, draws) for kind in MAKERS[name].kinds}
            mean = sum(figures[name].values()) / len(figures[name])
            rows += [(name, kind, f"{ms:.3f}", f"{1000 / ms:.0f}") for kind, ms in figures[name].items()]
            if len(figures[name]) > 1:
                rows.append((name, "equal shares", f"{mean:.3f}", f"{1000 / mean:.0f}"))
            figures[name]["equal shares"] = mean
            advance(number + 1, len(MAKERS))
    console.table(f"{draws} defects of each kind", ("maker", "kind", "ms a defect", "defects/s"), rows)
    console.say(f"on one core of {on}, OpenCV {cv2.__version__}")
    if arguments.json is not None:
        content = {"machine": on, "opencv": cv2.__version__, "draws": draws, "ms": figures}
        write_file(arguments.json, (json.dumps(content, indent=1) + "\n").encode())
    return console.DONE


def _ms(maker: Maker, kind: str, draws: int) -> float:
    """Mean milliseconds of one defect, image copy and masks included."""
    for draw in range(_WARM_UP):
        maker.draw(draw % _IMAGES, kind, seed=0, draw=draw)
    begun = time.perf_counter()
    for draw in range(draws):
        maker.draw(draw % _IMAGES, kind, seed=1, draw=draw)
    return 1000 * (time.perf_counter() - begun) / draws


if __name__ == "__main__":
    sys.exit(main())
