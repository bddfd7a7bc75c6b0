"""What a presence test costs a frame, and how many parts of a drawn belt it finds: noise, drifting light, two speeds.

`python -m benchmarks.presence` draws a belt in three sizes, takes the processor's time for each frame's decision, empty and
with a part in view, and says how many of the parts that passed were seen, and how many of these without a picture (a FAULT).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edge.presence import Presence, learn_empty
from edge.verdict import Frame
from engines import console
from engines.atomic import write_file
from engines.bench import machine
from engines.images import Image

_SIZES = ((256, 256), (640, 480), (1920, 1080))
_FRAME_NS = 33_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="presence", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer parts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    cv2.setNumThreads(1)  # as the station does
    parts = 10 if arguments.quick else 100
    figures = {f"{width} x {height}": _watch(width, height, parts) for width, height in _SIZES}
    rows = [
        (
            size,
            *(f"{np.percentile(times_ms, q):.3f}" for q in (50, 99, 100)),
            f"{seen} of {parts}",
            faults,
        )
        for size, (times_ms, seen, faults) in figures.items()
    ]
    console.table(f"{parts} parts", ("frame", "ms p50", "p99", "max", "parts seen", "as FAULT"), rows)
    console.say(f"on {machine()}, OpenCV {cv2.__version__}")
    if arguments.json is not None:
        named = {size: dict(zip(("ms", "seen", "faults"), figure, strict=True)) for size, figure in figures.items()}
        write_file(arguments.json, (json.dumps(named, indent=1) + "\n").encode())
    return console.DONE


def _watch(width: int, height: int, parts: int) -> tuple[list[float], int, int]:
    """Milliseconds of each decision, parts that were seen, and how many of these without a picture."""
    random = np.random.default_rng(0)
    noise = [random.normal(0, 2, (height, width)).astype(np.float32) for _ in range(7)]
    scene = learn_empty([_draw(noise[number % 7], 90, None) for number in range(20)], None, 0.02)
    presence = Presence(scene, enters="left")
    times_ms: list[float] = []
    seen = faults = 0
    for number, place in enumerate(_way(width, parts)):
        light = 90 + 15 * np.sin(number / 400)
        image = _draw(noise[number % 7], light, place)
        frame = Frame(image, number, number * _FRAME_NS, number * _FRAME_NS, "belt")
        begun = time.thread_time()
        part = presence.see(frame)
        times_ms.append(1e3 * (time.thread_time() - begun))
        seen += part is not None
        faults += part is not None and not isinstance(part, Frame)
    return times_ms, seen, faults


def _way(width: int, parts: int) -> Iterator[int | None]:
    """Where the part's left edge is, frame by frame: 16 and 5 frames a width in turn, and five empty frames between parts."""
    for part in range(parts):
        step = width // (16 if part % 2 == 0 else 5)
        yield from range(-width // 4, width, step)
        yield from [None] * 5


def _draw(noise: npt.NDArray[np.float32], light: float, place: int | None) -> Image:
    grey = noise + np.float32(light)
    if place is not None:
        height, width = noise.shape
        grey[height // 3 : 2 * height // 3, max(0, place) : max(0, place + width // 4)] += 80
    return np.asarray(cv2.cvtColor(cv2.convertScaleAbs(grey), cv2.COLOR_GRAY2RGB), np.uint8)


if __name__ == "__main__":
    sys.exit(main())
