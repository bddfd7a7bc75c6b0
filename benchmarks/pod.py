"""How honest a POD from synthetic defects is: predicted against real detection rates, on real defects, at one threshold.

`python -m benchmarks.pod --bundle B --data DIR` takes a product with masks. Half of its good test images calibrate, on the
other half defects are drawn and the curve is fitted; then every real defect, with its size and contrast from its mask, is
given the probability that the curve has for it. Three curves are compared: of the size alone; with the change as contrast,
which is known of a drawn defect (mean absolute change) and can only be guessed of a real one (root mean square difference
from a ring around it); and with the step across the outline, which is measured alike on both, as `calibration capability` does.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from calibration.pod import Doubles, PodCurve, Trials
from calibration.probes import Plan, Probe, draw_probes, find_part, measured_contrast, score_good
from calibration.threshold import conformal_threshold
from engines import EngineError, console
from engines.atomic import write_file
from engines.bench import machine
from engines.bundle import load_bundle
from engines.images import Image
from engines.inspector import Inspector
from train.data import Sample, open_dataset

_GAP_PX, _RING_PX = 2, 7
_QUICK = 60  # defects of a kind

Mask = npt.NDArray[np.bool_]
Curves = dict[str, tuple[PodCurve, Doubles]]  # by measure: the curve, and its POD of each real defect


@dataclass(frozen=True)
class Real:
    """A real defect: kind, size (pixels), step and difference from its surroundings (grey levels), and whether it is found."""

    kind: str
    size_px: float
    step: float
    change: float
    found: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="pod", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="of `train fit` on the product")
    parser.add_argument("--data", type=Path, required=True, help="the product, with masks of its bad test images")
    parser.add_argument("--false-reject", type=float, default=0.05, metavar="RATE", help="default: %(default)s")
    parser.add_argument("--defects", type=console.positive_int, default=240, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=console.count, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=console.count, default=1, help="0 is one a core (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK} defects of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    dataset = open_dataset(arguments.data)
    good = [sample.path for sample in dataset.test if sample.good]
    bad = [sample for sample in dataset.test if not sample.good and sample.masks]
    if len(good) < 2 or not bad:
        raise EngineError(f"{arguments.data}: {len(good)} good and {len(bad)} masked bad test images, expected some of each")
    plan = Plan(per_kind=_QUICK if arguments.quick else arguments.defects, seed=arguments.seed)
    bundle = load_bundle(arguments.bundle)
    with Inspector(bundle, threads=arguments.threads) as inspector:
        with console.progress("good images") as advance:
            scored = score_good(inspector, good, advance)
        order = np.random.default_rng([plan.seed, 6]).permutation(len(scored))
        calibrating, judged = ([scored[i] for i in sorted(order[half::2])] for half in (0, 1))
        threshold = conformal_threshold(np.array([image.score for image in calibrating]), arguments.false_reject)
        real: list[Real] = []
        with console.progress("real defects") as advance:
            for sample in bad:
                real.append(_measure(inspector, sample, threshold))
                advance(len(real), len(bad))
        with console.progress("drawn defects") as advance:
            probes = draw_probes(
                inspector.bundle,
                lambda _, frame: inspector.score(frame).value,
                judged,
                find_part(bundle, judged, None),
                threshold,
                plan,
                advance,
            )
    rejected = float(np.mean([image.score > threshold for image in judged]))
    curves = _fit(probes, threshold, real)
    _show(real, probes, curves)
    hits = np.mean([probe.score > threshold for probe in probes])
    console.say(
        f"threshold {threshold:.4g} for {arguments.false_reject:.0%} false rejects from {len(calibrating)} images;"
        f" {rejected:.1%} of {len(judged)} others rejected; {hits:.0%} of {len(probes)} drawn defects found; seed {plan.seed}"
    )
    console.say(f"on {machine()}, {arguments.threads} thread(s)")
    if arguments.json is not None:
        figures = {
            "machine": machine(),
            "bundle": bundle.digest,
            "threshold": threshold,
            "false_rejects": rejected,
            "likelihood": {name: curve.likelihood for name, (curve, _) in curves.items()},
            "real": [
                vars(one) | {name: float(pod[number]) for name, (_, pod) in curves.items()} for number, one in enumerate(real)
            ],
        }
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE


def _measure(inspector: Inspector, sample: Sample, threshold: float) -> Real:
    image, mask = sample.image(), sample.mask()
    assert mask is not None  # samples without were left out
    if not mask.any():
        raise EngineError(f"{sample.masks[0]}: shows no defect; paint it in white, or leave the image out")
    return Real(
        kind=sample.kind,
        size_px=math.sqrt(np.count_nonzero(mask)),
        step=measured_contrast(inspector.preprocessor, image, mask),
        change=_difference(image, mask),
        found=inspector.score(image).value > threshold,
    )


def _difference(image: Image, mask: Mask) -> float:
    """Root mean square difference of a defect's brightness from the mean of a ring around it, grey levels, 0.5 or more."""
    grey = image.astype(np.float32).mean(axis=2)
    near = cv2.dilate(mask.astype(np.uint8), _disc(_GAP_PX))
    ring = (cv2.dilate(near, _disc(_RING_PX)) > 0) & (near == 0)
    around = grey[ring if ring.any() else ~mask]
    return max(0.5, float(np.sqrt(((grey[mask] - around.mean()) ** 2).mean())))


