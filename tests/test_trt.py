"""TensorRT behind the extractor's seam: graphs replayed, threads told apart, and every refusal named."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from engines import EngineError
from engines.build import build_engine
from engines.bundle import Bundle, load_bundle
from engines.extractors import make_extractor
from engines.inspector import Inspector
from engines.preprocess import Preprocessor
from engines.trt import TensorRTExtractor, load_tensorrt
from tests.fake_gpu import FakeDriver, FakeLibrary
from tests.fake_tensorrt import FakeTensorRT
from tests.fakes import cells, textured, write_tiny_bundle

SIZE = (64, 96)
TENSORS = [Preprocessor(SIZE)(textured(seed, SIZE)) for seed in range(4)]


@pytest.fixture
def bundle(tmp_path: Path, tensorrt: FakeTensorRT) -> Bundle:
    """A bundle with an engine beside it."""
    write_tiny_bundle(tmp_path / "bundle", size=SIZE, rows=cells(100, 128, 160), density=np.float32([0.1, 0.2, 0.3]))
    loaded = load_bundle(tmp_path / "bundle")
    assert build_engine(loaded, "tensorrt", "fp32").folder is not None
    return loaded


def opened(bundle: Bundle) -> TensorRTExtractor:
    extractor = make_extractor(bundle, "tensorrt")
    assert isinstance(extractor, TensorRTExtractor)
    return extractor


def test_the_second_run_is_recorded_and_replayed_from_then_on(bundle: Bundle, library: FakeLibrary) -> None:
    extractor, launches = opened(bundle), library.launches  # it has run once
    got = [extractor.extract(tensor) for tensor in TENSORS]
    assert library.launches == launches + len(TENSORS)
    assert extractor.replayed == "CUDA graph"
    with Inspector(bundle) as usual:
        for tensor, embeddings in zip(TENSORS, got, strict=True):
            np.testing.assert_allclose(embeddings, usual.extractor.extract(tensor), rtol=1e-6)
    extractor.close()
    assert library.graphs == {}


@pytest.mark.parametrize("failing", ["begin", "end", "instantiate", "capture"])
def test_what_cannot_be_recorded_runs_piece_by_piece_and_says_so(
    failing: str, bundle: Bundle, tensorrt: FakeTensorRT, library: FakeLibrary
) -> None:
    extractor = opened(bundle)
    expected = extractor.extract(TENSORS[0])
    extractor.close()
    library.failing, tensorrt.failing = failing, failing
    extractor = opened(bundle)
    launches = library.launches
    for _ in range(3):
        assert np.array_equal(extractor.extract(TENSORS[0]), expected)
    assert library.launches == launches
    assert extractor.replayed.startswith("no CUDA graph: ")
    extractor.close()
    assert library.graphs == {}


def test_a_graph_that_cannot_be_launched_is_an_error(bundle: Bundle, library: FakeLibrary) -> None:
    extractor = opened(bundle)
    extractor.extract(TENSORS[0])
    library.failing = "launch"
    with pytest.raises(EngineError, match="cuGraphLaunch failed with CUDA's error 700"):
        extractor.extract(TENSORS[0])
    extractor.close()


def test_another_thread_is_refused_and_harms_nothing(bundle: Bundle, tensorrt: FakeTensorRT) -> None:
    extractor = opened(bundle)
    expected = extractor.extract(TENSORS[0])
    errors: list[Exception] = []

    def elsewhere() -> None:
        try:
            extractor.extract(TENSORS[1])
        except EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "called from thread" in str(errors[0])
    assert np.array_equal(extractor.extract(TENSORS[0]), expected)
    assert tensorrt.threads == {threading.get_ident()}
    extractor.close()


@pytest.mark.parametrize("integrated", [False, True])
def test_memory_that_is_shared_is_not_copied(integrated: bool, bundle: Bundle, driver: FakeDriver) -> None:
    driver.integrated = integrated
    extractor = opened(bundle)
    first = extractor.extract(TENSORS[0])
    kept = first.copy()
    driver.copied.clear()
    extractor.extract(TENSORS[1])
    assert np.array_equal(first, kept)  # what was given out is not the memory that is written to
    assert driver.copied == ([] if integrated else [TENSORS[0].nbytes, first.nbytes])
    extractor.close()
    assert driver.memory == {}


def test_what_is_closed_says_so_and_holds_nothing(bundle: Bundle, driver: FakeDriver) -> None:
    extractor = opened(bundle)
    extractor.close()
    extractor.close()
    assert driver.memory == {}
    assert driver.pushed == 0
    with pytest.raises(EngineError, match="closed"):
        extractor.extract(TENSORS[0])


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("deserialize", r"refuses the engine \(.*error: the plan was built for another version\); build it again"),
        ("context", r"cannot run the engine \(.*\); it may be short of memory"),
        ("address", "refuses the address of 'image'"),
        ("execute", "did not run the network"),
    ],
)
def test_each_refusal_of_tensorrt_is_named_and_leaves_nothing_open(
    failing: str, said: str, bundle: Bundle, tensorrt: FakeTensorRT, driver: FakeDriver
) -> None:
    tensorrt.failing = failing
    with pytest.raises(EngineError, match=said):
        opened(bundle)
    assert driver.memory == {}
    assert driver.pushed == 0


def test_a_run_that_fails_later_is_an_error_each_time(bundle: Bundle, tensorrt: FakeTensorRT) -> None:
    extractor = opened(bundle)
    tensorrt.failing = "execute"
    for _ in range(3):
        with pytest.raises(EngineError, match="did not run the network"):
            extractor.extract(TENSORS[0])
    tensorrt.failing = None
    extractor.extract(TENSORS[0])
    extractor.close()


@pytest.mark.parametrize("failing", ["mem_alloc", "pagelocked_empty", "synchronize", "memcpy_htod_async"])
def test_a_gpu_that_fails_while_it_opens_leaves_nothing_open(failing: str, bundle: Bundle, driver: FakeDriver) -> None:
    driver.failing = failing
    with pytest.raises(EngineError, match=f"the GPU failed \\({failing} failed"):
        opened(bundle)
    driver.failing = None
    assert driver.memory == {}
    assert driver.pushed == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shape": (1, 3, 32, 32)}, r"'image' is DataType.FLOAT \(1, 3, 32, 32\), expected float32 \(1, 3, 64, 96\)"),
        ({"kind": "DataType.HALF"}, "'image' is DataType.HALF"),
        ({"tensors": {"more": (None, (1,))}}, "takes and gives image, embeddings, more, expected one input and one output"),
    ],
)
def test_an_engine_of_something_else_is_refused(
    wrong: dict[str, Any], said: str, bundle: Bundle, tensorrt: FakeTensorRT
) -> None:
    tensorrt.wrong = wrong
    with pytest.raises(EngineError, match=said):
        opened(bundle)


# --- with the search on the same GPU


def test_features_and_search_in_one_stream_score_as_the_cpu_does(
    bundle: Bundle, driver: FakeDriver, library: FakeLibrary
) -> None:
    images, launches = [textured(seed, SIZE) for seed in range(5)], library.launches
    with Inspector(bundle) as usual, Inspector(bundle, "tensorrt") as inspector:
        assert (usual.searched_on, inspector.searched_on) == ("cpu", "gpu")
        for image in images:
            driver.copied.clear()
            expected, got = usual.score(image), inspector.score(image)
            assert driver.copied == [TENSORS[0].nbytes, inspector.map(got).nbytes, 4]  # no embeddings
            assert got.value == pytest.approx(expected.value, rel=1e-4, abs=1e-6)
            np.testing.assert_allclose(inspector.map(got), usual.map(expected), rtol=1e-3, atol=1e-5)
        assert library.launches == launches + len(images) - 1
        judged = inspector.judge(usual.extractor.extract(inspector.preprocessor(images[0])))
        assert judged.value == pytest.approx(inspector.score(images[0]).value, rel=1e-6)
    assert driver.memory == {}
    assert library.graphs == {}


def test_a_map_is_of_its_own_image_after_others_were_scored(bundle: Bundle) -> None:
    one, other = textured(1, SIZE), textured(2, SIZE)
    with Inspector(bundle, "tensorrt") as inspector:
        first = inspector.score(one)
        before = inspector.map(first).copy()
        inspector.score(other)
        assert np.array_equal(inspector.map(first), before)


def test_the_search_may_be_put_elsewhere_than_the_features(bundle: Bundle, tensorrt: FakeTensorRT) -> None:
    image = textured(3, SIZE)
    with Inspector(bundle) as usual:
        expected = usual.score(image).value
    for backend, search in (("tensorrt", "cpu"), ("onnxruntime", "gpu")):
        with Inspector(bundle, backend, search=search) as inspector:
            assert inspector.searched_on == search
            assert inspector.score(image).value == pytest.approx(expected, rel=1e-4)
    with pytest.raises(EngineError, match="search on 'tpu', expected one of: cpu, gpu"):
        Inspector(bundle, search="tpu")


def test_more_than_one_image_is_refused_and_what_was_recorded_stays_right(bundle: Bundle) -> None:
    one, other = textured(1, SIZE), textured(2, SIZE)
    with Inspector(bundle) as usual, Inspector(bundle, "tensorrt") as inspector:
        for image in (one, other, one):
            inspector.score(image)
        embeddings = usual.extractor.extract(TENSORS[0])
        with pytest.raises(EngineError, match=r"embeddings is float32 .*, expected float32 \(96, 3\)"):
            inspector.judge(np.concatenate([embeddings, embeddings]))
        assert inspector.score(other).value == pytest.approx(usual.score(other).value, rel=1e-4)


def test_a_run_that_writes_nothing_scores_nan_and_not_the_last_image(bundle: Bundle, library: FakeLibrary) -> None:
    with Inspector(bundle, "tensorrt") as inspector:
        for seed in range(3):
            assert np.isfinite(inspector.score(textured(seed, SIZE)).value)
        for recorded in library.graphs.values():
            recorded.clear()
        assert np.isnan(inspector.score(textured(4, SIZE)).value)


def test_all_of_a_process_share_one_logger(tensorrt: FakeTensorRT) -> None:
    assert load_tensorrt("tensorrt") is load_tensorrt("tensorrt")


def test_nan_from_the_network_scores_nan(bundle: Bundle, tensorrt: FakeTensorRT) -> None:
    with Inspector(bundle, "tensorrt") as inspector:
        tensorrt.offset = np.nan
        assert np.isnan(inspector.score(textured(1, SIZE)).value)
        assert np.isnan(inspector.score(textured(1, SIZE)).value)


def test_a_search_that_does_not_open_closes_the_engine(
    bundle: Bundle, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, architecture: str) -> bytes:
        raise EngineError("nvcc is not there")

    monkeypatch.setattr("engines.cuda.compile_kernels", refuse)
    with pytest.raises(EngineError, match="nvcc is not there"):
        Inspector(bundle, "tensorrt")
    assert driver.memory == {}
    with Inspector(bundle, "tensorrt", search="cpu"):
        pass


# --- what is missing


def refuse(error: Exception) -> Callable[[str], ModuleType]:
    def imported(name: str) -> ModuleType:
        raise error

    return imported


@pytest.mark.parametrize(
    ("backend", "remedy"),
    [("tensorrt", "apt install python3-libnvinfer"), ("tensorrt-rtx", r"pip install '\.\[tensorrt-rtx\]'")],
)
def test_a_runtime_that_is_not_there_is_named_with_its_remedy(
    backend: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (ImportError("No module named 'x'"), OSError("libnvinfer.so.10: cannot open shared object file")):
        load_tensorrt.cache_clear()
        monkeypatch.setattr(importlib, "import_module", refuse(error))
        with pytest.raises(EngineError, match=f"backend '{backend}' cannot be imported.*{remedy}"):
            load_tensorrt(backend)


@pytest.mark.parametrize(("version", "accepted"), [("8.6.1", False), ("10.2.0", False), ("10.3.0", True), ("11.4.0.106", True)])
def test_old_versions_are_refused(version: str, accepted: bool, tensorrt: FakeTensorRT) -> None:
    tensorrt.__version__ = version
    load_tensorrt.cache_clear()
    if accepted:
        assert load_tensorrt("tensorrt").version == version
    else:
        with pytest.raises(EngineError, match=rf"TensorRT {version}, expected 10\.3 or newer"):
            load_tensorrt("tensorrt")


def test_only_warnings_and_errors_are_kept(tensorrt: FakeTensorRT) -> None:
    runtime = load_tensorrt("tensorrt")
    for level, text in ((0, "a"), (1, "b"), (2, "c"), (3, "d"), (4, "e")):
        runtime.logger.log(level, text)
    assert list(runtime.log) == ["internal error: a", "error: b", "warning: c"]
    assert runtime.said() == "internal error: a; error: b; warning: c"
