"""ONNX Runtime: graphs that cannot be trusted are refused, and the engines room runs without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines import EngineError
from engines import ort as module
from engines.bundle import Bundle, load_bundle
from engines.extractors import make_extractor
from engines.ort import OnnxRuntimeExtractor
from tests.fakes import feature_graph, write_tiny_bundle

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A tiny bundle, loaded."""
    write_tiny_bundle(tmp_path / "bundle")
    return load_bundle(tmp_path / "bundle")


def load(graph: bytes, threads: int = 0) -> OnnxRuntimeExtractor:
    return OnnxRuntimeExtractor(graph, input_shape=(1, 3, 64, 64), output_shape=(64, 3), threads=threads)


def constant_graph(inputs: int, shape: tuple[int, ...], outputs: int = 1, kind: int = TensorProto.FLOAT) -> bytes:
    """A graph that gives zeros of a shape, whatever it is given."""
    count = int(np.prod(shape))
    names = [f"out{number}" for number in range(outputs)]
    zeros = helper.make_tensor("zeros", kind, shape, [0] * count)
    graph = helper.make_graph(
        [helper.make_node("Constant", [], [name], value=zeros) for name in names],
        "constant",
        [helper.make_tensor_value_info(f"in{number}", TensorProto.FLOAT, [1, 3, 64, 64]) for number in range(inputs)],
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("kind", ["empty", "text", "half", "without its tail"])
def test_a_corrupt_graph_is_refused(bundle: Bundle, kind: str) -> None:
    whole = feature_graph()
    graph = {"empty": b"", "text": b"nonsense" * 100, "half": whole[:100], "without its tail": whole[:-40]}[kind]
    with pytest.raises(EngineError, match="ONNX Runtime refuses the feature graph"):
        make_extractor(replace(bundle, graphs={"fp32": graph}))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (constant_graph(1, (64, 4)), r"float32 \(64, 4\), expected float32 \(64, 3\)"),
        (constant_graph(1, (1, 64, 3)), r"float32 \(1, 64, 3\)"),
        (constant_graph(1, (64, 3), kind=TensorProto.DOUBLE), r"float64 \(64, 3\)"),
        (constant_graph(1, (64, 3), outputs=2), "ONNX Runtime failed"),
        (constant_graph(2, (64, 3)), "refuses the feature graph"),
        (constant_graph(0, (64, 3)), "refuses the feature graph"),
        (feature_graph((64, 96)), "ONNX Runtime failed"),
    ],
)
def test_a_graph_that_does_not_keep_its_promise_is_refused_at_once(graph: bytes, message: str) -> None:
    onnx.checker.check_model(onnx.load_from_string(graph))
    with pytest.raises(EngineError, match=message):
        load(graph)


def test_a_constant_graph_of_the_right_shape_is_accepted() -> None:
    # so that the refusals above are for the reason they name
    assert load(constant_graph(1, (64, 3))).extract(np.ones((1, 3, 64, 64), np.float32)).shape == (64, 3)


def test_a_wrong_tensor_is_refused_with_both_shapes() -> None:
    with pytest.raises(EngineError, match=r"float32 \(1, 3, 32, 64\), expected float32 \(1, 3, 64, 64\)"):
        load(feature_graph()).extract(np.zeros((1, 3, 32, 64), np.float32))


def test_it_runs_on_the_cpu_and_says_so() -> None:
    extractor = load(feature_graph())
    assert (extractor.backend, extractor.precision, extractor.provider) == ("onnxruntime", "fp32", "CPUExecutionProvider")


def test_the_number_of_threads_does_not_change_the_embeddings() -> None:
    tensor = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    one, two = (load(feature_graph(), threads).extract(tensor) for threads in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)


GPU_BACKENDS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_a_provider_that_is_not_installed_is_refused_with_what_is(backend: str, bundle: Bundle) -> None:
    if GPU_BACKENDS[backend] in module.onnxruntime.get_available_providers():
        pytest.skip(f"{GPU_BACKENDS[backend]} is installed here")
    message = rf"'{backend}' needs {GPU_BACKENDS[backend]}, ONNX Runtime \S+ here has .*CPUExecutionProvider.*; install"
    with pytest.raises(EngineError, match=message):
        make_extractor(bundle, backend)


