"""Score this station's good images and take a threshold from them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from calibration import CalibrationError
from calibration.record import Calibration
from calibration.threshold import check_enough, conformal_threshold
from engines import EngineError
from engines.images import pixel_digest, read_image
from engines.inspector import Inspector
from engines.ldknn import Progress


def fit_calibration(
    inspector: Inspector,
    paths: Sequence[Path],
    *,
    station: str,
    camera: str,
    rate: float,
    who: str,
    progress: Progress | None = None,
    scored: Callable[[Path, float], None] | None = None,
) -> Calibration:
    """Conformal threshold from images of good parts.

    Args:
        inspector: the bundle in the backend that the station will run.
        paths: image files of good parts; each picture counts once.
        station, camera: where the images were taken.
        rate: false-reject rate to bound, above 0 and below 1.
        who: the person or account that calibrates.
        progress: called with (images done, images in all).
        scored: called with each image and its score.

    Raises:
        CalibrationError: too few images for the rate, images that cannot be read or scored (all are named), images that the
            bundle was made with, the same picture twice, or a score that is not finite.
    """
    check_enough(len(paths), rate)
    learnt_from = inspector.bundle.learnt_from()
    seen: dict[str, Path] = {}
    scores = np.empty(len(paths))
    broken: list[str] = []
    for number, path in enumerate(paths):
        try:
            image = read_image(path)
        except EngineError as error:
            broken.append(str(error))
            continue
        digest = pixel_digest(image)
        if digest in learnt_from:
            raise CalibrationError(
                f"{path}: the bundle was made with this picture, so its score says nothing; calibrate on other good images"
            )
        if digest in seen:
            raise CalibrationError(f"{path}: the same picture as {seen[digest]}; each part may count once, remove one")
        seen[digest] = path
        try:
            scores[number] = inspector.score(image).value
        except EngineError as error:
            broken.append(f"{path}: {error}")
            continue
        if not np.isfinite(scores[number]):
            raise CalibrationError(f"{path}: score is {scores[number]}, expected a finite number; check the backend")
        if scored is not None:
            scored(path, float(scores[number]))
        if progress is not None:
            progress(number + 1, len(paths))
    if broken:
        raise CalibrationError("replace or remove images that cannot be used:\n  " + "\n  ".join(broken))
    bundle, extractor = inspector.bundle, inspector.extractor
    return Calibration(
        station=station,
        camera=camera,
        recipe=bundle.manifest.provenance.recipe,
        threshold=conformal_threshold(scores, rate),
        bundle_digest=bundle.digest,
        backend=extractor.backend,
        precision=extractor.precision,
        engine_digest=extractor.engine_digest,
        n=len(scores),
        rate=rate,
        method="conformal",
        when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        who=who,
    )
