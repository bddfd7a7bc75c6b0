"""Feature extraction with ONNX Runtime on the CPU."""

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


class OnnxRuntimeExtractor:
    """A float32 feature graph in ONNX Runtime's CPU provider; see `FeatureExtractor`."""

    backend = "onnxruntime"
    precision = "fp32"

    def __init__(
        self, graph: bytes, *, input_shape: tuple[int, int, int, int], output_shape: tuple[int, int], threads: int = 0
    ) -> None:
        """Load a serialised ONNX graph and check that it gives what it should.

        Args:
            graph: the ONNX file's bytes.
            input_shape: (1, 3, h, w) that it must take.
            output_shape: (patches, d) that it must give.
            threads: CPU threads; 0 takes one a core.

        Raises:
            EngineError: the runtime refuses the graph, or its output has another shape.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # idle workers that spin would steal the cores from the nearest-neighbour search that follows
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            (only,) = self._session.get_inputs()
        except Exception as error:  # the runtime's exceptions share no public base class
            raise EngineError(f"ONNX Runtime refuses the feature graph ({error}); train it again") from None
        self.provider = self._session.get_providers()[0]
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


def open_bundle(bundle: Bundle, *, threads: int = 0) -> OnnxRuntimeExtractor:
    """Load a bundle's float32 graph; `threads` as above. Raises EngineError."""
    method = bundle.manifest.method
    return OnnxRuntimeExtractor(
        bundle.features,
        input_shape=(1, 3, *bundle.manifest.input.size),
        output_shape=(method.grid[0] * method.grid[1], method.dim),
        threads=threads,
    )
