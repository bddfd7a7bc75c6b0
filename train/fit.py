"""From a folder of good images to a bundle: embed, select, measure density, export, prove, write."""

from __future__ import annotations

import datetime
import math
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

import engines
from calibration.threshold import conformal_threshold
from engines.bundle import (
    Bank,
    Choice,
    Golden,
    GoldenCheck,
    ImageRecord,
    Method,
    Provenance,
    ProvisionalThreshold,
    check_replaceable,
    write_bundle,
)
from engines.inspector import Scorer
from engines.ort import OnnxRuntimeExtractor
from engines.verify import GoldenResult
from train import TrainError
from train.adaptation import Request, adapt_product, check_request, forget
from train.audit import leave_one_out, summarise
from train.budget import read_times, select_within
from train.export import TorchExtractor, check_parity, to_onnx
from train.features import grid_of
from train.golden import choose_golden
from train.normals import Normals, check_memory, embed_normals, other_images, search_others, select_coreset
from train.product import MIN_FOR_HOLD_OUT, Console, Settings, open_product
from train.select import Scoring, choose_scoring
from train.trial import sizes_to_try

_OVER = 1.1  # of a time budget: within what times differ from run to run
_FEW_NORMALS = 8  # bank images that stand in as golden images where none is held out


@dataclass(frozen=True)
class FitResult:
    """What `fit` wrote."""

    path: Path
    digest: str
    threshold: ProvisionalThreshold | None
    golden: GoldenResult
    rows: int
    scoring: Scoring


@dataclass(frozen=True)
class _GoldenSet:
    """Golden images with the trained network's scores, and the scale that differences are stated in."""

    threshold: ProvisionalThreshold | None
    golden: Golden
    spread: float


def fit(
    settings: Settings, out: Path, console: Console, request: Request | None = None, saliency: Path | None = None
) -> FitResult:
    """Train one product and write its bundle; with a request, adapt the backbone to it first.

    Args:
        settings: what was asked for.
        out: the bundle's folder.
        console: where to talk.
        request: of the adaptation, which has a `saliency` of its own.
        saliency: folder of masks that show the part, for the defects that the score is chosen on; None estimates it.

    Raises:
        InspectionError: bad data, weights or settings, or a failed parity gate; nothing is written then, and an older
            bundle at the same path stays.
    """
    _check_settings(settings)
    if saliency is not None and not saliency.is_dir():
        raise TrainError(f"{saliency}: no such folder; expected a folder of masks, one <image name>.png an image")
    check_replaceable(out)
    if request is not None:
        check_request(request)
    product = open_product(settings, console)
    if request is not None:
        check_memory(product)  # before hours of work
        product = replace(product, weights=adapt_product(product, request, settings.seed, console))
    normals = embed_normals(product, settings.seed, console)
    _warn_of_leak(normals, console)
    coreset = _coreset(normals, settings, console)
    scoring = _score(normals, coreset, settings, saliency, console)
    console.say(f"bank: {len(coreset)} rows of {len(normals.bank_features)} patches from {normals.in_bank} images")
    bank = _make_bank(normals, coreset, scoring.density)
    method = Method(
        backbone=normals.backbone.name,
        dim=normals.network.dim,
        grid=grid_of(settings.size),
        metric=settings.metric,
        density=scoring.kind,
        k=scoring.k,
        alpha=scoring.alpha,
    )
    trained = Scorer(method, normals.preprocessor, bank, TorchExtractor(normals.network, normals.device))
    console.say("exporting to ONNX")
    graph = to_onnx(normals.network, settings.size)
    extractor = OnnxRuntimeExtractor(
        graph, input_shape=(1, 3, *settings.size), output_shape=(method.grid[0] * method.grid[1], method.dim)
    )
    exported = Scorer(method, normals.preprocessor, bank, extractor)
    chosen = _choose_golden(normals, trained, exported, settings, console)
    parity = check_parity(exported, chosen.golden, chosen.threshold, chosen.spread)
    digest = write_bundle(
        out,
        spec=normals.spec,
        method=method,
        threshold=chosen.threshold,
        golden_check=GoldenCheck(
            images=len(parity.rows), spread=chosen.spread, max_difference=parity.max_difference, flips=parity.flips
        ),
        provenance=_provenance(normals, settings, scoring.choice, len(coreset)),
        features=graph,
        bank=bank,
        mask=normals.mask,
        golden=Golden(chosen.golden.names, chosen.golden.images, np.array([row.got for row in parity.rows])),
    )
    if request is not None:
        forget(request)
    return FitResult(out, digest, chosen.threshold, parity, len(bank.rows), scoring)


def _check_settings(settings: Settings) -> None:
    if settings.k is not None and settings.k < 1:
        raise TrainError(f"K is {settings.k}, expected 1 or more")
    if settings.alpha is not None and not (math.isfinite(settings.alpha) and settings.alpha >= 0):
        raise TrainError(f"alpha is {settings.alpha}, expected a number of 0 or more")
    if settings.timed_on is not None:
        if settings.budget_ms is None:
            raise TrainError(f"times of {settings.timed_on} without --budget-ms, which alone uses them; add it")
        read_times(settings.timed_on)  # before any image is read


