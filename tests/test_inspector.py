"""From a frame to a score, by hand, on the tiny network."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engines import EngineError
from engines.bundle import Bundle, Metric, Pooling, load_bundle
from engines.images import Image
from engines.inspector import Inspector, Scorer, anomaly_map, overlay
from tests.fakes import FakeExtractor, cell, cells, flat, textured, write_tiny_bundle

# one white cell on grey 128, in a bank of grey 128: the squared distance of the two colours, ((255 - 128) / 255 / std)^2 in
# all, spread by the 3 x 3 window over nine patches
WHITE = sum(((255 - 128) / 255 / std) ** 2 for std in (0.229, 0.224, 0.225))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A tiny bundle: one row of grey 128."""
    write_tiny_bundle(tmp_path / "bundle")
    return load_bundle(tmp_path / "bundle")


def scorer(bundle: Bundle, extractor: FakeExtractor | None = None) -> Scorer:
    extractor = extractor or FakeExtractor(bundle.manifest.input.size)
    return Scorer(bundle.manifest.method, bundle.preprocessor(), bundle.bank, extractor)


def with_white(row: int, col: int) -> Image:
    image = flat(128)
    image[8 * row : 8 * row + 8, 8 * col : 8 * col + 8] = 255
    return image


def test_the_good_picture_scores_zero_and_a_white_cell_its_distance(bundle: Bundle) -> None:
    with Inspector(bundle) as inspector:
        assert inspector.score(flat(128)).value == pytest.approx(0, abs=1e-6)
        assert inspector.score(with_white(1, 1)).value == pytest.approx(WHITE / 9, rel=1e-5)


def test_a_white_cell_counts_wherever_it_is(bundle: Bundle) -> None:
    fake = scorer(bundle)
    for row in range(8):
        for col in range(8):
            assert fake.score(with_white(row, col)).value == pytest.approx(WHITE / 9, rel=1e-5)


def test_the_map_shows_where(bundle: Bundle) -> None:
    with Inspector(bundle) as inspector:
        patches = inspector.map(inspector.score(with_white(2, 5)))
    assert patches.shape == (8, 8)
    assert patches.dtype == np.float32
    assert patches[2, 5] == pytest.approx(WHITE, rel=1e-5)
    patches[2, 5] = 0
    np.testing.assert_allclose(patches, 0, atol=1e-6)


def test_the_backend_and_the_fake_agree(bundle: Bundle) -> None:
    fake = scorer(bundle)
    with Inspector(bundle) as inspector:
        for seed in range(5):
            image = textured(seed)
            assert inspector.score(image).value == pytest.approx(fake.score(image).value, rel=1e-5)


