"""An NVIDIA GPU: kernels compiled where they run and kept, memory, one stream. All that touches PyCUDA is here.

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.atomic import write_file

Floats = npt.NDArray[np.float32]
Grids = dict[str, tuple[int, int]]

THREADS = 256  # of a block, in every kernel
_FLAGS = ("-cubin", "-O3", "-std=c++17")
_ELF = b"\x7fELF"  # what a compiled kernel begins with
_USUAL = Path("/usr/local/cuda/bin/nvcc")  # where JetPack and CUDA's packages put it, which is not always on the path


class Gpu:
    """A GPU, its kernels and one stream. Used from one thread at a time, whichever; holds the GPU until `close`.

    The device's primary context is used, which others in this process share, and is a thread's own during a call alone.

    Attributes:
        multiprocessors: that blocks run on.
    """

    def __init__(self, source: Path, kernels: Sequence[str], device: int = 0) -> None:
        """Open a device and load kernels, compiled for it if they are not in the cache.

        Raises:
            EngineError: PyCUDA, the driver, the device or nvcc is missing, or nvcc refuses the source.
        """
        self._driver = _import_driver()
        self._context: Any = None
        self._memory: dict[int, Any] = {}
        try:
            self._driver.init()
            count = self._driver.Device.count()
            if not 0 <= device < count:
                raise EngineError(f"GPU {device} was asked for and {count} are there; choose 0 to {count - 1}")
            opened = self._driver.Device(device)
            major, minor = opened.compute_capability()
            self.multiprocessors = int(opened.get_attribute(self._driver.device_attribute.MULTIPROCESSOR_COUNT))
            compiled = compile_kernels(source, f"sm_{major}{minor}")
            self._context = opened.retain_primary_context()
        except self._driver.Error as error:
            raise EngineError(f"no NVIDIA GPU can be used ({error}); check that nvidia-smi or tegrastats sees one") from None
        with self._current():
            self._stream = self._driver.Stream()
            self._module = self._driver.module_from_buffer(compiled)
            self._kernels = {name: self._module.get_function(name) for name in kernels}

    def allocate(self, size: int) -> int:
        """Address of so many bytes on the GPU, aligned to 256. Raises EngineError."""
        with self._current():
            memory = self._driver.mem_alloc(size)
            self._memory[int(memory)] = memory
            return int(memory)

    def free(self, address: int) -> None:
        """Give back what `allocate` gave; 0 is nothing. Raises EngineError."""
        if address != 0:
            with self._current():
                self._memory.pop(address).free()

    def staging(self, shape: tuple[int, ...]) -> Floats:
        """Float32 memory of this machine, page-locked: the GPU copies from and to it without a detour. Raises EngineError."""
        with self._current():
            return np.asarray(self._driver.pagelocked_empty(shape, np.float32))

    def upload(self, address: int, array: npt.NDArray) -> None:
        """Copy a contiguous array to the GPU and wait. Raises EngineError."""
        with self._current():
            self._driver.memcpy_htod(address, array)

    def run(self, parameters: bytes, grids: Grids, given: tuple[int, Floats], wanted: Sequence[tuple[Floats, int]]) -> None:
        """Copy in, run kernels, copy out, and wait; nothing is allocated.

        Args:
            parameters: the one structure that every kernel takes.
            grids: blocks (x, y) of each kernel, in the order in which they run.
            given: an address, and staging memory that is copied there first.
            wanted: staging memory, and the address that is copied to it last.

        Raises:
            EngineError: the GPU failed, or is closed.
        """
        with self._current():
            self._driver.memcpy_htod_async(*given, self._stream)
            for name, grid in grids.items():
                kernel = self._kernels[name].prepare([f"{len(parameters)}s"])
                kernel.prepared_async_call(grid, (THREADS, 1, 1), self._stream, parameters)
            for memory, address in wanted:
                self._driver.memcpy_dtoh_async(memory, address, self._stream)
            self._stream.synchronize()

    def close(self) -> None:
        """Release memory, kernels, stream and context; may be called twice."""
        if self._context is None:
            return
        with contextlib.suppress(EngineError), self._current():  # after a failure of the GPU there is nothing left to free
            for memory in self._memory.values():
                memory.free()
        # PyCUDA releases each with its last reference, the primary context after what lives in it
        self._memory, self._kernels = {}, {}
        self._module = self._stream = None
        self._context = None

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """Make the context this thread's for a while, whatever was before."""
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
