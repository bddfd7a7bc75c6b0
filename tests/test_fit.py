"""Fit, end to end: from a folder of drawn parts to a bundle that verifies, or to one clear line and nothing written."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import train.fit
import train.select
from calibration import CalibrationError
from engines import EngineError, InspectionError
from engines.bundle import Bundle, load_bundle
from engines.images import encode_png, pixel_digest, read_image
from engines.inspector import Inspector
from engines.ldknn import density
from engines.preprocess import Roi
from engines.verify import verify_golden
from train import TrainError
from train.audit import summarise
from train.backbones import backbone_spec, build
from train.export import to_onnx
from train.features import FeatureNet
from train.fit import FitResult, fit
from train.measured import MeasuredDensity
from train.normals import embed_normals
from train.product import Console, Settings, open_product
from train.sample import draw_part
from train.select import ALPHAS, choose

SIDE_PX = 64
PRODUCT = 24  # images: enough to hold some out, few enough to be quick
_graphs: dict[tuple[str, tuple[int, int]], bytes] = {}


class Talk:
    """What a person would have read."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.bars: list[str] = []

    @property
    def console(self) -> Console:
        return Console(self.said.append, self.warned.append, self._progress)

    @contextlib.contextmanager
    def _progress(self, title: str) -> Iterator[Callable[..., None]]:
        self.bars.append(title)
        yield lambda done, total, note="": None


def exported_once(network: FeatureNet, size: tuple[int, int]) -> bytes:
    """`to_onnx`, which takes seconds, once for each network and size."""
    weights = b"".join(value.numpy().tobytes() for value in network.state_dict().values())
    key = hashlib.sha256(weights).hexdigest(), size
    if key not in _graphs:
        _graphs[key] = to_onnx(network, size)
    return _graphs[key]


@pytest.fixture(autouse=True)
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.fit, "to_onnx", exported_once)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Images this small gain nothing from threads, which wait for each other on a busy machine."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


def draw(folder: Path, count: int, side_px: int = SIDE_PX) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, _ = draw_part(np.random.default_rng(number), side_px)
        (folder / f"{number:02d}.png").write_bytes(encode_png(image))
    return folder


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four good parts; not to be written to."""
    return draw(tmp_path_factory.mktemp("drawn") / "flange", PRODUCT)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Five good parts, for a test to spoil."""
    return draw(tmp_path / "few", 5)


def settings_for(data: Path, **changed: Any) -> Settings:
    usual = Settings(data, weights="none", size=(SIDE_PX, SIDE_PX), coreset=0.1, device="cpu", command="train fit")
    return dataclasses.replace(usual, **changed)


def run(data: Path, out: Path, **changed: Any) -> tuple[FitResult, Bundle, Talk]:
    talk = Talk()
    result = fit(settings_for(data, **changed), out, talk.console)
    return result, load_bundle(out), talk


@dataclasses.dataclass(frozen=True)
class Fitted:
    data: Path
    path: Path
    result: FitResult
    bundle: Bundle
    talk: Talk


