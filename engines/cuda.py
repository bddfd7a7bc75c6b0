"""An NVIDIA GPU: memory, kernels compiled where they run and kept, one stream. All that touches PyCUDA is here.

PyCUDA is imported when a GPU is opened and not before. Kernels are compiled by nvcc itself, which a machine without a GPU can
do too, so that tests compile what stations run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.atomic import write_file
from engines.cuda_graph import Graph, capture

Floats = npt.NDArray[np.float32]
Grids = dict[str, tuple[int, int]]
Kernels = dict[str, Any]

THREADS = 256  # of a block, in every kernel
_FLAGS = ("-cubin", "-O3", "-std=c++17")
_ELF = b"\x7fELF"  # what a compiled kernel begins with
_USUAL = Path("/usr/local/cuda/bin/nvcc")  # where JetPack and CUDA's packages put it, which is not always on the path


@dataclass(frozen=True)
class Shared:
    """Float32 memory that this machine and the GPU both reach.

    On a GPU that has its own memory, `array` is page-locked and `address` is the copy's that `send` and `fetch` keep equal;
    on one that shares the machine's memory (a Jetson) both name the same bytes, and nothing is copied.
    """

    array: Floats
    address: int
    mapped: bool
    owned: bool  # the memory at `address` came with it, and goes with it


class Gpu:
    """A GPU and one stream on it. Used from one thread at a time, whichever; holds the GPU until `close`.

    The device's primary context is used, which others in this process share (TensorRT among them), and is a thread's own
    inside `current` alone. What `send`, `launch`, `fetch` and others put into the stream runs in that order; `wait` waits.

    Attributes:
        name: of the device, as the driver tells it.
        capability: compute capability (major, minor).
        multiprocessors: that blocks run on.
        integrated: it shares the machine's memory.
    """

    def __init__(self, device: int = 0) -> None:
        """Open a device.

        Raises:
            EngineError: PyCUDA, the driver or the device is missing.
        """
        self._driver = _import_driver()
        self._context: Any = None
        self._memory: dict[int, Any] = {}
        self._pinned: list[Any] = []
        try:
            self._driver.init()
            count = self._driver.Device.count()
            if not 0 <= device < count:
                raise EngineError(f"GPU {device} was asked for and {count} are there; choose 0 to {count - 1}")
            opened = self._driver.Device(device)
            attribute = self._driver.device_attribute
            self.name = str(opened.name())
            self.capability: tuple[int, int] = opened.compute_capability()
            self.multiprocessors = int(opened.get_attribute(attribute.MULTIPROCESSOR_COUNT))
            self.integrated = bool(opened.get_attribute(attribute.INTEGRATED))
            self._context = opened.retain_primary_context()
        except self._driver.Error as error:
            raise EngineError(f"no NVIDIA GPU can be used ({error}); check that nvidia-smi or tegrastats sees one") from None
        with self.current():
            self._stream = self._driver.Stream()

    @property
    def stream(self) -> int:
        """The stream's handle, for libraries that put work into it."""
        return int(self._stream.handle)

    def load(self, source: Path, kernels: Sequence[str]) -> Kernels:
        """Kernels of a CUDA source, compiled for this GPU if they are not in the cache. Raises EngineError."""
        compiled = compile_kernels(source, "sm_{}{}".format(*self.capability))
        with self.current():
            module = self._driver.module_from_buffer(compiled)
            return {name: module.get_function(name) for name in kernels}

    def allocate(self, size: int) -> int:
        """Address of so many bytes on the GPU, aligned to 256. Raises EngineError."""
        with self.current():
            memory = self._driver.mem_alloc(size)
            self._memory[int(memory)] = memory
            return int(memory)

    def free(self, address: int) -> None:
        """Give back what `allocate` gave; 0 is nothing. Raises EngineError."""
        if address != 0:
            with self.current():
                self._memory.pop(address).free()

    def share(self, shape: tuple[int, ...], address: int = 0) -> Shared:
        """Memory that both reach; with an address on the GPU, the copy is there. Raises EngineError."""
        with self.current():
            if self.integrated and address == 0:
                array = self._driver.pagelocked_empty(shape, np.float32, mem_flags=self._driver.host_alloc_flags.DEVICEMAP)
                self._pinned.append(array)
                return Shared(array, int(array.base.get_device_pointer()), mapped=True, owned=False)
            array = self._driver.pagelocked_empty(shape, np.float32)
        self._pinned.append(array)
        return Shared(array, address or self.allocate(array.nbytes), mapped=False, owned=address == 0)

    def release(self, shared: Shared) -> None:
        """Give back what `share` gave. Raises EngineError."""
        self._pinned = [array for array in self._pinned if array is not shared.array]
        if shared.owned:
            self.free(shared.address)

    def upload(self, address: int, array: npt.NDArray) -> None:
        """Copy a contiguous array to the GPU and wait. Raises EngineError."""
        with self.current():
            self._driver.memcpy_htod(address, array)

    def send(self, shared: Shared, elements: int) -> None:
        """Put a copy to the GPU, of the first elements, into the stream. Raises EngineError."""
        if not shared.mapped:
            with self.current():
                self._driver.memcpy_htod_async(shared.address, shared.array.ravel()[:elements], self._stream)

    def fetch(self, shared: Shared, elements: int) -> None:
        """Put a copy from the GPU, of the first elements, into the stream. Raises EngineError."""
        if not shared.mapped:
            with self.current():
                self._driver.memcpy_dtoh_async(shared.array.ravel()[:elements], shared.address, self._stream)

    def launch(self, kernels: Kernels, parameters: bytes, grids: Grids) -> None:
        """Put kernels into the stream; nothing is allocated.

        Args:
            kernels: that `load` gave.
            parameters: the one structure that every kernel takes.
            grids: blocks (x, y) of each kernel, in the order in which they run.

        Raises:
            EngineError: the GPU failed, or is closed.
        """
        with self.current():
            for name, grid in grids.items():
                kernel = kernels[name].prepare([f"{len(parameters)}s"])
                kernel.prepared_async_call(grid, (THREADS, 1, 1), self._stream, parameters)

    def wait(self) -> None:
        """Wait until the stream is empty. Raises EngineError."""
        with self.current():
            self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` puts into the stream, as a graph that `replay` puts there in one call; it does not run now.

        Raises:
            EngineError: the driver refuses, or what `work` raises.
        """
        with self.current():
            return capture(self.stream, work)

    def replay(self, graph: Graph) -> None:
        """Put a graph into the stream. Raises EngineError."""
        with self.current():
            graph.launch(self.stream)

    def close(self) -> None:
        """Release memory, stream and context; may be called twice."""
        if self._context is None:
            return
        with contextlib.suppress(EngineError), self.current():  # after a failure of the GPU there is nothing left to free
            for memory in self._memory.values():
                memory.free()
            # PyCUDA releases each with its last reference, and only where the context is current
            self._memory, self._pinned, self._stream = {}, [], None
        self._memory, self._pinned, self._stream = {}, [], None
        self._context = None

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's for a while, whatever was before. Raises EngineError for what the driver raises."""
        if self._context is None:
            raise EngineError("the GPU is closed; open it again")
        try:
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()
        except self._driver.Error as error:
            raise EngineError(f"the GPU failed ({error}); start the program again, and check its memory and dmesg") from None


class Repeated:
    """Work that puts the same into a GPU's stream each time: run once, then recorded, and replayed from then on.

    Attributes:
        refused: why it could not be recorded, or None. It is put into the stream piece by piece then, which gives the same
            answers and takes longer.
    """

    def __init__(self, gpu: Gpu, work: Callable[[], None]) -> None:
        """`work` must put work into the stream, of addresses and shapes that do not change, and nothing else."""
        self._gpu = gpu
        self._work = work
        self._runs = 0
        self._graph: Graph | None = None
        self.refused: str | None = None

    def enqueue(self) -> None:
        """Put the work into the stream. Raises EngineError."""
        if self._graph is not None:
            self._gpu.replay(self._graph)
            return
        if self._runs > 0 and self.refused is None:  # what is lazy in a library has happened in the first run
            try:
                self._graph = self._gpu.capture(self._work)
            except EngineError as error:
                self.refused = str(error)
            else:
                self._gpu.replay(self._graph)
                return
        self._runs += 1
        self._work()

    def close(self) -> None:
        """Give back what was recorded; may be called twice."""
        if self._graph is not None:
            with contextlib.suppress(EngineError), self._gpu.current():
                self._graph.close()
            self._graph = None


def compile_kernels(source: Path, architecture: str) -> bytes:
    """A CUDA source compiled for an architecture, such as `sm_87`; from the cache where it is known.

    The cache is `$XDG_CACHE_HOME/reb-inspection` or `~/.cache/reb-inspection`, by source, architecture, nvcc's version and
    its options.

    Raises:
        EngineError: nvcc is missing or refuses.
    """
    nvcc = _find_nvcc()
    recipe = (source.read_bytes(), architecture.encode(), " ".join(_FLAGS).encode(), _call(nvcc, "--version"))
    digest = hashlib.sha256(b"\0".join(recipe)).hexdigest()
    cached = _cache() / f"{source.stem}-{architecture}-{digest[:32]}.cubin"
    with contextlib.suppress(OSError):
        compiled = cached.read_bytes()
        if compiled.startswith(_ELF):
            return compiled
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.cubin"
        _call(nvcc, *_FLAGS, f"-arch={architecture}", "-o", str(made), str(source))
        compiled = made.read_bytes()
    with contextlib.suppress(EngineError):  # a cache that cannot be written costs the next start a second, nothing else
        write_file(cached, compiled)
    return compiled


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reb-inspection"


def _find_nvcc() -> str:
    found = shutil.which("nvcc") or (str(_USUAL) if _USUAL.is_file() else None)
    if found is None:
        raise EngineError(
            f"nvcc is neither on the path nor {_USUAL}; install CUDA's compiler (on a Jetson: apt install cuda-nvcc)"
        )
    return found


def _call(*command: str) -> bytes:
    """Standard output of a command."""
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be run ({error.strerror}); install CUDA's compiler again") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).decode(errors="replace").strip()
        raise EngineError(f"{' '.join(command)} failed: {said}; expected CUDA 11.4 or newer and a C++ compiler") from None


def _import_driver() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError:
        raise EngineError("PyCUDA is not installed, which a GPU is used through; pip install '.[cuda]'") from None
    except ImportError as error:
        raise EngineError(f"PyCUDA cannot be used ({error}); check that NVIDIA's driver is installed") from None
