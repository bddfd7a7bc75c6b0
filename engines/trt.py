"""Feature extraction with TensorRT, or TensorRT for RTX: one code path for 10.3 to 11, which have one Python interface.

The runtime is imported when it is chosen. Every call that can fail without an exception (TensorRT answers with None or False)
is checked, and what it logged is in the error.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.bundle import Bundle
from engines.cuda import Gpu, Repeated
from engines.engine_file import Target, read_engine

_OLDEST = (10, 3)  # of TensorRT: JetPack 6.2's
_SAID = 5  # last lines of its log in an error
_KEPT = 100  # lines of the log


@dataclass(frozen=True)
class TensorRT:
    """An imported runtime, and what it logs.

    Attributes:
        backend: `tensorrt` or `tensorrt-rtx`.
        module: its Python module.
        version: as it tells it, such as `10.3.0`.
        log: warnings and errors, oldest first.
        logger: that its objects are made with.
    """

    backend: str
    module: Any
    version: str
    log: deque[str]
    logger: Any

    def said(self) -> str:
        """The end of the log, for an error's message."""
        return "; ".join(list(self.log)[-_SAID:]) or "it logged nothing"


# backend -> (modules, the last of which is the runtime; how to get it)
_RUNTIMES = {
    "tensorrt": (("tensorrt",), "on a Jetson it comes with JetPack (apt install python3-libnvinfer), for the system's Python"),
    "tensorrt-rtx": (("tensorrt_rtx_libs", "tensorrt_rtx_bindings"), "pip install '.[tensorrt-rtx]'"),
}


@cache  # TensorRT keeps a pointer to the first logger as long as the process lives
def load_tensorrt(backend: str) -> TensorRT:
    """Import a runtime, once.

    Args:
        backend: `tensorrt` or `tensorrt-rtx`.

    Raises:
        EngineError: it is not installed, cannot be loaded, or is too old.
    """
    names, remedy = _RUNTIMES[backend]
    try:
        module = [importlib.import_module(name) for name in names][-1]
    except (ImportError, OSError) as error:  # a library that does not load is an OSError
        raise EngineError(f"backend '{backend}' cannot be imported ({error}); {remedy}") from None
    version = str(module.__version__)
    if backend == "tensorrt" and tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise EngineError(f"TensorRT {version}, expected {'.'.join(map(str, _OLDEST))} or newer; use JetPack 6.2 or newer")
    log: deque[str] = deque(maxlen=_KEPT)
    return TensorRT(backend, module, version, log, _make_logger(module, log))


def open_tensorrt(bundle: Bundle, *, precision: str, threads: int) -> TensorRTExtractor:
    """Load the engine that was built for a bundle on this machine; TensorRT has no use for `threads`. Raises EngineError."""
    return _open_bundle(bundle, "tensorrt", precision)


def open_tensorrt_rtx(bundle: Bundle, *, precision: str, threads: int) -> TensorRTExtractor:
    """As `open_tensorrt`, in TensorRT for RTX."""
    return _open_bundle(bundle, "tensorrt-rtx", precision)


def target_of(bundle: Bundle, runtime: TensorRT, gpu: Gpu, precision: str) -> Target:
    """What an engine for a bundle on this machine is right for."""
    return Target(
        bundle=bundle.digest,
        precision=precision,
        backend=runtime.backend,
        version=runtime.version,
        gpu=gpu.name,
        capability=gpu.capability,
        multiprocessors=gpu.multiprocessors,
    )


def _open_bundle(bundle: Bundle, backend: str, precision: str) -> TensorRTExtractor:
    graph = bundle.graph(precision)
    runtime = load_tensorrt(backend)
    with contextlib.ExitStack() as opened:  # the extractor's, once there is one
        gpu = opened.enter_context(Gpu())
        engine = read_engine(bundle.path, target_of(bundle, runtime, gpu, precision), graph)
        opened.pop_all()
    return make_trt_extractor(bundle, runtime, gpu, engine.plan, engine.record.sha256, precision)


def make_trt_extractor(
    bundle: Bundle, runtime: TensorRT, gpu: Gpu, plan: bytes, sha256: str, precision: str
) -> TensorRTExtractor:
    """Load an engine of a bundle's graph; the GPU is the extractor's from now on. Raises EngineError."""
    method = bundle.manifest.method
    return TensorRTExtractor(
        runtime,
        plan,
        gpu,
        precision=precision,
        engine_digest=sha256,
        input_shape=(1, 3, *bundle.manifest.input.size),
        output_shape=(method.grid[0] * method.grid[1], method.dim),
    )


