"""What a station can see: probability of detection at its threshold, for each kind of defect and each region of the image.

Drawn defects (`calibration.probes`) are scored with the station's bundle, decided at its threshold, and a POD curve is
fitted to the hits and misses (`calibration.pod`). Sizes are square roots of areas in pixels of the source image, and are
stated at one contrast, the step of brightness across the outline (`calibration.contrast`). Synthetic defects are not real
ones: `benchmarks.pod` says by how much the two differ on real images.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import Field

from calibration import CalibrationError
from calibration.defects import KINDS
from calibration.pod import Detectable, Doubles, PodCurve, Scale, Trials, detectable, local_intercepts
from calibration.probes import GoodImage, Plan, Probe
from calibration.record import Calibration, mismatches
from calibration.saliency import Saliency
from engines.atomic import write_file
from engines.bundle import Record
from engines.inspector import Inspector
from engines.ldknn import Progress

SCHEMA: Final = 1
ALL = "all kinds"
NAMES = {
    "bezier-cutpaste": "patches of own texture",
    "bezier-noise": "patches of foreign grain",
    "scar-cutpaste": "scars of own texture",
    "scar-noise": "scars of foreign grain",
    "clump-cutpaste": "specks of own texture",
    "clump-noise": "specks of foreign grain",
}
LEVELS = tuple(round(level, 2) for level in np.arange(0.05, 1.0, 0.05))  # POD, for a curve's bound
_CELLS, _WIDTH = 24, 0.15  # of the map: cells a side, and the standard deviation of a trial's weight, of the side
_SHOWN = 0.5  # share of the images that have the part in a cell, below which the map is empty there
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_MISFIT = 0.01


class Sizes(Record):
    """How large a defect must be at the record's contrast, pixels, with the curve that says so.

    Attributes:
        found, tried, a50, a90, a90_95, reason: see `Detectable`.
        scale, coefficients, design_effect, misfit: see `PodCurve`; None where no curve fits.
        bounds: for each of `LEVELS` the upper 95 % bound of the size with that POD; None beyond what was tried.
    """

    found: int
    tried: int
    a50: float | None
    a90: float | None
    a90_95: float | None
    reason: str | None
    scale: Scale | None = None
    coefficients: tuple[float, float, float] | None = None
    design_effect: float | None = None
    misfit: float | None = None
    bounds: tuple[float | None, ...] = ()


class JudgedImage(Record):
    """A good image that was judged: its file, the digest of its pixels, its score, and whether the station rejects it."""

    name: str
    pixels: str
    score: float
    rejected: bool


class Drawn(Record):
    """A defect that was drawn; see `Probe`. `image` is an index into the record's images."""

    kind: str
    image: int
    x: float
    y: float
    size_px: float
    contrast: float
    change: float
    score: float
    found: bool


class Capability(Record):
    """What one station can see with one bundle at one threshold.

    Attributes:
        threshold, threshold_from: that decided, and where it comes from, in words; "" in records of before.
        contrast: grey levels that sizes are stated at.
        false_rejects: good images above the threshold.
        kinds: by name, `all kinds` first.
        regions: by name, over all kinds.
        map: a90 in pixels, row by row over the judged region; None where the part is not, or nothing can be stated.
        drawn: every defect.
    """

    schema_version: Literal[1] = SCHEMA
    when: str
    station: str
    camera: str
    recipe: str
    threshold: float
    threshold_from: str = ""
    calibration_digest: str
    bundle_digest: str
    engine_digest: str
    backend: str
    precision: str
    seed: int
    contrast: float = Field(gt=0)
    saliency: str
    images: tuple[JudgedImage, ...]
    false_rejects: int
    kinds: dict[str, Sizes]
    regions: dict[str, Sizes]
    map: tuple[tuple[float | None, ...], ...]
    drawn: tuple[Drawn, ...]


