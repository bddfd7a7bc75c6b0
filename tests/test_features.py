"""The folded neck must be the published one, step by step; and a patch must be where the map says it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engines import EngineError
from engines.images import encode_png, pixel_digest, read_image
from engines.preprocess import Preprocessor, Roi
from tests.fakes import textured
from train.backbones import BACKBONES, BackboneSpec, build
from train.data import Sample
from train.features import FeatureNet, embed, embed_samples, folded_neck, grid_of, neck_weight

CPU = torch.device("cpu")


class Taps(nn.Module):
    """Stands in for a backbone: gives these taps for any image."""

    def __init__(self, fine: Tensor, coarse: Tensor) -> None:
        super().__init__()
        self.fine, self.coarse = fine, coarse

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.fine, self.coarse


def with_taps(spec: BackboneSpec, fine: Tensor, coarse: Tensor) -> Tensor:
    return FeatureNet(Taps(fine, coarse), spec)(torch.zeros(len(fine), 3, 8, 8))


def literal_neck(fine: Tensor, coarse: Tensor, dim: int) -> Tensor:
    """PatchCore's neck as its authors compute it: unfold, interpolate, pool, stack, pool."""
    count, _, high, wide = fine.shape
    unfolded = []
    for tap in (fine, coarse):
        patches = functional.unfold(tap, kernel_size=3, stride=1, padding=1)  # (b, C * 9, positions)
        patches = patches.reshape(count, -1, *tap.shape[2:])
        patches = functional.interpolate(patches, size=(high, wide), mode="bilinear", align_corners=False)
        unfolded.append(patches.permute(0, 2, 3, 1).reshape(count * high * wide, 1, -1))
    pooled = [functional.adaptive_avg_pool1d(patches, dim).squeeze(1) for patches in unfolded]
    stacked = torch.stack(pooled, dim=1).reshape(count * high * wide, 1, -1)
    return functional.adaptive_avg_pool1d(stacked, dim).squeeze(1)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("grid", [(4, 4), (2, 6)])
