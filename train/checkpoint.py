"""Unfinished training on disk: whole or not at all, checked, and of the very run that goes on from it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from engines.atomic import write_file
from train import TrainError

_IDENTITY = "identity"


def save_checkpoint(path: Path, identity: Mapping[str, object], content: Mapping[str, Any]) -> None:
    """Write tensors and numbers, with what they depend on.

    Raises:
        EngineError: the file cannot be written; an older one still stands.
    """
    buffer = io.BytesIO()
    torch.save({**content, _IDENTITY: _texts(identity)}, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path: Path, identity: Mapping[str, object], device: torch.device) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        TrainError: no such file, a damaged one, or one of a run that depends on something else.
    """
    if not path.is_file():
        raise TrainError(f"{path}: no such checkpoint to go on from; leave --resume out to start afresh")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums that torch.save writes
            spoilt = archive.testzip()
        if spoilt is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {spoilt}")
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        made_with: dict[str, str] = dict(content.pop(_IDENTITY))
    except Exception as error:  # unpickling and zip errors of many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainError(f"{path}: not a checkpoint that can be read ({reason}); remove it and start afresh") from None
    wanted = _texts(identity)
    differing = [
        f"{name} {made_with.get(name, 'nothing')}, now {wanted.get(name, 'nothing')}"
        for name in dict.fromkeys((*made_with, *wanted))
        if made_with.get(name) != wanted.get(name)
    ]
    if differing:
        raise TrainError(
            f"{path}: is of another run ({'; '.join(differing)}); give the same settings, or remove it and start afresh"
        )
    return content


def _texts(identity: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in identity.items()}
