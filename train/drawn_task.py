"""What a backbone learns from drawn scenes: two dense tasks, whose labels the drawing gives for nothing.

One image gives hundreds of labels, to the very activations that patch embeddings are made of. Each scene is photographed
twice. Every cell of both taps is to

- find itself in the other photograph, among cells of the whole batch (InfoNCE: van den Oord et al., arXiv 1807.03748; on
  cells: Wang et al., arXiv 2011.09157), so features learn to overlook light, gain, blur and noise;
- name its texture and its palette, where it lies in one region.

Hundreds of steps serve, thousands harm: the better cells name their material, the less they hold of what surrounds them, and
a part of which a piece is gone shows only there, because what is left is background, which is known.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from engines.preprocess import IMAGENET_MEAN, IMAGENET_STD
from train.backbones import BackboneSpec
from train.textures import MIXED, Tiles, cell_labels, compose, photograph

STRIDES = (8, 16)  # of the two taps
_SHARPNESS = 10.0  # of the softmax over cosines between photographs: a temperature of 0.1
_PROJECTED = 128  # channels that cells find each other by
_COMPARED = 1024  # cells of a batch that are compared with each other
_NAMING = 0.5  # weight of naming beside finding


class Student(nn.Module):
    """A backbone and, on each tap, a projection to find cells by, and a classifier for textures and one for palettes."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, spec: BackboneSpec, textures: int, palettes: int) -> None:
        super().__init__()
        self.backbone = backbone
        widths = {"texture": textures, "palette": palettes, "same": _PROJECTED}
        self.heads = nn.ModuleDict(
            {
                f"{name}/{stride}": nn.Conv2d(channels, width, 1)
                for name, width in widths.items()
                for stride, channels in zip(STRIDES, spec.channels, strict=True)
            }
        )
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("mean", 255 * mean.reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * std.reshape(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map uint8 (b, 3, s, s) to (b, a head's width, s/stride, s/stride) by head."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        taps = {str(stride): tap for stride, tap in zip(STRIDES, self.backbone(x), strict=True)}
        return {name: head(taps[name.split("/")[1]]) for name, head in self.heads.items()}


class Scenes(Dataset[dict[str, np.ndarray]]):
    """Scenes by number: `images` uint8 (2, 3, s, s), two photographs, and by head int64 (s/stride, s/stride) labels."""

    def __init__(self, tiles: Tiles, size: int, seed: int) -> None:
        self._tiles, self._size, self._seed = tiles, size, seed

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        scene = compose(self._tiles, self._size, self._seed, index)
        rng = np.random.default_rng([self._seed, 3, index])
        images = np.stack([photograph(scene.image, rng) for _ in range(2)])
        labels = {
            f"{name}/{stride}": cell_labels(label, stride)
            for name, label in (("texture", scene.texture), ("palette", scene.palette))
            for stride in STRIDES
        }
        return {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2)), **labels}


def cell_losses(
    student: Student, images: Tensor, labels: dict[str, Tensor], chance: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a batch, and by head what was right.

    Args:
        student: what learns.
        images: uint8 (2 b, 3, s, s), both photographs of scene 0, then both of scene 1.
        labels: int64 (2 b, s/stride, s/stride) by head; MIXED does not count.
        chance: draws the cells that are compared.

    Returns:
        The loss, and by head the share of cells that were named or found, 0 to 1.
    """
    with torch.autocast(images.device.type, torch.bfloat16):
        answers = student(images)
    losses, right = [], {}
    for name, answer in answers.items():
        if name in labels:
            losses.append(_NAMING * _cross_entropy(answer, labels[name]))
            right[name] = _accuracy(answer.detach(), labels[name])
        else:
            likeness, same = _likeness(answer, chance)
            losses.append(_cross_entropy(likeness, same))
            right[name] = _accuracy(likeness.detach(), same)
    return torch.stack(losses).sum(), right


def _likeness(projected: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cells of the first photographs against the same cells of the second: logits (n, n), and labels: the diagonal."""
    cells = functional.normalize(projected.float(), dim=1).permute(0, 2, 3, 1)
    one, other = cells[0::2].flatten(0, 2), cells[1::2].flatten(0, 2)
    chosen = torch.randperm(len(one), generator=chance)[:_COMPARED].to(one.device)
    return _SHARPNESS * one[chosen] @ other[chosen].T, torch.arange(len(chosen), device=one.device)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over pure cells; 0 where a batch has none."""
    total = functional.cross_entropy(logits.float(), labels, ignore_index=MIXED, reduction="sum")
    return total / (labels != MIXED).sum().clamp(min=1)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    pure = labels != MIXED
    return float(((logits.argmax(1) == labels) & pure).sum() / pure.sum().clamp(min=1))
