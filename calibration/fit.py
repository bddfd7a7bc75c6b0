"""Score this station's good images and take a threshold from them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibration import CalibrationError
from calibration.record import Calibration
from calibration.threshold import check_enough, conformal_threshold
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
) -> Calibration:
    """Conformal threshold from images of good parts.

    Args:
        inspector: the bundle in the backend that the station will run.
        paths: image files of good parts; each picture counts once.
        station, camera: where the images were taken.
        rate: false-reject rate to bound, above 0 and below 1.
        who: the person or account that calibrates.
        progress: called with (images done, images in all).

    Raises:
        CalibrationError: too few images for the rate, images that are in the bank (their distance is 0), the same
            picture twice, or a score that is not finite.
        EngineError: an image that cannot be read or scored.
    """
    check_enough(len(paths), rate)
    in_bank = inspector.bundle.in_bank()
    seen: dict[str, Path] = {}
    scores = np.empty(len(paths))
    for number, path in enumerate(paths):
        image = read_image(path)
        digest = pixel_digest(image)
        if digest in in_bank:
            raise CalibrationError(
                f"{path}: this picture is in the bundle's bank, so its score says nothing; calibrate on other good images"
            )
        if digest in seen:
            raise CalibrationError(f"{path}: the same picture as {seen[digest]}; each part may count once, remove one")
        seen[digest] = path
        scores[number] = inspector.score(image).value
        if not np.isfinite(scores[number]):
            raise CalibrationError(f"{path}: score is {scores[number]}, expected a finite number; check the backend")
        if progress is not None:
            progress(number + 1, len(paths))
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