def _disc(radius_px: int) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1,) * 2), dtype=np.uint8)


def _fit(probes: Sequence[Probe], threshold: float, real: Sequence[Real]) -> Curves:
    size, step, change = (_column(probes, name) for name in ("size_px", "contrast", "change"))
    found = _column(probes, "score") > threshold
    image = np.array([probe.image for probe in probes], np.int64)
    real_size = _column(real, "size_px")
    curves: Curves = {}
    for name, drawn, measured in (
        ("size", np.ones(len(probes)), np.ones(len(real))),
        ("size, change", change, _column(real, "change")),
        ("size, step", step, _column(real, "step")),
    ):
        curve = PodCurve(Trials(size, drawn, found, image))
        curves[name] = curve, curve.probability(real_size, measured)
    return curves


def _show(real: Sequence[Real], probes: Sequence[Probe], curves: Curves) -> None:
    kind, found = np.array([one.kind for one in real]), np.array([one.found for one in real])
    chosen = {name: kind == name for name in sorted(set(kind.tolist()))} | {"all": np.ones(len(real), bool)}
    console.table(
        "share found: real, and predicted by curves that were fitted to drawn defects",
        ("kind", "images", "real", "95 % interval", *curves),
        [
            (
                name,
                int(of.sum()),
                f"{found[of].mean():.0%}",
                _interval(found[of]),
                *(f"{pod[of].mean():.0%}" for _, pod in curves.values()),
            )
            for name, of in chosen.items()
        ],
    )
    measures = [_column(real, name) for name in ("size_px", "step", "change")]
    drawn = [_column(probes, name) for name in ("size_px", "contrast", "change")]
    console.table(
        "10th, 50th and 90th percentile",
        ("kind", "size, px", "step, grey levels", "change, grey levels"),
        [(name, *(_percentiles(values[of]) for values in measures)) for name, of in chosen.items()]
        + [("drawn", *(_percentiles(values) for values in drawn))],
    )
    console.table(
        "the curves",
        ("measures", "log-likelihood, drawn", "misfit, p", "design effect", "mean square error, real"),
        [
            (
                name,
                f"{curve.likelihood:.0f}",
                f"{curve.misfit:.2g}",
                f"{curve.design_effect:.1f}",
                f"{np.mean((pod - found) ** 2):.3f}",
            )
            for name, (curve, pod) in curves.items()
        ],
    )


def _column(of: Sequence[Real] | Sequence[Probe], name: str) -> Doubles:
    return np.array([getattr(one, name) for one in of], np.float64)


def _interval(found: npt.NDArray[np.bool_]) -> str:
    """Exact (Clopper and Pearson) 95 % interval of a rate."""
    interval = binomtest(int(found.sum()), len(found)).proportion_ci()
    return f"{interval.low:.0%} to {interval.high:.0%}"


def _percentiles(values: Doubles) -> str:
    return ", ".join(f"{value:.0f}" for value in np.percentile(values, (10, 50, 90)))


if __name__ == "__main__":
    sys.exit(main())
