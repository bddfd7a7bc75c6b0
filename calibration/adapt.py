"""A bundle brought up to date with a station's own good parts, on the station: the bank is extended, nothing is trained.

Images that look anomalous to the old bank (above the station's threshold, or far from the other candidates) are left out
unless a person has accepted them by name: what goes into the bank will never be rejected again. Before and after are compared
on the same images and the same drawn defects, and an image, with or without a defect, is never judged by a bank that holds
it: the images are dealt into folds, and each fold is judged by the old bank extended with the others.

The result is a new bundle with a digest of its own, whose provenance names its parent; the old one stays as it is, and going
back is to run it again with its own calibration. Golden images keep their pictures and get the scores that the new bank gives
them, except those that come too near the new provisional threshold to be decided alike on every processor.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from calibration.capability import to_trials
from calibration.pod import Detectable, detectable
from calibration.probes import GoodImage, Plan, draw_probes, find_part
from calibration.station_bank import Candidates, extend_bank
from calibration.threshold import conformal_threshold
from engines import EngineError
from engines.bundle import (
    FP32,
    Bank,
    Bundle,
    Extension,
    Golden,
    GoldenCheck,
    ImageRecord,
    ProvisionalThreshold,
    Variant,
    check_replaceable,
    write_bundle,
)
from engines.extractors import make_extractor
from engines.images import Image, read_image
from engines.inspector import Inspector, Scorer
from engines.ldknn import Progress
from engines.verify import verify_golden

FEWEST = 10  # images to add
_FOLDS = 5
_FAR = 5.0  # robust standard deviations above the median of the candidates' scores
_MAD = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
_CLEARANCE = 0.1  # spreads between a golden image's score and the threshold

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """What a bank does with the images and defects of the comparison.

    Attributes:
        scores: float64 (n,) of the good images.
        false_rejects: how many of them are above the station's threshold.
        threshold: at which their false-reject rate is bounded by `rate`, from these images.
        size: how large a defect must be to be found there, on the images that pass, and how many are.
    """

    scores: Doubles
    false_rejects: int
    threshold: float
    size: Detectable


@dataclass(frozen=True)
class Comparison:
    """The old bank and the extended one, on the same images and defects; `rate` is the false-reject rate that both allow."""

    before: Side
    after: Side
    rate: float
    contrast: float


def split_candidates(
    images: Sequence[GoodImage], threshold: float, accepted: Sequence[str]
) -> tuple[list[int], list[int], list[int]]:
    """Which images may be added: indices of those that look normal, of anomalous ones accepted by name, and of those left out.

    Args:
        images: with the old bank's scores.
        threshold: the station's.
        accepted: file names that a person vouches for.

    Raises:
        CalibrationError: a name that none of the images has.
    """
    names = {image.path.name for image in images}
    unknown = [name for name in accepted if name not in names]
    if unknown:
        raise CalibrationError(f"{', '.join(unknown)}: accepted, but none of the {len(images)} images is called so")
    scores = np.array([image.score for image in images])
    median = float(np.median(scores))
    limit = min(threshold, median + _FAR * _MAD * float(np.median(np.abs(scores - median))))
    normal = [number for number, score in enumerate(scores) if score <= limit]
    doubtful = [number for number, score in enumerate(scores) if not score <= limit]
    vouched = set(accepted)
    return (
        normal,
        [number for number in doubtful if images[number].path.name in vouched],
        [number for number in doubtful if images[number].path.name not in vouched],
    )


class Adapter:
    """Candidates that are to be added to a bundle, embedded, and the banks that come of them."""

    def __init__(self, inspector: Inspector, images: Sequence[GoodImage], rows: int, seed: int, progress: Progress) -> None:
        """Embed the images.

        Args:
            inspector: the old bundle in fp32: what the bank was made with.
            images: to add.
            rows: of the new bank.
            seed: of folds and rows.
            progress: called with (images done, images).

        Raises:
            CalibrationError: too few images, or more rows than there are.
        """
        if len(images) < FEWEST:
            raise CalibrationError(f"{len(images)} images to add, expected {FEWEST} or more; take more, or accept some by name")
        self.inspector, self.images, self.rows, self.seed = inspector, tuple(images), rows, seed
        method = inspector.bundle.manifest.method
        judged = inspector.preprocessor.judged_patches(method.grid).ravel()
        patches = np.flatnonzero(judged).astype(np.int32)
        features = np.empty((len(images), len(patches), method.dim), np.float32)
        self._whole: list[npt.NDArray[np.float32]] = []
        for number, image in enumerate(images):
            embedded = inspector.extractor.extract(inspector.preprocessor(read_image(image.path)))
            self._whole.append(embedded)
            features[number] = embedded[judged]
            progress(number + 1, len(images))
        if not np.isfinite(features).all():
            raise CalibrationError("embeddings hold numbers that are not finite; check the backend")
        self.candidates = Candidates(features.reshape(-1, method.dim), len(images), patches)
        self._first = sum(image.use == "bank" for image in inspector.bundle.manifest.provenance.images)
        order = np.random.default_rng([seed, 7]).permutation(len(images))
        self.fold = np.empty(len(images), np.int64)
        self.fold[order] = np.arange(len(images)) % _FOLDS

    def extended(self, without: int | None = None, progress: Progress | None = None) -> Bank:
        """The new bank, of all the images or of all but one fold's."""
        bundle = self.inspector.bundle
        chosen = np.ones(len(self.images), bool) if without is None else self.fold != without
        return extend_bank(
            bundle.bank,
            self.candidates.only(chosen),
            self.rows,
            first_image=self._first,
            k=bundle.manifest.method.k,
            metric=bundle.manifest.method.metric,
            rng=np.random.default_rng([self.seed, 1]),
            progress=progress,
        )

    def scorer(self, bank: Bank) -> Scorer:
        """What judges with a bank and the old bundle's network."""
        inspector = self.inspector
        return Scorer(inspector.bundle.manifest.method, inspector.preprocessor, bank, inspector.extractor)

    def cross_fitted(self, progress: Progress | None = None) -> tuple[list[Scorer], Doubles]:
        """A scorer a fold that has not seen it, and every image's score by its own fold's: float64 (n,)."""
        scorers: list[Scorer] = []
        for number in range(_FOLDS):
            scorers.append(self.scorer(self.extended(number)))
            if progress is not None:
                progress(number + 1, _FOLDS)
        scores = [scorers[fold].judge(whole).value for fold, whole in zip(self.fold, self._whole, strict=True)]
        return scorers, np.array(scores)


