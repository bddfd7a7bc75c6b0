"""A product before it is embedded: which images, which weights, and how an image becomes network input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from engines.bank import coreset_size
from engines.bundle import Input, Metric, make_preprocessor
from engines.images import read_mask
from engines.preprocess import Preprocessor, Roi
from train import TrainError
from train.audit import Finding, audit_images
from train.backbones import BackboneSpec, backbone_spec
from train.data import Dataset, Sample, few_shot, open_dataset
from train.features import grid_of
from train.weights import Weights, find_weights

MIN_FOR_HOLD_OUT = 20  # below this a tenth is one image or none, and no threshold could be read from it
MIN_HELD_OUT = 3
_COARSE_PX = 32  # a patch over more source pixels than this a side deserves a word


class Advance(Protocol):
    """Moves a progress bar, with a note if there is one."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total`."""


ProgressBar = Callable[[str], AbstractContextManager[Advance]]


@dataclass(frozen=True)
class Settings:
    """What is asked of a product. `size` is (height, width) in pixels; `weights` as in `find_weights`.

    `k` and `alpha` are None where they are to be chosen. With `budget_ms`, the coreset is as large as can be searched in
    that time, as timed on this machine or in the file `timed_on`, and `coreset` is not looked at.
    """

    data: Path
    layout: str | None = None
    weights: str | None = None
    backbone: str = "resnet18"
    size: tuple[int, int] = (256, 256)
    roi: Roi | None = None
    mask: Path | None = None
    mm_per_pixel: float | None = None
    coreset: float = 0.02
    budget_ms: float | None = None
    timed_on: Path | None = None
    k: int | None = None
    alpha: float | None = None
    metric: Metric = "sqeuclidean"
    few_shot: int | None = None
    seed: int = 0
    device: str = "auto"
    recipe: str | None = None
    command: str = ""


@dataclass(frozen=True)
class Console:
    """Where the work talks to a person: lines, warnings, progress bars."""

    say: Callable[[str], None]
    warn: Callable[[str], None]
    progress: ProgressBar


@dataclass(frozen=True)
class Product:
    """A product's good images; those of the bank come first, those held out of it last.

    Attributes:
        spec, mask, preprocessor: how an image becomes network input.
        backbone, weights, device: what embeds it; `weights` is None for an untrained network.
        samples: the images, exact duplicates left out.
        in_bank: how many of them, from the first, are for the bank.
        undrawn: good images that a few-shot draw left out; what sizes a product comes in shows in them too.
        judged: bool (rows, columns) patches that count.
        findings: of the audit by pixels.
    """

    spec: Input
    mask: npt.NDArray[np.bool_] | None
    preprocessor: Preprocessor
    backbone: BackboneSpec
    weights: Weights | None
    device: torch.device
    samples: tuple[Sample, ...]
    in_bank: int
    undrawn: tuple[Sample, ...]
    judged: npt.NDArray[np.bool_]
    findings: tuple[Finding, ...]

    @property
    def patches(self) -> int:
        """Judged patches of one image."""
        return int(self.judged.sum())

    @property
    def held_out(self) -> tuple[Sample, ...]:
        """Images held out of the bank."""
        return self.samples[self.in_bank :]


def open_product(settings: Settings, console: Console, *, skip_unusable: bool = False) -> Product:
    """Find and audit the good images, and find the weights.

    Args:
        settings: what was asked for.
        console: where to talk.
        skip_unusable: go on without images that cannot be embedded, for an audit that is to list them.

    Raises:
        InspectionError: bad data, weights or settings.
    """
    _check_settings(settings)
    backbone = backbone_spec(settings.backbone)
    device = choose_device(settings.device)
    dataset = open_dataset(settings.data, settings.layout)
    console.say(f"data: {dataset.summary()}")
    every_good = dataset.train
    if settings.few_shot is not None:
        dataset = few_shot(dataset, settings.few_shot, settings.seed)
        console.say(f"few-shot: {len(dataset.train)} of {settings.few_shot} images asked for, drawn with seed {settings.seed}")
    undrawn = tuple(sorted(set(every_good).difference(dataset.train), key=lambda sample: sample.path))
    weights = _weights(settings.weights, backbone, settings.seed, console)
    findings = _audit_pixels(dataset, console)
    dataset = _usable(dataset, findings, settings.roi is not None or settings.mask is not None, skip_unusable)
    spec, mask = _input_of(settings, dataset.train[0])
    preprocessor = make_preprocessor(spec, mask)
    _say_coverage(preprocessor, dataset.train[0], spec, console)
    samples, in_bank = _order(dataset, findings, settings.seed)
    dropped = len(dataset.train) + len(dataset.validation) - len(samples)
    if dropped > 0:
        console.warn(f"{dropped} images are exact copies of others and were left out")
    judged = preprocessor.judged_patches(grid_of(preprocessor.size))
    return Product(spec, mask, preprocessor, backbone, weights, device, samples, in_bank, undrawn, judged, tuple(findings))


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where it is; anything else is taken at its word. Raises TrainError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # and back: `meta` computes nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise TrainError(f"device '{name}' cannot be used ({reason}); expected auto, cpu or cuda") from None
    return device


