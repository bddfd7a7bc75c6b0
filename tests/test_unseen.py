"""The defects that no maker draws, and that an adaptation is never examined on what it learnt from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import unseen
from benchmarks.unseen import main
from calibration.defects import KINDS
from calibration.saliency import Saliency
from engines import console
from engines.images import Image, encode_png, pixel_digest
from tests.fakes import flat, textured, tiny_adaptation
from train.backbones import BACKBONES, build
from train.sample import draw_part
from train.weights import Weights, write_weights

GREY = flat(120, (96, 96))
SEEDS = range(12)


def marred(kind: str, image: Image, seed: int) -> Image:
    return unseen._marred(getattr(unseen, f"_{kind}"), image, seed, 0, 0)


def change(kind: str, seed: int) -> np.ndarray:
    return marred(kind, GREY, seed).astype(int)[..., 0] - 120


@pytest.mark.parametrize("seed", SEEDS)
def test_a_line_is_dark_thin_and_of_the_contrast_asked_for(seed: int) -> None:
    levels = change("line", seed)
    assert levels.max() == 0
    assert -levels.min() == pytest.approx(unseen._contrast(seed, 0, 0), abs=1)
    assert 0 < (levels < levels.min() / 2).mean() < 0.08


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shade_is_soft_and_of_one_sign(seed: int) -> None:
    levels = change("shade", seed)
    assert levels.min() >= 0 or levels.max() <= 0
    assert np.abs(levels).max() <= unseen._contrast(seed, 0, 0) + 1
    steps = np.concatenate([np.diff(levels, axis=0).ravel(), np.diff(levels, axis=1).ravel()])
    assert np.abs(steps).max() <= 3


def test_shades_are_brighter_or_darker() -> None:
    assert {int(np.sign(change("shade", seed).sum())) for seed in range(20)} >= {-1, 1}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_blur_takes_fine_detail_somewhere_and_keeps_the_mean(seed: int) -> None:
    image = textured(seed, (96, 96))
    blurred = marred("blur", image, seed)
    assert not change("blur", seed).any()  # where there is no detail there is none to take
    assert blurred.std() < image.std()
    assert blurred.mean() == pytest.approx(image.mean(), abs=2)


@pytest.mark.parametrize("seed", SEEDS)
def test_where_a_piece_is_gone_the_background_goes_on(seed: int) -> None:
    rows, columns = np.mgrid[:96, :96]
    part = np.hypot(rows - 48, columns - 50) < 25
    background = textured(seed, (96, 96)) // 8 + 20
    image = np.where(part[..., None], np.uint8(200), background).astype(np.uint8)
    seen = unseen._gone(image, cv2.erode(part.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0, np.random.default_rng(seed))
    gone = part & (seen.mean(axis=2) < 120)
    low, high = unseen._PIECE
    assert 0.8 * low < gone.sum() / part.sum() < 1.5 * high  # a mask is a little smaller than the part
    filled = cv2.erode(gone.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    if filled.any():
        assert seen[filled].mean() == pytest.approx(background.mean(), abs=6)
    far = np.hypot(rows - 48, columns - 50) > 32
    assert np.array_equal(seen[far], image[far])
    rest = cv2.erode((part & ~gone).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    assert np.array_equal(seen[rest], image[rest])


def test_a_piece_is_gone_only_where_there_is_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [textured(number, (96, 96)) for number in range(2)]
    assert "gone" not in unseen._flawed(images, 0)
    masks = (np.pad(np.ones((40, 40), bool), 28),) * 2
    monkeypatch.setattr(unseen, "estimate_saliency", lambda _: Saliency(masks, "files", ""))
    assert len(unseen._flawed(images, 0)["gone"][0]) == 4


def test_the_same_seed_gives_the_same_defects_and_another_seed_others() -> None:
    images = [textured(number, (96, 96)) for number in range(2)]
    one, again, other = unseen._flawed(images, 0), unseen._flawed(images, 0), unseen._flawed(images, 1)
    assert [len(kinds) for kinds in one.values()] == [len(KINDS), 2, 1, 1, 1, 1]
    for group, kinds in one.items():
        for number, drawn in enumerate(kinds):
            assert len(drawn) == 2 * len(images)
            assert all(np.array_equal(*pair) for pair in zip(drawn, again[group][number], strict=True))
            assert not all(np.array_equal(*pair) for pair in zip(drawn, other[group][number], strict=True))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Image]]:
    """A product of 20 small parts."""
    root = tmp_path_factory.mktemp("parts")
    images = [draw_part(np.random.default_rng(number), 64)[0] for number in range(20)]
    for number, image in enumerate(images):
        (root / f"{number:02d}.png").write_bytes(encode_png(image))
    return root, images


def test_weights_that_learnt_from_a_held_out_image_are_refused(
    parts: tuple[Path, list[Image]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, images = parts
    path, state = tmp_path / "adapted.safetensors", build(BACKBONES["resnet18"], None, 1).state_dict()
    record = tiny_adaptation().model_copy(update={"images": tuple(pixel_digest(image) for image in images)})
    write_weights(path, Weights(state, "", "", record))
    assert main(["--data", str(root), "--weights", "none", "--adapted", str(path)]) == console.BAD_INPUT
    assert "learnt from 3 of 3 images that are held out here; give the --seed" in " ".join(capsys.readouterr().err.split())
    write_weights(path, Weights(state, "", ""))
    assert main(["--data", str(root), "--weights", "none", "--adapted", str(path)]) == console.BAD_INPUT
    assert "no adapted weights; expected a file that `train adapt` wrote" in " ".join(capsys.readouterr().err.split())


def test_two_files_of_one_name_are_refused(
    parts: tuple[Path, list[Image]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = build(BACKBONES["resnet18"], None, 1).state_dict()
    paths = [tmp_path / folder / "adapted.safetensors" for folder in ("one", "other")]
    for path in paths:
        path.parent.mkdir()
        write_weights(path, Weights(state, "", "", tiny_adaptation()))
    assert main(["--data", str(parts[0]), "--weights", "none", "--adapted", *map(str, paths)]) == console.BAD_INPUT
    assert "two files are called adapted; rename one" in " ".join(capsys.readouterr().err.split())


def test_too_few_images_to_hold_any_out_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode_png(textured(number)))
    assert main(["--data", str(tmp_path), "--weights", "none", "--adapted", "x.safetensors"]) == console.BAD_INPUT
    assert "3 good images, of which none are held out; expected 20 or more" in " ".join(capsys.readouterr().err.split())