def compare(
    adapter: Adapter, scorers: Sequence[Scorer], scores: Doubles, threshold: float, rate: float, plan: Plan, progress: Progress
) -> Comparison:
    """False rejects and POD of the old bank and of the extended one, each at the threshold that bounds false rejects alike.

    Args:
        adapter, scorers, scores: of `Adapter.cross_fitted`.
        threshold: the station's, by which false rejects are counted.
        rate: false-reject rate that the thresholds for the POD bound; raised to what so many images can bound.
        plan: of the defects.
        progress: called with (defects done, defects).
    """
    images, inspector = adapter.images, adapter.inspector
    before = np.array([image.score for image in images])
    rate = max(rate, 1 / (len(images) + 1))
    limits = conformal_threshold(before, rate), conformal_threshold(scores, rate)
    after_scores: list[float] = []

    def judge(number: int, frame: Image) -> float:
        embedded = inspector.extractor.extract(inspector.preprocessor(frame))
        after_scores.append(scorers[adapter.fold[number]].judge(embedded).value)
        return inspector.judge(embedded).value

    part = find_part(inspector.bundle, images, None)
    drawn = draw_probes(inspector.bundle, judge, images, part, np.inf, plan, progress)
    again = [replace(probe, score=score) for probe, score in zip(drawn, after_scores, strict=True)]
    sides = []
    for own, probes, limit in ((before, drawn, limits[0]), (scores, again, limits[1])):
        # as in the capability report: what is rejected without a defect is not found for it
        passing = own[[probe.image for probe in probes]] <= limit
        trials = to_trials(probes, limit).only(passing)
        sides.append(Side(own, int((own > threshold).sum()), limit, detectable(trials, plan.contrast)[0]))
    return Comparison(sides[0], sides[1], rate, plan.contrast)


def check_out(out: Path, bundle: Bundle) -> None:
    """Refuse a folder that the extended bundle cannot be written to.

    Raises:
        CalibrationError: the old bundle's own.
        EngineError: as `check_replaceable`.
    """
    if out.resolve() == bundle.path.resolve():
        raise CalibrationError(f"{out}: the bundle that is extended; give another folder, so that one can go back to this one")
    check_replaceable(out)