def check_holds(inspector: Inspector, calibration: Calibration) -> None:
    """Refuse a calibration of something else than what is loaded. Raises CalibrationError with every difference."""
    extractor = inspector.extractor
    wrong = mismatches(
        calibration,
        bundle_digest=inspector.bundle.digest,
        backend=extractor.backend,
        precision=extractor.precision,
        engine_digest=extractor.engine_digest,
    )
    if wrong:
        raise CalibrationError("; ".join(wrong))


def summarise(
    inspector: Inspector,
    calibration: Calibration,
    images: Sequence[GoodImage],
    part: Saliency,
    probes: Sequence[Probe],
    plan: Plan,
    progress: Progress | None = None,
) -> Capability:
    """Decide at the threshold, fit the curves, and put all of it on record.

    Args:
        inspector, calibration: what judged.
        images: of `score_good`.
        part: of `find_part`.
        probes: of `draw_probes`.
        plan: that they were drawn by.
        progress: called with (curves done, curves in all).
    """
    trials = to_trials(probes, calibration.threshold)
    kind = np.array([probe.kind for probe in probes])
    where = np.array([region_of(probe.x, probe.y) for probe in probes])
    places = [f"{row} {column}" for row in _ROWS for column in _COLUMNS]
    parts = {ALL: np.ones(len(probes), bool)}
    parts |= {NAMES[name]: kind == name for name in KINDS} | {place: where == place for place in places}
    fitted: dict[str, tuple[Sizes, PodCurve | None]] = {}
    for name, chosen in parts.items():
        fitted[name] = _sizes(trials.only(chosen), plan.contrast)
        if progress is not None:
            progress(len(fitted), len(parts))
    judged = tuple(
        JudgedImage(name=image.path.name, pixels=image.pixels, score=image.score, rejected=image.score > calibration.threshold)
        for image in images
    )
    return Capability(
        when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        station=calibration.station,
        camera=calibration.camera,
        recipe=calibration.recipe,
        threshold=calibration.threshold,
        threshold_from=calibration.origin,
        calibration_digest=calibration.digest,
        bundle_digest=calibration.bundle_digest,
        engine_digest=calibration.engine_digest,
        backend=calibration.backend,
        precision=calibration.precision,
        seed=plan.seed,
        contrast=plan.contrast,
        saliency=f"{part.source}, {part.reason}",
        images=judged,
        false_rejects=sum(image.rejected for image in judged),
        kinds={name: fitted[name][0] for name in (ALL, *NAMES.values())},
        regions={place: fitted[place][0] for place in places if fitted[place][0].tried > 0},
        map=_map(fitted[ALL][1], trials, probes, part, plan.contrast),
        drawn=tuple(Drawn(**vars(probe), found=bool(found)) for probe, found in zip(probes, trials.found, strict=True)),
    )


def save_capability(path: Path | str, capability: Capability) -> None:
    """Write a record as JSON, atomically. Raises EngineError when it cannot be written."""
    write_file(path, (json.dumps(capability.model_dump(mode="json"), indent=1) + "\n").encode())


def to_trials(probes: Sequence[Probe], threshold: float) -> Trials:
    """Hits and misses of probes at a threshold: a score above it is a hit."""
    return Trials(
        size_px=np.array([probe.size_px for probe in probes]),
        contrast=np.array([probe.contrast for probe in probes]),
        found=np.array([probe.score > threshold for probe in probes]),
        group=np.array([probe.image for probe in probes], np.int64),
    )


def region_of(x: float, y: float) -> str:
    """The ninth of the image that a point, 0 to 1, lies in: `top left` to `bottom right`."""
    row, column = (min(2, int(3 * at)) for at in (y, x))
    return f"{_ROWS[row]} {_COLUMNS[column]}"


