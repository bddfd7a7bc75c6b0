"""Image folders in the layouts of the field: MVTec AD, MVTec LOCO, BTAD, and a plain folder of good images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.images import Image, list_images, read_image, read_mask
from train import TrainError

LAYOUTS = ("mvtec", "loco", "btad", "plain")

_EXPECTED = """expected one of
  mvtec   train/good, test/good, test/<defect>, ground_truth/<defect>/<name>_mask.png
  loco    train/good, validation/good, test/good, test/logical_anomalies, test/structural_anomalies
  btad    train/ok, test/ok, test/ko
  plain   images of good parts directly in the folder"""


@dataclass(frozen=True)
class Sample:
    """One image file: the kind of its folder (`good`, or a defect's name) and its mask files, if any."""

    path: Path
    kind: str
    masks: tuple[Path, ...] = ()

    @property
    def good(self) -> bool:
        """True for a good part."""
        return self.kind == "good"

    def image(self) -> Image:
        """The decoded image, uint8 RGB (H, W, 3). Raises EngineError."""
        return read_image(self.path)

    def mask(self) -> npt.NDArray[np.bool_] | None:
        """Union of the mask files, bool (H, W); None where a defective image has none. Raises EngineError."""
        if not self.masks:
            return None
        return np.asarray(np.any([read_mask(path) for path in self.masks], axis=0))


@dataclass(frozen=True)
class Dataset:
    """What a data folder holds. `validation` are normals that the layout itself keeps out of training (LOCO)."""

    root: Path
    layout: str
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def summary(self) -> str:
        """One line: layout and counts per class."""
        counts = Counter(sample.kind for sample in self.test)
        kinds = ", ".join(f"{kind} {counts[kind]}" for kind in sorted(counts, key=lambda kind: (kind != "good", kind)))
        validation = f"; validation: good {len(self.validation)}" if self.validation else ""
        below = len(list_images(self.root, recursive=True)) - len(list_images(self.root)) if self.layout == "plain" else 0
        left_out = f"; {below} images in folders below it are left out" if below > 0 else ""
        return f"{self.root} ({self.layout}): train: good {len(self.train)}{validation}; test: {kinds or 'none'}{left_out}"


def open_dataset(root: Path | str, layout: str | None = None) -> Dataset:
    """Find the images below `root`, in the layout named or detected.

    Raises:
        TrainError: no such folder, no layout that fits, or no good image to train on; the message shows what was
            expected.
    """
    root = Path(root)
    if not root.is_dir():
        raise TrainError(f"{root}: {'a file, no folder' if root.exists() else 'no such folder'}; {_EXPECTED}")
    layout = layout or _detect(root)
    if layout not in LAYOUTS:
        raise TrainError(f"layout '{layout}', expected one of: {', '.join(LAYOUTS)}")
    if layout == "plain":
        dataset = Dataset(root, layout, _samples(root, "good"), (), ())
    else:
        good = "ok" if layout == "btad" else "good"
        dataset = Dataset(
            root,
            layout,
            _samples(root / "train" / good, "good"),
            _samples(root / "validation" / good, "good") if layout == "loco" else (),
            _test_samples(root, good, layout),
        )
    if not dataset.train:
        raise TrainError(f"{root}: no good image to train on in layout '{layout}'; {_EXPECTED}")
    return dataset


def few_shot(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Keep `count` training images, drawn with `seed`; all of them where there are fewer.

    Raises:
        TrainError: `count` below 1.
    """
    if count < 1:
        raise TrainError(f"{count} training images, expected 1 or more")
    order = np.random.default_rng(seed).permutation(len(dataset.train))[:count]
    train = tuple(dataset.train[index] for index in sorted(order))
    return Dataset(dataset.root, dataset.layout, train, dataset.validation, dataset.test)


def _detect(root: Path) -> str:
    if (root / "train" / "good").is_dir():
        loco = (root / "test" / "logical_anomalies").is_dir() or (root / "test" / "structural_anomalies").is_dir()
        return "loco" if loco else "mvtec"
    if (root / "train" / "ok").is_dir():
        return "btad"
    if list_images(root):
        return "plain"
    products = sorted(child.name for child in root.iterdir() if (child / "train").is_dir())
    if products:
        raise TrainError(
            f"{root}: holds several products; choose one, such as {root / products[0]} (found: {', '.join(products)})"
        )
    found = ", ".join(sorted(child.name for child in root.iterdir())[:8]) or "nothing"
    raise TrainError(f"{root}: found {found}; {_EXPECTED}")


def _samples(folder: Path, kind: str) -> tuple[Sample, ...]:
    return tuple(Sample(path, kind) for path in list_images(folder)) if folder.is_dir() else ()


def _test_samples(root: Path, good: str, layout: str) -> tuple[Sample, ...]:
    test = root / "test"
    if not test.is_dir():
        return ()
    samples: list[Sample] = []
    for folder in sorted(child for child in test.iterdir() if child.is_dir()):
        if folder.name == good:
            samples += _samples(folder, "good")
        else:
            truth = root / "ground_truth" / folder.name
            masks = _masks_by_image(truth, layout) if truth.is_dir() else {}
            samples += [Sample(path, folder.name, masks.get(path.stem, ())) for path in list_images(folder)]
    return tuple(samples)


def _masks_by_image(truth: Path, layout: str) -> dict[str, tuple[Path, ...]]:
    """Mask files by the stem of the image that they belong to."""
    if layout == "loco":
        return {folder.name: tuple(list_images(folder)) for folder in truth.iterdir() if folder.is_dir()}
    return {path.stem.removesuffix("_mask"): (path,) for path in list_images(truth)}
