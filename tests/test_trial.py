"""Trials of a bank on good images and synthetic defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from engines import console
from engines.images import Image, encode_png
from train.normals import Normals, embed_normals, other_images
from train.others import Nearest, OtherImages
from train.product import Console, Settings, open_product
from train.trial import DEFECTS, Defects, Trial, auroc, hold_trials, sizes_to_try


def images(count: int, size: tuple[int, int] = (96, 128)) -> list[Image]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.integers(90, 110, (*size, 3)), np.uint8) for _ in range(count)]


def one_patch(*distances: float) -> Nearest:
    """Images of one patch each; all find row 0, but the last, which finds row 1."""
    row = np.zeros(len(distances), np.int64)
    row[-1] = 1
    return Nearest(np.array(distances, np.float32), row)


def trial() -> Trial:
    """Two good images and three defects, of which two are on the second image."""
    return Trial(one_patch(1, 4), one_patch(2, 4, 8), np.array([0, 1, 1]), np.ones((1, 1), bool), "sqeuclidean")


def test_wins_by_hand() -> None:
    # the density of row 1 is 4 for image 0 and 5 for image 1, which at alpha 1 is taken from the last of each
    wins = trial().wins(lambda image: np.array([0, 4 + image], np.float32), (0.0, 1.0))
    assert wins[0].tolist() == [[1, 2], [0, 1.5]]  # good 1 and 4; defects 2 on image 0, 4 and 8 on image 1
    assert wins[1].tolist() == [[1, 2], [1, 2]]  # good 1 and -1; defects 2, and 4 and 3
    assert trial().drawn.tolist() == [1, 2]
    assert trial().images == 2


def test_auroc_is_that_of_scikit_learn_and_the_bootstrap_that_of_repeated_images() -> None:
    rng = np.random.default_rng(3)
    good, found, source = rng.integers(0, 9, 6), rng.integers(3, 12, 10), np.append(np.arange(6), rng.integers(0, 6, 4))
    zero = np.zeros(16, np.int64)
    held = Trial(
        Nearest(good.astype(np.float32), zero[:6]), Nearest(found.astype(np.float32), zero[:10]), source, np.ones((1, 1), bool),
        "sqeuclidean",
    )  # fmt: skip
    wins = held.wins(lambda image: np.zeros(1, np.float32), (0.0,))
    weight = rng.multinomial(6, np.full(6, 1 / 6), 5)
    values = auroc(wins, np.concatenate([np.ones((1, 6)), weight]), held.drawn)[0]
    for counts, value in zip([np.ones(6, int), *weight], values, strict=True):
        scores = np.concatenate([np.repeat(good, counts), np.repeat(found, counts[source])])
        bad = np.arange(len(scores)) >= counts.sum()
        assert value == pytest.approx(roc_auc_score(bad, scores))


def test_patches_that_are_not_judged_do_not_count() -> None:
    judged = np.array([[True, False, True]])
    near = np.array([1, 2, 3, 4], np.float32)  # two images of two judged patches, one window over all
    good, found = Nearest(near, np.zeros(4, np.int64)), Nearest(near + 2, np.zeros(4, np.int64))
    held = Trial(good, found, np.array([0, 1]), judged, "euclidean")
    assert held.images == 2
    # means of roots: 1.21 and 1.87 are good, 1.87 and 2.34 defective
    assert held.wins(lambda image: np.zeros(1, np.float32), (0.0,)).tolist() == [[[1, 1], [0.5, 1]]]


def test_defects_are_the_same_for_the_same_seed_and_of_all_kinds_in_turn() -> None:
    product = images(5)
    first, again, other = (Defects(product, None, seed) for seed in (1, 1, 2))
    assert len(first.source) == DEFECTS
    assert np.bincount(first.source).tolist() == [DEFECTS // 5] * 5
    for number in (0, 7, 239):
        drawn = first.draw(number)
        assert (drawn != product[first.source[number]]).any()
        assert (drawn == again.draw(number)).all()
        assert (drawn != other.draw(number)).any()


def test_more_images_than_defects_have_one_each() -> None:
    product = images(DEFECTS + 3, (64, 64))
    assert Defects(product, None, 0).source.tolist() == list(range(DEFECTS + 3))


@pytest.mark.parametrize("size", [(16, 16), (64, 512), (32, 1024)])
def test_defects_fit_in_small_and_slim_pictures(size: tuple[int, int]) -> None:
    product = images(3, size)
    defects = Defects(product, None, 0)
    assert all(defects.draw(number).shape == (*size, 3) for number in range(24))


def test_defects_lie_on_the_part() -> None:
    product = images(4, (128, 128))
    part = np.zeros((128, 128), bool)
    part[:64, :64] = True
    defects = Defects(product, [part] * 4, 0)
    centres = []
    for number in range(60):
        changed = np.argwhere((defects.draw(number) != product[defects.source[number]]).any(axis=2))
        centres.append(changed.mean(axis=0))
    assert np.mean([part[tuple(np.round(centre).astype(int))] for centre in centres]) > 0.9


class Flawless:
    """Stands for `Defects`: one on each image, which changes nothing but the picture's upper left corner."""

    def __init__(self, pictures: list[Image]) -> None:
        self.source = np.arange(len(pictures))
        self._pictures = pictures

    def draw(self, number: int) -> Image:
        drawn = self._pictures[number].copy()
        drawn[:8, :8] = 255
        return drawn


