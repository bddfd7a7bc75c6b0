"""An NVIDIA GPU that is this processor: a stand-in for PyCUDA's driver, and the driver's graphs, over this machine's memory."""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines import cuda, cuda_graph
from engines.cuda import Gpu
from engines.ldknn import LDKNN
from engines.ldknn_cuda import PARAMETERS, SOURCE, CudaLDKNN

STREAM = 7


class FakeDriver(ModuleType):
    """`pycuda.driver` over a processor's memory, which runs kernels compiled for it and checks where calls are made.

    Work in the stream runs at once, or is recorded between the two calls that capture it.
    """

    class Error(Exception):
        """As PyCUDA's."""

    def __init__(self, kernels: ctypes.CDLL, multiprocessors: int) -> None:
        super().__init__("pycuda.driver")
        self.kernels = kernels
        self.pushed, self.allocations, self.staged, self.open = 0, 0, 0, 0
        self.copied: list[int] = []  # bytes of each copy in the stream, when it ran
        self.memory: dict[int, npt.NDArray] = {}
        self.failing: str | None = None
        self.integrated = False
        self.name, self.capability = "Fake Orin", (8, 7)
        self.recording: list[Callable[[], None]] | None = None
        self.device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT="multiprocessors", INTEGRATED="integrated")
        self.host_alloc_flags = SimpleNamespace(DEVICEMAP=2)
        opened = SimpleNamespace(
            name=lambda: self.name,
            compute_capability=lambda: self.capability,
            get_attribute=lambda which: multiprocessors if which == "multiprocessors" else int(self.integrated),
            retain_primary_context=lambda: SimpleNamespace(push=lambda: self._push(1), pop=lambda: self._push(-1)),
        )
        self.Device = Device = lambda number: opened  # noqa: N806
        Device.count = lambda: 1  # type: ignore[attr-defined]

    def _push(self, by: int) -> None:
        self.pushed += by
        assert 0 <= self.pushed < 4

    def called(self, name: str) -> None:
        """Fail where asked to, and where no context is current."""
        assert self.pushed > 0, f"{name} without a context"
        if self.failing == name:
            raise self.Error(f"{name} failed")

    def into_stream(self, work: Callable[[], None]) -> None:
        """What a call puts into the stream."""
        if self.recording is not None:
            self.recording.append(work)
        else:
            work()

    def init(self) -> None:
        if self.failing == "init":
            raise self.Error("no CUDA-capable device is detected")

    def Stream(self) -> SimpleNamespace:  # noqa: N802
        self.called("Stream")
        return SimpleNamespace(handle=STREAM, synchronize=self._synchronize)

    def _synchronize(self) -> None:
        assert self.recording is None, "a stream that is recorded cannot be waited for"
        self.called("synchronize")

    def module_from_buffer(self, compiled: bytes) -> SimpleNamespace:
        self.called("module_from_buffer")
        return SimpleNamespace(get_function=self._function)

    def _function(self, name: str) -> SimpleNamespace:
        def call(grid: tuple[int, int], block: tuple[int, int, int], stream: Any, parameters: bytes) -> None:
            self.called(name)
            assert block == (cuda.THREADS, 1, 1)

            def work() -> None:
                self.kernels.launch(getattr(self.kernels, name), parameters, *grid)
                self.open = ctypes.c_int.from_address(int(np.frombuffer(parameters, PARAMETERS)[0]["open"])).value

            self.into_stream(work)

        def prepare(kinds: list[str]) -> SimpleNamespace:
            assert kinds == [f"{PARAMETERS.itemsize}s"]
            return SimpleNamespace(prepared_async_call=call)

        return SimpleNamespace(prepare=prepare)

    def mem_alloc(self, size: int) -> Any:
        self.called("mem_alloc")
        self.allocations += 1
        room = np.full(size + 256, 0xFF, np.uint8)  # NaN, and rows that there are not
        address = -(-room.ctypes.data // 256) * 256
        self.memory[address] = room

        def free() -> None:
            self.called("free")
            del self.memory[address]

        return type("Allocation", (), {"__int__": lambda _: address, "free": lambda _: free()})()

    def pagelocked_empty(self, shape: tuple[int, ...], kind: npt.DTypeLike, mem_flags: int = 0) -> npt.NDArray:
        self.called("pagelocked_empty")
        self.staged += 1
        if mem_flags == 0:
            return np.full(shape, np.nan, kind)
        assert self.integrated
        assert mem_flags == self.host_alloc_flags.DEVICEMAP
        bytes_of = int(np.prod(shape)) * np.dtype(kind).itemsize
        room = np.full(bytes_of + 4096, 0xFF, np.uint8)  # NaN, and aligned to pages below
        start = -room.ctypes.data % 4096
        return room[start : start + bytes_of].view(kind).reshape(shape).view(_Mapped)

    def memcpy_htod(self, address: int, array: npt.NDArray) -> None:
        self.called("memcpy_htod")
        assert array.flags.c_contiguous
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def memcpy_htod_async(self, address: int, array: npt.NDArray, stream: Any) -> None:
        self.called("memcpy_htod_async")
        assert array.flags.c_contiguous
        self._copy(address, array.ctypes.data, array.nbytes)

    def memcpy_dtoh_async(self, array: npt.NDArray, address: int, stream: Any) -> None:
        self.called("memcpy_dtoh_async")
        self._copy(array.ctypes.data, address, array.nbytes)

    def _copy(self, target: int, source: int, size: int) -> None:
        def work() -> None:
            ctypes.memmove(target, source, size)
            self.copied.append(size)

        self.into_stream(work)


class _Mapped(np.ndarray):
    """Page-locked memory that the GPU reaches too: its `base` tells where, as PyCUDA's does."""

    @property
    def base(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(get_device_pointer=lambda: self.ctypes.data)


class FakeLibrary:
    """The graph functions of `libcuda.so.1`."""

    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver
        self.failing: str | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0

    def cuStreamBeginCapture_v2(self, stream: ctypes.c_void_p, mode: ctypes.c_int) -> int:  # noqa: N802
        assert stream.value == STREAM
        assert self._driver.pushed > 0
        assert self._driver.recording is None
        if self.failing == "begin":
            return 900
        self._driver.recording = []
        return 0

    def cuStreamEndCapture(self, stream: ctypes.c_void_p, graph: Any) -> int:  # noqa: N802
        recorded, self._driver.recording = self._driver.recording, None
        assert recorded is not None
        if self.failing == "end":
            return 901
        self._keep(graph, recorded)
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: ctypes.c_void_p, flags: ctypes.c_ulonglong) -> int:  # noqa: N802
        assert flags.value == 0
        if self.failing == "instantiate":
            return 2
        self._keep(executable, self.graphs[graph.value or 0])
        return 0

    def cuGraphLaunch(self, executable: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:  # noqa: N802
        assert stream.value == STREAM
        assert self._driver.pushed > 0
        if self.failing == "launch":
            return 700
        self.launches += 1
        for work in self.graphs[executable.value or 0]:
            work()
        return 0

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:  # noqa: N802
        del self.graphs[graph.value or 0]
        return 0

    def cuGraphExecDestroy(self, executable: ctypes.c_void_p) -> int:  # noqa: N802
        return self.cuGraphDestroy(executable)

    def _keep(self, into: Any, recorded: list[Callable[[], None]]) -> None:
        number = max(self.graphs, default=100) + 1
        self.graphs[number] = recorded
        into._obj.value = number


@contextlib.contextmanager
def twin_of(search: LDKNN, judged: npt.NDArray[np.bool_], pooling: str = "cover", device: int = 0) -> Iterator[CudaLDKNN]:
    """A search on a GPU of its own, closed with it."""
    with Gpu(device) as gpu, CudaLDKNN(search, judged, pooling, gpu=gpu) as twin:
        yield twin


@pytest.fixture(scope="session")
def kernels_on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA source compiled for this processor."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, which compiles the CUDA source for a processor")
    folder = tmp_path_factory.mktemp("kernels")
    for header in re.findall(r"#include <(\S+)>", SOURCE.read_text()):
        (folder / header).touch()
    library = folder / "kernels.so"
    # fortified, a jump to another stack is taken for a mistake
    options = ("-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", f"-I{folder}", f'-DKERNELS="{SOURCE}"')
    source = Path(__file__).parent / "cuda_on_host.cpp"
    subprocess.run(["g++", *options, "-o", str(library), str(source)], check=True)
    kernels = ctypes.CDLL(str(library))
    assert kernels.parameters_size() == PARAMETERS.itemsize
    return kernels


@pytest.fixture
def driver(kernels_on_host: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A GPU of two multiprocessors, which is this processor."""
    fake = FakeDriver(kernels_on_host, 2)
    monkeypatch.setattr(cuda, "compile_kernels", lambda source, architecture: architecture.encode())
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    return fake


@pytest.fixture
def library(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    """The driver's graph functions on that GPU."""
    fake = FakeLibrary(driver)
    monkeypatch.setattr(cuda_graph, "_load_driver", lambda: fake)
    return fake
