"""Feature extraction with ONNX Runtime: on the CPU, or on an NVIDIA GPU where the installed build can.

ONNX Runtime goes on without a word on the CPU where an execution provider fails. Here nothing does: the provider asked for
runs the whole graph, or there is an error.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.bundle import Bundle

try:
    import onnxruntime
except ImportError as error:
    raise EngineError(
        f"ONNX Runtime cannot be imported ({error}); install it with: pip install onnxruntime, or choose another backend"
    ) from None

_CPU = "CPUExecutionProvider"
# backend -> the execution provider that must run the graph
_PROVIDERS = {
    "onnxruntime": _CPU,
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}


class OnnxRuntimeExtractor:
    """A feature graph in one of ONNX Runtime's execution providers; see `FeatureExtractor`."""

    def __init__(
        self,
        graph: bytes,
        *,
        input_shape: tuple[int, int, int, int],
        output_shape: tuple[int, int],
        backend: str = "onnxruntime",
        precision: str = "fp32",
        threads: int = 0,
    ) -> None:
        """Load a serialised ONNX graph and check that it gives what it should.

        Args:
            graph: the ONNX file's bytes, float32 in and out.
            input_shape: (1, 3, h, w) that it must take.
            output_shape: (patches, d) that it must give.
            backend: `onnxruntime` for the CPU, `onnxruntime-cuda` or `onnxruntime-tensorrt`.
            precision: of the graph, for the record.
            threads: CPU threads; 0 takes one a core.

        Raises:
            EngineError: the provider is not in the installed build or does not run the graph, the runtime refuses the
                graph, or its output has another shape.
        """
        self.backend, self.precision = backend, precision
        wanted = _PROVIDERS[backend]
        installed = onnxruntime.get_available_providers()
        if wanted not in installed:
            raise EngineError(
                f"backend '{backend}' needs {wanted}, ONNX Runtime {onnxruntime.__version__} here has {', '.join(installed)};"
                " install a build that has it (onnxruntime-gpu in place of onnxruntime), or choose another backend"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # idle workers that spin would steal the cores from the nearest-neighbour search that follows
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if wanted != _CPU:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=[wanted], enable_fallback=0)
            (only,) = self._session.get_inputs()
        except Exception as error:  # the runtime's exceptions share no public base class
            remedy = "train it again" if wanted == _CPU else f"check that this machine can run {wanted}, or train it again"
            raise EngineError(f"ONNX Runtime refuses the feature graph ({error}); {remedy}") from None
        self.provider = self._session.get_providers()[0]
        if self.provider != wanted:
            raise EngineError(
                f"backend '{backend}' was to run in {wanted}, ONNX Runtime took {self.provider} instead;"
                " check the GPU's driver and libraries, or choose the backend onnxruntime"
            )
        self.engine_digest = hashlib.sha256(graph).hexdigest()
        self._input_shape = input_shape
        self._output_shape = output_shape
        self._input_name = only.name
        self.extract(np.zeros(self._input_shape, np.float32))

    def extract(self, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Embed one image: float32 (1, 3, h, w) to float32 (patches, d). Raises EngineError."""
        if tensor.dtype != np.float32 or tensor.shape != self._input_shape:
            raise EngineError(f"network input is {tensor.dtype} {tensor.shape}, expected float32 {self._input_shape}")
        try:
            (embeddings,) = self._session.run(None, {self._input_name: tensor})
        except Exception as error:  # as above
            raise EngineError(f"ONNX Runtime failed: {error}") from None
        if embeddings.dtype != np.float32 or embeddings.shape != self._output_shape:
            raise EngineError(
                f"the feature graph gave {embeddings.dtype} {embeddings.shape},"
                f" expected float32 {self._output_shape}; train it again"
            )
        return np.asarray(embeddings)

    def close(self) -> None:
        """Nothing to release before the object goes."""


def open_bundle(bundle: Bundle, *, precision: str = "fp32", threads: int = 0) -> OnnxRuntimeExtractor:
    """Load a bundle's graph on the CPU; arguments as above. Raises EngineError."""
    return _open(bundle, "onnxruntime", precision, threads)


def open_cuda(bundle: Bundle, *, precision: str = "fp32", threads: int = 0) -> OnnxRuntimeExtractor:
    """Load a bundle's graph in the CUDA provider; arguments as above. Raises EngineError."""
    return _open(bundle, "onnxruntime-cuda", precision, threads)


def open_tensorrt(bundle: Bundle, *, precision: str = "fp32", threads: int = 0) -> OnnxRuntimeExtractor:
    """Load a bundle's graph in the TensorRT provider, which builds an engine first; arguments as above. Raises EngineError."""
    return _open(bundle, "onnxruntime-tensorrt", precision, threads)


def _open(bundle: Bundle, backend: str, precision: str, threads: int) -> OnnxRuntimeExtractor:
    method = bundle.manifest.method
    return OnnxRuntimeExtractor(
        bundle.graph(precision),
        input_shape=(1, 3, *bundle.manifest.input.size),
        output_shape=(method.grid[0] * method.grid[1], method.dim),
        backend=backend,
        precision=precision,
        threads=threads,
    )