class TensorRTExtractor:
    """An engine on a GPU; see `FeatureExtractor`. Used from the thread that made it, and no other.

    Attributes:
        gpu: that it runs on, closed with it.
    """

    def __init__(
        self,
        runtime: TensorRT,
        plan: bytes,
        gpu: Gpu,
        *,
        precision: str,
        engine_digest: str,
        input_shape: tuple[int, int, int, int],
        output_shape: tuple[int, int],
    ) -> None:
        """Load a serialised engine and run it once.

        Args:
            runtime: that built it.
            plan: the engine, whose digest the caller has checked.
            gpu: that it was built for; it is this object's from now on, also where this raises.
            precision, engine_digest: see `FeatureExtractor`.
            input_shape: (1, 3, h, w) that it must take.
            output_shape: (patches, d) that it must give.

        Raises:
            EngineError: TensorRT refuses the engine, memory is short, or it takes or gives something else.
        """
        self.backend = runtime.backend
        self.precision = precision
        self.provider = f"{gpu.name}, {runtime.backend} {runtime.version}"
        self.engine_digest = engine_digest
        self.gpu = gpu
        self._runtime = runtime
        self._thread = threading.get_ident()
        self._shapes = (input_shape, output_shape)
        self._maker: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._repeated: Repeated | None = None
        self._given: Any = None
        self._taken: Any = None
        try:
            with gpu.current():
                # the object that made an engine must outlive it
                self._maker = make(runtime, runtime.module.Runtime, runtime.logger)
                self._engine = self._maker.deserialize_cuda_engine(plan)
                if self._engine is None:
                    raise EngineError(f"TensorRT refuses the engine ({runtime.said()}); build it again on this machine")
                self._names = self._check_interface()
                self._context = self._engine.create_execution_context()
                if self._context is None:
                    raise EngineError(
                        f"TensorRT cannot run the engine ({runtime.said()}); it may be short of memory: stop other programs on"
                        " the GPU, or build the engine in a smaller precision"
                    )
            self._given, self._taken = gpu.share(input_shape), gpu.share(output_shape)
            self._bind(self._names[0], self._given.address)
            self._repeated = Repeated(gpu, self._extract_there)
            self.extract(np.zeros(input_shape, np.float32))
        except BaseException:
            self.close()
            raise

    @property
    def replayed(self) -> str:
        """Whether the work is recorded and replayed, in words."""
        refused = self._repeated.refused if self._repeated is not None else None
        return "CUDA graph" if refused is None else f"no CUDA graph: {refused}"

    def extract(self, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Embed one image: float32 (1, 3, h, w) to float32 (patches, d). Raises EngineError."""
        self.give(tensor)
        assert self._repeated is not None  # an open one has it
        self._repeated.enqueue()
        self.gpu.wait()
        return np.array(self._taken.array)

    def give(self, tensor: npt.NDArray[np.float32]) -> None:
        """Put one image, float32 (1, 3, h, w), where `enqueue` takes it from. Raises EngineError."""
        if self._context is None:
            raise EngineError("the TensorRT engine is closed; open it again")
        if threading.get_ident() != self._thread:
            raise EngineError(
                f"a TensorRT engine of thread {self._thread} was called from thread {threading.get_ident()}; open one in each"
            )
        expected, _ = self._shapes
        if not isinstance(tensor, np.ndarray) or tensor.dtype != np.float32 or tensor.shape != expected:
            got = f"{tensor.dtype} {tensor.shape}" if isinstance(tensor, np.ndarray) else type(tensor).__name__
            raise EngineError(f"network input is {got}, expected float32 {expected}")
        np.copyto(self._given.array, tensor)

    def enqueue(self, address: int) -> None:
        """Put the copy of the image to the GPU, and the network, into the GPU's stream.

        Args:
            address: on the GPU, of float32 (patches, d) that the embeddings are written to.

        Raises:
            EngineError: TensorRT refuses, or the GPU failed.
        """
        self._bind(self._names[1], address)
        self.gpu.send(self._given, self._given.array.size)
        with self.gpu.current():
            if not self._context.execute_async_v3(self.gpu.stream):
                raise EngineError(f"TensorRT did not run the network ({self._runtime.said()}); build the engine again")

    def close(self) -> None:
        """Release the engine and the GPU; may be called twice."""
        if self._repeated is not None:
            self._repeated.close()
        with contextlib.suppress(EngineError), self.gpu.current():  # closed already, there is nothing left to free
            # TensorRT frees GPU memory when these go, the context before the engine, each while the GPU is there
            self._context = None
            self._engine = None
            self._maker = None
        self._repeated = self._context = self._engine = self._maker = None
        self._given = self._taken = None
        self.gpu.close()

    def _extract_there(self) -> None:
        self.enqueue(self._taken.address)
        self.gpu.fetch(self._taken, self._taken.array.size)

    def _bind(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"TensorRT refuses the address of '{name}' ({self._runtime.said()}); build the engine again")

    def _check_interface(self) -> tuple[str, str]:
        """Names of the one input and the one output, whose types and shapes are those wanted."""
        engine, trt = self._engine, self._runtime.module
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = [engine.get_tensor_mode(name) for name in names]
        if sorted(map(str, modes)) != sorted(map(str, (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT))):
            raise EngineError(
                f"the engine takes and gives {', '.join(names)}, expected one input and one output; build it again"
            )
        ordered = (names[modes.index(trt.TensorIOMode.INPUT)], names[modes.index(trt.TensorIOMode.OUTPUT)])
        for name, expected in zip(ordered, self._shapes, strict=True):
            shape, kind = tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name)
            if shape != expected or kind != trt.float32:
                raise EngineError(f"the engine's '{name}' is {kind} {shape}, expected float32 {expected}; build it again")
        return ordered


def make(runtime: TensorRT, maker: Callable[..., Any], *arguments: Any) -> Any:
    """One of the runtime's objects. Raises EngineError where it makes none, which its Python interface says in two ways."""
    try:
        made = maker(*arguments)
    except TypeError:
        made = None
    if made is None:
        raise EngineError(f"{runtime.backend} {runtime.version} cannot be used here ({runtime.said()}); check GPU and driver")
    return made


def _make_logger(module: Any, lines: deque[str]) -> Any:
    """TensorRT's logger, which keeps warnings and errors."""
    kept = {
        module.ILogger.INTERNAL_ERROR: "internal error",
        module.ILogger.ERROR: "error",
        module.ILogger.WARNING: "warning",
    }

    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in kept:
                lines.append(f"{kept[severity]}: {message}")

    return Log()