class FakeRuntime:
    """ONNX Runtime with GPU providers, of which each session takes `taken`, or fails with `error`."""

    __version__ = "9.9"

    def __init__(self, taken: str, error: Exception | None = None) -> None:
        self.entries: dict[str, str] = {}
        self.asked: list[tuple[list[str], int]] = []
        runtime = self

        class SessionOptions:
            def add_session_config_entry(self, name: str, value: str) -> None:
                runtime.entries[name] = value

        class Input:
            name = "image"

        class InferenceSession:
            def __init__(self, graph: bytes, options: object, *, providers: list[str], enable_fallback: int) -> None:
                runtime.asked.append((providers, enable_fallback))
                if error is not None:
                    raise error

            def get_inputs(self) -> list[Input]:
                return [Input()]

            def get_providers(self) -> list[str]:
                return [taken, "CPUExecutionProvider"]

            def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
                return [np.zeros((64, 3), np.float32)]

        self.SessionOptions, self.InferenceSession = SessionOptions, InferenceSession

    def get_available_providers(self) -> list[str]:
        return [*GPU_BACKENDS.values(), "CPUExecutionProvider"]


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_a_gpu_provider_runs_the_whole_graph_and_says_so(backend: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(GPU_BACKENDS[backend])
    monkeypatch.setattr(module, "onnxruntime", runtime)
    extractor = make_extractor(bundle, backend)
    assert (extractor.backend, extractor.provider, extractor.precision) == (backend, GPU_BACKENDS[backend], "fp32")
    assert runtime.asked == [([GPU_BACKENDS[backend]], 0)]  # no other provider, no second attempt
    assert runtime.entries["session.disable_cpu_ep_fallback"] == "1"


def test_a_provider_that_gives_way_to_the_cpu_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onnxruntime", FakeRuntime("CPUExecutionProvider"))
    with pytest.raises(EngineError, match="to run in CUDAExecutionProvider, ONNX Runtime took CPUExecutionProvider instead"):
        make_extractor(bundle, "onnxruntime-cuda")


def test_a_provider_that_fails_is_an_error_with_its_reason(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onnxruntime", FakeRuntime("CUDAExecutionProvider", RuntimeError("no device")))
    with pytest.raises(EngineError, match=r"\(no device\); check that this machine can run CUDAExecutionProvider"):
        make_extractor(bundle, "onnxruntime-cuda")


def test_on_the_cpu_nothing_is_said_of_fallback(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime("CPUExecutionProvider")
    monkeypatch.setattr(module, "onnxruntime", runtime)
    assert make_extractor(bundle).provider == "CPUExecutionProvider"
    assert "session.disable_cpu_ep_fallback" not in runtime.entries


def run(script: str, *arguments: object) -> str:
    """Output of Python code in a process of its own, in which the project can be imported."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_runtime_tells_its_maker_nothing_and_keeps_no_number_of_the_machine(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    said = run(
        """
        import os, sys
        from engines.bundle import load_bundle
        from engines.extractors import make_extractor
        make_extractor(load_bundle(sys.argv[1]), threads=1)
        print(os.environ["ORT_DISABLE_TELEMETRY"])
        """,
        bundle.path,
    )
    assert said == "1"
    assert list(home.rglob("*")) == []


def test_the_engines_room_works_without_torch(bundle: Bundle) -> None:
    score = run(
        """
        import sys
        sys.modules["torch"] = None  # an import of it fails
        import numpy as np
        from engines.bundle import load_bundle
        from engines.inspector import Inspector
        with Inspector(load_bundle(sys.argv[1])) as inspector:
            print(f"{inspector.score(np.full((64, 64, 3), 128, np.uint8)).value:.6f}")
        assert not [name for name in sys.modules if name.split(".")[0] in ("train", "calibration", "edge", "torchvision")]
        """,
        bundle.path,
    )
    assert float(score) == pytest.approx(0, abs=1e-6)


def test_every_engines_module_can_be_imported_without_torch() -> None:
    modules = sorted(path.stem for path in (ROOT / "engines").glob("*.py") if path.stem != "__main__")
    imported = run(
        """
        import importlib, sys
        sys.modules["torch"] = None
        for name in sys.argv[1:]:
            try:
                importlib.import_module(f"engines.{name}" if name != "__init__" else "engines")
            except ImportError as error:
                assert "torch" not in str(error), (name, error)
            except Exception as error:  # a runtime that is not on this machine is refused with a line of our own
                assert type(error).__name__ == "EngineError", (name, error)
            print(name)
        """,
        *modules,
    )
    assert imported.split() == modules


def test_no_runtime_is_imported_before_it_is_chosen() -> None:
    runtimes = run(
        """
        import sys
        import engines.bundle, engines.extractors, engines.inspector
        print([name for name in ("onnxruntime", "tensorrt", "pycuda", "torch") if name in sys.modules])
        """
    )
    assert runtimes == "[]"


def test_a_missing_runtime_is_refused_with_a_remedy(bundle: Bundle) -> None:
    message = run(
        """
        import sys
        sys.modules["onnxruntime"] = None
        from engines import EngineError
        from engines.bundle import load_bundle
        from engines.extractors import make_extractor
        for _ in range(2):  # a failed import must not look like a success the second time
            try:
                make_extractor(load_bundle(sys.argv[1]))
            except EngineError as error:
                print(error)
        """,
        bundle.path,
    )
    assert message.count("pip install onnxruntime") == 2
