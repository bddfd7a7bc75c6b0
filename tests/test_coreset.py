"""Coreset selection in torch against that in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines import EngineError, bank
from train import TrainError, coreset

CPU = torch.device("cpu")


@pytest.mark.parametrize("dim", [6, 200])
@pytest.mark.parametrize("offset", [0, 100])
def test_it_takes_the_rows_that_numpy_takes(dim: int, offset: float) -> None:
    features = (offset + np.random.default_rng(dim).normal(size=(700, dim))).astype(np.float32)
    taken = coreset.k_centre(features, 250, np.random.default_rng(1), CPU)
    assert taken.dtype == np.int64
    assert taken.tolist() == bank.k_centre(features, 250, np.random.default_rng(1)).tolist()


def test_another_seed_takes_others() -> None:
    features = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)
    one, two = (coreset.k_centre(features, 60, np.random.default_rng(seed), CPU).tolist() for seed in (1, 2))
    assert one != two


def test_equal_patches_are_taken_once_each() -> None:
    # whole numbers: float32 is exact, and on a CPU the first of equals comes first, as in NumPy
    features = np.repeat(np.arange(10, dtype=np.float32), 20)[:, None]
    taken = coreset.k_centre(features, 150, np.random.default_rng(0), CPU).tolist()
    assert len(set(taken)) == 150
    assert taken == bank.k_centre(features, 150, np.random.default_rng(0)).tolist()


def test_all_rows_are_taken_in_order_and_features_left_as_they_were() -> None:
    features = np.random.default_rng(2).normal(size=(50, 200)).astype(np.float32)
    before = features.copy()
    assert coreset.k_centre(features, 50, np.random.default_rng(0), CPU).tolist() == list(range(50))
    coreset.k_centre(features, 49, np.random.default_rng(0), CPU)
    assert (features == before).all()


def test_progress_grows_to_its_total() -> None:
    calls: list[tuple[int, int]] = []
    features = np.random.default_rng(3).normal(size=(700, 200)).astype(np.float32)
    coreset.k_centre(features, 600, np.random.default_rng(0), CPU, lambda done, total: calls.append((done, total)))
    assert calls == [(256, 600), (512, 600), (588, 600), (600, 600)]


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(EngineError, match=f"coreset of {count} rows, expected 1 to 5"):
        coreset.k_centre(np.zeros((5, 2), np.float32), count, np.random.default_rng(0), CPU)


def test_features_that_are_not_finite_are_refused() -> None:
    features = np.zeros((50, 2), np.float32)
    features[7, 1] = np.nan
    with pytest.raises(TrainError, match="not finite"):
        coreset.k_centre(features, 10, np.random.default_rng(0), CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_a_gpu_takes_the_rows_that_numpy_takes() -> None:
    features = np.random.default_rng(4).normal(size=(700, 200)).astype(np.float32)
    taken = coreset.k_centre(features, 250, np.random.default_rng(1), torch.device("cuda"))
    assert taken.tolist() == bank.k_centre(features, 250, np.random.default_rng(1)).tolist()
