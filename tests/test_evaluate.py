"""Evaluation and its report on drawn pictures: grey noise is good, a bright square is a defect."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from engines import EngineError
from engines.bundle import Bundle, Variant, load_bundle
from engines.images import Image, encode_png
from engines.inspector import Inspector
from tests.fakes import FakeExtractor, cells, feature_graph, tiny_adaptation, tiny_choice, write_tiny_bundle
from train import TrainError
from train.adaptation_plots import adaptation_facts
from train.choice_plots import choice_facts
from train.data import Dataset, open_dataset
from train.evaluate import ALL, METHODS, METRICS, evaluate, to_json
from train.report import check_report_folder, write_report

SIDE = 64
SQUARE = (slice(16, 32), slice(24, 40))
ROWS = cells(*range(110, 147, 2))


def part(seed: int, *defects: tuple[slice, slice]) -> Image:
    """A grey part with noise, uint8 RGB (64, 64, 3); `defects` are white."""
    picture = np.random.default_rng(seed).integers(122, 135, (SIDE, SIDE, 3), np.uint8)
    for where in defects:
        picture[where] = 255
    return picture


def mask_of(where: tuple[slice, slice], value: int = 255, side: int = SIDE) -> Image:
    """A mask file's picture: `value` inside, 0 outside."""
    mask = np.zeros((side, side, 3), np.uint8)
    mask[where] = value
    return mask


def save(path: Path, picture: Image) -> None:
    """Write a PNG, folders and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture))


def mvtec(root: Path, kinds: tuple[str, ...] = ("spot",), *, masks: bool = True) -> Dataset:
    """Three good test images and two of each kind, with a white square."""
    save(root / "train/good/000.png", part(0))
    for number in range(3):
        save(root / f"test/good/{number:03d}.png", part(10 + number))
    for number, kind in enumerate(kinds):
        for index in range(2):
            save(root / f"test/{kind}/{index:03d}.png", part(100 + 10 * number + index, SQUARE))
            if masks:
                save(root / f"ground_truth/{kind}/{index:03d}_mask.png", mask_of(SQUARE))
    return open_dataset(root)


def loco(root: Path, value: int = 255) -> Dataset:
    """A LOCO folder: the annotated region is the square's whole column of the image, of which only the square is seen."""
    save(root / "train/good/000.png", part(0))
    save(root / "test/good/000.png", part(1))
    save(root / "test/logical_anomalies/000.png", part(2, SQUARE))
    save(root / "test/structural_anomalies/000.png", part(3, SQUARE))
    save(root / "ground_truth/logical_anomalies/000/000.png", mask_of((slice(0, SIDE), SQUARE[1]), value))
    save(root / "ground_truth/structural_anomalies/000/000.png", mask_of(SQUARE, value))
    return open_dataset(root)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A tiny bundle whose bank holds greys around the good parts'."""
    return bundle_at(tmp_path / "bundle")


def bundle_at(path: Path, **settings) -> Bundle:  # type: ignore[no-untyped-def]
    """Write a tiny bundle and load it; see `write_tiny_bundle`."""
    write_tiny_bundle(path, rows=ROWS, k=2, **settings)
    return load_bundle(path)


def test_visible_defects_are_told_apart_by_every_method(bundle: Bundle, tmp_path: Path) -> None:
    found = evaluate(bundle, mvtec(tmp_path / "data"))
    assert tuple(found.metrics) == METHODS
    for method, metrics in found.metrics.items():
        assert metrics["image_auroc"] == {ALL: 1.0, "spot": 1.0}, method
        assert metrics["best_f1"][ALL] == 1.0, method
        assert metrics["pixel_auroc"][ALL] > 0.97, method
        assert metrics["aupro"][ALL] > 0.9, method
        assert "spro" not in metrics
    assert found.notes == ()


