"""Synthetic defects: what every maker promises, whatever the image."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import CalibrationError
from calibration.defects import KINDS, MAKERS, CutPasteMaker, Defect, DefectConfig, DefectMaker, DraemMaker, Maker, make_maker
from engines.images import Image, list_images, read_image

VISIBLE = 5
EVERY = [(name, kind) for name, maker in MAKERS.items() for kind in maker.kinds if name not in ("cutpaste", "cutpaste-scar")]


def texture(seed: int, height: int = 256, width: int = 256, *, colour: bool = True) -> Image:
    """Smooth structure of about 25 grey levels with a camera's noise of 2: uint8 (H, W, 3) or (H, W)."""
    rng = np.random.default_rng(seed)
    planes = []
    for _ in range(3 if colour else 1):
        coarse = rng.normal(120, 25, (max(2, height // 20), max(2, width // 20))).astype(np.float32)
        planes.append(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 2, (height, width)))
    stacked = np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)
    return stacked if colour else np.ascontiguousarray(stacked[..., 0])


def textures(count: int = 4, height: int = 256, width: int = 256, *, colour: bool = True) -> list[Image]:
    return [texture(seed, height, width, colour=colour) for seed in range(count)]


def grey_rgb(count: int = 3) -> list[Image]:
    return [np.repeat(image[..., None], 3, axis=2) for image in textures(count, colour=False)]


def check(defect: Defect, before: Image) -> None:
    """The promises that hold for every defect."""
    height, width = before.shape[:2]
    assert defect.image.shape == before.shape and defect.image.dtype == np.uint8
    assert defect.shape.shape == defect.changed.shape == (height, width)
    assert defect.shape.dtype == defect.changed.dtype == np.bool_
    difference = np.abs(defect.image.astype(int) - before.astype(int)).reshape(height, width, -1)
    np.testing.assert_array_equal(defect.changed, difference.max(axis=2) >= VISIBLE)
    assert not difference[~defect.shape].any()
    assert defect.changed.any() and not (defect.changed & ~defect.shape).any()
    x, y, wide, high = defect.box
    assert x >= 0 and y >= 0 and wide > 0 and high > 0 and x + wide <= width and y + high <= height
    assert defect.shape[y : y + high, x : x + wide].sum() == defect.shape.sum()
    assert defect.parameters["size_px"] == pytest.approx(math.sqrt(defect.changed.sum()))
    assert defect.parameters["contrast"] == pytest.approx(difference[defect.changed].mean())


SETS: dict[str, list[Image]] = {
    "colour": textures(),
    "grey": textures(colour=False),
    "grey in three channels": grey_rgb(),
    "wide": textures(3, 64, 300),
    "tall": textures(3, 400, 40),
    "tiny": textures(3, 16, 16),
    "black": [np.zeros((128, 128, 3), dtype=np.uint8)] * 2,
    "white": [np.full((128, 128), 255, dtype=np.uint8)] * 2,
    "mid-grey": [np.full((128, 128, 3), 128, dtype=np.uint8)] * 2,
    "one image": textures(1),
}


@pytest.mark.parametrize("images", SETS.values(), ids=SETS.keys())
@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_kind_on_every_sort_of_image(name: str, kind: str, images: list[Image]) -> None:
    maker = make_maker(name, images)
    before = [image.copy() for image in images]
    for draw in range(4):
        defect = maker.draw(draw % len(images), kind, seed=3, draw=draw)
        check(defect, before[draw % len(images)])
        assert defect.kind == kind
        assert defect.parameters["contrast"] >= 8
    for image, copy in zip(images, before, strict=True):
        np.testing.assert_array_equal(image, copy)


@settings(max_examples=40)
@given(
    height=st.integers(16, 200),
    width=st.integers(16, 200),
    seed=st.integers(0, 2**63),
    kind=st.sampled_from(EVERY),
    colour=st.booleans(),
)
def test_any_size_and_seed(height: int, width: int, seed: int, kind: tuple[str, str], colour: bool) -> None:
    images = textures(2, height, width, colour=colour)
    check(make_maker(kind[0], images).draw(1, kind[1], seed=seed, draw=0), images[1])


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_no_draw_is_a_no_op(name: str, kind: str) -> None:
    images = textures(colour=False)
    maker = make_maker(name, images)
    for draw in range(500 // len(EVERY)):
        defect = maker.draw(draw % 4, kind, seed=11, draw=draw)
        assert defect.changed.sum() >= max(24, 0.2 * defect.shape.sum())
        assert defect.parameters["contrast"] >= 8


@pytest.mark.parametrize("level", [0, 255])
def test_a_crop_of_a_uniform_set_is_forced_to_differ(level: int) -> None:
    images = [np.full((256, 256), level, dtype=np.uint8)] * 2
    for kind in KINDS[::2]:
        defect = DefectMaker(images).draw(0, kind, seed=0, draw=0)
        if level == 0:  # no jitter makes black anything else
            assert defect.parameters["forced"] == 1 and defect.parameters["attempt"] == 20
            assert defect.parameters["contrast"] == 40
            np.testing.assert_array_equal(defect.changed, defect.shape)
        check(defect, images[0])


def test_the_same_arguments_give_the_same_defect_in_any_order() -> None:
    images = textures()
    maker = DefectMaker(images)
    keys = [(index, kind, draw) for index in range(2) for kind in KINDS for draw in range(2)]
    first = {key: maker.draw(key[0], key[1], seed=7, draw=key[2]) for key in keys}
    np.random.seed(0)  # global states must not matter
    cv2.setRNGSeed(5)
    fresh = DefectMaker(images)
    for key in reversed(keys):
        again = fresh.draw(key[0], key[1], seed=7, draw=key[2])
        np.testing.assert_array_equal(again.image, first[key].image)
        assert again.parameters == first[key].parameters and again.box == first[key].box
    assert len({defect.image.tobytes() for defect in first.values()}) == len(keys)
    other = maker.draw(0, KINDS[0], seed=8, draw=0)
    assert not np.array_equal(other.image, first[0, KINDS[0], 0].image)


DIGEST = """
import sys, hashlib, cv2
cv2.setNumThreads(int(sys.argv[1]))
from tests.test_defects import digest
print(digest())
"""


def digest() -> str:
    """SHA-256 of one defect of each kind and maker, the last kind first."""
    images, total = textures(2), hashlib.sha256()
    for name, kind in EVERY[::-1]:
        total.update(make_maker(name, images).draw(1, kind, seed=2, draw=9).image.tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("threads", ["1", "4"])
def test_another_process_with_other_threads_makes_the_same(threads: str) -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", DIGEST, threads], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest()


def draws(kind: str, count: int, images: list[Image] | None = None, maker: Maker | None = None) -> list[Defect]:
    images = textures() if images is None else images
    maker = DefectMaker(images) if maker is None else maker
    return [maker.draw(draw % len(images), kind, seed=5, draw=draw) for draw in range(count)]


@pytest.mark.parametrize(("kind", "limit"), [("bezier-noise", 3.3), ("clump-noise", 3.0)])
def test_boxes_have_the_areas_and_aspects_of_the_paper(kind: str, limit: float) -> None:
    boxes = np.array([defect.box[2:] for defect in draws(kind, 300)], dtype=float)
    shares, ratios = boxes.prod(axis=1) / 256**2, np.log(boxes[:, 0] / boxes[:, 1])
    # sides are rounded to whole pixels, and the shortest is sqrt(0.02 * 65536 / 3.3) = 20
    assert shares.min() > 0.02 * 0.95 and shares.max() < 0.15 * 1.05
    assert np.abs(ratios).max() < math.log(limit * 1.05)
    # uniform in 0.02 .. 0.15, mean 0.085 with a standard error of 0.0022; log-uniform about 1
    assert abs(shares.mean() - 0.085) < 0.009
    assert abs(ratios.mean()) < 0.17 and ratios.std() == pytest.approx(math.log(limit) / math.sqrt(3), rel=0.15)


def test_boxes_keep_their_area_in_slim_images() -> None:
    shares = [np.prod(defect.box[2:]) / (32 * 1024) for defect in draws("bezier-noise", 100, textures(2, 32, 1024))]
    assert min(shares) > 0.018 and max(shares) < 0.16
    assert abs(np.mean(shares) - 0.085) < 0.012


def test_scars_are_narrow_boxes_turned() -> None:
    straight = dataclasses.replace(DefectConfig(), scar_angle=0)
    images = textures()
    boxes = np.array([defect.box[2:] for defect in draws("scar-noise", 200, images, DefectMaker(images, None, straight))])
    assert boxes[:, 0].min() >= 7 and boxes[:, 0].max() <= 21 and boxes[:, 1].min() >= 15 and boxes[:, 1].max() <= 30
    angles = np.array([defect.parameters["angle"] for defect in draws("scar-cutpaste", 200)])
    assert -45 <= angles.min() < -35 and 35 < angles.max() <= 45
    # the diagonal of 21 x 30 is 36.6
    assert max(max(defect.box[2:]) for defect in draws("scar-noise", 200)) <= 38


def test_lengths_grow_with_the_image() -> None:
    straight = dataclasses.replace(DefectConfig(), scar_angle=0)
    images = textures(2, 512, 512)
    boxes = np.array([defect.box[2:] for defect in draws("scar-noise", 60, images, DefectMaker(images, None, straight))])
    assert boxes[:, 0].min() >= 14 and boxes[:, 0].max() <= 42 and boxes[:, 1].min() >= 30 and boxes[:, 1].max() <= 60


def test_half_of_the_edges_are_soft_and_clumps_are_translucent() -> None:
    images = [np.zeros((256, 256), dtype=np.uint8)] * 2
    maker = DefectMaker(images, None, dataclasses.replace(DefectConfig(), noise_half_range=(0, 0)))
    for kind in ("bezier-noise", "scar-noise", "clump-noise"):
        found = draws(kind, 100, images, maker)
        assert 30 <= sum(defect.parameters["soft"] == 1 for defect in found) <= 70
        for defect in found:
            peak = int(defect.image.max())
            if defect.parameters["soft"] == 0:  # one constant level inside, on black
                assert set(np.unique(defect.image)) == {0, peak}
                fill = defect.parameters["noise_mean"] * (1 + defect.parameters["jitter_brightness"])
                assert peak == pytest.approx(fill * defect.parameters.get("opacity", 1.0), abs=1.5)
        opacities = [defect.parameters.get("opacity", 1.0) for defect in found]
        assert min(opacities) >= 0.5 and max(opacities) <= 1.0
        assert (min(opacities) < 0.6) == (kind == "clump-noise")


def test_noise_stays_in_its_range() -> None:
    images = [np.zeros((256, 256), dtype=np.uint8)] * 2
    maker = DefectMaker(images, None, dataclasses.replace(DefectConfig(), jitter=0.0, soft=0.0))
    found = draws("bezier-noise", 200, images, maker)
    for defect in found:
        mean, half = defect.parameters["noise_mean"], defect.parameters["noise_half_range"]
        inside = defect.image[defect.shape]
        assert mean - half <= inside.min() and inside.max() <= mean + half
        if half >= 20 and defect.parameters["noise_cell_px"] == 1:
            assert inside.std() > 0.25 * half  # a uniform distribution's 0.58, less what resizing smooths
    assert {defect.parameters["noise_mean"] for defect in found} == set(range(50, 191, 10))
    assert {defect.parameters["noise_half_range"] for defect in found} == set(range(0, 46, 5))


def test_a_crop_comes_from_another_image_untouched_but_for_jitter() -> None:
    images = [np.full((256, 256, 3), level, dtype=np.uint8) for level in ((200, 100, 50), (90, 160, 30), (40, 60, 220))]
    maker = DefectMaker(images, None, dataclasses.replace(DefectConfig(), jitter=0.0, soft=0.0))
    sources = set()
    for draw in range(40):
        for kind in ("bezier-cutpaste", "scar-cutpaste"):
            defect = maker.draw(1, kind, seed=0, draw=draw)
            sources.add(defect.parameters["source"])
            np.testing.assert_allclose(
                defect.image[defect.shape],
                np.broadcast_to(images[defect.parameters["source"]][0, 0], (defect.shape.sum(), 3)),
                atol=1,
            )
    assert sources == {0, 2}


def test_the_only_image_gives_a_crop_of_another_place() -> None:
    columns = np.arange(256, dtype=np.uint8)
    image = np.broadcast_to(columns, (256, 256)).copy()  # the level tells the column
    maker = DefectMaker([image], None, dataclasses.replace(DefectConfig(), jitter=0.0, soft=0.0))
    for draw in range(30):
        defect = maker.draw(0, "bezier-cutpaste", seed=0, draw=draw)
        assert defect.parameters["source"] == 0 and defect.parameters["forced"] == 0
        assert np.ptp(defect.image[defect.shape].astype(int) - image[defect.shape]) == 0  # one shift for all


def test_a_scar_turns_the_grain_of_its_crop() -> None:
    dark, ramp = np.zeros((256, 256), dtype=np.uint8), np.broadcast_to(np.arange(256, dtype=np.uint8), (256, 256)).copy()
    maker = DefectMaker([dark, ramp], None, dataclasses.replace(DefectConfig(), jitter=0.0, soft=0.0))
    for draw in range(20):
        defect = maker.draw(0, "scar-cutpaste", seed=0, draw=draw)
        y, x = np.nonzero(defect.shape)
        columns = np.stack([x, y, np.ones_like(x)], axis=1).astype(float)
        slope, *_ = np.linalg.lstsq(columns, defect.image[y, x].astype(float), rcond=None)
        if defect.image[y, x].min() > 20 and defect.image[y, x].max() < 235:  # not mirrored at the border
            assert math.degrees(math.atan2(slope[1], slope[0])) == pytest.approx(defect.parameters["angle"], abs=5)


def test_crops_are_transposed_with_the_image() -> None:
    rows = np.broadcast_to(np.arange(50, 250, dtype=np.uint8), (64, 200)).copy()  # the level tells the column
    images = [np.zeros((64, 200), dtype=np.uint8), rows]
    maker = DefectMaker(images, None, dataclasses.replace(DefectConfig(), jitter=0.0, soft=0.0))
    for draw in range(10):
        defect = maker.draw(0, "bezier-cutpaste", seed=0, draw=draw, image=images[0].T)
        y, x = np.nonzero(defect.shape)
        assert np.ptp(defect.image[y, x].astype(int) - y) == 0  # now it tells the row


def test_boxes_are_centred_on_salient_points() -> None:
    saliency = np.zeros((256, 256), dtype=bool)
    saliency[120:140, 100:130] = True
    images = textures()
    maker = DefectMaker(images, [saliency] * 4)
    for kind in KINDS:
        for draw in range(25):
            x, y, width, height = maker.draw(draw % 4, kind, seed=1, draw=draw).box
            if 0 < x < 256 - width and 0 < y < 256 - height:
                assert saliency[y + height // 2, x + width // 2]
    corner = np.zeros((256, 256), dtype=bool)
    corner[0, 255] = True
    for draw in range(10):  # pushed inside
        x, y, width, _ = maker.draw(0, "bezier-noise", seed=1, draw=draw, saliency=corner).box
        assert (x + width, y) == (256, 0)


def test_crops_are_centred_on_salient_points_of_their_image() -> None:
    mark = np.full((256, 256), 50, dtype=np.uint8)
    mark[118:139, 98:119] = 250
    saliency = np.zeros((256, 256), dtype=bool)
    saliency[128, 108] = True
    dark = np.full((256, 256), 50, dtype=np.uint8)
    maker = DefectMaker([dark, mark], [np.ones_like(saliency), saliency], dataclasses.replace(DefectConfig(), jitter=0.0))
    for draw in range(20):
        defect = maker.draw(0, "scar-cutpaste", seed=1, draw=draw)
        assert defect.parameters["forced"] == 0 and defect.image.max() > 200


def test_a_version_of_the_image_may_be_transposed() -> None:
    images = textures(3, 64, 200)
    turned = np.rot90(images[0])  # a view with a negative stride
    half = np.zeros((200, 64), dtype=bool)
    half[:100] = True
    for name, kind in EVERY:
        defect = make_maker(name, images).draw(0, kind, seed=4, draw=1, image=turned, saliency=half)
        check(defect, turned)
    # the set's own masks belong to the images as they lie, so a version without a mask is salient everywhere
    defect = DefectMaker(images, [half.T] * 3).draw(0, KINDS[0], seed=4, draw=1, image=turned)
    check(defect, turned)


@pytest.mark.parametrize(("name", "kind"), EVERY)
@pytest.mark.parametrize("images", [grey_rgb(), textures(colour=False)], ids=["three channels", "one"])
def test_grey_stays_grey(name: str, kind: str, images: list[Image]) -> None:
    for defect in draws(kind, 8, images, make_maker(name, images)):
        channels = defect.image.reshape(256, 256, -1)
        assert (channels == channels[..., :1]).all()


def test_a_version_of_a_grey_image_stays_grey() -> None:
    images = grey_rgb()
    for name, kind in EVERY:
        image = make_maker(name, images).draw(0, kind, seed=0, draw=0, image=np.flipud(images[0])).image
        assert (image == image[..., :1]).all()


def test_a_grey_image_of_a_set_in_colour_stays_grey() -> None:
    images = [grey_rgb()[0], *textures(2)]
    for name, kind in EVERY:
        image = make_maker(name, images).draw(0, kind, seed=0, draw=0).image
        assert (image == image[..., :1]).all()


def test_noise_on_images_in_colour_is_coloured() -> None:
    coloured = [defect for defect in draws("bezier-noise", 10) if defect.parameters["noise_half_range"] >= 20]
    assert coloured
    for defect in coloured:
        inside = defect.image[defect.shape].astype(int)
        assert np.abs(inside[:, 0] - inside[:, 1]).mean() > 2


@pytest.mark.parametrize(("name", "kind"), EVERY)
@pytest.mark.parametrize("size_px", [4.0, 9.0, 30.0, 85.0])
def test_a_size_that_is_asked_for_is_met(name: str, kind: str, size_px: float) -> None:
    images = textures()
    maker = make_maker(name, images)
    for draw in range(5):
        defect = maker.draw(draw % 4, kind, seed=6, draw=draw, size_px=size_px)
        check(defect, images[draw % 4])
        assert math.sqrt(defect.shape.sum()) == pytest.approx(size_px, rel=0.1)


def test_the_smallest_sizes_are_met_within_a_pixel() -> None:
    for size_px in (2.0, 3.0):
        for kind in KINDS:
            defect = DefectMaker(textures(2)).draw(0, kind, seed=6, draw=0, size_px=size_px)
            assert math.sqrt(defect.shape.sum()) == pytest.approx(size_px, abs=1)


def test_sizes_are_met_in_slim_images() -> None:
    images = textures(2, 60, 400)
    for kind in KINDS:
        for size_px in (5.0, 20.0):
            defect = DefectMaker(images).draw(0, kind, seed=6, draw=0, size_px=size_px)
            check(defect, images[0])
            assert math.sqrt(defect.shape.sum()) == pytest.approx(size_px, rel=0.1)


@pytest.mark.parametrize(("name", "kind"), EVERY)
@pytest.mark.parametrize("contrast", [5.0, 8.0, 20.0, 60.0, 100.0])
def test_a_contrast_that_is_asked_for_is_met(name: str, kind: str, contrast: float) -> None:
    for images in (textures(2), [np.zeros((64, 64), dtype=np.uint8)] * 2, [np.full((64, 64, 3), 128, dtype=np.uint8)] * 2):
        maker = make_maker(name, images)
        for draw in range(2):
            defect = maker.draw(draw, kind, seed=6, draw=draw, contrast=contrast)
            check(defect, images[draw])
            assert defect.parameters["contrast"] == pytest.approx(contrast, rel=0.1)


def test_size_and_contrast_together() -> None:
    images = textures(2)
    for kind in KINDS:
        defect = DefectMaker(images).draw(0, kind, seed=6, draw=0, size_px=6, contrast=12)
        check(defect, images[0])
        assert math.sqrt(defect.shape.sum()) == pytest.approx(6, rel=0.1)
        assert defect.parameters["contrast"] == pytest.approx(12, rel=0.1)


def test_a_contrast_beyond_the_grey_scale_comes_as_near_as_it_can() -> None:
    images = [np.full((64, 64), 100, dtype=np.uint8)] * 2
    defect = DefectMaker(images).draw(0, "bezier-cutpaste", seed=0, draw=0, contrast=250)
    assert defect.parameters["contrast"] == 155 and defect.parameters["forced"] == 1


def test_draem_takes_textures_of_any_size_and_colour() -> None:
    texture_set = [texture(9, 100, 60), texture(10, 300, 400, colour=False)]
    images = [np.full((128, 128, 3), level, dtype=np.uint8) for level in (20, 230)]
    maker = DraemMaker(images, textures=texture_set)
    for draw in range(10):
        defect = maker.draw(draw % 2, "draem", seed=0, draw=draw)
        check(defect, images[draw % 2])
        assert defect.image[defect.shape].std() > 1
    with pytest.raises(CalibrationError, match="no textures"):
        DraemMaker(images, textures=[])


def test_cutpaste_moves_a_piece_of_the_image_itself() -> None:
    images = [np.full((128, 128, 3), 255, dtype=np.uint8), texture(1, 128, 128)]
    maker = CutPasteMaker(images, None, dataclasses.replace(DefectConfig(), jitter=0.0))
    for draw in range(20):
        defect = maker.draw(1, "cutpaste", seed=0, draw=draw)
        x, y, width, height = defect.box
        assert defect.shape[y : y + height, x : x + width].all()
        misfit = cv2.matchTemplate(images[1], defect.image[y : y + height, x : x + width], cv2.TM_SQDIFF)
        best, _, (from_x, from_y), _ = cv2.minMaxLoc(misfit)
        assert best < 100  # rounding of a sum of squares
        assert 2 * abs(from_x - x) >= width or 2 * abs(from_y - y) >= height


def test_the_table_of_makers() -> None:
    images = textures(2, 32, 32)
    assert [make_maker(name, images).kinds for name in MAKERS] == [
        KINDS,
        ("cutpaste",),
        ("cutpaste-scar",),
        ("cutpaste", "cutpaste-scar"),
        ("draem",),
    ]
    with pytest.raises(CalibrationError, match="defect maker 'reb', expected one of: defectmaker, cutpaste"):
        make_maker("reb", images)


def test_what_no_maker_takes_is_refused() -> None:
    image = textures(1, 32, 32)[0]
    everywhere = np.ones((32, 32), dtype=bool)
    with pytest.raises(CalibrationError, match="no images"):
        DefectMaker([])
    with pytest.raises(CalibrationError, match="float64"):
        DefectMaker([image / 255])
    with pytest.raises(CalibrationError, match=r"\(32, 32, 4\)"):
        DefectMaker([np.zeros((32, 32, 4), dtype=np.uint8)])
    with pytest.raises(CalibrationError, match="expected 16 or more"):
        DefectMaker([np.zeros((15, 32), dtype=np.uint8)])
    with pytest.raises(CalibrationError, match="one common shape"):
        DefectMaker([image, texture(0, 32, 33)])
    with pytest.raises(CalibrationError, match="1 saliency masks for 2"):
        DefectMaker([image, image], [everywhere])
    with pytest.raises(CalibrationError, match="no pixel is salient"):
        DefectMaker([image], [~everywhere])
    with pytest.raises(CalibrationError, match="expected bool"):
        DefectMaker([image], [everywhere.astype(np.uint8)])


def test_what_cannot_be_drawn_is_refused() -> None:
    image = textures(1, 32, 48)[0]
    maker = DefectMaker([image])
    with pytest.raises(CalibrationError, match="'scratch', expected one of: bezier-cutpaste"):
        maker.draw(0, "scratch", seed=0, draw=0)
    with pytest.raises(CalibrationError, match="index 1, expected 0 to 0"):
        maker.draw(1, KINDS[0], seed=0, draw=0)
    with pytest.raises(CalibrationError, match="seed -1"):
        maker.draw(0, KINDS[0], seed=-1, draw=0)
    with pytest.raises(CalibrationError, match="height and width swapped"):
        maker.draw(0, KINDS[0], seed=0, draw=0, image=texture(0, 32, 32))
    with pytest.raises(CalibrationError, match="no pixel is salient"):
        maker.draw(0, KINDS[0], seed=0, draw=0, saliency=np.zeros((32, 48), dtype=bool))
    with pytest.raises(CalibrationError, match=r"expected bool \(48, 32\)"):
        maker.draw(0, KINDS[0], seed=0, draw=0, image=texture(0, 48, 32), saliency=np.ones((32, 48), dtype=bool))
    for size_px in (1.9, 11.0, math.nan):
        with pytest.raises(CalibrationError, match=r"expected 2 to 10\.67"):
            maker.draw(0, KINDS[0], seed=0, draw=0, size_px=size_px)
    for contrast in (0.0, 4.9, 256.0, math.nan):
        with pytest.raises(CalibrationError, match="expected 5 to 255"):
            maker.draw(0, KINDS[0], seed=0, draw=0, contrast=contrast)


@pytest.mark.realdata
@pytest.mark.parametrize("kind", KINDS)
def test_no_draw_on_real_tiles_is_a_no_op(kind: str, real_data: Path) -> None:
    paths = list_images(real_data / "magnetic_tile" / "train" / "good")[:20]
    tiles = [
        np.asarray(cv2.resize(read_image(path), (256, 256), interpolation=cv2.INTER_AREA), dtype=np.uint8) for path in paths
    ]
    maker = DefectMaker(tiles)
    for draw in range(200):
        defect = maker.draw(draw % 20, kind, seed=0, draw=draw)
        check(defect, tiles[draw % 20])
        assert defect.changed.sum() >= max(24, 0.2 * defect.shape.sum()) and defect.parameters["contrast"] >= 8
