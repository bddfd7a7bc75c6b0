"""ONNX to a TensorRT engine, on the machine that runs it, and the proof that it scores as the bundle says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines import EngineError
from engines.trt import TensorRT

Capability = tuple[int, int]


@dataclass(frozen=True)
class Built:
    """A serialised engine, and the timing cache that makes the next build faster (empty where the runtime has none)."""

    plan: bytes
    timing_cache: bytes


def build_plan(
    runtime: TensorRT,
    graph: bytes,
    *,
    workspace_mb: int | None = None,
    timing_cache: bytes = b"",
    capabilities: Sequence[Capability] = (),
) -> Built:
    """Compile a graph. The precision is the graph's own: networks are strongly typed, which TensorRT 11 alone knows.

    Args:
        runtime: that compiles.
        graph: ONNX file's bytes.
        workspace_mb: memory that the build may try kernels with, in MiB; None leaves it to TensorRT.
        timing_cache: of an earlier build on this GPU; one of another GPU or version is ignored.
        capabilities: compute capabilities (major, minor) to build for; none is this machine's GPU. TensorRT for RTX alone
            builds for others, and without a GPU.

    Raises:
        EngineError: TensorRT refuses the graph, or cannot build; with what it logged.
    """
    trt = runtime.module
    runtime.log.clear()
    try:
        builder = trt.Builder(runtime.logger)
    except TypeError:  # how its Python interface says that there is none
        raise EngineError(f"TensorRT cannot build on this machine ({runtime.said()}); check that it has a GPU") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, runtime.logger)
    if not parser.parse(graph):
        wrong = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise EngineError(f"TensorRT {runtime.version} cannot parse the graph ({wrong}); export it again")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
    if workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, (major, minor) in enumerate(capabilities):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{major}{minor}"), index):
                raise EngineError(f"TensorRT cannot build for compute capability {major}.{minor} ({runtime.said()})")
    cache = _use_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f"TensorRT could not build the engine ({runtime.said()}); where memory was short, stop other programs on the GPU or"
            " give --workspace-mb less"
        )
    return Built(bytes(plan), b"" if cache is None else bytes(cache.serialize()))


def _use_timing_cache(config: Any, data: bytes) -> Any:
    """The cache that a build fills; None where the runtime has none, as TensorRT for RTX."""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")  # what was kept is of another GPU or version
        if cache is None or not config.set_timing_cache(cache, False):
            return None
    return cache
