"""What an adaptation trains on: each good image beside one picture of every kind of defect made from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from calibration.defects import Defect, Maker, Mask
from calibration.fills import Jitter, is_grey, jitter
from engines.images import Image
from engines.preprocess import IMAGENET_MEAN
from train.schedule import Plan

GOOD = "good"
_JITTER = 0.1  # of brightness, contrast, saturation and hue, as the method has it
_ATTEMPTS, _APART = 8, 2**40  # at a defect that shows; draws of later attempts are far from those of other pictures
_BLANK = np.array([round(255 * mean) for mean in IMAGENET_MEAN], np.uint8)


class Task(Dataset[npt.NDArray[np.uint8]]):
    """Maps the number of a draw to one picture of every class; they depend on it, the images and the seed alone.

    Attributes:
        classes: `good` and the maker's kinds, in the order of the pictures.
    """

    def __init__(
        self,
        images: Sequence[Image],
        maker: Maker,
        *,
        saliency: Sequence[Mask] | None,
        ignored: Mask | None,
        seed: int,
        window_px: int | None = None,
        turns: bool = True,
        augment: bool = True,
    ) -> None:
        """Prepare.

        Args:
            images: good parts, uint8 (h, w, 3) each, of one size.
            maker: over the same images.
            saliency: bool (h, w) each, where defects are centred; None for everywhere.
            ignored: bool (h, w), pixels that the station blanks; None without a mask.
            seed: of everything drawn.
            window_px: side of the square cut out of each picture, at most the shorter side; None leaves it whole.
            turns: quarter turns too, beside flips.
            augment: draw colours and orientation of the good image; without it the image stays as it is.
        """
        self.classes = (GOOD, *maker.kinds)
        self._images = images
        self._maker = maker
        self._saliency = saliency
        self._ignored = ignored
        self._seed = seed
        self._window = window_px
        self._turns = turns
        self._augment = augment

    def __getitem__(self, draw: int) -> npt.NDArray[np.uint8]:
        """Pictures uint8 (classes, h, w, 3). Every image has its turn before one comes again, in shuffled order."""
        index = _shuffled(self._seed, draw // len(self._images), len(self._images))[draw % len(self._images)]
        rng = np.random.default_rng([self._seed, draw, 1])
        image = self._images[index]
        salient = self._saliency[index] if self._saliency is not None else None
        if self._augment:
            image = jitter(image, Jitter(*rng.uniform(-_JITTER, _JITTER, 4)), grey=is_grey(image))
        pictures = [self._window_at(rng, blank(image, self._ignored), _centre(rng, salient, image.shape))]
        for kind in self._maker.kinds:
            defect = self._defect(index, kind, draw, image, salient)
            x, y, width, height = defect.box
            pictures.append(self._window_at(rng, blank(defect.image, self._ignored), (x + width // 2, y + height // 2)))
        # turned with its defect, so that the grain of a fill never tells which way the picture was turned
        return _turned(rng, np.stack(pictures), self._turns) if self._augment else np.stack(pictures)

    def _defect(self, index: int, kind: str, draw: int, image: Image, salient: Mask | None) -> Defect:
        """A defect of which something shows: one under the mask would be a good image that is called bad."""
        for attempt in range(_ATTEMPTS):
            number = draw + attempt * _APART
            defect = self._maker.draw(index, kind, seed=self._seed, draw=number, image=image, saliency=salient)
            if self._ignored is None or (defect.changed & ~self._ignored).any():
                break
        return defect

    def _window_at(self, rng: np.random.Generator, image: Image, centre: tuple[int, int]) -> Image:
        """A square window that holds `centre` in its middle half, where the image's border lets it."""
        if self._window is None:
            return image
        corner = []
        for at, side in zip(centre, image.shape[1::-1], strict=True):
            offset = int(rng.integers(self._window // 4, 3 * self._window // 4 + 1))
            corner.append(min(max(at - offset, 0), side - self._window))
        return image[corner[1] : corner[1] + self._window, corner[0] : corner[0] + self._window]


def passes(
    task: Task, plan: Plan, updates: range, *, rank: int, processes: int, workers: int, pinned: bool = False
) -> Iterator[Tensor]:
    """Give this process's passes one after the other, update by update.

    Args:
        task: what to draw.
        plan: of an update.
        updates: which ones.
        rank, processes: which passes of an update are this process's: every `processes`-th.
        workers: processes that draw ahead; 0 draws when asked.
        pinned: in memory that a GPU copies from fast.

    Yields:
        uint8 (normals * classes, h, w, 3): the classes of the first normal, then those of the next; see `labels_of`.
    """
    draws = [
        list(range((update * plan.passes + number) * plan.normals, (update * plan.passes + number + 1) * plan.normals))
        for update in updates
        for number in range(rank, plan.passes, processes)
    ]
    loader = DataLoader(
        task,
        batch_sampler=draws,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_one_thread,
        pin_memory=pinned,
        prefetch_factor=2 if workers > 0 else None,
        # a forked process would wait for OpenCV's threads, which do not come with it
        multiprocessing_context="spawn" if workers > 0 else None,
        generator=torch.Generator(),  # its own: the caller's stays as it was
    )
    yield from loader


def blank(image: Image, ignored: Mask | None) -> Image:
    """The image, uint8 (h, w, 3), as the station sees it: with ignored pixels, bool (h, w), blanked."""
    if ignored is None:
        return image
    image = image.copy()
    image[ignored] = _BLANK  # within half a grey level of what the station's preprocessing makes of them
    return image


def labels_of(pictures: Tensor, classes: int) -> Tensor:
    """Class numbers int64 (b,) of a pass."""
    return torch.arange(classes).repeat(len(pictures) // classes)


def _collate(items: list[npt.NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.concatenate(items))


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(1)  # the workers share the cores already


@lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, epoch, 2]).permutation(count).tolist())


def _turned(rng: np.random.Generator, pictures: npt.NDArray[np.uint8], turns: bool) -> npt.NDArray[np.uint8]:
    """Pictures (n, h, w, 3) in one of the orientations that keep their shape: eight of a square, four without quarter turns."""
    transpose, flip, mirror = (bool(bit) for bit in rng.integers(0, 2, 3))
    if turns and transpose and pictures.shape[1] == pictures.shape[2]:
        pictures = pictures.swapaxes(1, 2)
    return np.ascontiguousarray(pictures[:, :: -1 if flip else 1, :: -1 if mirror else 1])


def _centre(rng: np.random.Generator, salient: Mask | None, shape: tuple[int, ...]) -> tuple[int, int]:
    if salient is None:
        return int(rng.integers(shape[1])), int(rng.integers(shape[0]))
    points = np.flatnonzero(salient)
    at = int(points[rng.integers(len(points))])
    return at % shape[1], at // shape[1]
