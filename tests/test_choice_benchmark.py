"""What the benchmark of the choice makes of a cell, and that it measures what `fit` would choose from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import train.trial
from benchmarks import choice
from benchmarks.choice import BankResult, Cell, Setting, main, measure, summary
from engines import console
from engines.bundle import Tried, load_bundle
from train.data import open_dataset
from train.evaluate import evaluate
from train.fit import fit
from train.product import Console, Settings
from train.sample import write_sample


def bank(**tests: list[float]) -> BankResult:
    """Two densities with AUROCs on the test images; on the defects each alpha is as good as on those."""
    settings = []
    for density, values in {"measured": tests["measured"], "K 9": tests["k9"]}.items():
        for alpha, value in zip((0.0, 0.5, 1.0), values, strict=True):
            behind = max(values) - value
            settings.append(
                Setting(density=density, test=value, tried=Tried(alpha=alpha, auroc=value, behind=behind, error=0.02))
            )
    return BankResult(coreset=0.02, images=9, settings=tuple(settings))


def test_gain_and_regret_by_hand() -> None:
    banks = [bank(measured=[0.8, 0.86, 0.85], k9=[0.8, 0.9, 0.7]), bank(measured=[0.6, 0.5, 0.5], k9=[0.6, 0.6, 0.5])]
    assert summary(banks, "plain NN") == pytest.approx((0, 0, 0.05, 0.1))
    assert summary(banks, "published, alpha 1") == pytest.approx((-0.1, -0.1, 0.15, 0.2))
    assert summary(banks, "published, best") == pytest.approx((0.05, 0, 0, 0))
    assert summary(banks, "measured, best") == pytest.approx((0.03, 0, 0.02, 0.04))
    # the largest alpha that is within the error of the best and not below plain NN
    assert summary(banks, "as fit chooses") == pytest.approx((0.025, 0, 0.025, 0.05))


def test_published_densities_leave_the_image_out_that_is_judged() -> None:
    squared = np.array([[1, 2, 3, 4]], np.float32)
    density = choice._published(squared, np.array([[5, 7, 5, 8]]), 2)
    assert density(None).tolist() == [1.5]
    assert density(5).tolist() == [3]
    assert density(9).tolist() == [1.5]
    assert choice._published(squared, np.array([[5, 5, 5, 5]]), 2)(5).tolist() == [0]


@pytest.fixture(autouse=True)
def few_defects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.trial, "DEFECTS", 18)


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("products")
    write_sample(folder / "flange", size_px=96, train=9, calibration=0, test_good=3, per_defect=1)
    return folder


def test_a_cell_measures_what_fit_would_write(products: Path, tmp_path: Path) -> None:
    def silent(title: str):  # type: ignore[no-untyped-def]
        return console.progress(title)

    dataset = open_dataset(products / "flange")
    (found,) = measure(products / "flange", Cell("flange", 0, 0, "none"), (0.02,), "none")
    settings = Settings(products / "flange", weights="none", seed=0)
    fit(settings, tmp_path / "bundle", Console(lambda line: None, lambda line: None, silent))
    bundle = load_bundle(tmp_path / "bundle")
    auroc = evaluate(bundle, dataset).metrics["ldknn"]["image_auroc"]["all"]
    assert found.at("measured", bundle.manifest.method.alpha).test == pytest.approx(auroc, abs=0.06)  # one pair of 18
    chosen = bundle.manifest.provenance.choice
    assert chosen is not None
    for one, same in zip(chosen.tried, found.of("measured"), strict=True):
        assert same.tried.auroc == pytest.approx(one.auroc, abs=1e-3)


def test_images_are_changed_and_cells_kept(products: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, change in choice.CHANGES.items():
        if change is not None:
            dataset = choice._changed(open_dataset(products / "flange"), change, tmp_path / name)
            assert (len(dataset.train), len(dataset.test)) == (9, 9)
            before = open_dataset(products / "flange").test[0].image()
            after = dataset.test[0].image()
            assert after.shape != before.shape or (after != before).any()
    words = ["--data", str(products), "--out", str(tmp_path / "out"), "--weights", "none", "--quick", "--coresets", "0.02"]
    assert main(words) == console.DONE
    first = capsys.readouterr().out
    assert main(words) == console.DONE
    again = capsys.readouterr().out
    assert ", known" in again
    assert first.split("image AUROC")[1] == again.split("image AUROC")[1]
    (tmp_path / "out" / "flange-none-seed0-all.json").write_text("[]{")
    assert main(words) == console.BAD_INPUT
    assert "delete it" in capsys.readouterr().err
