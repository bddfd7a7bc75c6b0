"""ONNX to a TensorRT engine, on the machine that runs it, and the proof that it scores as the bundle says."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import EngineError
from engines.atomic import write_file
from engines.bundle import Bundle
from engines.cuda import Gpu
from engines.engine_file import SCHEMA, EngineRecord, write_engine
from engines.inspector import Scorer
from engines.ldknn import Progress
from engines.trt import TensorRT, load_tensorrt, make, make_trt_extractor, target_of
from engines.verify import GoldenResult, allowed_difference, verify_golden

Capability = tuple[int, int]
TIMED = "tensorrt"  # the backend that times kernels when it builds


@dataclass(frozen=True)
class Built:
    """A serialised engine, and the timing cache that makes the next build faster (empty where the runtime has none)."""

    plan: bytes
    timing_cache: bytes


@dataclass(frozen=True)
class BuildResult:
    """What `build_engine` did.

    Attributes:
        record: of the engine.
        golden: what it scored before it was installed.
        folder: where it was installed, or None where it did not pass.
    """

    record: EngineRecord
    golden: GoldenResult
    folder: Path | None


def build_engine(
    bundle: Bundle,
    backend: str,
    precision: str,
    *,
    workspace_mb: int | None = None,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Compile a bundle's graph for this machine's GPU, score the golden images with it, and install it if they are right.

    Args:
        bundle: a loaded bundle; the engine is installed beside its folder.
        backend: `tensorrt` or `tensorrt-rtx`.
        precision: of the graph, one that the bundle offers.
        workspace_mb: see `build_plan`.
        timing_cache: file that makes the next build faster, with TensorRT alone; made where there is none.
        progress: called with (golden images done, in all), after the build.

    Raises:
        EngineError: no runtime, GPU or graph of that precision, the build failed, or the engine cannot be run or written. What
            was installed before still is.
    """
    if precision == "int8-cpu":
        raise EngineError("int8-cpu is the graph for ONNX Runtime on a processor; build int8, which is TensorRT's")
    if timing_cache is not None and backend != TIMED:
        raise EngineError(f"{backend} times nothing and has no timing cache; leave --timing-cache out")
    graph = bundle.graph(precision)
    runtime = load_tensorrt(backend)
    known = _read_cache(timing_cache)
    with contextlib.ExitStack() as opened:
        gpu = opened.enter_context(Gpu())
        started = time.monotonic()
        with gpu.current():
            built = build_plan(runtime, graph, workspace_mb=workspace_mb, timing_cache=known)
        seconds = time.monotonic() - started
        sha256 = hashlib.sha256(built.plan).hexdigest()
        target = target_of(bundle, runtime, gpu, precision)
        opened.pop_all()  # the extractor's from here on
    manifest = bundle.manifest
    extractor = make_trt_extractor(bundle, runtime, gpu, built.plan, sha256, precision)
    with contextlib.closing(extractor):
        golden = verify_golden(
            Scorer(manifest.method, bundle.preprocessor(), bundle.bank, extractor),
            bundle.golden(),
            manifest.threshold,
            manifest.golden.spread,
            progress,
            tolerance=allowed_difference(manifest, precision),
        )
    if not math.isfinite(golden.max_difference):
        raise EngineError(f"the engine gave scores that are not finite ({runtime.said()}); build it in another precision")
    record = EngineRecord(
        schema_version=SCHEMA,
        target=target,
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        bytes=len(built.plan),
        sha256=sha256,
        images=len(golden.rows),
        max_difference=golden.max_difference,
        flips=golden.flips,
        workspace_mb=workspace_mb,
        seconds=seconds,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        log=tuple(runtime.log),
    )
    folder = write_engine(bundle.path, record, built.plan) if golden.passed else None
    if timing_cache is not None and built.timing_cache:  # last, so that a disk without room for it costs no engine
        write_file(timing_cache, built.timing_cache)
    return BuildResult(record, golden, folder)


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
        timing_cache: of an earlier build on this GPU; one of another GPU or version is ignored. TensorRT for RTX has none.
        capabilities: compute capabilities (major, minor) to build for; none is this machine's GPU. TensorRT for RTX alone
            builds for others, and without a GPU.

    Raises:
        EngineError: TensorRT refuses the graph, or cannot build; with what it logged.
    """
    trt = runtime.module
    runtime.log.clear()
    builder = make(runtime, trt.Builder, runtime.logger)
    network = make(runtime, builder.create_network, 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = make(runtime, trt.OnnxParser, network, runtime.logger)
    if not parser.parse(graph):
        wrong = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise EngineError(f"TensorRT {runtime.version} cannot parse the graph ({wrong}); export it again")
    config = make(runtime, builder.create_builder_config)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
    if workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, (major, minor) in enumerate(capabilities):
            known = getattr(trt.ComputeCapability, f"SM{major}{minor}", None)
            if known is None or not config.set_compute_capability(known, index):
                raise EngineError(f"TensorRT {runtime.version} knows no compute capability {major}.{minor}; use a newer one")
    cache = _use_timing_cache(config, timing_cache) if runtime.backend == TIMED else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f"TensorRT could not build the engine ({runtime.said()}); where memory was short, stop other programs on the GPU or"
            " give --workspace-mb less"
        )
    return Built(bytes(plan), b"" if cache is None else bytes(cache.serialize()))


def _read_cache(path: Path | None) -> bytes:
    if path is None or not path.exists():
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror}); give another path") from None


def _use_timing_cache(config: Any, data: bytes) -> Any:
    """The cache that a build fills; None where the runtime makes none."""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")  # what was kept is of another GPU or version
        if cache is None or not config.set_timing_cache(cache, False):
            return None
    return cache
