"""One real result a defect kind, as a picture: part, true defect outlined, anomaly map.

`python -m benchmarks.picture --bundle B --data DIR --out docs/result.png`. Shown is the image of median score of each
kind, so that the picture flatters nobody; the colours begin at the provisional threshold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from engines import console
from engines.atomic import write_file
from engines.bundle import load_bundle
from engines.images import Image, encode_png
from engines.inspector import Inspector, anomaly_map, overlay
from train.data import Sample, open_dataset

_TILE_PX = 192
_GAP_PX = 6
_CAPTION_PX = 26
_OUTLINE = (255, 255, 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the picture; returns an exit code."""
    parser = argparse.ArgumentParser(prog="picture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    dataset = open_dataset(arguments.data)
    kinds = sorted({sample.kind for sample in dataset.test}, key=lambda kind: (kind != "good", kind))
    with Inspector(load_bundle(arguments.bundle)) as inspector, console.progress("scoring") as advance:
        columns = []
        for done, kind in enumerate(kinds, start=1):
            columns.append(_column(inspector, [sample for sample in dataset.test if sample.kind == kind]))
            advance(done, len(kinds))
    gap = np.full((columns[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    pieces = [piece for column in columns for piece in (column, gap)][:-1]
    write_file(arguments.out, encode_png(np.hstack(pieces)))
    console.say(f"wrote {arguments.out}")
    return console.DONE


def _column(inspector: Inspector, samples: list[Sample]) -> Image:
    """The image of median score, with its mask, above its map."""
    scores = [inspector.score(sample.image()).value for sample in samples]
    chosen = samples[int(np.argsort(scores)[len(scores) // 2])]
    score = inspector.score(chosen.image())
    manifest = inspector.bundle.manifest
    low = manifest.threshold.value if manifest.threshold is not None else score.value
    shown = inspector.preprocessor.resized(chosen.image())
    heat = anomaly_map(inspector.map(score), inspector.preprocessor.size)
    coloured = overlay(shown, heat, low, low + 10 * manifest.golden.spread)
    rejected = "reject" if score.value > low else "pass"
    caption = np.full((_CAPTION_PX, _TILE_PX, 3), 255, np.uint8)
    text = f"{chosen.kind}: {score.value:.1f}, {rejected}"
    cv2.putText(caption, text, (2, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    gap = np.full((_GAP_PX, _TILE_PX, 3), 255, np.uint8)
    return np.vstack([caption, _tile(_outlined(shown, chosen.mask())), gap, _tile(coloured)])


def _outlined(image: Image, mask: npt.NDArray[np.bool_] | None) -> Image:
    if mask is None:
        return image
    small = cv2.resize(mask.astype(np.uint8), (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(image.copy(), outlines, -1, _OUTLINE, 2), dtype=np.uint8)


def _tile(image: Image) -> Image:
    return np.asarray(cv2.resize(image, (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_AREA), dtype=np.uint8)


if __name__ == "__main__":
    sys.exit(main())
