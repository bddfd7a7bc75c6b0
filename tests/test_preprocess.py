"""Image to tensor: hand-computed values, and nothing below a mask ever counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import EngineError
from engines.images import Image
from engines.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessor, Roi
from tests.fakes import cell, flat, textured


def normalise(image: npt.NDArray) -> npt.NDArray[np.float64]:
    """The definition, in float64: (h, w, 3) to (3, h, w)."""
    return ((image / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)


def test_an_image_of_network_size_is_only_normalised() -> None:
    image = textured(1, (48, 64))
    tensor = Preprocessor((48, 64))(image)
    assert tensor.dtype == np.float32
    assert tensor.shape == (1, 3, 48, 64)
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor[0], normalise(image), rtol=0, atol=1e-6)


def test_normalisation_values_by_hand() -> None:
    # (0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.5 - 0.406) / 0.225 with 127.5 as no byte: 51 / 255 = 0.2
    tensor = Preprocessor((32, 32))(flat((0, 255, 51), (32, 32)))
    np.testing.assert_allclose(tensor[0, :, 0, 0], [-2.117904, 2.428571, -0.915556], atol=2e-6)


def test_the_image_is_left_as_it_was() -> None:
    image = textured(2)
    before = image.copy()
    image.flags.writeable = False
    Preprocessor((32, 32))(image)
    np.testing.assert_array_equal(image, before)


def test_shrinking_averages_areas() -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[0, 0] = (60, 0, 0)  # one of the 2 x 3 pixels below the first output pixel: 60 / 6
    image[2:4, 3:6] = (0, 90, 0)
    resized = Preprocessor((32, 32)).resized(image)
    assert resized.shape == (32, 32, 3)
    assert resized[0, 0].tolist() == [10, 0, 0]
    assert resized[1, 1].tolist() == [0, 90, 0]
    assert resized.sum() == 100


@pytest.mark.parametrize("shape", [(320, 16), (16, 320), (320, 32), (320, 33), (31, 333)])
def test_where_one_axis_shrinks_no_source_pixel_is_skipped(shape: tuple[int, int]) -> None:
    preprocess = Preprocessor((32, 32))
    black = preprocess(flat(0, shape))
    for row in range(0, shape[0], 7 if shape[0] > 32 else 3):
        for column in range(0, shape[1], 7 if shape[1] > 32 else 3):
            image = flat(0, shape)
            image[row, column] = 255
            assert (preprocess(image) != black).any(), f"pixel {row}, {column} counts for nothing"


def test_enlarging_is_bilinear() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 100
    resized = Preprocessor((32, 32)).resized(image)
    # output centres lie a quarter of a source pixel from the edge between columns 7 and 8
    assert resized[0, 13:19, 0].tolist() == [0, 0, 25, 75, 100, 100]


def test_only_the_region_counts() -> None:
    frame = textured(3, (80, 100))
    roi = Roi(20, 10, 64, 48)
    preprocess = Preprocessor((48, 64), roi=roi, frame_size=(80, 100))
    np.testing.assert_array_equal(preprocess.resized(frame), frame[10:58, 20:84])
    inside = preprocess(frame)
    outside = frame.copy()
    outside[:10], outside[58:], outside[:, :20], outside[:, 84:] = 0, 255, 0, 255
    np.testing.assert_array_equal(preprocess(outside), inside)
    assert preprocess.source_px_per_patch((80, 100), (6, 8)) == (8.0, 8.0)


def test_a_region_may_be_the_whole_frame() -> None:
    frame = textured(4, (64, 64))
    whole = Preprocessor((32, 32), roi=Roi(0, 0, 64, 64), frame_size=(64, 64))
    np.testing.assert_array_equal(whole(frame), Preprocessor((32, 32))(frame))


def test_source_pixels_per_patch_without_a_region() -> None:
    assert Preprocessor((64, 64)).source_px_per_patch((128, 256), (8, 8)) == (16.0, 32.0)


@given(
    frame=st.tuples(st.integers(16, 150), st.integers(16, 150)),
    size=st.tuples(st.sampled_from([32, 48, 64, 96]), st.sampled_from([32, 48, 64, 96])),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.001, 0.05, 0.5, 0.9]),
    region=st.booleans(),
)
def test_what_happens_below_the_mask_changes_nothing(
    frame: tuple[int, int], size: tuple[int, int], seed: int, share: float, region: bool
) -> None:
    height, width = frame
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < share
    mask[rng.integers(height), rng.integers(width)] = True
    top, left = (rng.integers(0, height - 15), rng.integers(0, width - 15)) if region else (0, 0)
    roi = Roi(int(left), int(top), width - int(left), height - int(top)) if region else None
    try:
        preprocess = Preprocessor(size, roi=roi, mask=mask, frame_size=frame)
    except EngineError:
        return  # scattered pixels reach every output pixel: nothing is left to judge
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    other = image.copy()
    other[mask] = rng.integers(0, 256, (int(mask.sum()), 3), np.uint8)
    black, white = image.copy(), image.copy()
    black[mask], white[mask] = 0, 255
    tensors = [preprocess(each).tobytes() for each in (image, other, black, white)]
    assert len(set(tensors)) == 1


@given(
    height=st.integers(16, 400),
    width=st.integers(16, 400),
    row=st.floats(0, 1, exclude_max=True),
    column=st.floats(0, 1, exclude_max=True),
)
def test_a_single_masked_pixel_never_counts(height: int, width: int, row: float, column: float) -> None:
    mask = np.zeros((height, width), bool)
    at = int(row * height), int(column * width)
    mask[at] = True
    preprocess = Preprocessor((48, 64), mask=mask, frame_size=(height, width))
    black, white = flat(0, (height, width)), flat(0, (height, width))
    white[at] = 255
    assert preprocess(black).tobytes() == preprocess(white).tobytes()


def test_masked_pixels_become_the_mean() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:32, :16] = True
    tensor = Preprocessor((64, 64), mask=mask, frame_size=(64, 64))(textured(5))
    assert (tensor[0, :, :32, :16] == 0).all()
    assert (tensor[0, :, 32:] != 0).all()


def test_a_mask_that_ignores_nothing_changes_nothing() -> None:
    image = textured(6)
    preprocess = Preprocessor((64, 64), mask=np.zeros((64, 64), bool), frame_size=(64, 64))
    np.testing.assert_array_equal(preprocess(image), Preprocessor((64, 64))(image))
    assert preprocess.judged_patches((8, 8)).all()


def test_a_patch_is_judged_until_its_last_pixel_is_masked() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:8, :8] = True
    mask[56:, 56:] = True
    mask[63, 63] = False
    judged = Preprocessor((64, 64), mask=mask, frame_size=(64, 64)).judged_patches((8, 8))
    assert judged.shape == (8, 8)
    assert np.argwhere(~judged).tolist() == [[0, 0]]


def test_every_patch_is_judged_without_a_mask() -> None:
    judged = Preprocessor((64, 96)).judged_patches((8, 12))
    assert judged.shape == (8, 12)
    assert judged.all()


def test_a_grid_that_does_not_tile_the_input_is_refused() -> None:
    mask = np.zeros((64, 64), bool)
    with pytest.raises(EngineError, match="patch grid 7 x 8"):
        Preprocessor((64, 64), mask=mask, frame_size=(64, 64)).judged_patches((8, 7))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 64, 3), np.float32), "float32"),
        (np.zeros((64, 64), np.uint8), r"\(64, 64\)"),
        (np.zeros((64, 64, 4), np.uint8), r"\(64, 64, 4\)"),
        (np.zeros((64, 64, 1), np.uint8), r"\(64, 64, 1\)"),
        ([[0, 0, 0]], "list"),
        (None, "NoneType"),
        (flat(0, (1, 1)), "1 x 1 pixels"),
        (flat(0, (15, 200)), "200 x 15 pixels"),
        (flat(0, (0, 0)), "0 x 0 pixels"),
    ],
)
def test_a_wrong_image_is_refused(image: Image, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Preprocessor((64, 64))(image)


def test_a_frame_of_another_size_is_refused_where_a_region_depends_on_it() -> None:
    preprocess = Preprocessor((32, 32), roi=Roi(0, 0, 32, 32), frame_size=(64, 80))
    with pytest.raises(EngineError, match=r"80 x 63 pixels, expected 80 x 64"):
        preprocess(flat(0, (63, 80)))
    with pytest.raises(EngineError, match=r"64 x 80 pixels"):
        preprocess(flat(0, (80, 64)))


@pytest.mark.parametrize("size", [(250, 256), (256, 250), (16, 32), (0, 64), (-32, 32)])
def test_a_size_that_is_no_multiple_of_16_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(EngineError, match="multiples of 16"):
        Preprocessor(size)


@pytest.mark.parametrize(
    "roi",
    [Roi(-1, 0, 32, 32), Roi(0, -1, 32, 32), Roi(49, 0, 32, 32), Roi(0, 33, 32, 32), Roi(0, 0, 15, 32), Roi(0, 0, 32, -5)],
)
def test_a_region_that_does_not_fit_is_refused(roi: Roi) -> None:
    with pytest.raises(EngineError, match=str(roi)):
        Preprocessor((32, 32), roi=roi, frame_size=(64, 80))


def test_a_region_or_a_mask_without_a_frame_size_is_refused() -> None:
    for roi, mask in ((Roi(0, 0, 32, 32), None), (None, np.zeros((64, 64), bool))):
        with pytest.raises(EngineError, match="images of one size"):
            Preprocessor((32, 32), roi=roi, mask=mask)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(EngineError, match="mask is 80 x 64 pixels, expected the frame's 64 x 80"):
        Preprocessor((32, 32), mask=np.zeros((64, 80), bool), frame_size=(80, 64))


def test_a_mask_over_the_whole_region_is_refused() -> None:
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    Preprocessor((32, 32), mask=mask, frame_size=(64, 64))
    with pytest.raises(EngineError, match="ignores the whole region"):
        Preprocessor((32, 32), roi=Roi(16, 16, 32, 32), mask=mask, frame_size=(64, 64))


def test_a_flat_picture_has_the_embedding_that_the_fakes_promise() -> None:
    tensor = Preprocessor((64, 64))(flat((10, 20, 30)))
    np.testing.assert_allclose(tensor[0, :, 5, 5], cell((10, 20, 30)), atol=1e-6)
