"""The benchmarks of POD and of a second station, on a tiny product."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import pod, station_shift
from engines.bundle import load_bundle
from engines.images import Image, encode_png
from engines.inspector import Inspector
from tests.fakes import cells, flat, write_pictures, write_tiny_bundle
from train.data import open_dataset


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """Good pictures of grey 128, large and small dark squares with masks, and a bundle of grey 128."""
    rng = np.random.default_rng(0)

    def good() -> Image:
        return np.repeat(rng.normal(128, 2, (64, 64, 1)).round(), 3, axis=2).astype(np.uint8)

    data = tmp_path / "data"
    normals = [good() for _ in range(2)]
    write_pictures(data / "train" / "good", normals)
    write_pictures(data / "test" / "good", [good() for _ in range(42)])
    for kind, side, depth in (("large", 24, 60), ("small", 3, 10)):
        bad, masks = [], []
        for place in (8, 20, 30):
            image, mask = good(), np.zeros((64, 64, 3), np.uint8)
            image[place : place + side, place : place + side] -= np.uint8(depth)
            mask[place : place + side, place : place + side] = 255
            bad.append(image)
            masks.append(mask)
        write_pictures(data / "test" / kind, bad)
        for number, mask in enumerate(masks, 1):
            path = data / "ground_truth" / kind / f"{number}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(mask))
    write_tiny_bundle(tmp_path / "bundle", rows=cells(127, 128, 129), normals=normals)
    return tmp_path


def test_pod_predicts_that_large_dark_squares_are_found_and_small_faint_ones_are_not(
    product: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--bundle", str(product / "bundle"), "--data", str(product / "data"), "--json", str(product / "pod.json")]
    assert pod.main([*where, "--quick"]) == 0
    figures = json.loads((product / "pod.json").read_text())
    by_kind = {kind: [one for one in figures["real"] if one["kind"] == kind] for kind in ("large", "small")}
    assert all(one["found"] and one["size, step"] > 0.9 for one in by_kind["large"])
    assert not any(one["found"] or one["size, step"] > 0.3 for one in by_kind["small"])
    assert by_kind["large"][0]["size_px"] == 24
    assert by_kind["large"][0]["step"] == pytest.approx(60, abs=2)
    assert by_kind["large"][0]["change"] == pytest.approx(60, abs=2)
    said = capsys.readouterr().out
    assert "real, and predicted" in said and "size, step" in said


def test_pod_wants_bad_images_with_masks(product: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pod.main(["--bundle", str(product / "bundle"), "--data", str(product / "data" / "test" / "good")]) == 2
    assert "0 masked bad test images" in capsys.readouterr().err


def test_a_second_station_is_darker_blurred_turned_and_warmer() -> None:
    image = flat(128)
    image[:, 32:] = 200
    seen = station_shift.shifted(image)
    grey = 255 * (128 / 255) ** station_shift._GAMMA
    assert seen[32, 4].tolist() == [round(grey * cast) for cast in station_shift._CAST]
    assert not np.array_equal(seen[4], seen[60])  # the edge is turned
    assert len(np.unique(seen[32, 26:38, 1])) > 2  # and blurred


def test_a_second_station_rejects_all_and_gets_its_rate_back(product: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--bundle", str(product / "bundle"), "--data", str(product / "data"), "--json", str(product / "shift.json")]
    assert station_shift.main([*where, "--false-reject", "0.1"]) == 0
    figures = json.loads((product / "shift.json").read_text())["figures"]
    assert figures["second, as it came"]["false_rejects"] == 1.0
    for name in ("first station", "second, recalibrated", "second, adapted and recalibrated"):
        assert figures[name]["false_rejects"] < 0.4
    assert figures["second, adapted and recalibrated"]["auroc"] >= 0.5
    assert "image AUROC" in capsys.readouterr().out


def test_densities_are_measured_with_patches_of_the_training_too(product: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--bundle", str(product / "bundle"), "--data", str(product / "data")]
    bundle = load_bundle(product / "bundle")
    images = sum(image.use == "bank" for image in bundle.manifest.provenance.images)
    patches = bundle.manifest.method.grid[0] * bundle.manifest.method.grid[1]

    kept = ["--false-reject", "0.1", "--json", str(product / "with.json")]
    assert station_shift.main([*where, *kept, "--reservoir", str(20 * images)]) == 0
    figures = json.loads((product / "with.json").read_text())["figures"]
    assert figures[f"the same, with {20 * images} patches of the training"]["auroc"] >= 0.5

    assert station_shift.main([*where, "--reservoir", str(images * patches + images)]) == 2
    assert f"expected {images} to {images * patches}" in capsys.readouterr().err


def test_only_the_densities_change_with_patches_of_the_training(product: Path) -> None:
    with Inspector(load_bundle(product / "bundle")) as inspector:
        dataset = open_dataset(product / "data")
        seen = station_shift._embed(inspector, [sample for sample in dataset.test if sample.good][:4], "good", changed=True)
        added = station_shift._candidates(inspector, seen)
        bank = station_shift._extended(inspector, added, 1.0, 0)
        reservoir = station_shift._reservoir(inspector, dataset.train, 80, 0)
        nothing = replace(reservoir, features=reservoir.features[:0], images=0)
        same = station_shift._measured_with(inspector, bank, added, nothing)
        other = station_shift._measured_with(inspector, bank, added, reservoir)
    assert reservoir.features.shape == (80, bank.rows.shape[1])
    np.testing.assert_array_equal(same.density, bank.density)
    np.testing.assert_array_equal(other.rows, bank.rows)
    assert not np.array_equal(other.density, bank.density)