def test_golden_images_give_the_scores_that_the_bundle_promises(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle", golden=(flat(128), with_white(0, 0), textured(1)))
    loaded = load_bundle(tmp_path / "bundle")
    golden = loaded.golden()
    with Inspector(loaded) as inspector:
        got = [inspector.score(image).value for image in golden.images]
    np.testing.assert_allclose(got, golden.scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("alpha", "metric", "expected"), [(1.0, "sqeuclidean", -0.25), (2.0, "sqeuclidean", -0.5), (0.0, "euclidean", 0.0)]
)
def test_method_settings_reach_the_score(tmp_path: Path, alpha: float, metric: Metric, expected: float) -> None:
    density = np.array([0.25, 7], np.float32)
    write_tiny_bundle(tmp_path / "bundle", rows=cells(128, 0), density=density, alpha=alpha, metric=metric)
    assert scorer(load_bundle(tmp_path / "bundle")).score(flat(128)).value == pytest.approx(expected, abs=1e-5)


def test_euclidean_reaches_the_score(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle", metric="euclidean")
    white = scorer(load_bundle(tmp_path / "bundle")).score(with_white(1, 1)).value
    assert white == pytest.approx(math.sqrt(WHITE) / 9, rel=1e-4)


def test_pooling_reaches_the_score(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "paper", pooling="paper")
    assert scorer(load_bundle(tmp_path / "paper")).score(with_white(7, 7)).value == pytest.approx(0, abs=1e-6)


def test_region_and_resize_reach_the_score(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle", roi=(100, 50, 128, 128), frame_size=(200, 300))
    fake = scorer(load_bundle(tmp_path / "bundle"))
    frame = textured(0, (200, 300))
    frame[50:178, 100:228] = 128
    assert fake.score(frame).value == pytest.approx(0, abs=1e-6)
    frame[50:66, 100:116] = 255
    assert fake.score(frame).value == pytest.approx(WHITE / 9, rel=1e-5)


def masked_bundle(tmp_path: Path) -> tuple[Bundle, npt.NDArray[np.bool_]]:
    """A bundle whose patches (0..1, 0..2) are ignored, and half of patch (4, 4)."""
    mask = np.zeros((64, 64), bool)
    mask[:16, :24] = True
    mask[32:40, 32:36] = True
    write_tiny_bundle(tmp_path / "bundle", mask=mask)
    return load_bundle(tmp_path / "bundle"), mask


def test_ignored_patches_are_nan_on_the_map_and_count_for_nothing(tmp_path: Path) -> None:
    bundle, mask = masked_bundle(tmp_path)
    image, noisy = flat(128), flat(128)
    noisy[mask] = textured(1)[mask]
    with Inspector(bundle) as inspector:
        clean, changed = inspector.score(image), inspector.score(noisy)
        assert changed.value == clean.value
        patches = inspector.map(changed)
        assert np.argwhere(np.isnan(patches)).tolist() == [[r, c] for r in range(2) for c in range(3)]
        np.testing.assert_array_equal(patches, inspector.map(clean))


def test_a_defect_beside_the_mask_still_counts(tmp_path: Path) -> None:
    bundle, _ = masked_bundle(tmp_path)
    # window (0, 0) keeps three judged patches, those of row 2: its mean is over three, not over nine
    value = scorer(bundle).score(with_white(2, 1)).value
    assert value == pytest.approx(WHITE / 3, rel=1e-5)


def nan_at(patch: int) -> FakeExtractor:
    def spoil(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        embeddings[patch, 0] = np.nan
        return embeddings

    return FakeExtractor(spoil=spoil)


@pytest.mark.parametrize("patch", [0, 27, 63])
@pytest.mark.parametrize("pooling", ["cover", "paper"])
def test_one_nan_embedding_makes_the_score_nan(tmp_path: Path, patch: int, pooling: Pooling) -> None:
    write_tiny_bundle(tmp_path / "bundle", pooling=pooling)
    score = scorer(load_bundle(tmp_path / "bundle"), nan_at(patch)).score(flat(128))
    assert math.isnan(score.value)
    assert not score.value > 1.0 and not score.value <= 1.0


def test_nan_below_the_mask_spoils_nothing(tmp_path: Path) -> None:
    bundle, _ = masked_bundle(tmp_path)
    assert math.isfinite(scorer(bundle, nan_at(0)).score(flat(128)).value)


def test_what_the_backend_raises_comes_through(bundle: Bundle) -> None:
    def fail(call: int) -> None:
        if call == 2:
            raise EngineError("the device is gone")

    fake = scorer(bundle, FakeExtractor(before=fail))
    first = fake.score(flat(128)).value
    with pytest.raises(EngineError, match="the device is gone"):
        fake.score(flat(128))
    assert fake.score(flat(128)).value == first


def test_a_wrong_image_is_refused(bundle: Bundle) -> None:
    fake = FakeExtractor()
    images: tuple[npt.NDArray, ...] = (flat(0)[:, :, 0], flat(0).astype(np.float32), flat(0, (8, 8)))
    for wrong in images:
        with pytest.raises(EngineError, match="expected"):
            scorer(bundle, fake).score(wrong)
    assert fake.calls == 0


def test_scores_do_not_depend_on_what_was_scored_before(bundle: Bundle) -> None:
    with Inspector(bundle) as inspector:
        first = inspector.score(textured(1))
        patches = inspector.map(first).copy()
        inspector.score(textured(2))
        np.testing.assert_array_equal(inspector.map(first), patches)
        assert inspector.score(textured(1)).value == first.value


def test_leaving_the_block_closes_the_backend_once_or_twice(bundle: Bundle) -> None:
    with Inspector(bundle) as inspector:
        fake = FakeExtractor()
        inspector.extractor = fake
    assert fake.closed
    inspector.close()


def test_an_unknown_backend_is_refused(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="backend 'abacus'"):
        Inspector(bundle, "abacus")


def test_a_flat_map_stays_flat_when_enlarged() -> None:
    heat = anomaly_map(np.full((8, 12), 2.5, np.float32), (64, 96))
    assert heat.shape == (64, 96)
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, 2.5, rtol=1e-6)


def test_the_enlarged_map_peaks_at_its_patch_and_is_symmetric() -> None:
    patches = np.zeros((9, 9), np.float32)
    patches[4, 4] = 1
    heat = anomaly_map(patches, (90, 90))
    assert heat[44:46, 44:46].min() == pytest.approx(heat.max())
    np.testing.assert_allclose(heat, heat[::-1], atol=1e-6)
    np.testing.assert_allclose(heat, heat.T, atol=1e-6)


def test_ignored_patches_take_the_lowest_score_on_the_enlarged_map() -> None:
    patches = np.full((8, 8), -3, np.float32)
    patches[0, 0] = np.nan
    np.testing.assert_allclose(anomaly_map(patches, (64, 64)), -3, rtol=1e-6)


def test_the_overlay_leaves_the_picture_below_low_and_colours_it_at_high() -> None:
    image = flat(100)
    heat = np.zeros((64, 64), np.float32)
    heat[:, 32:] = 5
    heat[:, 48:] = 50  # beyond the scale: as at its end
    shown = overlay(image, heat, 1.0, 5.0)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[:, :32], image[:, :32])
    assert (shown[:, 32:] != 100).any()
    np.testing.assert_array_equal(shown[:, 32:48], shown[:, 48:])


def test_cell_is_what_the_fakes_say() -> None:
    np.testing.assert_allclose(cell((255, 0, 51)), [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225], rtol=1e-6)