def test_scores_and_maps_are_the_inspectors(bundle: Bundle, tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data")
    found = evaluate(bundle, dataset)
    with Inspector(bundle) as inspector:
        for index, sample in enumerate(dataset.test):
            score = inspector.score(sample.image())
            assert found.scores["ldknn"][index] == score.value
            np.testing.assert_array_equal(found.maps["ldknn"][index], inspector.map(score))
    for method in METHODS:
        assert found.maps[method].shape == (5, 8, 8) and found.maps[method].dtype == np.float32
    # alpha is 1 but the bank's density is 0, so LDKNN is the nearest distance; pooling is the same too
    np.testing.assert_allclose(found.scores["nn"], found.scores["ldknn"], rtol=1e-4, atol=1e-7)


def test_a_kind_is_compared_with_all_good_and_no_other_kind(bundle: Bundle, tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data", ("spot", "unseen"))
    for index in range(2):
        save(tmp_path / f"data/test/unseen/{index:03d}.png", part(10 + index))  # the pictures of two good ones
    found = evaluate(bundle, dataset)
    scores = found.scores["ldknn"]
    good, unseen = scores[found.of_kind("good")], scores[found.of_kind("unseen")]
    labels = np.repeat([0, 1], [3, 2])
    auroc = found.metrics["ldknn"]["image_auroc"]
    assert auroc["spot"] == 1.0
    assert auroc["unseen"] == pytest.approx(roc_auc_score(labels, np.concatenate([good, unseen])))
    assert auroc[ALL] == pytest.approx((auroc["spot"] + auroc["unseen"]) / 2)  # equally many of each
    assert found.metrics["ldknn"]["pixel_auroc"]["spot"] > 0.97 > found.metrics["ldknn"]["pixel_auroc"]["unseen"]
    assert found.kinds() == ("spot", "unseen")


def test_without_masks_pixel_figures_are_absent(bundle: Bundle, tmp_path: Path) -> None:
    found = evaluate(bundle, mvtec(tmp_path / "data", masks=False))
    assert set(found.metrics["ldknn"]) == {"image_auroc", "best_f1"}
    assert found.notes == ("Defective images without a mask: 2 of 2; pixel figures leave them out.",)


def test_a_kind_without_masks_leaves_the_others_theirs(bundle: Bundle, tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data", ("bare", "spot"))
    for path in (tmp_path / "data/ground_truth/bare").iterdir():
        path.unlink()
    found = evaluate(bundle, open_dataset(dataset.root))
    assert set(found.metrics["ldknn"]["aupro"]) == {ALL, "spot"}
    assert found.metrics["ldknn"]["pixel_auroc"][ALL] == found.metrics["ldknn"]["pixel_auroc"]["spot"]


def test_json_holds_the_figures(bundle: Bundle, tmp_path: Path) -> None:
    found = evaluate(bundle, mvtec(tmp_path / "data"))
    text = to_json(found)
    assert json.loads(text) == found.metrics
    assert "NaN" not in text
    assert all(metric in METRICS for metrics in found.metrics.values() for metric in metrics)


def test_progress_rises_to_the_total(bundle: Bundle, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(bundle, mvtec(tmp_path / "data"), progress=lambda done, total: calls.append((done, total)))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert len({total for _, total in calls}) == 1 and calls[-1][0] == calls[-1][1]


def test_loco_without_saturation_says_so(bundle: Bundle, tmp_path: Path) -> None:
    found = evaluate(bundle, loco(tmp_path / "data"))
    spro = found.metrics["ldknn"]["spro"]
    assert set(spro) == {ALL, "logical_anomalies", "structural_anomalies"}
    assert spro["structural_anomalies"] > 0.7
    assert spro["logical_anomalies"] < 0.5  # a quarter of the column can be seen
    assert found.notes == ("No defects_config.json in the data folder: in sPRO each region saturates at its whole area.",)


@pytest.mark.parametrize(("threshold", "relative"), [(0.125, True), (128, False)])
def test_loco_saturation_is_read_from_the_data(bundle: Bundle, tmp_path: Path, threshold: float, relative: bool) -> None:
    dataset = loco(tmp_path / "data", value=200)
    entry = {
        "defect_name": "column",
        "pixel_value": 200,
        "saturation_threshold": threshold,
        "relative_saturation": relative,
    }
    (dataset.root / "defects_config.json").write_text(json.dumps([entry]))
    found = evaluate(bundle, dataset)
    # an eighth of the column is wanted, and a quarter of it is bright
    assert found.metrics["ldknn"]["spro"]["logical_anomalies"] == pytest.approx(1.0)
    assert found.metrics["ldknn"]["aupro"]["logical_anomalies"] < 0.7
    assert found.notes == ()


def test_loco_mask_of_an_unknown_value_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    dataset = loco(tmp_path / "data", value=7)
    entry = {"defect_name": "column", "pixel_value": 200, "saturation_threshold": 1.0, "relative_saturation": True}
    (dataset.root / "defects_config.json").write_text(json.dumps([entry]))
    with pytest.raises(TrainError, match=r"000\.png: pixel value 7 is not in defects_config\.json \(has \[200\]\)"):
        evaluate(bundle, dataset)


ZERO = '[{"defect_name": "a", "pixel_value": 255, "saturation_threshold": 0, "relative_saturation": true}]'


@pytest.mark.parametrize("text", ["not json", '[{"pixel_value": 1}]', '{"a": 1}', ZERO])
def test_unusable_saturation_file_is_refused(bundle: Bundle, tmp_path: Path, text: str) -> None:
    dataset = loco(tmp_path / "data")
    (dataset.root / "defects_config.json").write_text(text)
    with pytest.raises(TrainError, match=r"defects_config\.json: .*expected MVTec LOCO's list"):
        evaluate(bundle, dataset)


def test_masks_are_cropped_like_their_images(tmp_path: Path) -> None:
    # judged: the left upper quarter, enlarged twofold; the square's columns from 32 on lie outside
    cropped = bundle_at(tmp_path / "cropped", roi=(0, 0, 32, 32), frame_size=(SIDE, SIDE))
    found = evaluate(cropped, mvtec(tmp_path / "data"))
    assert found.metrics["ldknn"]["pixel_auroc"][ALL] > 0.97
    assert found.notes == ()


def test_defects_outside_the_region_are_noted(tmp_path: Path) -> None:
    elsewhere = bundle_at(tmp_path / "elsewhere", roi=(32, 32, 32, 32), frame_size=(SIDE, SIDE))
    found = evaluate(elsewhere, mvtec(tmp_path / "data"))
    assert "pixel_auroc" not in found.metrics["ldknn"]
    assert found.notes == ("Defective images with no defect in the judged pixels: 2 of 2.",)


def test_ignored_pixels_count_nowhere(tmp_path: Path) -> None:
    ignored = np.zeros((SIDE, SIDE), bool)
    ignored[:, 32:] = True
    masked = bundle_at(tmp_path / "masked", mask=ignored)
    dataset = mvtec(tmp_path / "data")
    for index in range(3):
        save(dataset.root / f"test/good/{index:03d}.png", part(index, (slice(40, 60), slice(40, 60))))
    found = evaluate(masked, dataset)
    assert found.metrics["ldknn"]["image_auroc"][ALL] == 1.0  # the white of the good parts is ignored
    assert found.metrics["lof"]["pixel_auroc"][ALL] > 0.97
    for maps in found.maps.values():
        assert np.isnan(maps[:, :, 4:]).all() and np.isfinite(maps[:, :, :4]).all()


def test_images_of_the_bank_are_noted(tmp_path: Path) -> None:
    leaked = bundle_at(tmp_path / "leaked", normals=(part(10), part(999)))
    found = evaluate(leaked, mvtec(tmp_path / "data"))
    assert found.notes == (
        "Test images that are in the bank, pixel for pixel: 1 of 5; their scores are too low to be believed.",
    )


@pytest.mark.parametrize(("remove", "expected"), [("good", "0 good and 2 defective"), ("spot", "3 good and 0 defective")])
def test_one_sided_test_sets_are_refused(bundle: Bundle, tmp_path: Path, remove: str, expected: str) -> None:
    dataset = mvtec(tmp_path / "data")
    one_sided = replace(dataset, test=tuple(sample for sample in dataset.test if sample.kind != remove))
    with pytest.raises(TrainError, match=f"{expected} test images, expected 1 or more of each"):
        evaluate(bundle, one_sided)


def test_a_kind_called_all_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="a defect is called 'all'"):
        evaluate(bundle, mvtec(tmp_path / "data", (ALL,)))


def test_an_unreadable_image_is_named(bundle: Bundle, tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data")
    (dataset.root / "test/spot/001.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(EngineError, match=r"spot/001\.png"):
        evaluate(bundle, dataset)


def test_an_image_of_a_wrong_size_is_named(tmp_path: Path) -> None:
    tied = bundle_at(tmp_path / "tied", roi=(0, 0, 32, 32), frame_size=(SIDE, SIDE))
    dataset = mvtec(tmp_path / "data")
    save(dataset.root / "test/good/001.png", np.zeros((80, 80, 3), np.uint8))
    with pytest.raises(TrainError, match=r"good/001\.png: frame is 80 x 80"):
        evaluate(tied, dataset)


def test_a_mask_of_a_wrong_size_is_named(bundle: Bundle, tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data")
    save(dataset.root / "ground_truth/spot/000_mask.png", mask_of(SQUARE, side=48))
    with pytest.raises(TrainError, match=r"000_mask\.png: mask of 48 x 48 pixels, expected its image's 64 x 64"):
        evaluate(bundle, dataset)


def test_embeddings_that_are_not_finite_are_refused(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = FakeExtractor(spoil=lambda rows: np.full_like(rows, np.nan))
    monkeypatch.setattr("engines.inspector.make_extractor", lambda *_, **__: broken)
    with pytest.raises(TrainError, match=r"good/000\.png: the network gave numbers that are not finite"):
        evaluate(bundle, mvtec(tmp_path / "data"))


def test_report_is_whole_and_self_contained(bundle: Bundle, tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data", ("spot", "blot"))
    found = evaluate(bundle, dataset)
    page = write_report(tmp_path / "report", found, bundle, dataset)
    text = page.read_text(encoding="utf-8")
    linked = set(re.findall(r'(?:src|href)="([^"]+)"', text))
    assert page == tmp_path / "report/index.html"
    assert linked == {path.name for path in page.parent.iterdir()} - {"index.html"}
    assert {"histogram.png", "roc.png", "miss-1-mask.png", "overkill-1-heat.png"} <= linked
    assert "http" not in text and "url(" not in text
    for shown in (bundle.digest, "LDKNN", "LDOF", "K-th NN", "AUPRO (0.3)", "spot", "blot", "3 good, 4 defective"):
        assert shown in text


def test_report_orders_the_worst_first_and_judges_them(tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data")
    save(dataset.root / "test/spot/001.png", part(11))
    strict = bundle_at(tmp_path / "strict", threshold=0.5)
    text = write_report(tmp_path / "report", evaluate(strict, dataset), strict, dataset).read_text(encoding="utf-8")
    misses = text.split("Worst misses")[1].split("Worst overkill")[0]
    assert re.findall(r'class="name" title="([^"]+)"', misses) == ["001.png", "000.png"]
    assert re.findall(r'class="tag[^"]*">(\w+)<', misses) == ["escape", "rejected"]
    assert set(re.findall(r'class="tag[^"]*">(\w+)<', text.split("Worst overkill")[1])) == {"passed"}


def test_report_without_threshold_or_masks(tmp_path: Path) -> None:
    plain = bundle_at(tmp_path / "plain", threshold=None)
    dataset = mvtec(tmp_path / "data", masks=False)
    text = write_report(tmp_path / "report", evaluate(plain, dataset), plain, dataset).read_text(encoding="utf-8")
    assert "Escape" not in text and "AUPRO" not in text
    assert not (tmp_path / "report/miss-1-mask.png").exists()


def test_report_of_an_adapted_backbone_shows_how_it_was_adapted(bundle: Bundle, tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data")
    found = evaluate(bundle, dataset)
    folder = tmp_path / "report"
    adapted = bundle_at(tmp_path / "adapted", adaptation=tiny_adaptation())
    text = write_report(folder, found, adapted, dataset).read_text(encoding="utf-8")
    section = text.split("<h2>Adaptation</h2>")[1].split("<h2>")[0]
    assert re.findall(r'src="([^"]+)"', section) == ["adaptation.png", "confusion.png"]
    assert all((folder / name).is_file() for name in ("adaptation.png", "confusion.png"))
    for name, value in adaptation_facts(tiny_adaptation()):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in section
    # the same folder again, of a backbone that was not adapted
    assert "Adaptation" not in write_report(folder, found, bundle, dataset).read_text(encoding="utf-8")
    assert not (folder / "adaptation.png").exists()


def test_report_of_a_chosen_alpha_shows_what_it_was_chosen_on(bundle: Bundle, tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data")
    found = evaluate(bundle, dataset)
    folder = tmp_path / "report"
    chosen = bundle_at(tmp_path / "chosen", choice=tiny_choice())
    text = write_report(folder, found, chosen, dataset).read_text(encoding="utf-8")
    section = text.split("<h2>Alpha and the bank</h2>")[1].split("<h2>")[0]
    assert re.findall(r'src="([^"]+)"', section) == ["alpha.png", "bank.png"]
    assert all((folder / name).is_file() for name in ("alpha.png", "bank.png"))
    for name, value in choice_facts(tiny_choice()):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in section
    assert "Alpha and the bank" not in write_report(folder, found, bundle, dataset).read_text(encoding="utf-8")
    assert not (folder / "alpha.png").exists()


def test_report_escapes_names(bundle: Bundle, tmp_path: Path) -> None:
    kind = '<i>&"x'
    dataset = mvtec(tmp_path / "data", (kind,))
    text = write_report(tmp_path / "report", evaluate(bundle, dataset), bundle, dataset).read_text(encoding="utf-8")
    assert kind not in text and "&lt;i&gt;&amp;&#34;x" in text


def test_report_replaces_only_a_report(bundle: Bundle, tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data")
    found = evaluate(bundle, dataset)
    folder = tmp_path / "report"
    write_report(folder, found, bundle, dataset)
    assert write_report(folder, found, bundle, dataset).is_file()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(TrainError, match=r"holds notes\.txt, which a report would replace"):
        write_report(folder, found, bundle, dataset)
    assert (folder / "notes.txt").read_text() == "mine"


def test_report_folder_may_not_be_a_file_or_another_page(tmp_path: Path) -> None:
    check_report_folder(tmp_path / "new")
    check_report_folder(tmp_path)
    (tmp_path / "index.html").write_text("<title>somebody's page</title>")
    with pytest.raises(TrainError, match="holds another page"):
        check_report_folder(tmp_path)
    with pytest.raises(TrainError, match="a file, expected"):
        check_report_folder(tmp_path / "index.html")


def test_report_says_which_precision_was_evaluated_and_which_are_offered(tmp_path: Path) -> None:
    dataset = mvtec(tmp_path / "data")
    offered = Variant(precision="fp16", images=40, max_difference=0.02, flips=0, offered=True)
    refused = Variant(precision="int8", images=40, max_difference=0.5, flips=3, offered=False, reason="3 of 40 decisions flip")
    graphs = {"fp16": feature_graph(convolution=True)}
    bundle = bundle_at(tmp_path / "further", variants=(offered, refused), graphs=graphs)
    found = evaluate(bundle, dataset, precision="fp16")
    assert found.precision == "fp16"
    text = write_report(tmp_path / "report", found, bundle, dataset).read_text(encoding="utf-8")
    assert "<dt>Precision</dt><dd>fp16</dd>" in text
    section = text.split("<h2>Precisions</h2>")[1].split("<h2>")[0]
    assert "<td>fp16</td><td>40</td><td>0.02</td><td>0</td><td>offered</td>" in section
    assert "<td>3</td><td>not offered: 3 of 40 decisions flip</td>" in section
    plain = bundle_at(tmp_path / "plain")
    assert "<h2>Precisions</h2>" not in write_report(tmp_path / "other", found, plain, dataset).read_text(encoding="utf-8")