def small_product(folder: Path, mask: bool) -> Normals:
    """Four images of 64 x 64 that differ, embedded; with a mask, the upper left quarter is ignored."""
    rng = np.random.default_rng(0)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encode_png(np.asarray(rng.integers(0, 256, (64, 64, 3)), np.uint8)))
    path = None
    if mask:
        path = folder.parent / "mask.png"
        ignored = np.zeros((64, 64, 3), np.uint8)
        ignored[:32, :32] = 255
        path.write_bytes(encode_png(ignored))
    talk = Console(lambda line: None, lambda line: None, console.progress)
    settings = Settings(folder, weights="none", size=(64, 64), mask=path, device="cpu")
    return embed_normals(open_product(settings, talk), 0, talk)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.mark.parametrize("mask", [False, True])
def test_a_defective_image_is_judged_by_the_rows_of_others_and_seen_as_the_station_sees_it(folder: Path, mask: bool) -> None:
    normals = small_product(folder, mask)
    pictures = [normals.preprocessor.resized(sample.image()) for sample in normals.samples]
    every = np.arange(len(normals.bank_features))
    bank = other_images(normals, every)
    assert bank is not None
    image = np.repeat(np.arange(4), normals.patches)
    good = bank.search(normals.bank_features, image, (len(every),))
    (held,) = hold_trials(normals, bank, good, (len(every),), Flawless(pictures), "sqeuclidean", lambda done, total: None)  # type: ignore[arg-type]
    assert held.source.tolist() == [0, 1, 2, 3]
    assert (held.defective.row // normals.patches != image).all()
    if mask:  # the corner is ignored, so the defects are not there: what is found is what the good images find
        np.testing.assert_allclose(held.defective.squared, good[0].squared, rtol=1e-3)
    else:
        assert not np.allclose(held.defective.squared, good[0].squared, rtol=1e-3)


@given(rows=st.integers(2, 5000), second=st.integers(1, 50))
def test_sizes_ascend_to_the_bank_itself_and_hold_two_images(rows: int, second: int) -> None:
    image = np.zeros(rows, np.int64)
    image[min(second, rows - 1) :] = 1
    bank = OtherImages(np.zeros((rows, 1), np.float32), image)
    assert sizes_to_try(bank, rows) == (rows,)
    sizes = sizes_to_try(bank, rows + 1)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == rows
    assert sizes[0] > min(second, rows - 1)
    assert sizes[0] >= min(32, rows)
