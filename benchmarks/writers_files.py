"""What is replaced or added whole, as some of `benchmarks.writers`: a calibration, a bundle, recorded pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.stand_in import CALIBRATION
from calibration.record import load_calibration, save_calibration
from edge.training_folder import Refused, TrainingFolder
from engines.bundle import Bank, Golden, GoldenCheck, Input, Method, Provenance, ProvisionalThreshold, load_bundle, write_bundle
from engines.images import Image


def write_calibration(folder: Path, rounds: Iterator[int]) -> None:
    """The same record again and again, with the number of the round in it."""
    for number in rounds:
        save_calibration(folder / "records/line-1.json", CALIBRATION.model_copy(update={"n": number}))


def check_calibration(folder: Path, begun: int, acked: int) -> str | None:
    """A whole record, of one of the rounds that may be there; and it can be written again."""
    path = folder / "records/line-1.json"
    number = load_calibration(path).n if path.exists() else 0
    if number is None or not acked <= number <= begun:
        return f"the record of round {number} is there, expected one of rounds {acked} to {begun}"
    save_calibration(path, CALIBRATION)
    return None


def write_bundles(folder: Path, rounds: Iterator[int]) -> None:
    """The same bundle again and again, with the number of the round in it."""
    for number in rounds:
        _tiny_bundle(folder / "bundles/part", number)


def check_bundles(folder: Path, begun: int, acked: int) -> str | None:
    """A whole bundle, of one of the rounds that may be there; and it can be written again."""
    path = folder / "bundles/part"
    threshold = load_bundle(path).manifest.threshold if path.exists() else None
    number = 0 if threshold is None else int(threshold.value)
    if number is None or not acked <= number <= begun:
        return f"the bundle of round {number} is there, expected one of rounds {acked} to {begun}"
    _tiny_bundle(path, 1)
    return None


def _tiny_bundle(path: Path, number: int) -> None:
    """A bundle that loads; nothing scores with it, so that its graph may be any bytes."""
    write_bundle(
        path,
        spec=Input(size=(64, 64), roi=None, frame_size=None, mm_per_pixel=None),
        method=Method(backbone="none", dim=3, grid=(8, 8), k=1),
        threshold=ProvisionalThreshold(value=float(number), n=50, rate=0.01),
        golden_check=GoldenCheck(images=1, spread=1.0, max_difference=0.0, flips=0),
        provenance=Provenance(
            created="2024-01-01T00:00:00+00:00",
            recipe="none",
            command="none",
            seed=0,
            weights="none",
            weights_sha256=None,
            coreset=1.0,
            patches=4,
            images=(),
            versions={},
        ),
        features=bytes(range(256)) * 8 + bytes([number % 256]),
        bank=Bank(np.zeros((4, 3), np.float32), np.zeros(4, np.float32), np.zeros(4, np.int32), np.arange(4, dtype=np.int32)),
        mask=None,
        golden=Golden(names=("one.png",), images=(picture(number),), scores=np.array([float(number)])),
    )


def write_recording(folder: Path, rounds: Iterator[int]) -> None:
    """A picture recorded each round."""
    recording = TrainingFolder(folder / "images", {"station": "line-1"})
    for number in rounds:
        if isinstance(recording.offer(picture(number), "camera"), Refused):
            raise SystemExit(f"picture {number} was refused")
    recording.close("end")


def check_recording(folder: Path, begun: int, acked: int) -> str | None:
    """As many whole pictures as may be there, and notes that can be read."""
    recording = TrainingFolder(folder / "images", {"station": "line-1"})
    recording.close("end")
    if recording.unreadable:
        return "; ".join(recording.unreadable)
    for notes in (folder / "images").glob("*.json"):
        json.loads(notes.read_text())
    if not acked <= recording.there <= begun:
        return f"{recording.there} pictures are there, expected {acked} to {begun}"
    return None


def picture(number: int) -> Image:
    """uint8 RGB (32, 32, 3): noise, a different one for each number, and three sectors as a PNG file."""
    return np.random.default_rng(number).integers(60, 190, (32, 32, 3)).astype(np.uint8)
