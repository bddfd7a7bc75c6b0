"""Two real products, small: how their test images rank. Ten images are a smoke test, not a figure of merit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.bundle import load_bundle
from engines.inspector import Inspector, Scorer
from engines.verify import verify_golden
from train.data import open_dataset
from train.fit import fit
from train.product import Console, Settings


@contextlib.contextmanager
def silent(title: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


# the last as published: the density of all good patches, with a bank of all of them
@pytest.fixture(
    scope="module",
    params=[("hazelnut", 0.02, None), ("transistor", 0.02, None), ("transistor", 1.0, 9)],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def product(
    request: pytest.FixtureRequest, real_data: Path, real_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Inspector, Path]]:
    """A product fitted with the defaults but for coreset and K: its inspector and its images."""
    name, coreset, k = request.param
    data, out = real_data / name, tmp_path_factory.mktemp(name) / "bundle"
    said: list[str] = []
    settings = Settings(data, weights=str(real_weights / "resnet18-trunk.npz"), coreset=coreset, k=k, device="cpu")
    fit(settings, out, Console(said.append, said.append, silent))
    with Inspector(load_bundle(out)) as inspector:
        yield inspector, data


@pytest.mark.realdata
def test_the_bundle_verifies_and_has_a_threshold(product: tuple[Inspector, Path]) -> None:
    inspector, _ = product
    manifest = inspector.bundle.manifest
    assert manifest.threshold is not None
    assert manifest.threshold.n == 5
    assert verify_golden(inspector, inspector.bundle.golden(), manifest.threshold, manifest.golden.spread).passed


@pytest.mark.realdata
@pytest.mark.parametrize("alpha", [0.0, None, 1.0])
def test_every_defective_part_scores_above_every_good_one(product: tuple[Inspector, Path], alpha: float | None) -> None:
    inspector, data = product
    bundle = inspector.bundle
    method = bundle.manifest.method
    if alpha is not None:
        method = method.model_copy(update={"alpha": alpha})
    scorer = Scorer(method, inspector.preprocessor, bundle.bank, inspector.extractor)
    scores = [(sample.good, scorer.score(sample.image()).value) for sample in open_dataset(data).test]
    good = [value for is_good, value in scores if is_good]
    bad = [value for is_good, value in scores if not is_good]
    assert (len(good), len(bad)) == (2, 8)
    assert min(bad) > max(good), f"good {good}, bad {bad}"
