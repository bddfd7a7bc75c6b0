"""The main job from end to end: train on images, calibrate, replay a station, print verdicts and figures.

`python -m benchmarks.demo --out out` draws a product first; `--data DIR` takes a folder in a known layout instead. Every
step is one of the four doors, printed as the command that a person would type.
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from calibration.__main__ import main as calibration_door
from calibration.groups import by_likeness
from calibration.twins import thumbnail
from edge.__main__ import main as edge_door
from engines import InspectionError, console
from engines.__main__ import main as engines_door
from engines.bundle import load_bundle
from engines.images import list_images, read_image
from train import TrainError
from train.__main__ import main as train_door
from train.data import open_dataset
from train.weights import DRAWN

_FALSE_REJECT = 0.01


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code of the first step that fails, 0 otherwise."""
    parser = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default=Path("out"), type=Path, help="default: %(default)s")
    parser.add_argument("--data", type=Path, help="folder of images (default: draw a product)")
    parser.add_argument("--weights", help="as for `train fit`")
    parser.set_defaults(run=_demo)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _demo(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    data: Path = arguments.data or out / "product"
    bundle, record, report = out / "bundle", out / "line-1.json", out / "report"
    if arguments.data is None and not (data / "train").is_dir():
        _step("train", train_door, ["sample", "--out", data])
    good, parts = _station_images(data, out)
    weights = ["--weights", arguments.weights] if arguments.weights is not None else []
    _step("train", train_door, ["fit", "--data", data, "--out", bundle, *weights])
    _step("engines", engines_door, ["verify", "--bundle", bundle])
    rate = _affordable_rate(_parts(good))
    _step(
        "calibration",
        calibration_door,
        ["fit", "--bundle", bundle, "--images", good, "--station", "line-1", "--false-reject", rate, "--out", record],
    )
    for left in out.glob("journal.db*"):  # SQLite's log too, should the last demo have been killed
        left.unlink()
    _step("edge", edge_door, ["replay", "--bundle", bundle, "--calibration", record, "--images", parts])
    _step(
        "train",
        train_door,
        ["evaluate", "--bundle", bundle, "--data", data, "--json", out / "figures.json", "--report", report],
    )
    _step("engines", engines_door, ["bench", "--bundle", bundle])
    made = {"bundle": bundle, "calibration": record, "journal": out / "journal.db", "figures": out / "figures.json"}
    console.say("")
    for name, path in {**made, "report": report / "index.html"}.items():
        console.say(f"{name:12} {path}")
    if load_bundle(bundle).manifest.provenance.weights == DRAWN:
        console.warn("the network has learnt from drawn images alone: with ImageNet weights it sees more; try WEIGHTS=FILE")
    return console.DONE


def _step(door: str, run: Callable[[Sequence[str]], int], words: Sequence[object]) -> None:
    """Say a command as a person would type it, run it, and stop the demo if it fails."""
    argv = [str(word) for word in words]
    console.say("")
    console.say(f"$ python -m {door} {shlex.join(argv)}")
    code = run(argv)
    if code == console.INTERRUPTED:
        raise KeyboardInterrupt
    if code != console.DONE:
        raise InspectionError(f"`{door} {argv[0]}` ended with {code}; its own message stands above")


def _station_images(data: Path, out: Path) -> tuple[Path, Path]:
    """Good images for the calibration, and the parts to replay, which share no image.

    A data set without a folder `calibration/good` lends every second good test image.
    """
    if (data / "calibration" / "good").is_dir():
        return data / "calibration" / "good", data / "test"
    dataset = open_dataset(data)
    if not any(sample.good for sample in dataset.test) or all(sample.good for sample in dataset.test):
        raise TrainError(
            f"{dataset.summary()}; the demo needs good and defective test images, to calibrate and to show verdicts;"
            " for a folder of good images alone follow the four doors in README.md"
        )
    good, parts = out / "station" / "calibration", out / "station" / "parts"
    shutil.rmtree(out / "station", ignore_errors=True)
    lent = {sample.path for sample in [sample for sample in dataset.test if sample.good][::2]}
    for sample in dataset.test:
        folder = good if sample.path in lent else parts / sample.kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / sample.path.name).symlink_to(sample.path.resolve())
    return good, parts


def _parts(folder: Path) -> int:
    """How many parts the images of a folder show, as `calibration fit` will find."""
    names = [str(path) for path in list_images(folder)]
    thumbs = [thumbnail(np.asarray(cv2.cvtColor(read_image(name), cv2.COLOR_RGB2GRAY), np.uint8)) for name in names]
    groups = by_likeness(names, thumbs)
    return len({group if group is not None else name for group, name in zip(groups, names, strict=True)})


def _affordable_rate(parts: int) -> float:
    """The false-reject rate wanted, or the lowest that so few parts can bound, rounded up."""
    return max(_FALSE_REJECT, math.ceil(1000 / (parts + 1)) / 1000)


if __name__ == "__main__":
    sys.exit(main())
