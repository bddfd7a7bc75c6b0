"""One suite that every feature extractor passes, the fake included: what the rest of the project may rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engines import EngineError
from engines.build import build_engine
from engines.bundle import load_bundle
from engines.extractors import FeatureExtractor, backends, make_extractor
from engines.preprocess import Preprocessor
from tests.fakes import FakeExtractor, cell, flat, grid_of, textured, write_tiny_bundle

SIZE = (64, 96)
ROWS, COLUMNS = grid_of(SIZE)

Maker = Callable[[Path], FeatureExtractor]


def _backend(name: str) -> Maker:
    def make(tmp_path: Path) -> FeatureExtractor:
        write_tiny_bundle(tmp_path / "bundle", size=SIZE)
        return make_extractor(load_bundle(tmp_path / "bundle"), name, threads=1)

    return make


def _engine(name: str) -> Maker:
    def make(tmp_path: Path) -> FeatureExtractor:
        write_tiny_bundle(tmp_path / "bundle", size=SIZE)
        bundle = load_bundle(tmp_path / "bundle")
        build_engine(bundle, name, "fp32")
        return make_extractor(bundle, name)

    return make


# name -> maker of an extractor of the tiny network; a new backend joins here
MAKERS: dict[str, Maker] = {
    "fake": lambda tmp_path: FakeExtractor(SIZE),
    "onnxruntime": _backend("onnxruntime"),
    "tensorrt": _engine("tensorrt"),
    "tensorrt-rtx": _engine("tensorrt-rtx"),
}
# name -> fixture of what stands for hardware that is not here
STAND_INS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@pytest.fixture(params=MAKERS)
def extractor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureExtractor]:
    """Each extractor in turn."""
    if request.param in STAND_INS:
        request.getfixturevalue(STAND_INS[request.param])
    made = MAKERS[request.param](tmp_path)
    assert made.backend == request.param
    yield made
    made.close()


def tensor_of(seed: int) -> np.ndarray:
    return Preprocessor(SIZE)(textured(seed, SIZE))


def test_it_says_what_it_is(extractor: FeatureExtractor) -> None:
    for text in (extractor.backend, extractor.precision, extractor.provider):
        assert isinstance(text, str) and text
    assert len(extractor.engine_digest) == 64
    assert int(extractor.engine_digest, 16) >= 0


def test_a_flat_picture_gives_one_embedding_by_hand(extractor: FeatureExtractor) -> None:
    embeddings = extractor.extract(Preprocessor(SIZE)(flat((10, 100, 200), SIZE)))
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (ROWS * COLUMNS, 3)
    np.testing.assert_allclose(embeddings, np.tile(cell((10, 100, 200)), (ROWS * COLUMNS, 1)), atol=1e-5)


def test_patches_come_row_by_row(extractor: FeatureExtractor) -> None:
    image = flat(128, SIZE)
    image[8:16, 80:88] = 255  # row 1, column 10
    embeddings = extractor.extract(Preprocessor(SIZE)(image))
    np.testing.assert_allclose(embeddings[1 * COLUMNS + 10], cell(255), atol=1e-5)
    np.testing.assert_allclose(np.delete(embeddings, 1 * COLUMNS + 10, axis=0) - cell(128), 0, atol=1e-5)


def test_it_agrees_with_the_definition(extractor: FeatureExtractor) -> None:
    tensor = tensor_of(1)
    means = tensor[0].astype(np.float64).reshape(3, ROWS, 8, COLUMNS, 8).mean(axis=(2, 4))
    np.testing.assert_allclose(extractor.extract(tensor), means.reshape(3, -1).T, atol=1e-5)


def test_the_same_tensor_gives_the_same_bits(extractor: FeatureExtractor) -> None:
    first = extractor.extract(tensor_of(2)).tobytes()
    extractor.extract(tensor_of(3))
    assert extractor.extract(tensor_of(2)).tobytes() == first


def test_an_answer_is_not_overwritten_by_the_next(extractor: FeatureExtractor) -> None:
    first = extractor.extract(tensor_of(2))
    kept = first.copy()
    extractor.extract(tensor_of(3))
    np.testing.assert_array_equal(first, kept)


def test_the_tensor_is_left_as_it_was_and_may_be_read_only(extractor: FeatureExtractor) -> None:
    tensor = tensor_of(4)
    before = tensor.copy()
    tensor.flags.writeable = False
    extractor.extract(tensor)
    np.testing.assert_array_equal(tensor, before)


def test_the_memory_layout_does_not_matter(extractor: FeatureExtractor) -> None:
    tensor = tensor_of(5)
    np.testing.assert_allclose(extractor.extract(np.asfortranarray(tensor)), extractor.extract(tensor), atol=1e-6)


def test_nan_comes_out_as_nan_in_its_own_patch(extractor: FeatureExtractor) -> None:
    tensor = tensor_of(6)
    tensor[0, 1, 0, 9] = np.nan
    embeddings = extractor.extract(tensor)
    assert np.argwhere(np.isnan(embeddings)).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 64, 64), np.float32),
        np.zeros((2, 3, *SIZE), np.float32),
        np.zeros((3, *SIZE), np.float32),
        np.zeros((1, 1, *SIZE), np.float32),
        np.zeros((1, 3, *SIZE), np.float64),
        np.zeros((1, 3, *SIZE), np.uint8),
    ],
)
def test_a_wrong_tensor_is_refused_and_the_next_one_works(extractor: FeatureExtractor, wrong: np.ndarray) -> None:
    with pytest.raises(EngineError, match="network input"):
        extractor.extract(wrong)
    assert extractor.extract(tensor_of(7)).shape == (ROWS * COLUMNS, 3)


def test_it_may_be_closed_twice(extractor: FeatureExtractor) -> None:
    extractor.close()
    extractor.close()


def test_the_digest_is_that_of_the_file_that_runs(tmp_path: Path) -> None:
    extractor = MAKERS["onnxruntime"](tmp_path)
    assert extractor.engine_digest == load_bundle(tmp_path / "bundle").manifest.files["features.onnx"].sha256


def test_an_unknown_backend_is_refused_by_name(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    with pytest.raises(EngineError, match=r"backend 'tpu', expected one of: .*onnxruntime"):
        make_extractor(load_bundle(tmp_path / "bundle"), "tpu")
    assert "onnxruntime" in backends()