def write_extended(
    out: Path,
    adapter: Adapter,
    scores: Doubles,
    *,
    accepted: Sequence[str],
    left_out: Sequence[str],
    station: str,
    who: str,
    progress: Progress | None = None,
) -> str:
    """Write the new bundle, prove it on its golden images, and return its digest.

    Args:
        out: folder to write, not that of the old bundle.
        adapter: holds the images.
        scores: of `Adapter.cross_fitted`: they give the provisional threshold.
        accepted, left_out: names, for the record.
        station, who: for the record.
        progress: called with (rows taken, rows).

    Raises:
        CalibrationError: as `check_out`, or no golden image that is clear of the threshold.
        EngineError: as `write_bundle`.
    """
    bundle = adapter.inspector.bundle
    check_out(out, bundle)
    manifest = bundle.manifest
    bank = adapter.extended(progress=progress)
    rate = 1 / (len(scores) + 1)
    threshold = ProvisionalThreshold(value=conformal_threshold(scores, rate), n=len(scores), rate=rate)
    spread = max(float(scores.std(ddof=1)), 1e-6)
    golden = _renewed(bundle.golden(), adapter.scorer(bank), threshold.value, spread)
    added = tuple(ImageRecord(name=image.path.name, pixels=image.pixels, use="bank") for image in adapter.images)
    first = sum(image.use == "bank" for image in manifest.provenance.images)
    extension = Extension(
        parent=bundle.digest,
        when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        who=who,
        station=station,
        images=tuple(image.pixels for image in added),
        accepted=tuple(accepted),
        left_out=tuple(left_out),
        rows=len(bank.rows),
        new_rows=int((bank.image >= first).sum()),
        seed=adapter.seed,
    )
    variants = tuple(_judged_again(bundle, bank, variant, golden, threshold.value, spread) for variant in manifest.variants)
    kept = [variant.precision for variant in variants if variant.offered]
    made = manifest.provenance
    return write_bundle(
        out,
        spec=manifest.input,
        method=manifest.method.model_copy(update={"density": "measured"}),
        threshold=threshold,
        golden_check=GoldenCheck(
            images=len(golden.names),
            spread=spread,
            max_difference=manifest.golden.max_difference * manifest.golden.spread / spread,  # the graph is the same
            flips=0,
        ),
        provenance=made.model_copy(update={"images": (*made.images, *added), "extensions": (*made.extensions, extension)}),
        features=bundle.graph(FP32),
        bank=bank,
        mask=bundle.mask,
        golden=golden,
        variants=variants,
        graphs={precision: bundle.graph(precision) for precision in kept},
    )


def _renewed(golden: Golden, scorer: Scorer, threshold: float, spread: float) -> Golden:
    """The golden images with the scores of the new bank, less those that come near its threshold."""
    scores = np.array([scorer.score(image).value for image in golden.images])
    clear = np.flatnonzero(np.abs(scores - threshold) > _CLEARANCE * spread)
    if len(clear) == 0:
        raise CalibrationError("every golden image comes too near the new threshold to prove anything; add other images")
    return Golden(tuple(golden.names[i] for i in clear), tuple(golden.images[i] for i in clear), scores[clear])


def _judged_again(bundle: Bundle, bank: Bank, variant: Variant, golden: Golden, threshold: float, spread: float) -> Variant:
    """A further precision, held against fp32 with the new bank: dropped where it flips a golden image's decision."""
    if not variant.offered:
        return variant
    extractor = make_extractor(bundle, precision=variant.precision)
    try:
        scorer = Scorer(bundle.manifest.method, bundle.preprocessor(), bank, extractor)
        limit = ProvisionalThreshold(value=threshold, n=1, rate=0.5)
        result = verify_golden(scorer, golden, limit, spread)
    except EngineError as error:
        return _dropped(variant, f"not run here: {error}")
    finally:
        extractor.close()
    if result.flips > 0 or not np.isfinite(result.max_difference):
        return _dropped(variant, f"{result.flips} of {len(result.rows)} golden images flip with the station's bank")
    most = max(result.max_difference, variant.max_difference or 0.0)
    return variant.model_copy(update={"images": len(result.rows), "max_difference": most, "flips": 0})


def _dropped(variant: Variant, reason: str) -> Variant:
    return variant.model_copy(update={"offered": False, "reason": reason})
