"""From taps to patch embeddings: PatchCore's neck, folded into one small convolution per tap.

The definition (Roth et al., arXiv 2106.08265, as REB uses it): for each tap take the 3x3 neighbourhood of each position
(zero padding), C x 9 values; bring the coarser grid to the finer one bilinearly; average-pool each vector adaptively to
D; stack the two; average-pool the 2D values to D. Every step is linear and fixed, and the bilinear step acts on space
alone, so it commutes with the steps that act on channels: what is left is a 3x3 convolution of D/2 outputs per tap. The
pooling windows are contiguous in the flattened channels, so the convolution is block-diagonal: depthwise for ResNet18.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from engines import EngineError
from engines.images import pixel_digest
from engines.ldknn import Progress
from engines.preprocess import Preprocessor
from train.backbones import BackboneSpec
from train.data import Sample

STRIDE = 8  # input pixels a side of one patch, for every backbone here
_BATCH = 8


class FeatureNet(nn.Module):
    """Backbone and folded neck: images to patch embeddings. In eval mode, without gradients."""

    def __init__(self, backbone: nn.Module, spec: BackboneSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.fine = folded_neck(spec.channels[0], spec.dim)
        self.coarse = folded_neck(spec.channels[1], spec.dim)
        self.dim = spec.dim
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 (b, 3, h, w) to float32 (b * patches, D), patches row by row over the (h/8, w/8) grid."""
        fine, coarse = self.backbone(images)
        fine, coarse = self.fine(fine), self.coarse(coarse)
        coarse = functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.cat([fine, coarse], dim=1).permute(0, 2, 3, 1).reshape(-1, self.dim)


def folded_neck(channels: int, dim: int) -> nn.Conv2d:
    """One tap's share of the neck: a 3x3 convolution of `channels` inputs and dim/2 outputs, grouped as far as it goes."""
    weight = neck_weight(channels, dim)
    groups = next(g for g in range(math.gcd(channels, dim // 2), 0, -1) if _block_diagonal(weight, g))
    inputs, outputs = channels // groups, dim // 2 // groups
    convolution = nn.Conv2d(channels, dim // 2, 3, padding=1, groups=groups, bias=False)
    blocks = [weight[g * outputs : (g + 1) * outputs, g * inputs : (g + 1) * inputs] for g in range(groups)]
    convolution.weight.data = torch.cat(blocks)
    return convolution


def neck_weight(channels: int, dim: int) -> Tensor:
    """The neck of one tap as a dense kernel, float32 (dim/2, channels, 3, 3).

    Row j of the adaptive pooling from L = 9 * channels to D averages the flattened values floor(j L / D) to
    ceil((j + 1) L / D); the second pooling, from 2D to D, averages rows 2i and 2i + 1.
    """
    length = 9 * channels
    pooling = torch.zeros(dim, length, dtype=torch.float64)
    for row in range(dim):
        start, stop = row * length // dim, -(-(row + 1) * length // dim)
        pooling[row, start:stop] = 1 / (stop - start)
    return ((pooling[0::2] + pooling[1::2]) / 2).reshape(dim // 2, channels, 3, 3).float()


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    """Patch grid (rows, columns) of a network input (height, width)."""
    return size[0] // STRIDE, size[1] // STRIDE


def embed_samples(
    network: FeatureNet,
    preprocessor: Preprocessor,
    samples: Sequence[Sample],
    judged: npt.NDArray[np.bool_],
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[npt.NDArray[np.float32], tuple[str, ...], frozenset[tuple[int, int]]]:
    """Embed the judged patches of images, batch by batch.

    Args:
        network: on `device`.
        preprocessor: the product's.
        samples: images to embed.
        judged: bool (rows, columns) patches that count.
        device: where to compute.
        progress: called with (images done, images in all).

    Returns:
        float32 (images * judged patches, D), image by image; each image's pixel digest; and the sizes (height, width)
        in pixels that the images have.

    Raises:
        EngineError: an image that cannot be read or does not fit.
    """
    per_image = int(judged.sum())
    features = np.empty((len(samples) * per_image, network.dim), np.float32)
    digests: list[str] = []
    sizes: set[tuple[int, int]] = set()
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        tensors, of_batch, sizes_of_batch = zip(*(_prepare(preprocessor, sample) for sample in batch), strict=True)
        digests += of_batch
        sizes.update(sizes_of_batch)
        embedded = embed(network, np.concatenate(tensors), device).reshape(len(batch), -1, network.dim)
        features[start * per_image : (start + len(batch)) * per_image] = embedded[:, judged.ravel()].reshape(-1, network.dim)
        if progress is not None:
            progress(start + len(batch), len(samples))
    return features, tuple(digests), frozenset(sizes)


@torch.inference_mode()
def embed(network: FeatureNet, tensors: npt.NDArray[np.float32], device: torch.device) -> npt.NDArray[np.float32]:
    """Embed a batch: float32 (b, 3, h, w) to float32 (b * patches, D), on CUDA too in float32 throughout."""
    batch = torch.from_numpy(tensors).to(device, memory_format=torch.channels_last)
    # TF32, cuDNN's default, rounds to 10 bits: the bank would be off from what the exported graph computes
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        return np.asarray(network(batch).cpu().numpy())


def _prepare(preprocessor: Preprocessor, sample: Sample) -> tuple[npt.NDArray[np.float32], str, tuple[int, int]]:
    image = sample.image()
    try:
        return preprocessor(image), pixel_digest(image), (image.shape[0], image.shape[1])
    except EngineError as error:
        raise EngineError(f"{sample.path}: {error}") from None


def _block_diagonal(weight: Tensor, groups: int) -> bool:
    outputs, channels = weight.shape[:2]
    if outputs % groups or channels % groups:
        return False
    row = torch.arange(outputs) // (outputs // groups)
    column = torch.arange(channels) // (channels // groups)
    return bool((weight[row[:, None] != column[None, :]] == 0).all())