@pytest.fixture(scope="session")
def fitted(product: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """The usual product's bundle; not to be written to."""
    out = tmp_path_factory.mktemp("fitted") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.fit, "to_onnx", exported_once)
        return Fitted(product, out, *run(product, out))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def old_bundle(fitted: Fitted, folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A copy of the usual bundle, alone in a folder, and its contents."""
    out = folder / "stands" / "bundle"
    out.mkdir(parents=True)
    for name, data in contents(fitted.path).items():
        (out / name).write_bytes(data)
    return out, contents(out)


def assert_untouched(out: Path, before: dict[str, bytes]) -> None:
    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    load_bundle(out)


# ---- what a bundle is


def test_a_bundle_loads_and_its_golden_images_verify(fitted: Fitted) -> None:
    bundle = fitted.bundle
    assert fitted.result.digest == bundle.digest
    assert fitted.result.rows == len(bundle.bank.rows)
    with Inspector(bundle) as inspector:
        result = verify_golden(inspector, bundle.golden(), bundle.manifest.threshold, bundle.manifest.golden.spread)
    assert result.passed
    assert result.max_difference == 0  # the scores promised are those of the exported graph
    names = bundle.golden().names
    assert any("marked" in name for name in names)
    assert any("marked" not in name for name in names)


def test_the_manifest_says_what_was_done(fitted: Fitted) -> None:
    manifest, made = fitted.bundle.manifest, fitted.bundle.manifest.provenance
    assert (manifest.method.backbone, manifest.method.dim, manifest.method.grid) == ("resnet18", 512, (8, 8))
    method = manifest.method
    assert (method.density, method.k, method.metric) == ("measured", 9, "sqeuclidean")
    assert method.alpha in ALPHAS
    assert manifest.input.size == (SIDE_PX, SIDE_PX)
    assert (made.recipe, made.weights, made.weights_sha256, made.seed) == ("flange", "none", None, 0)
    assert made.command == "train fit"
    assert made.patches == (PRODUCT - 3) * 64
    assert len(fitted.bundle.bank.rows) == round(0.1 * made.patches)
    assert {"torch", "numpy", "opencv", "onnxruntime", "python", "reb"} == made.versions.keys()
    untrained, *others = fitted.talk.warned
    assert untrained == "untrained resnet18 drawn from seed 0: scores will be much weaker than with ImageNet weights"
    assert all(line.startswith("synthetic defects can hardly be told") for line in others)
    assert fitted.talk.bars == [
        *("weights", "audit", "embedding", "coreset", "leave one out", "density"),
        *("images", "saliency", "defects", "timing", "normal scores", "golden images"),
    ]


def test_held_out_images_are_recorded_and_not_in_the_bank(fitted: Fitted) -> None:
    images = fitted.bundle.manifest.provenance.images
    assert [image.use for image in images] == ["bank"] * (PRODUCT - 3) + ["held-out"] * 3
    for image in images:
        assert image.pixels == pixel_digest(read_image(fitted.data / image.name))
    assert fitted.bundle.learnt_from() == {image.pixels for image in images if image.use == "bank"}
    bank = fitted.bundle.bank
    assert set(bank.image.tolist()) <= set(range(PRODUCT - 3))
    # every row is the embedding of the patch that it claims to be
    with Inspector(fitted.bundle) as inspector:
        for row in range(0, len(bank.rows), 29):
            picture = read_image(fitted.data / images[bank.image[row]].name)
            embeddings = inspector.extractor.extract(inspector.preprocessor(picture))
            assert np.allclose(embeddings[bank.patch[row]], bank.rows[row], rtol=1e-3, atol=1e-3)


def published_density(bundle: Bundle, data: Path, row: int) -> float:
    product = open_product(settings_for(data), Talk().console)
    features = embed_normals(product, 0, Talk().console).bank_features.astype(np.float64)
    assert len(features) == (PRODUCT - 3) * 64
    own = bundle.bank.image[row] * 64 + bundle.bank.patch[row]
    assert np.array_equal(bundle.bank.rows[row], features[own].astype(np.float32))
    squared = ((np.delete(features, own, axis=0) - features[own]) ** 2).sum(axis=1)
    return float(np.sort(squared)[:9].mean())


@pytest.mark.parametrize(("alpha", "expected"), [(None, 1.0), (0.6, 0.6)])
def test_k_takes_the_published_density_over_the_bank_images_and_no_other(
    fitted: Fitted, tmp_path: Path, alpha: float | None, expected: float
) -> None:
    _, bundle, talk = run(fitted.data, tmp_path / "bundle", k=9, alpha=alpha)
    method = bundle.manifest.method
    assert (method.density, method.k, method.alpha) == ("published", 9, expected)
    assert bundle.manifest.provenance.choice is None
    assert "defects" not in talk.bars
    for row in (0, len(bundle.bank.rows) - 1):
        assert bundle.bank.density[row] == pytest.approx(published_density(bundle, fitted.data, row), rel=1e-5)


def test_alpha_alone_takes_the_measured_density_with_it(fitted: Fitted, tmp_path: Path) -> None:
    _, bundle, talk = run(fitted.data, tmp_path / "bundle", alpha=0.3)
    method = bundle.manifest.method
    assert (method.density, method.alpha) == ("measured", 0.3)
    assert bundle.manifest.provenance.choice is None
    assert np.array_equal(bundle.bank.density, fitted.bundle.bank.density)
    assert "defects" not in talk.bars


def test_the_density_is_measured_on_the_bank_images_in_the_rows_of_others(fitted: Fitted) -> None:
    bank = fitted.bundle.bank
    product = open_product(settings_for(fitted.data), Talk().console)
    features = embed_normals(product, 0, Talk().console).bank_features
    image = np.repeat(np.arange(PRODUCT - 3), 64)
    squared = ((features[:, None].astype(np.float64) - bank.rows[None]) ** 2).sum(axis=2)
    squared[image[:, None] == bank.image[None]] = np.inf
    own = bank.image * 64 + bank.patch
    published = density(own.astype(np.int64), features, 9)
    measured = MeasuredDensity(published, squared.min(axis=1).astype(np.float32), squared.argmin(axis=1), PRODUCT - 3)
    np.testing.assert_allclose(bank.density, measured.density(), rtol=1e-3)


def test_what_alpha_was_chosen_on_is_recorded(fitted: Fitted) -> None:
    choice, method = fitted.bundle.manifest.provenance.choice, fitted.bundle.manifest.method
    assert choice is not None
    assert choice == fitted.result.scoring.choice
    assert (choice.images, choice.defects) == (PRODUCT - 3, 240)
    assert choice.saliency.startswith("estimated")
    assert tuple(one.alpha for one in choice.tried) == ALPHAS
    assert choice.tried[choose(choice.tried)].alpha == method.alpha
    rows = len(fitted.bundle.bank.rows)
    assert [size.rows for size in choice.sizes] == [32, round(rows / 4), round(rows / 2), rows]
    last = choice.sizes[-1]
    assert (last.alpha, last.auroc) == (method.alpha, choice.tried[choose(choice.tried)].auroc)
    assert last.plain == choice.tried[0].auroc
    assert all(size.auroc >= size.plain for size in choice.sizes)


def test_no_image_speaks_for_the_rows_that_judge_it(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    usual = MeasuredDensity.density

    def density(self: MeasuredDensity, without: int | None = None) -> Any:
        asked.append(without)
        return usual(self, without)

    monkeypatch.setattr(MeasuredDensity, "density", density)
    run(few, tmp_path / "bundle")
    trials = [without for without in asked if without is not None]
    assert sorted(trials) == sorted([0, 1, 2, 3, 4] * (len(trials) // 5))
    assert len(trials) >= 5


def test_a_bank_of_all_patches_has_no_smaller_ones_to_show(few: Path, tmp_path: Path) -> None:
    _, bundle, _ = run(few, tmp_path / "bundle", coreset=1.0)
    choice = bundle.manifest.provenance.choice
    assert choice is not None
    assert [size.rows for size in choice.sizes] == [len(bundle.bank.rows)]


def test_a_single_image_is_scored_by_plain_distances_and_says_so(few: Path, tmp_path: Path) -> None:
    _, bundle, talk = run(few, tmp_path / "bundle", few_shot=1)
    method = bundle.manifest.method
    assert (method.density, method.alpha) == ("published", 0)
    assert any("come from one image, so no density can be chosen" in line for line in talk.warned)


def test_defects_that_tell_nothing_are_warned_of(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.select, "_TELLING", 1.01)
    _, bundle, talk = run(few, tmp_path / "bundle")
    alpha = bundle.manifest.method.alpha
    assert any(f"expected 101% or more): alpha {alpha:g} rests on little" in line for line in talk.warned)


def test_masks_of_the_part_lie_in_folders_where_bank_and_held_out_images_share_a_name(few: Path, tmp_path: Path) -> None:
    loco, masks = tmp_path / "loco", tmp_path / "masks"
    for folder in ("train/good", "validation/good"):
        (loco / folder).mkdir(parents=True)
        (masks / folder).mkdir(parents=True)
        for image in few.iterdir():
            picture = read_image(image) // 2 if folder.startswith("train") else read_image(image)
            (loco / folder / image.name).write_bytes(encode_png(picture))
            (masks / folder / image.name).write_bytes(encode_png(np.full_like(picture, 255)))
    (loco / "test/good").mkdir(parents=True)
    (loco / "test/structural_anomalies").mkdir(parents=True)
    for folder in ("test/good", "test/structural_anomalies"):
        (loco / folder / "000.png").write_bytes(encode_png(read_image(few / "00.png")))
    fit(settings_for(loco), tmp_path / "bundle", Talk().console, saliency=masks)
    choice = load_bundle(tmp_path / "bundle").manifest.provenance.choice
    assert choice is not None
    assert choice.saliency.startswith("files")


def test_masks_say_where_the_defects_of_the_choice_lie(few: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for image in few.iterdir():
        mask = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
        mask[8:24, 8:24] = 255
        (masks / image.name).write_bytes(encode_png(mask))
    talk = Talk()
    fit(settings_for(few), tmp_path / "bundle", talk.console, saliency=masks)
    choice = load_bundle(tmp_path / "bundle").manifest.provenance.choice
    assert choice is not None
    assert choice.saliency == f"files, masks from {masks}: 6% of a typical image is part"
    (masks / "00.png").unlink()
    with pytest.raises(CalibrationError, match=r"00\.png"):
        fit(settings_for(few), tmp_path / "bundle", talk.console, saliency=masks)
    with pytest.raises(TrainError, match="no such folder"):
        fit(settings_for(few), tmp_path / "bundle", talk.console, saliency=tmp_path / "gone")


def test_the_threshold_is_the_highest_held_out_score(fitted: Fitted) -> None:
    threshold = fitted.result.threshold
    assert threshold is not None
    assert threshold == fitted.bundle.manifest.threshold
    assert (threshold.n, threshold.rate) == (3, 0.25)
    with Inspector(fitted.bundle) as inspector:
        scores = [
            inspector.score(read_image(fitted.data / image.name)).value
            for image in fitted.bundle.manifest.provenance.images
            if image.use == "held-out"
        ]
    assert threshold.value == pytest.approx(max(scores), rel=1e-4)
    assert fitted.bundle.manifest.golden.spread == pytest.approx(np.std(scores, ddof=1), rel=1e-3)


def test_the_same_seed_gives_the_same_bank_bit_for_bit_and_another_another(fitted: Fitted, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever the process did before
    _, again, _ = run(fitted.data, tmp_path / "again")
    for name in ("rows", "density", "image", "patch"):
        assert np.array_equal(getattr(again.bank, name), getattr(fitted.bundle.bank, name))
    assert again.graph("fp32") == fitted.bundle.graph("fp32")
    assert again.manifest.threshold == fitted.bundle.manifest.threshold
    assert np.array_equal(again.golden().scores, fitted.bundle.golden().scores)
    other = open_product(settings_for(fitted.data, seed=1), Talk().console)
    used = [image.name for image in again.manifest.provenance.images if image.use == "held-out"]
    assert [sample.path.name for sample in other.held_out] != used


def test_the_trained_product_rejects_a_spoiled_part(fitted: Fitted) -> None:
    threshold = fitted.result.threshold
    assert threshold is not None
    picture = read_image(fitted.data / "00.png")
    with Inspector(fitted.bundle) as inspector:
        assert inspector.score(picture).value <= threshold.value
        picture[20:44, 20:44] = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
        assert inspector.score(picture).value > threshold.value


# ---- few images, odd images


def test_below_twenty_images_there_is_no_threshold_and_a_warning(tmp_path: Path) -> None:
    result, bundle, talk = run(draw(tmp_path / "nineteen", 19), tmp_path / "bundle")
    assert result.threshold is None
    assert bundle.manifest.threshold is None
    assert {image.use for image in bundle.manifest.provenance.images} == {"bank"}
    assert any("19 images are too few to hold any out" in line and "calibrate" in line for line in talk.warned)


def test_one_image_works_with_a_warning(tmp_path: Path) -> None:
    _, bundle, talk = run(draw(tmp_path / "one", 1), tmp_path / "bundle")
    assert set(bundle.bank.image.tolist()) == {0}
    assert any("a single image" in line for line in talk.warned)
    with Inspector(bundle) as inspector:
        assert verify_golden(inspector, bundle.golden(), None, bundle.manifest.golden.spread).passed


def test_exact_copies_are_left_out(few: Path, tmp_path: Path) -> None:
    (few / "copy of 00.png").write_bytes((few / "00.png").read_bytes())
    cv2.imwrite(str(few / "again.bmp"), read_image(few / "01.png")[:, :, ::-1])  # the same pixels in another format
    _, bundle, talk = run(few, tmp_path / "bundle")
    names = [image.name for image in bundle.manifest.provenance.images]
    assert len(names) == 5
    assert len({image.pixels for image in bundle.manifest.provenance.images}) == 5
    assert "2 images are exact copies of others and were left out" in talk.warned


def test_few_shot_trains_on_so_many(product: Path, tmp_path: Path) -> None:
    _, bundle, talk = run(product, tmp_path / "bundle", few_shot=2)
    assert len(bundle.manifest.provenance.images) == 2
    assert "few-shot: 2 of 2 images asked for, drawn with seed 0" in talk.said


@pytest.mark.parametrize(("sides", "expected"), [((64, 64, 64), (64, 64)), ((64, 64, 80), None)])
def test_a_few_shot_draw_takes_the_frame_size_from_all_images(
    tmp_path: Path, sides: tuple[int, ...], expected: tuple[int, int] | None
) -> None:
    for number, side in enumerate(sides):
        image, _ = draw_part(np.random.default_rng(number), side)
        (tmp_path / f"{number}.png").write_bytes(encode_png(image))
    drawn = set()
    for seed in range(4):
        product = open_product(settings_for(tmp_path, few_shot=1, seed=seed), Talk().console)
        drawn.update(sample.path.name for sample in product.samples)
        assert embed_normals(product, seed, Talk().console).spec.frame_size == expected
    assert len(drawn) > 1


def test_validation_normals_of_the_layout_are_what_is_held_out(tmp_path: Path) -> None:
    data = tmp_path / "loco"
    draw(data / "train/good", 4)
    draw(data / "validation/good", 6)
    for name in ("00", "01", "02", "03"):
        (data / f"validation/good/{name}.png").unlink()
    (data / "test/logical_anomalies").mkdir(parents=True)
    result, bundle, _ = run(data, tmp_path / "bundle")
    uses = {image.name: image.use for image in bundle.manifest.provenance.images}
    assert [name for name, use in uses.items() if use == "held-out"] == ["validation/good/04.png", "validation/good/05.png"]
    assert list(uses.values()).count("bank") == 4
    assert result.threshold is not None
    assert result.threshold.n == 2


def test_grey_sixteen_bit_and_alpha_images_work(few: Path, tmp_path: Path) -> None:
    pictures = [read_image(few / f"0{number}.png") for number in range(3)]
    grey = np.asarray(cv2.cvtColor(pictures[0], cv2.COLOR_RGB2GRAY), np.uint8)
    cv2.imwrite(str(few / "00.png"), grey)
    cv2.imwrite(str(few / "01.png"), pictures[1][:, :, ::-1].astype(np.uint16) * 257)
    cv2.imwrite(str(few / "02.png"), np.dstack([pictures[2][:, :, ::-1], np.full((SIDE_PX, SIDE_PX), 90, np.uint8)]))
    _, bundle, _ = run(few, tmp_path / "bundle")
    digests = {image.name: image.pixels for image in bundle.manifest.provenance.images}
    assert digests["00.png"] == pixel_digest(np.dstack([grey] * 3))
    assert digests["01.png"] == pixel_digest(pictures[1])  # 16 bits hold the same picture
    assert digests["02.png"] == pixel_digest(pictures[2])  # alpha hides nothing


def test_a_truncated_image_is_named_and_nothing_is_written(few: Path, tmp_path: Path) -> None:
    broken = few / "02.png"
    broken.write_bytes(broken.read_bytes()[:-200])
    out = tmp_path / "out" / "bundle"
    with pytest.raises(TrainError, match=r"1 images cannot be used; replace or remove them:\n  .*02\.png: .*truncated"):
        run(few, out)
    assert not out.parent.exists()


# ---- region, mask, size


def masked_bundle(few: Path, tmp_path: Path, **changed: Any) -> tuple[Bundle, Talk]:
    mask = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    mask[:32, :32] = 255
    (tmp_path / "mask.png").write_bytes(encode_png(mask))
    _, bundle, talk = run(few, tmp_path / "bundle", mask=tmp_path / "mask.png", coreset=1.0, **changed)
    return bundle, talk


def test_region_mask_and_size_are_stored_and_masked_patches_stay_out(few: Path, tmp_path: Path) -> None:
    bundle, _ = masked_bundle(few, tmp_path, roi=Roi(16, 0, 48, 64), size=(64, 96))
    spec = bundle.manifest.input
    assert (spec.size, spec.roi, spec.frame_size) == ((64, 96), (16, 0, 48, 64), (SIDE_PX, SIDE_PX))
    assert bundle.manifest.method.grid == (8, 12)
    assert bundle.mask is not None
    assert np.array_equal(np.argwhere(bundle.mask)[[0, -1]], [[0, 0], [31, 31]])
    # the region begins at x 16, so the mask covers its first 16 of 48 columns, 4 of 12 patches, and its upper half, 4 of
    # 8; enlarging blurs the mask's border into the next cell, which is then judged in part
    ignored = {row * 12 + column for row in range(4) for column in range(4)}
    assert set(range(96)) - set(bundle.bank.patch.tolist()) == ignored
    assert len(bundle.bank.rows) == 5 * (96 - 16)
    assert bundle.manifest.provenance.patches == 5 * 80
    with Inspector(bundle) as inspector:
        picture = read_image(few / "00.png")
        value = inspector.score(picture).value
        picture[:32, :32] = 255
        picture[:, :16] = 0
        assert inspector.score(picture).value == value


def test_a_region_outside_the_frame_is_refused(few: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"region 40,0,32,32 .* inside the frame of 64 x 64"):
        run(few, tmp_path / "bundle", roi=Roi(40, 0, 32, 32))


def test_a_mask_of_another_size_is_refused(few: Path, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(encode_png(np.zeros((32, 64, 3), np.uint8)))
    with pytest.raises(EngineError, match=r"mask is 64 x 32 pixels, expected the frame's 64 x 64"):
        run(few, tmp_path / "bundle", mask=tmp_path / "mask.png")


def test_a_mask_that_ignores_everything_is_refused(few: Path, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(encode_png(np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)))
    with pytest.raises(EngineError, match="the mask ignores the whole region"):
        run(few, tmp_path / "bundle", mask=tmp_path / "mask.png")


def test_images_of_different_sizes_work_only_without_a_region(few: Path, tmp_path: Path) -> None:
    larger, _ = draw_part(np.random.default_rng(9), 80)
    (few / "odd.png").write_bytes(encode_png(larger))
    with pytest.raises(TrainError, match=r"1 images cannot be used; replace or remove them:\n  .*odd\.png: 80 x 80"):
        run(few, tmp_path / "bundle", roi=Roi(0, 0, 64, 64))
    _, bundle, _ = run(few, tmp_path / "bundle")
    assert bundle.manifest.input.frame_size is None


def test_a_frame_of_another_size_than_all_training_images_is_refused(few: Path, tmp_path: Path) -> None:
    _, bundle, _ = run(few, tmp_path / "bundle")
    assert bundle.manifest.input.frame_size == (SIDE_PX, SIDE_PX)
    squeezed, _ = draw_part(np.random.default_rng(9), 80)
    with (
        Inspector(bundle) as inspector,
        pytest.raises(EngineError, match="frame is 80 x 80 pixels, expected 64 x 64 as in training"),
    ):
        inspector.score(squeezed)


def test_millimetres_are_said_and_stored(few: Path, tmp_path: Path) -> None:
    _, bundle, talk = run(few, tmp_path / "bundle", mm_per_pixel=0.05)
    assert bundle.manifest.input.mm_per_pixel == 0.05
    said = "input: 64x64 from 64x64 pixels; one patch covers 8.0 x 8.0 source pixels (0.40 x 0.40 mm)"
    assert said in talk.said


def test_patches_that_cover_much_of_the_part_deserve_a_warning(tmp_path: Path) -> None:
    data = draw(tmp_path / "large", 1, side_px=320)
    _, _, talk = run(data, tmp_path / "bundle")
    assert any("a patch covers 40 source pixels: much smaller defects will be lost" in line for line in talk.warned)


# ---- what is refused


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alpha": float("nan")}, "alpha is nan, expected a number of 0 or more"),
        ({"alpha": float("inf")}, "alpha is inf, expected"),
        ({"alpha": -0.5}, "alpha is -0.5, expected"),
        ({"k": 0}, "K is 0, expected 1 or more"),
        ({"coreset": 0.0}, "coreset 0, expected a fraction above 0 and at most 1"),
        ({"coreset": 2.0}, "coreset 2, expected"),
        ({"coreset": float("nan")}, "coreset nan, expected"),
        ({"seed": -1}, "seed -1, expected 0 to"),
        ({"seed": 2**64}, "seed 18446744073709551616, expected 0 to"),
        ({"size": (0, 0)}, "input size 0x0, expected width and height as multiples of 16"),
        ({"size": (100, 64)}, "input size 64x100, expected width and height as multiples of 16"),
        ({"backbone": "alexnet"}, "backbone 'alexnet', expected one of"),
        ({"device": "gpu"}, "device 'gpu' cannot be used .* expected auto, cpu or cuda"),
        ({"device": "meta"}, "device 'meta' cannot be used .* expected auto, cpu or cuda"),
        ({"few_shot": 0}, "0 training images, expected 1 or more"),
        ({"weights": "gone.pth"}, "gone.pth: no such weights file"),
        ({"metric": "cosine"}, "metric 'cosine', expected 'sqeuclidean' or 'euclidean'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(
    few: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out" / "bundle"
    with pytest.raises(InspectionError, match=message):
        run(few, out, **changed)
    assert not out.parent.exists()


def test_settings_are_refused_before_any_image_is_read(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.read_image", lambda path: pytest.fail("an image was read"))
    for changed in ({"size": (33, 32)}, {"seed": -1}, {"device": "gpu"}, {"weights": "gone.pth"}, {"k": 0}):
        with pytest.raises(InspectionError):
            run(few, tmp_path / "bundle", **changed)


def test_a_folder_that_is_no_bundle_is_not_replaced(few: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    talk = Talk()
    with pytest.raises(EngineError, match="a folder that is not a bundle"):
        fit(settings_for(few), tmp_path / "mine", talk.console)
    assert talk.said == []  # before any work
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"


def test_embeddings_that_are_not_finite_are_refused(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> tuple[np.ndarray, tuple[str, ...], frozenset[tuple[int, int]]]:
        return np.full((5 * 64, 512), np.nan, np.float32), ("",) * 5, frozenset({(64, 64)})

    monkeypatch.setattr("train.normals.embed_samples", broken)
    with pytest.raises(TrainError, match="embeddings that are not finite; the weights do not suit these images"):
        run(few, tmp_path / "bundle")


def test_more_embeddings_than_memory_are_refused(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.normals.os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 100}[name])
    with pytest.raises(TrainError, match=r"embeddings need 0.0 GiB, this machine has 0.0 GiB; use fewer images \(--few-shot\)"):
        run(few, tmp_path / "bundle")


# ---- an older bundle stands until the new one is whole


def test_a_new_bundle_replaces_an_old_one(fitted: Fitted, few: Path, tmp_path: Path) -> None:
    out, before = old_bundle(fitted, tmp_path)
    result, bundle, _ = run(few, out)
    assert bundle.digest == result.digest != fitted.bundle.digest
    assert contents(out) != before
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_an_old_bundle_stays_when_the_gate_fails(
    fitted: Fitted, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = old_bundle(fitted, tmp_path)

    def broken(network: FeatureNet, size: tuple[int, int]) -> bytes:
        spec = backbone_spec("resnet18")
        return exported_once(FeatureNet(build(spec, None, seed=77), spec), size)  # the graph of another network

    monkeypatch.setattr(train.fit, "to_onnx", broken)
    with pytest.raises(TrainError, match=r"does not agree with the trained network: .*; nothing was written"):
        run(few, out)
    assert_untouched(out, before)


def test_an_old_bundle_stays_when_the_disk_is_full(
    fitted: Fitted, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = old_bundle(fitted, tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match=r"No space left on device.*free some space; what stood there before still stands"):
        run(few, out)
    assert_untouched(out, before)


_INTERRUPTED = """
    import os, signal, sys
    import engines.bundle, train.fit
    from train.__main__ import main

    def at(*arguments, **named):
        os.kill(os.getpid(), signal.SIGINT)

    if sys.argv[1] == "training":
        train.select.density = at
    else:  # while the bundle is half-written: the new folder is there, whole, and not yet checked
        engines.bundle.load_bundle = at
    graph = open(sys.argv[2], "rb").read()
    train.fit.to_onnx = lambda network, size: graph
    sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize("when", ["training", "writing"])
def test_an_old_bundle_stays_on_ctrl_c(fitted: Fitted, few: Path, tmp_path: Path, when: str) -> None:
    out, before = old_bundle(fitted, tmp_path)
    (tmp_path / "graph.onnx").write_bytes(fitted.bundle.graph("fp32"))
    words = f"fit --data {few} --out {out} --weights none --size 64 --coreset 0.1 --device cpu".split()
    program = [sys.executable, "-c", textwrap.dedent(_INTERRUPTED), when, str(tmp_path / "graph.onnx"), *words]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert "interrupted; nothing half-written was left behind" in done.stderr
    assert "Traceback" not in done.stderr
    assert_untouched(out, before)


def test_copies_and_unreadable_files_are_counted_once_in_an_audit(few: Path) -> None:
    (few / "copy.png").write_bytes((few / "00.png").read_bytes())
    (few / "broken.png").write_bytes(b"no image")
    normals = embed_normals(open_product(settings_for(few), Talk().console, skip_unusable=True), 0, Talk().console)
    assert len(normals.samples) == 5
    assert sorted(finding.problem for finding in normals.findings) == ["duplicate", "unreadable"]
    assert summarise(normals.findings, 7).startswith("audit: 1 unreadable, 1 duplicate in 7 images")
