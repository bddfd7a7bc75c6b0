"""What may change at a station, done to stored pictures, and what a bundle and the statistics say of them then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from calibration.appearance import measure
from engines import console
from engines.bundle import load_bundle
from engines.images import Image, pixel_digest
from engines.inspector import Inspector
from train.data import open_dataset

Values = npt.NDArray[np.float64]
_SHIFT, _CAST = 0.03, 1.08


def _gain(factor: float) -> Callable[[Image], Image]:
    return lambda image: np.clip(np.rint(image * np.float32(factor)), 0, 255).astype(np.uint8)


def _blur(sigma_px: float) -> Callable[[Image], Image]:
    return lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), np.uint8)


def _shift(image: Image) -> Image:
    pixels = round(_SHIFT * image.shape[1])  # whole ones: between them the picture would be blurred too
    return np.asarray(np.pad(image, ((0, 0), (pixels, 0), (0, 0)), mode="edge")[:, : image.shape[1]])


def _cast(image: Image) -> Image:
    return np.clip(np.rint(image * np.array([_CAST, 1, 1 / _CAST], np.float32)), 0, 255).astype(np.uint8)


SLOW = {f"light x {factor}": _gain(factor) for factor in (0.95, 0.9, 0.85)}
CHANGES: dict[str, Callable[[Image], Image]] = {
    "light x 1.2": _gain(1.2),
    "light x 0.8": _gain(0.8),
    "blur, sigma 0.7 px": _blur(0.7),
    "blur, sigma 1 px": _blur(1.0),
    f"moved by {_SHIFT:.0%} of the width": _shift,
    f"red x {_CAST}, blue / {_CAST}": _cast,
}


def scores_of(bundle_path: Path, data_path: Path, others: Sequence[Path], kept: Path | None) -> dict[str, Values]:
    """Channels of every image, float64 (images, 7), by change; `clean` without one, and the other products by name.

    Args:
        bundle_path: that scores; images that it was made of are left out.
        data_path, others: the product, and those that are put in its place.
        kept: an .npz file to read them from, or to write them to.
    """
    if kept is not None and kept.is_file():
        with np.load(kept) as file:
            return {name: file[name] for name in file.files}
    bundle = load_bundle(bundle_path)
    learnt = bundle.learnt_from()
    data = open_dataset(data_path)
    frames = [sample.image() for sample in (*data.train, *data.test) if sample.good]
    frames = [frame for frame in frames if pixel_digest(frame) not in learnt]
    changes = {"clean": lambda image: image, **CHANGES, **SLOW}
    scores: dict[str, Values] = {}
    with Inspector(bundle, threads=1) as inspector, console.progress("scoring") as advance:

        def channels(frame: Image) -> list[float]:
            return [inspector.score(frame).value, *measure(inspector.preprocessor, frame)]

        for number, (name, change) in enumerate(changes.items(), 1):
            scores[name] = np.array([channels(change(frame)) for frame in frames])
            advance(number, len(changes))
        for folder in others:
            placed = [sample.image() for sample in open_dataset(folder).train]
            scores[f"product {folder.name}"] = np.array([channels(frame) for frame in placed])
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **scores)  # type: ignore[arg-type]  # as in engines.bundle
    return scores