def in_words(name: str, sizes: Sizes, mm_per_pixel: float | None) -> str:
    """One plain sentence on what is found of a kind or in a region."""
    if sizes.a90 is None:
        return f"{name}: no size can be stated: {sizes.reason}"

    def length(pixels: float) -> str:
        return f"{pixels:.3g} px" + ("" if mm_per_pixel is None else f" ({pixels * mm_per_pixel:.2g} mm)")

    what = "defects" if name == ALL else name
    said = f"finds {what} of {length(sizes.a90)} or more with 90 % probability"
    doubt = "; the curve fits badly, look at it" if sizes.misfit is not None and sizes.misfit < _MISFIT else ""
    if sizes.a90_95 is None:
        return f"{said}; not with 95 % confidence: {sizes.reason}{doubt}"
    return f"{said}, with 95 % confidence {length(sizes.a90_95)}{doubt}"


def curve_of(sizes: Sizes, size_px: Doubles, contrast: float) -> Doubles | None:
    """POD at sizes float64 (n,) of a recorded curve; None where there is none."""
    if sizes.coefficients is None:
        return None
    b0, b1, b2 = sizes.coefficients
    at = np.log(size_px) if sizes.scale == "log" else size_px
    return np.asarray(1 / (1 + np.exp(-(b0 + b1 * at + b2 * math.log(contrast)))))


def _sizes(trials: Trials, contrast: float) -> tuple[Sizes, PodCurve | None]:
    if len(trials) == 0:
        return Sizes(found=0, tried=0, a50=None, a90=None, a90_95=None, reason="no defect was drawn there"), None
    stated: Detectable
    stated, curve = detectable(trials, contrast)
    if curve is None:
        return Sizes(**vars(stated)), None
    most = float(trials.size_px.max())
    bounds = [curve.bound_at(level, contrast) for level in LEVELS]
    return (
        Sizes(
            **vars(stated),
            scale=curve.scale,
            coefficients=curve.coefficients,
            design_effect=curve.design_effect,
            misfit=curve.misfit,
            bounds=tuple(bound if bound <= most else None for bound in bounds),
        ),
        curve,
    )


def _map(
    curve: PodCurve | None, trials: Trials, probes: Sequence[Probe], part: Saliency, contrast: float
) -> tuple[tuple[float | None, ...], ...]:
    """a90 over the image, from the curve of all trials and each place's own intercept."""
    if curve is None:
        return tuple((None,) * _CELLS for _ in range(_CELLS))
    x, y = (np.array([getattr(probe, axis) for probe in probes]) for axis in "xy")
    middles = (np.arange(_CELLS) + 0.5) / _CELLS
    at_y, at_x = (axis.ravel() for axis in np.meshgrid(middles, middles, indexing="ij"))
    apart = (at_x[:, None] - x) ** 2 + (at_y[:, None] - y) ** 2
    added = local_intercepts(curve, trials, np.exp(-apart / (2 * _WIDTH**2)))
    shown = _part_share(part) >= _SHOWN
    least, most = float(trials.size_px.min()), float(trials.size_px.max())
    values: list[float | None] = []
    for place, extra in enumerate(added):
        size = math.inf if math.isnan(extra) else curve.size_at(0.9, contrast, easier=float(extra))
        values.append(max(size, least) if shown.flat[place] and size <= most else None)
    return tuple(tuple(values[row * _CELLS : (row + 1) * _CELLS]) for row in range(_CELLS))


def _part_share(part: Saliency) -> Doubles:
    """In how many of the images each cell of the map holds some of the part, float64 (cells, cells), 0 to 1."""
    if part.masks is None:
        return np.ones((_CELLS, _CELLS))
    height, width = part.masks[0].shape
    rows, columns = (np.arange(length) * _CELLS // length for length in (height, width))
    share = np.zeros((_CELLS, _CELLS))
    for mask in part.masks:
        held = np.zeros((_CELLS, _CELLS), bool)
        at_row, at_column = np.nonzero(mask)
        held[rows[at_row], columns[at_column]] = True
        share += held
    return share / len(part.masks)