def _coreset(normals: Normals, settings: Settings, console: Console) -> npt.NDArray[np.int64]:
    if settings.budget_ms is None:
        return select_coreset(normals, settings, console)
    return select_within(settings.budget_ms, settings.timed_on, normals, settings, console)


def _score(
    normals: Normals, coreset: npt.NDArray[np.int64], settings: Settings, saliency: Path | None, console: Console
) -> Scoring:
    """Audit the images against each other, and choose what makes scores of distances, from one search for both."""
    others = other_images(normals, coreset)
    sizes = (len(coreset),) if others is None else sizes_to_try(others, len(normals.bank_features))
    seen = [] if others is None else search_others(normals, others, sizes, console)
    outliers = leave_one_out(seen[-1].squared, normals.judged, normals.samples) if seen else []
    console.say(summarise([*normals.findings, *outliers], len(normals.samples)))
    good = [one.first(normals.in_bank * normals.patches) for one in seen]
    scoring = choose_scoring(normals, coreset, others, good, sizes, settings, saliency, console)
    if settings.budget_ms is not None and settings.timed_on is None and scoring.choice is not None:
        taken = scoring.choice.sizes[-1].search_ms
        if taken > _OVER * settings.budget_ms:
            console.warn(f"the search takes {taken:.3g} ms, expected {settings.budget_ms:g} or less; give --coreset fewer rows")
    return scoring


def _warn_of_leak(normals: Normals, console: Console) -> None:
    """Held-out images that the backbone has learnt from would score too low."""
    weights = normals.weights
    if weights is None or weights.adaptation is None:
        return
    seen = len(set(weights.adaptation.images) & set(normals.digests[normals.in_bank :]))
    if seen > 0:
        console.warn(
            f"{seen} of {len(normals.held_out)} held-out images were used to adapt {weights.source}: the provisional threshold"
            " will be too low; fit with the seed that adapted it, or adapt again"
        )


def _make_bank(normals: Normals, coreset: npt.NDArray[np.int64], dense: npt.NDArray[np.float32]) -> Bank:
    patch = np.flatnonzero(normals.judged.ravel())[coreset % normals.patches]
    rows = normals.bank_features[coreset]
    return Bank(rows, dense, (coreset // normals.patches).astype(np.int32), patch.astype(np.int32))


def _choose_golden(normals: Normals, trained: Scorer, exported: Scorer, settings: Settings, console: Console) -> _GoldenSet:
    """Golden images scored by the trained network; the exported one, which is faster, only tunes the marks."""
    samples = normals.held_out or normals.samples[:_FEW_NORMALS]
    with console.progress("normal scores") as advance:
        scores = np.empty(len(samples))
        for index, sample in enumerate(samples):
            scores[index] = trained.score(sample.image()).value
            advance(index + 1, len(samples))
    threshold = _provisional(normals, scores, console)
    spread = float(scores.std(ddof=1)) if len(normals.held_out) > 1 else 0.0
    with console.progress("golden images") as advance:
        candidates = choose_golden(
            samples,
            scores,
            lambda image: exported.score(image).value,
            threshold=threshold.value if threshold is not None else None,
            spread=spread,
            roi=settings.roi,
            seed=settings.seed,
            progress=advance,
        )
    golden = Golden(
        tuple(candidate.name for candidate in candidates),
        tuple(candidate.image for candidate in candidates),
        np.array([trained.score(candidate.image).value for candidate in candidates]),
    )
    if spread <= 0:
        # no held-out normals to measure it on: the golden images' own scores give the scale
        spread = max(float(golden.scores.std()), 1e-6)
    return _GoldenSet(threshold, golden, spread)


def _provisional(normals: Normals, scores: npt.NDArray[np.float64], console: Console) -> ProvisionalThreshold | None:
    """The highest held-out score, which is the conformal threshold at the lowest rate that so few scores can bound."""
    if len(normals.samples) == 1:
        console.warn("a single image: every difference between good parts will look like a defect; add images")
    if not normals.held_out:
        console.warn(
            f"{len(normals.samples)} images are too few to hold any out (from {MIN_FOR_HOLD_OUT} a tenth is): no provisional"
            " threshold; calibrate on other good images before use"
        )
        return None
    rate = 1 / (len(scores) + 1)
    return ProvisionalThreshold(value=conformal_threshold(scores, rate), n=len(scores), rate=rate)


def _provenance(normals: Normals, settings: Settings, choice: Choice | None, rows: int) -> Provenance:
    images = tuple(
        ImageRecord(
            name=os.path.relpath(sample.path, settings.data),
            pixels=digest,
            use="bank" if index < normals.in_bank else "held-out",
        )
        for index, (sample, digest) in enumerate(zip(normals.samples, normals.digests, strict=True))
    )
    weights = normals.weights
    return Provenance(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        recipe=settings.recipe or Path(os.path.abspath(settings.data)).name,
        command=settings.command,
        seed=settings.seed,
        weights=weights.source if weights is not None else "none",
        weights_sha256=weights.sha256 if weights is not None else None,
        coreset=settings.coreset if settings.budget_ms is None else float(rows),
        patches=len(normals.bank_features),
        images=images,
        versions={
            "reb": engines.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        adaptation=weights.adaptation if weights is not None else None,
        choice=choice,
    )
