"""How much of the bare pipeline's rate a whole station sustains: journal, evidence, rejector's process and screen beside it.

`python -m benchmarks.throughput` runs the station as `edge run` does (ResNet18, 256 x 256, 2,048 rows, ONNX Runtime) over
pictures in memory, and in the same process in turns with it what `engines bench` calls total: preprocessing, features and
search of the same pictures. A turn begins with some images that are not timed, in which what the other one left behind is
worked off. On a machine that other programs use, `chrt -f 10` before the command keeps them off.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.endless import EndlessCamera, good_pictures, run_over, where, write_station
from edge.config import load_config
from edge.verdict import Frame
from engines import console
from engines.atomic import write_file
from engines.bundle import load_bundle
from engines.images import Image
from engines.inspector import Inspector

_UNTIMED, _TIMED = 16, 48
_EVIDENCE: dict[str, str | None] = {"none": None, "as it comes": "", "of every part": ", every: 1"}


@dataclass(frozen=True)
class Measured:
    """Images a second in each turn, and how many parts had which outcome and pictures were kept."""

    evidence: str
    bare: list[float]
    station: list[float]
    counts: dict[str, int]

    @property
    def ratio(self) -> float:
        """Median over the turns of the station's rate over that of the turn of the bare pipeline before it."""
        return float(np.median(np.array(self.station) / np.array(self.bare)))


class TurnsCamera(EndlessCamera):
    """Gives a turn's parts to the station as fast as it takes them, and before each turn times the bare pipeline.

    Attributes:
        bare, station: images a second of each turn.
    """

    def __init__(self, images: list[Image], turns: int, inspector: Inspector, beat: Callable[[], None]) -> None:
        super().__init__(images, lambda part: True)
        self._turns = turns
        self._inspector = inspector
        self._beat = beat
        self.bare: list[float] = []
        self.station: list[float] = []

    def frames(self) -> Iterator[Frame]:
        """The parts of all turns."""
        parts = super().frames()
        for _ in range(self._turns):
            self.bare.append(self._time_bare())
            for _ in range(_UNTIMED):
                yield next(parts)
            begun = time.perf_counter()
            for _ in range(_TIMED):
                yield next(parts)
            self.station.append(_TIMED / (time.perf_counter() - begun))  # asked again, so the last one is done

    def _time_bare(self) -> float:
        taken = 0.0
        for number in range(-_UNTIMED, _TIMED):
            begun = time.perf_counter()
            self._inspector.score(self._images[number % len(self._images)])
            taken += time.perf_counter() - begun if number >= 0 else 0.0
            self._beat()
        return _TIMED / taken


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="throughput", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 turns of each kind instead of 15")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    turns = 3 if arguments.quick else 15
    found = []
    with tempfile.TemporaryDirectory() as name:
        for evidence in _EVIDENCE:
            found.append(_measure(Path(name), evidence, turns))
    rows = []
    for one in found:
        bare, station = np.median(one.bare), np.median(one.station)
        decided = ", ".join(f"{count} {outcome}" for outcome, count in one.counts.items())
        rows.append((one.evidence, f"{bare:.1f}", f"{station:.1f}", f"{one.ratio:.3f}", decided))
    console.table("images a second", ("evidence", "bare pipeline", "station", "ratio", "decided"), rows)
    console.say(f"medians of {turns} turns of {_TIMED} images; on {where()}")
    if arguments.json is not None:
        figures = [{**asdict(one), "ratio": one.ratio} for one in found]
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE


def _measure(folder: Path, evidence: str, turns: int) -> Measured:
    path = write_station(folder, _EVIDENCE[evidence])
    config = load_config(path)
    images = good_pictures(config)
    cameras: list[TurnsCamera] = []

    def open_camera(beat: Callable[[], None]) -> TurnsCamera:
        cameras.append(TurnsCamera(images, turns, inspector, beat))
        return cameras[-1]

    with Inspector(load_bundle(config.bundle)) as inspector:
        counts = run_over(path, open_camera, folder / "station.log")
    return Measured(evidence, cameras[0].bare, cameras[0].station, counts)


if __name__ == "__main__":
    sys.exit(main())
