"""Torch to ONNX, and the proof that both give the same verdicts before anything is written."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import math
import warnings

import numpy as np
import numpy.typing as npt
import torch

from engines.bundle import Golden, ProvisionalThreshold
from engines.inspector import Scorer
from engines.verify import GoldenResult, verify_golden
from train import TrainError
from train.features import FeatureNet, embed

PARITY = 1e-3  # of the spread of normal scores
_OPSET = 18  # the exporter's own; TensorRT 10.3 parses it


class TorchExtractor:
    """The trained network behind the engines' `FeatureExtractor` seam: the reference that the export is held to."""

    backend = "torch"
    precision = "fp32"

    def __init__(self, network: FeatureNet, device: torch.device) -> None:
        self._network = network
        self._device = device
        self.provider = str(device)
        self.engine_digest = hashlib.sha256(
            b"".join(value.cpu().numpy().tobytes() for value in network.state_dict().values())
        ).hexdigest()

    def extract(self, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Embed one image: float32 (1, 3, h, w) to float32 (patches, D)."""
        return embed(self._network, tensor, self._device)

    def close(self) -> None:
        """Nothing to release."""


def to_onnx(network: FeatureNet, size: tuple[int, int]) -> bytes:
    """The feature graph as a self-contained ONNX file for one input size: `image` (1, 3, h, w) to `embeddings` (patches, D).

    Raises:
        TrainError: the exporter failed.
    """
    network = copy.deepcopy(network).cpu()  # the caller's stays on its device
    example = torch.zeros(1, 3, *size)
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["image"],
                output_names=["embeddings"],
                external_data=False,
                verbose=False,
            )
        if program is None:
            raise TrainError("the ONNX exporter returned nothing; check the versions of torch and onnxscript")
        return bytes(program.model_proto.SerializeToString())
    except TrainError:
        raise
    except Exception as error:  # the exporter's exceptions share no public base class
        raise TrainError(f"ONNX export failed ({error}); check the versions of torch and onnxscript") from None
    finally:
        chatter.setLevel(level)


def check_parity(exported: Scorer, golden: Golden, threshold: ProvisionalThreshold | None, spread: float) -> GoldenResult:
    """Hold the exported graph's scores against the trained network's on the golden images.

    Args:
        exported: scores with the exported graph.
        golden: images, with the trained network's scores.
        threshold: at which decisions are compared.
        spread: standard deviation of normal scores.

    Raises:
        TrainError: a difference above a thousandth of the spread, or a decision that flips; with the figures.
    """
    result = verify_golden(exported, golden, threshold, spread)
    if result.flips > 0 or not result.max_difference <= PARITY:
        worst = max(result.rows, key=lambda row: (math.isnan(row.difference), row.difference))
        raise TrainError(
            f"the exported graph does not agree with the trained network: {result.flips} decision flips, largest difference"
            f" {result.max_difference:.3g} of the spread of normal scores on {worst.name} (got {worst.got:.6g},"
            f" expected {worst.expected:.6g}), expected no flips and at most {PARITY:g}; nothing was written"
        )
    return result
