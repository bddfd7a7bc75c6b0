"""TensorRT's Python interface over this processor: engines hold their ONNX graph, which ONNX Runtime computes.

It has what `engines` uses of TensorRT 10.3 to 11, answers None and False where TensorRT does, and checks what TensorRT leaves
undefined: that a context is current, that addresses are set, and that a runtime outlives its engine.
"""

from __future__ import annotations

import ctypes
import enum
import sys
import threading
import weakref
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from engines.trt import load_tensorrt
from tests.fake_gpu import STREAM, FakeDriver

_MAGIC = b"fake plan "


class FakeTensorRT(ModuleType):
    """The module. `failing` names the call that gives None or False; `wrong` changes what an engine says of itself."""

    def __init__(self, name: str, driver: FakeDriver, version: str = "10.3.0") -> None:
        super().__init__(name)
        self.__version__ = version
        self.driver = driver
        self.failing: str | None = None
        self.offset = 0.0  # added to every embedding
        self.wrong: dict[str, Any] = {}
        self.built: list[SimpleNamespace] = []
        self.runs = 0
        self.threads: set[int] = set()
        self.ILogger = _ILogger
        self.TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
        self.float32, self.float16 = "DataType.FLOAT", "DataType.HALF"
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Flag", {"STRONGLY_TYPED": 1})
        self.BuilderFlag = enum.Enum("BuilderFlag", "TF32")
        self.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
        self.ComputeCapability = enum.Enum("ComputeCapability", "SM86 SM89")

    def says(self, logger: Any, text: str) -> None:
        logger.log(_ILogger.VERBOSE, "of no interest")
        logger.log(_ILogger.ERROR, text)

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        if self.failing == "builder":
            self.says(logger, "no device")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return _Builder(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return _Parser(network)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        assert self.driver.pushed > 0, "a runtime without a context"
        return _Runtime(self, logger)


class _ILogger:
    """As TensorRT's: subclasses must call `__init__`, and `log` is called with its levels."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.made = True


class _Builder:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        assert logger.made
        self._trt, self._logger = trt, logger

    def create_network(self, flags: int) -> SimpleNamespace:
        assert flags == 1 << 1  # strongly typed, and nothing that TensorRT 11 has not
        return SimpleNamespace(graph=b"")

    def create_builder_config(self) -> Any:
        config = _Config(self._trt)
        self._trt.built.append(config.asked)
        return config

    def build_serialized_network(self, network: Any, config: Any) -> memoryview | None:
        if self._trt.failing == "build":
            self._trt.says(self._logger, "out of memory")
            return None
        self._logger.log(_ILogger.WARNING, "a tactic was skipped")
        return memoryview(_MAGIC + network.graph)


class _Config:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.asked = SimpleNamespace(tf32=True, workspace=None, capabilities=[], cache=None)

    def clear_flag(self, flag: Any) -> None:
        assert flag is self._trt.BuilderFlag.TF32
        self.asked.tf32 = False

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert pool is self._trt.MemoryPoolType.WORKSPACE
        self.asked.workspace = size

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        assert index < self.num_compute_capabilities
        self.asked.capabilities.append(capability.name)
        return self._trt.failing != "capability"

    num_compute_capabilities = 0

    def create_timing_cache(self, data: bytes) -> Any:
        if self._trt.failing == "no cache":
            return None
        return SimpleNamespace(data=data, serialize=lambda: memoryview(b"cache of this GPU"))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.asked.cache = cache.data
        return cache.data in (b"", b"cache of this GPU")


class _Parser:
    def __init__(self, network: Any) -> None:
        self._network = network
        self._errors: list[str] = []

    def parse(self, graph: bytes) -> bool:
        try:
            onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        except Exception as error:
            self._errors.append(f"no model: {error}")
            return False
        self._network.graph = graph
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(desc=lambda: self._errors[index])


class _Runtime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        assert logger.made
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if self.trt.failing == "deserialize" or not plan.startswith(_MAGIC):
            self.trt.says(self.logger, "the plan was built for another version")
            return None
        return _Engine(weakref.ref(self), plan[len(_MAGIC) :], self.trt)


class _Engine:
    def __init__(self, runtime: Any, graph: bytes, trt: FakeTensorRT) -> None:
        self.runtime, self.trt = runtime, trt
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._tensors = {
            **{one.name: (trt.TensorIOMode.INPUT, one.shape) for one in self.session.get_inputs()},
            **{one.name: (trt.TensorIOMode.OUTPUT, one.shape) for one in self.session.get_outputs()},
            **trt.wrong.get("tensors", {}),
        }
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._tensors[name][0]

    def get_tensor_shape(self, name: str) -> Any:
        return self.trt.wrong.get("shape", self._tensors[name][1])

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.wrong.get("kind", self.trt.float32)

    def create_execution_context(self) -> Any:
        return None if self.trt.failing == "context" else _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return self._engine.trt.failing != "address" and address % 64 == 0

    def execute_async_v3(self, stream: int) -> bool:
        trt = self._engine.trt
        assert stream == STREAM
        assert trt.driver.pushed > 0, "TensorRT without a context"
        assert self._engine.runtime() is not None, "the runtime is gone, and its engine is used"
        trt.threads.add(threading.get_ident())
        (given,), (wanted,) = self._engine.session.get_inputs(), self._engine.session.get_outputs()
        source, target = self._addresses[given.name], self._addresses[wanted.name]
        if trt.failing == "execute" or (trt.failing == "capture" and trt.driver.recording is not None):
            return False

        def work() -> None:
            tensor = np.frombuffer(ctypes.string_at(source, 4 * int(np.prod(given.shape))), np.float32).reshape(given.shape)
            (found,) = self._engine.session.run(None, {given.name: tensor})
            found = np.ascontiguousarray(found + np.float32(trt.offset), np.float32)
            ctypes.memmove(target, found.ctypes.data, found.nbytes)
            trt.runs += 1

        trt.driver.into_stream(work)
        return True


@pytest.fixture
def tensorrt(driver: FakeDriver, library: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    """TensorRT 10.3 on the GPU that is this processor."""
    fake = FakeTensorRT("tensorrt", driver)
    load_tensorrt.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    yield fake
    load_tensorrt.cache_clear()


@pytest.fixture
def tensorrt_rtx(driver: FakeDriver, library: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    """TensorRT for RTX on the GPU that is this processor."""
    fake = FakeTensorRT("tensorrt_rtx_bindings", driver, "1.7.1.116")
    load_tensorrt.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", ModuleType("tensorrt_rtx_libs"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", fake)
    yield fake
    load_tensorrt.cache_clear()
