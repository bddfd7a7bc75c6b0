"""Score this station's images, and make a record of the threshold that was chosen from them."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np

from calibration import CalibrationError
from calibration.groups import by_folder, by_likeness
from calibration.intervals import counted
from calibration.labelled import escape_rate
from calibration.pictures import Fresh, finite
from calibration.propose import Proposal, Wishes
from calibration.record import MANUAL, Calibration
from calibration.scores import Scored, split
from calibration.twins import thumbnail
from engines import EngineError
from engines.images import list_images, read_image
from engines.inspector import Inspector
from engines.ldknn import Floats, Progress

Grouping = Literal["detect", "folders", "none"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
_ASKED_FOR = ("conformal", "pareto")  # methods that take a rate
_FAR = 3.0  # spreads of normal scores above the provisional threshold


def find_images(folder: Path, grouping: Grouping) -> list[Path]:
    """The images of a folder; of its folders too where they are parts. Raises EngineError as `list_images`."""
    return list_images(folder, recursive=grouping == "folders")


def score_images(
    inspector: Inspector,
    paths: Sequence[Path],
    root: Path,
    *,
    good: bool = True,
    grouping: Grouping = "detect",
    progress: Progress | None = None,
    known: Sequence[Scored] = (),
) -> list[Scored]:
    """Score pictures of parts, and say which show the same part.

    Args:
        inspector: the bundle in the backend that the station will run.
        paths: image files; each picture counts once.
        root: folder that they are in.
        good: they show good parts.
        grouping: `folders` takes each folder below `root` for a part, `detect` looks which pictures are alike, `none` takes
            each for a part of its own.
        progress: called with (images done, images in all).
        known: pictures that may not come again.

    Raises:
        CalibrationError: images that cannot be read or scored (all are named), images that the bundle was made with, the
            same picture twice, or a score that is not finite.
    """
    known_pixels = {one.pixels: one.name for one in known if one.pixels is not None}
    fresh = Fresh(inspector.bundle, "so its score says nothing; calibrate on other images", known_pixels)
    scored: list[Scored] = []
    thumbs: list[Floats] = []
    broken: list[str] = []
    for number, path in enumerate(paths):
        try:
            image = read_image(path)
        except EngineError as error:
            broken.append(str(error))
            continue
        digest = fresh.take(path, image)
        try:
            score = finite(inspector.score(image).value, path)
        except EngineError as error:
            broken.append(f"{path}: {error}")
            continue
        scored.append(Scored(name=os.path.relpath(path, root), score=score, pixels=digest, good=good))
        if grouping == "detect":
            thumbs.append(thumbnail(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)))
        if progress is not None:
            progress(number + 1, len(paths))
    if broken:
        raise CalibrationError("replace or remove images that cannot be used:\n  " + "\n  ".join(broken))
    if grouping == "folders":
        groups = by_folder(paths, root)
    elif grouping == "detect":
        groups = by_likeness([one.name for one in scored], thumbs)
    else:
        return scored
    return [one.model_copy(update={"group": group}) for one, group in zip(scored, groups, strict=True)]


def make_calibration(
    inspector: Inspector, proposal: Proposal, wishes: Wishes, *, station: str, camera: str, who: str, why: str = ""
) -> Calibration:
    """The record of a proposed threshold, bound to what it holds for."""
    bundle, extractor = inspector.bundle, inspector.extractor
    return Calibration(
        station=station,
        camera=camera,
        recipe=bundle.manifest.provenance.recipe,
        threshold=proposal.threshold,
        bundle_digest=bundle.digest,
        backend=extractor.backend,
        precision=extractor.precision,
        engine_digest=extractor.engine_digest,
        n=proposal.good,
        rate=wishes.rate if proposal.method in _ASKED_FOR else None,
        method=proposal.method,
        when=now(),
        who=who,
        false_reject=proposal.false_reject,
        escape=proposal.escape,
        why=why,
    )


def bound_to(inspector: Inspector) -> dict[str, str]:
    """What scores depend on, by the names that a journal's rows and exports have."""
    extractor = inspector.extractor
    return {
        "bundle": inspector.bundle.digest,
        "backend": extractor.backend,
        "precision": extractor.precision,
        "engine": extractor.engine_digest,
    }


def beyond_provisional(inspector: Inspector, proposal: Proposal) -> tuple[str, ...]:
    """Warn of a threshold that training would not have expected."""
    manifest = inspector.bundle.manifest
    provisional = manifest.threshold
    if provisional is None or proposal.threshold <= provisional.value + _FAR * manifest.golden.spread:
        return ()
    return (
        f"the threshold {proposal.threshold:.4g} is far above the bundle's provisional {provisional.value:.4g}"
        f" (normal scores spread by {manifest.golden.spread:.2g}): a part in these images is not good, or product, light,"
        " lens or focus differ from training; defects will pass until that is put right",
    )


def set_by_hand(old: Calibration, threshold: float, parts: Sequence[Scored], *, who: str, why: str) -> Calibration:
    """The record of a threshold that a person chose, for what an older one is bound to.

    Args:
        old: the record in force.
        threshold: the new one.
        parts: scored pictures that say what it will do; may be none.
        who, why: the person, and a reason that others will understand.

    Raises:
        CalibrationError: no reason, or a threshold that is not finite.
    """
    if not why.strip():
        raise CalibrationError("a threshold set by hand needs a reason; give --why, in words that the next person understands")
    if not np.isfinite(threshold):
        raise CalibrationError(f"threshold is {threshold}, expected a finite number")
    good, bad = split(parts) if parts else (None, None)
    return Calibration(
        station=old.station,
        camera=old.camera,
        recipe=old.recipe,
        threshold=threshold,
        bundle_digest=old.bundle_digest,
        backend=old.backend,
        precision=old.precision,
        engine_digest=old.engine_digest,
        n=good.count if good is not None else None,
        rate=None,
        method=MANUAL,
        when=now(),
        who=who,
        false_reject=counted(good.above(threshold), good.count) if good is not None else None,
        escape=escape_rate(bad, threshold) if bad is not None else None,
        why=why.strip(),
    )


def now() -> str:
    """Wall-clock time for a record, ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
