"""The banks that are compared have the rows that they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.banks import BANKS, main
from engines import console
from engines.bank import k_centre
from train.normals import Normals, embed_normals
from train.product import Console, Settings, open_product
from train.sample import write_sample


@pytest.fixture(scope="module")
def normals(tmp_path_factory: pytest.TempPathFactory) -> Normals:
    folder = tmp_path_factory.mktemp("products") / "flange"
    write_sample(folder, size_px=96, train=6, calibration=0, test_good=2, per_defect=1)
    talk = Console(lambda line: None, lambda line: None, console.progress)
    return embed_normals(open_product(Settings(folder, weights="none", size=(96, 96)), talk), 0, talk)


@pytest.mark.parametrize("name", BANKS)
def test_every_bank_has_its_rows_and_says_whose_they_are(name: str, normals: Normals) -> None:
    rows, image = BANKS[name](normals, 64, 0)
    assert rows.dtype == np.float32
    assert rows.shape == (64, normals.network.dim)
    assert len(image) == 64
    assert len(np.unique(image)) > 1
    if name != "k-means":
        features = normals.bank_features.reshape(normals.in_bank, normals.patches, -1)
        assert all((features[of] == row).all(axis=1).any() for row, of in zip(rows, image, strict=True))
    assert np.array_equal(rows, BANKS[name](normals, 64, 0)[0])


def test_k_centre_is_what_fit_selects(normals: Normals) -> None:
    rows, _ = BANKS["k-centre"](normals, 64, 3)
    assert np.array_equal(rows, normals.bank_features[k_centre(normals.bank_features, 64, np.random.default_rng([3, 1]))])


def test_every_part_of_the_grid_has_its_share(normals: Normals) -> None:
    rows, image = BANKS["by place"](normals, 64, 0)
    features = normals.bank_features.reshape(normals.in_bank, normals.patches, -1)
    place = [int((features[of] == row).all(axis=1).argmax()) for row, of in zip(rows, image, strict=True)]
    part = np.array(place) // 12 * 4 // 12 * 4 + np.array(place) % 12 * 4 // 12
    assert np.bincount(part).tolist() == [4] * 16


def test_the_table_has_every_bank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sample(tmp_path / "data" / "flange", size_px=96, train=4, calibration=0, test_good=2, per_defect=1)
    words = ["--data", str(tmp_path / "data"), "--weights", "none", "--quick", "--json", str(tmp_path / "banks.json")]
    assert main(words) == console.DONE
    said = capsys.readouterr().out
    assert all(name in said for name in BANKS)
    figures = json.loads((tmp_path / "banks.json").read_text())["flange"]
    assert set(figures) == set(BANKS)
    assert all(0 <= value <= 1 for of in figures.values() for values in of.values() for value in values)
