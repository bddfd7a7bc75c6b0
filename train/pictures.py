"""The good images as the network sees them, and where the part is in each: what synthetic defects are drawn on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration.saliency import Saliency, estimate_saliency, read_saliency
from engines.images import Image, pixel_digest
from train.product import Console, Product


def read_pictures(product: Product, console: Console) -> tuple[list[Image], tuple[str, ...]]:
    """A product's good images at the network's size, uint8 RGB (h, w, 3), and their digests.

    Raises:
        EngineError: an image that cannot be read or does not fit.
    """
    images, digests = [], []
    with console.progress("images") as advance:
        for number, sample in enumerate(product.samples, 1):
            image = sample.image()
            images.append(product.preprocessor.resized(image))
            digests.append(pixel_digest(image))
            advance(number, len(product.samples))
    return images, tuple(digests)


def find_part(product: Product, part: slice, folder: Path | None, images: Sequence[Image], console: Console) -> Saliency:
    """Where defects may be centred: on the part, and never where the station looks away.

    Args:
        product: whose images they are.
        part: which of its samples.
        folder: of mask files that show the part; None estimates it from the images.
        images: the pictures of that part of the samples.
        console: where to say what was found.

    Raises:
        CalibrationError: masks that are missing or cannot be used.
    """
    if folder is not None:
        names = _mask_names([sample.path for sample in product.samples])[part]
        saliency = read_saliency(folder, names, product.preprocessor.resized)
    else:
        with console.progress("saliency") as advance:
            saliency = estimate_saliency(images, advance)
    console.say(f"where defects are put: {saliency.source}, {saliency.reason}")
    if product.preprocessor.ignored is None:
        return saliency
    judged = ~product.preprocessor.ignored
    masks = [judged] * len(images) if saliency.masks is None else [mask & judged for mask in saliency.masks]
    return replace(saliency, masks=tuple(mask if mask.any() else judged for mask in masks))


def _mask_names(images: Sequence[Path]) -> list[str]:
    """File names; where two images share one, paths below the folder that all are in."""
    if len({path.stem for path in images}) == len(images):
        return [path.name for path in images]
    shared = os.path.commonpath([path.parent for path in images])
    return [os.path.relpath(path, shared) for path in images]