def _weights(source: str | None, spec: BackboneSpec, seed: int, console: Console) -> Weights | None:
    """Find the backbone's weights, saying what they are and what they lack; None for an untrained network.

    Raises:
        TrainError: no weights, with the remedy.
    """
    with console.progress("weights") as advance:
        weights = find_weights(source, spec, advance)
    if weights is None:
        console.warn(f"untrained {spec.name} drawn from seed {seed}: scores will be much weaker than with ImageNet weights")
    else:
        if weights.instead_of is not None:
            console.warn(
                f"{weights.instead_of}. Going on with weights learnt from drawn images, which come with this package:"
                " scores will be weaker than with ImageNet's"
            )
        absent = weights.absent_parts(spec)
        lacks = f"; the file has no {', '.join(absent)}, which embeddings do not need" if absent else ""
        console.say(f"weights: {weights.source} (SHA-256 {weights.sha256[:12]}){lacks}")
    return weights


def _check_settings(settings: Settings) -> None:
    """Refuse what no image can make right before any image is read."""
    coreset_size(settings.coreset, 1)
    Preprocessor(settings.size)
    if not 0 <= settings.seed < 2**32:
        raise TrainError(f"seed {settings.seed}, expected 0 to {2**32 - 1}")


def _audit_pixels(dataset: Dataset, console: Console) -> list[Finding]:
    with console.progress("audit") as advance:
        return audit_images(dataset.train + dataset.validation, advance)


def _usable(dataset: Dataset, findings: list[Finding], one_size: bool, skip: bool) -> Dataset:
    """The dataset without images that cannot be embedded, or an error that lists them all."""
    problems = ("unreadable", "wrong size") if one_size else ("unreadable",)
    broken = {finding.sample: finding.detail for finding in findings if finding.problem in problems}
    train = tuple(sample for sample in dataset.train if sample not in broken)
    if broken and not (skip and train):
        listed = "\n  ".join(f"{sample.path}: {detail}" for sample, detail in broken.items())
        raise TrainError(f"{len(broken)} images cannot be used; replace or remove them:\n  {listed}")
    validation = tuple(sample for sample in dataset.validation if sample not in broken)
    return Dataset(dataset.root, dataset.layout, train, validation, dataset.test)


def _order(dataset: Dataset, findings: list[Finding], seed: int) -> tuple[tuple[Sample, ...], int]:
    """Distinct images, those for the bank first, and how many those are."""
    copies = {finding.sample for finding in findings if finding.problem == "duplicate"}
    samples = [sample for sample in dataset.train + dataset.validation if sample not in copies]
    validation = set(dataset.validation)
    held_out = {index for index, sample in enumerate(samples) if sample in validation}
    if not held_out and len(samples) >= MIN_FOR_HOLD_OUT:
        count = max(MIN_HELD_OUT, round(len(samples) / 10))
        held_out = set(np.random.default_rng([seed, 0]).permutation(len(samples))[:count].tolist())
    order = sorted(range(len(samples)), key=lambda index: (index in held_out, index))
    return tuple(samples[i] for i in order), len(samples) - len(held_out)


def _input_of(settings: Settings, first: Sample) -> tuple[Input, npt.NDArray[np.bool_] | None]:
    mask = read_mask(settings.mask) if settings.mask is not None else None
    high, wide = first.image().shape[:2]
    tied = settings.roi is not None or mask is not None
    roi = settings.roi
    spec = Input(
        size=settings.size,
        roi=(roi.x, roi.y, roi.width, roi.height) if roi is not None else None,
        frame_size=(high, wide) if tied else None,
        mm_per_pixel=settings.mm_per_pixel,
    )
    return spec, mask


def _say_coverage(preprocessor: Preprocessor, first: Sample, spec: Input, console: Console) -> None:
    size = first.image().shape[:2]
    high, wide = preprocessor.source_px_per_patch((size[0], size[1]), grid_of(preprocessor.size))
    scale = spec.mm_per_pixel
    physical = f" ({wide * scale:.2f} x {high * scale:.2f} mm)" if scale is not None else ""
    console.say(
        f"input: {spec.size[1]}x{spec.size[0]} from {size[1]}x{size[0]} pixels;"
        f" one patch covers {wide:.1f} x {high:.1f} source pixels{physical}"
    )
    if max(high, wide) > _COARSE_PX:
        console.warn(
            f"a patch covers {max(high, wide):.0f} source pixels: much smaller defects will be lost;"
            " crop with --roi, or raise --size"
        )
