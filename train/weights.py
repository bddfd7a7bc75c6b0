"""Where a backbone's weights come from: a file, a URL, torchvision's checkpoint, or the package; never a pickle."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from engines.atomic import write_file
from engines.bundle import Adaptation
from engines.ldknn import Progress
from train import TrainError
from train.backbones import BackboneSpec

_TIMEOUT_S = 20
_RECORD = "adaptation"  # key in a safetensors file's metadata
_SUFFIXES = (".npz", ".safetensors", ".pth", ".pt")
_REMEDY = "give --weights FILE (.pth, .safetensors or .npz), or --weights none for an untrained network"
DRAWN = "drawn"
# made by `train pretrain`; what a machine without a network begins from
_SHIPPED = {"resnet18": Path(__file__).parent / "pretrained" / "resnet18-drawn.safetensors"}


class UnreachableError(TrainError):
    """Weights that cannot be downloaded."""


@dataclass(frozen=True)
class Weights:
    """A state dict, and where it is from.

    Attributes:
        source: file name or URL; of weights that were adapted in this process, what they began from.
        sha256: hex, of the file; of weights that no file holds, of their tensors as safetensors.
        adaptation: how they were adapted to a product, if they were.
        instead_of: why they stand in for ImageNet's, where those were wanted and could not be had.
    """

    state: dict[str, Tensor]
    source: str
    sha256: str
    adaptation: Adaptation | None = None
    instead_of: str | None = None

    def absent_parts(self, spec: BackboneSpec) -> tuple[str, ...]:
        """Top-level parts of the whole network that the file does not hold."""
        held = {name.split(".")[0] for name in self.state}
        return tuple(part for part in spec.parts if part not in held)


def find_weights(source: str | None, spec: BackboneSpec, progress: Progress | None = None) -> Weights | None:
    """Load the weights asked for.

    Args:
        source: a file, an http(s) URL, `drawn` for those that come with this package, `none` for an untrained network,
            or None: then a file that begins with the backbone's name in the folder that the environment variable
            REB_WEIGHTS names, else torchvision's published checkpoint, downloaded once and cached, and where that
            cannot be reached those of this package.
        spec: the backbone that they are for.
        progress: called with (bytes done, bytes in all) while downloading.

    Returns:
        The weights; None for `none`.

    Raises:
        TrainError: not found, not reachable, wrong hash, or not a state dict; with the remedy.
        EngineError: the cache cannot be written.
    """
    if source == "none":
        return None
    if source == DRAWN:
        return _shipped(spec)
    if source is None:
        return _imagenet(spec, progress)
    if re.match(r"https?://", source):
        return _load(_download(source, progress), source)
    path = Path(source)
    if not path.is_file():
        raise TrainError(f"{path}: no such weights file; {_REMEDY}")
    return _load(path, path.name)


def _imagenet(spec: BackboneSpec, progress: Progress | None) -> Weights:
    """ImageNet's weights from the environment's folder or the published address, or what stands in for them."""
    local = _in_environment(spec)
    if local is not None:
        return _load(local, local.name)
    try:
        return _load(_download(spec.url, progress), spec.url)
    except UnreachableError as error:
        if spec.name not in _SHIPPED:
            raise
        return replace(_shipped(spec), instead_of=str(error))


def _shipped(spec: BackboneSpec) -> Weights:
    if spec.name not in _SHIPPED:
        raise TrainError(f"no drawn weights for {spec.name}, there are some for: {', '.join(_SHIPPED)}; {_REMEDY}")
    return _load(_SHIPPED[spec.name], DRAWN)


def adapted_weights(state: dict[str, Tensor], record: Adaptation) -> Weights:
    """Weights that come of an adaptation."""
    state = {name: tensor.contiguous() for name, tensor in state.items()}  # safetensors keeps no channels-last strides
    return Weights(state, f"{record.weights}, adapted", hashlib.sha256(save(state)).hexdigest(), record)


def write_weights(path: Path, weights: Weights) -> None:
    """Write weights as a safetensors file, with the record of their adaptation, that `find_weights` reads again.

    Raises:
        TrainError: another suffix than .safetensors.
        EngineError: the file cannot be written.
    """
    check_weights_file(path)
    metadata = {} if weights.adaptation is None else {_RECORD: weights.adaptation.model_dump_json()}
    write_file(path, save(weights.state, metadata))


def check_weights_file(path: Path) -> None:
    """Refuse a name that `find_weights` would not read as safetensors. Raises TrainError."""
    if path.suffix != ".safetensors":
        raise TrainError(f"{path}: suffix '{path.suffix}', expected .safetensors")


def _in_environment(spec: BackboneSpec) -> Path | None:
    folder = os.environ.get("REB_WEIGHTS")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise TrainError(f"REB_WEIGHTS is '{folder}', expected a folder of weights; correct it or unset it")
    found = sorted(path for path in Path(folder).glob(f"{spec.name}*") if path.suffix in _SUFFIXES)
    return found[0] if found else None


def _load(path: Path, source: str) -> Weights:
    _check_suffix(source, path.suffix)
    adaptation = None
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                state = {name: torch.from_numpy(archive[name]) for name in archive.files}
        elif path.suffix == ".safetensors":
            state = load_file(path)
            adaptation = _record(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message tells how to load it all the same
        raise TrainError(f"{path}: damaged, or holds more than tensors, which could run code; {_REMEDY}") from None
    except Exception as error:  # three readers, each with exceptions of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainError(f"{path}: cannot be read as weights ({reason}); {_REMEDY}") from None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise TrainError(f"{path}: not a state dict of tensors; expected torchvision's names, such as conv1.weight")
    return Weights(state, source, hashlib.sha256(path.read_bytes()).hexdigest(), adaptation)


def _record(path: Path) -> Adaptation | None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if metadata is None or _RECORD not in metadata:
        return None
    try:
        return Adaptation.model_validate_json(metadata[_RECORD])
    except ValidationError:
        raise ValueError("its record of an adaptation is damaged or of another version; adapt again") from None


def _check_suffix(source: str, suffix: str) -> None:
    if suffix not in _SUFFIXES:
        raise TrainError(f"{source}: suffix '{suffix}', expected one of {', '.join(_SUFFIXES)}")


def _download(url: str, progress: Progress | None) -> Path:
    """Download into torch's cache, unless it is there; check the hash that torchvision writes into the name."""
    name = urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]
    _check_suffix(url, Path(name).suffix)
    prefix = re.search(r"-([0-9a-f]{8,})\.", name)
    if prefix is None:  # another address may give another file of the same name
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if target.is_file():
        _check_hash(str(target), target.read_bytes(), prefix)
    else:
        data = _fetch(url, progress)
        _check_hash(url, data, prefix)
        write_file(target, data)
    return target


def _fetch(url: str, progress: Progress | None) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            total = int(response.headers.get("Content-Length") or 0)
            pieces = []
            done = 0
            while piece := response.read(2**20):
                pieces.append(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, max(total, done))
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        raise UnreachableError(f"{url}: cannot be downloaded ({reason}); {_REMEDY}") from None
    if done < total:
        raise UnreachableError(f"{url}: got {done} of {total} bytes; try again, or {_REMEDY}")
    return b"".join(pieces)


def _check_hash(source: str, data: bytes, prefix: re.Match[str] | None) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if prefix is not None and not digest.startswith(prefix[1]):
        raise TrainError(
            f"{source}: SHA-256 begins {digest[:8]}, expected {prefix[1]}; delete the file if it is cached, and try again"
        )
