"""Compiled engines beside their bundle: each in a folder of its own with a record of what it was built from, and for what.

An engine is right for one bundle, one precision, one model of GPU and one version of the runtime. All four are in the folder's
name, so that stations that share a disk do not overwrite each other's, and in the record, which is what is believed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from engines import EngineError
from engines.atomic import new_folder
from engines.bundle import Positive, Record

SCHEMA = 1
_PLAN, _RECORD = "engine.plan", "engine.json"


class Target(Record):
    """What an engine is right for.

    Attributes:
        bundle: digest of the bundle.
        precision: of the graph.
        backend, version: the runtime, and its version.
        gpu, capability, multiprocessors: the GPU's name, compute capability (major, minor) and size: on Jetsons the name is
            the family's, and an Orin Nano's would be an AGX Orin's.
    """

    bundle: str
    precision: str
    backend: str
    version: str
    gpu: str
    capability: tuple[int, int]
    multiprocessors: Positive


class EngineRecord(Record):
    """The file beside an engine.

    Attributes:
        target: what it is right for.
        graph_sha256: of the ONNX file that was compiled.
        bytes, sha256: of the engine.
        images, max_difference, flips: of the golden images that it was proved on before it was installed; the difference in
            standard deviations of normal scores.
        workspace_mb, seconds, created: of the build.
        log: what the runtime warned of.
    """

    schema_version: int
    target: Target
    graph_sha256: str
    bytes: Positive
    sha256: str
    images: Positive
    max_difference: float = Field(ge=0)
    flips: int = Field(ge=0)
    workspace_mb: int | None
    seconds: float = Field(ge=0)
    created: str
    log: tuple[str, ...]


@dataclass(frozen=True)
class EngineFile:
    """An engine that was read and checked."""

    record: EngineRecord
    plan: bytes


def folder_of(bundle: Path, target: Target) -> Path:
    """Where an engine is kept: beside the bundle, in `<bundle>.engines`."""
    gpu = re.sub(r"[^a-z0-9]+", "-", target.gpu.lower()).strip("-")
    name = f"{target.backend}-{target.version}-{gpu}-{target.multiprocessors}sm-{target.precision}-{target.bundle[:12]}"
    return _shelf(bundle) / name


def write_engine(bundle: Path, record: EngineRecord, plan: bytes) -> Path:
    """Install an engine atomically in the place of an older one for the same target; returns its folder.

    Raises:
        EngineError: it cannot be written; what stood there still stands.
    """
    folder = folder_of(bundle, record.target)
    with new_folder(folder) as new:
        (new / _PLAN).write_bytes(plan)
        (new / _RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return folder


def read_engine(bundle: Path, target: Target, graph: bytes) -> EngineFile:
    """Read the engine for a target, and check all of it before any runtime sees it.

    Args:
        bundle: the bundle's folder.
        target: this bundle, machine and runtime.
        graph: the ONNX file's bytes that it must have been compiled from.

    Raises:
        EngineError: there is none, it is damaged, or it was built from or for something else; with the remedy.
    """
    folder = folder_of(bundle, target)
    build = f"python -m engines build --bundle {bundle} --backend {target.backend} --precision {target.precision}"
    if not (folder / _RECORD).is_file():
        others = "; ".join(_describe(bundle, target))
        raise EngineError(
            f"{bundle} has no engine for {target.backend} {target.version} on {target.gpu} in {target.precision}"
            f"{f' ({others})' if others else ''}; build it on this machine: {build}"
        )
    record = _read_record(folder, build)
    if record.target != target:
        wrong = "; ".join(
            f"{name} {got}, expected {getattr(target, name)}" for name, got in record.target if got != getattr(target, name)
        )
        raise EngineError(f"{folder}: built for {wrong}; build it again: {build}")
    if record.graph_sha256 != hashlib.sha256(graph).hexdigest():
        raise EngineError(f"{folder}: built from another graph than the bundle's; build it again: {build}")
    try:
        plan = (folder / _PLAN).read_bytes()
    except OSError as error:
        raise EngineError(f"{folder / _PLAN}: cannot be read ({error.strerror}); build it again: {build}") from None
    if len(plan) != record.bytes or hashlib.sha256(plan).hexdigest() != record.sha256:
        raise EngineError(
            f"{folder / _PLAN}: damaged ({len(plan)} bytes), expected {record.bytes} bytes of SHA-256 {record.sha256[:12]}...;"
            f" build it again: {build}"
        )
    return EngineFile(record, plan)


def _shelf(bundle: Path) -> Path:
    resolved = Path(bundle).resolve()
    return resolved.with_name(f"{resolved.name}.engines")


def _read_record(folder: Path, build: str) -> EngineRecord:
    path = folder / _RECORD
    try:
        record = EngineRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror}); build it again: {build}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise EngineError(f"{path}: {where}: {first['msg']}; build it again: {build}") from None
    if record.schema_version != SCHEMA:
        raise EngineError(f"{path}: schema {record.schema_version}, expected {SCHEMA}; build it again: {build}")
    return record


def _describe(bundle: Path, target: Target) -> Iterator[str]:
    """What engines there are for the same backend, and how they differ from the target."""
    for path in sorted(_shelf(bundle).glob(f"*/{_RECORD}")):
        try:
            found = EngineRecord.model_validate_json(path.read_bytes()).target
        except (OSError, ValidationError):
            continue
        if found.backend == target.backend:
            differs = ", ".join(f"{name} {got}" for name, got in found if got != getattr(target, name))
            yield f"there is one for {differs}"