def test_the_folded_neck_is_the_unfolded_one(name: str, grid: tuple[int, int], rng: torch.Generator) -> None:
    spec = BACKBONES[name]
    fine = torch.randn(2, spec.channels[0], *grid, generator=rng)
    coarse = torch.randn(2, spec.channels[1], grid[0] // 2, grid[1] // 2, generator=rng)
    got = with_taps(spec, fine, coarse)
    assert got.shape == (2 * grid[0] * grid[1], spec.dim)
    assert (got - literal_neck(fine, coarse, spec.dim)).abs().max() < 1e-5


@pytest.mark.parametrize(("channels", "dim"), [(128, 512), (256, 512), (512, 512), (512, 1024), (1024, 1024), (12, 10)])
def test_a_grouped_convolution_is_the_dense_one(channels: int, dim: int, rng: torch.Generator) -> None:
    tap = torch.randn(1, channels, 4, 5, generator=rng)
    dense = functional.conv2d(tap, neck_weight(channels, dim), padding=1)
    assert torch.allclose(folded_neck(channels, dim)(tap), dense, atol=1e-6)


def test_resnet18s_necks_are_depthwise() -> None:
    assert folded_neck(128, 512).groups == 128
    assert folded_neck(256, 512).groups == 256


def test_the_neck_of_two_channels_by_hand() -> None:
    # 18 values pooled to 4: windows 0-4, 4-8, 9-13, 13-17 (5 each); then pairs are averaged
    expected = torch.zeros(2, 18)
    expected[0, 0:5] += 0.1
    expected[0, 4:9] += 0.1
    expected[1, 9:14] += 0.1
    expected[1, 13:18] += 0.1
    assert torch.allclose(neck_weight(2, 4).reshape(2, 18), expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_constant_tap_stays_what_it_is_away_from_the_border(name: str) -> None:
    spec = BACKBONES[name]
    got = with_taps(spec, torch.full((1, spec.channels[0], 8, 8), 2.0), torch.full((1, spec.channels[1], 4, 4), -3.0))
    middle = got.reshape(8, 8, spec.dim)[3:5, 3:5]
    assert torch.allclose(middle[..., : spec.dim // 2], torch.tensor(2.0))  # the finer tap comes first
    assert torch.allclose(middle[..., spec.dim // 2 :], torch.tensor(-3.0))


def test_patches_come_row_by_row() -> None:
    spec = BACKBONES["resnet18"]
    fine = torch.zeros(1, 128, 4, 8)
    fine[0, :, 1, 6] = 1.0
    got = with_taps(spec, fine, torch.zeros(1, 256, 2, 4)).abs().sum(dim=1).reshape(4, 8)
    seen = torch.zeros(4, 8, dtype=torch.bool)
    seen[0:3, 5:8] = True  # the 3x3 neighbourhoods that hold row 1, column 6
    assert torch.equal(got > 0, seen)


def test_the_grid_is_an_eighth_of_the_input() -> None:
    assert grid_of((256, 320)) == (32, 40)


@pytest.fixture(scope="module")
def network() -> FeatureNet:
    spec = BACKBONES["resnet18"]
    return FeatureNet(build(spec, None, 0), spec)


def test_a_batch_gives_what_single_images_give(network: FeatureNet) -> None:
    tensors = np.random.default_rng(0).normal(size=(3, 3, 48, 64)).astype(np.float32)
    together = embed(network, tensors, CPU)
    assert together.dtype == np.float32
    assert together.shape == (3 * 6 * 8, 512)
    alone = np.concatenate([embed(network, tensor[None], CPU) for tensor in tensors])
    assert np.abs(together - alone).max() < 1e-4 * np.abs(alone).max()


def test_a_defect_moves_the_patches_where_it_is(network: FeatureNet) -> None:
    picture = np.zeros((1, 3, 128, 256), np.float32)
    marked = picture.copy()
    marked[:, :, 88:96, 200:208] = 3.0  # the cell of row 11, column 25
    moved = np.linalg.norm(embed(network, marked, CPU) - embed(network, picture, CPU), axis=1).reshape(16, 32)
    row, column = np.unravel_index(moved.argmax(), moved.shape)
    assert abs(row - 11) <= 1
    assert abs(column - 25) <= 1


def save(folder: Path, count: int) -> list[Sample]:
    samples = []
    for number in range(count):
        path = folder / f"{number}.png"
        path.write_bytes(encode_png(textured(number, (40, 60))))
        samples.append(Sample(path, "good"))
    return samples


def test_samples_give_their_judged_patches_image_by_image(network: FeatureNet, tmp_path: Path) -> None:
    samples = save(tmp_path, 9)  # one more than a batch
    preprocessor = Preprocessor((32, 48))
    judged = np.ones((4, 6), bool)
    judged[0, :2] = False
    steps: list[tuple[int, int]] = []
    features, digests, sizes = embed_samples(
        network, preprocessor, samples, judged, CPU, lambda done, total: steps.append((done, total))
    )
    assert features.shape == (9 * 22, 512)
    assert digests == tuple(pixel_digest(read_image(sample.path)) for sample in samples)
    assert sizes == {samples[0].image().shape[:2]}
    assert steps == [(8, 9), (9, 9)]
    for number in (0, 8):
        whole = embed(network, preprocessor(samples[number].image()), CPU)
        assert np.allclose(features[22 * number : 22 * (number + 1)], whole[judged.ravel()], rtol=1e-3, atol=1e-3)


def test_an_image_that_does_not_fit_is_named(network: FeatureNet, tmp_path: Path) -> None:
    samples = save(tmp_path, 2)
    samples[1].path.write_bytes(encode_png(textured(1, (40, 61))))
    preprocessor = Preprocessor((32, 32), roi=Roi(0, 0, 40, 40), frame_size=(40, 60))
    with pytest.raises(EngineError, match=r"1\.png: frame is 61 x 40 pixels, expected 60 x 40"):
        embed_samples(network, preprocessor, samples, np.ones((4, 4), bool), CPU)
