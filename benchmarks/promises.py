"""Do thresholds keep the rates that they tell, and intervals what they say, where the truth is known? On drawn scores.

    python -m benchmarks.promises

The first table fits the Pareto tail to scores from known distributions: the rate that its thresholds really have on average,
the share of calibrations whose 95 % interval holds it, with the interval as told and with the usual parametric bootstrap, and
what was refused. The second takes conformal thresholds from parts with one to seven pictures each, whose scores differ by part
and, by the spread named, within a part. The third fits POD curves to hits and misses from known ones and counts how often
a90/95 is at or above the true a90; defects share their image's luck, by the spread named on the logit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats
from scipy.special import expit

from calibration import CalibrationError
from calibration.intervals import realised
from calibration.parts import parts_of
from calibration.pod import PodCurve, Scale, Trials, UndeterminedError
from calibration.tail import fit_tail
from calibration.threshold import conformal
from engines import console
from engines.atomic import write_file
from engines.bench import machine

_COUNTS = (100, 200, 500)
_RATES = (0.05, 0.01, 0.005, 0.002, 0.001)
_GROUPED = ((20, 0.05, 0.1), (40, 0.05, 0.1), (40, 0.05, 0.5), (100, 0.02, 1.0), (30, 0.1, 2.0))  # parts, rate, spread
_MOST = 7  # pictures of a part
_DEFECTS = (80, 240, 720)
_AN_IMAGE = 4  # defects on one
_LUCK = (0.0, 1.0)
_CONTRAST = 30.0  # at which a90 is asked for; drawn are a third to twice of it
# logit POD = intercept + slope f(size), at that contrast
_CURVES: dict[Scale, tuple[float, float]] = {"log": (-9.0, 4.0), "linear": (-4.0, 0.35)}

DISTRIBUTIONS = {
    "normal": stats.norm(),
    "gamma": stats.gamma(3),
    "log-normal": stats.lognorm(0.5),
    "beta": stats.beta(2, 2),
    "Pareto": stats.genpareto(0.3),
}

Floats = npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="promises", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calibrations", type=console.positive_int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="ten of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    calibrations = 10 if arguments.quick else arguments.calibrations
    tails = [row for name in DISTRIBUTIONS for count in _COUNTS for row in measure_tail(name, count, calibrations)]
    grouped = [measure_groups(*of, calibrations) for of in _GROUPED]
    console.table(
        "Pareto tail: rates in percent, shares of calibrations in percent",
        ("scores", "n", "asked for", "really", "interval holds it", "usual interval", "refused"),
        [_cells(row) for row in tails],
    )
    bounds = [measure_bound(scale, defects, luck, calibrations) for scale in _CURVES for luck in _LUCK for defects in _DEFECTS]
    console.table(
        "conformal, parts with one to seven pictures",
        ("parts", "spread within", "asked for", "really", "interval holds it"),
        [_cells(row) for row in grouped],
    )
    console.table(
        f"POD, {_AN_IMAGE} defects an image: shares of calibrations in percent, pixels",
        ("POD over", "defects", "spread of images", "true a90", "a90/95 holds it", "median a90/95", "no curve"),
        [_cells(row) for row in bounds],
    )
    console.say(f"{calibrations} calibrations of each kind, on {machine()}")
    if arguments.json is not None:
        document = {"calibrations": calibrations, "tails": tails, "grouped": grouped, "bounds": bounds}
        write_file(arguments.json, (json.dumps(document, indent=1) + "\n").encode())
    return console.DONE


def measure_tail(name: str, count: int, calibrations: int) -> list[dict[str, object]]:
    """A row a rate: what thresholds of tails fitted to `count` scores really do."""
    truth = DISTRIBUTIONS[name]
    really: dict[float, list[float]] = {rate: [] for rate in _RATES}
    held, usual = dict.fromkeys(_RATES, 0), dict.fromkeys(_RATES, 0)
    for seed in range(calibrations):
        try:
            tail = fit_tail(np.sort(truth.rvs(count, random_state=seed)))
        except CalibrationError:
            continue
        for rate in _RATES:
            try:
                threshold, told = tail.threshold(rate)
            except CalibrationError:
                continue
            low, high = np.quantile(tail.drawn.realised(tail.drawn.nominal(rate)), (0.025, 0.975)).tolist()
            really[rate].append(float(truth.sf(threshold)))
            held[rate] += told.low <= really[rate][-1] <= told.high
            usual[rate] += low <= really[rate][-1] <= high
    return [
        {
            "scores": name,
            "n": count,
            "asked": rate,
            "really": float(np.mean(rates)) if rates else None,
            "held": held[rate] / len(rates) if rates else None,
            "usual": usual[rate] / len(rates) if rates else None,
            "refused": 1 - len(rates) / calibrations,
        }
        for rate, rates in really.items()
    ]


def measure_groups(parts: int, rate: float, spread: float, calibrations: int) -> dict[str, object]:
    """What conformal thresholds of so many parts with several pictures really do to one picture of a further part."""
    random = np.random.default_rng(0)

    def score(level: Floats) -> Floats:
        return level + random.normal(0, spread, len(level))

    further = np.sort(score(random.gamma(2, 1, 400_000)))
    rates, held = [], 0
    for _ in range(calibrations):
        pictures = random.integers(1, _MOST + 1, parts)
        scores = score(np.repeat(random.gamma(2, 1, parts), pictures))
        seen = parts_of(scores, np.repeat(np.arange(parts), pictures).tolist())
        threshold = conformal(seen, rate)
        told = realised(seen.above(threshold), parts)
        rates.append(1 - float(np.searchsorted(further, threshold, side="right")) / len(further))
        held += told.low <= rates[-1] <= told.high
    return {"parts": parts, "spread": spread, "asked": rate, "really": float(np.mean(rates)), "held": held / calibrations}


def measure_bound(scale: Scale, defects: int, luck: float, calibrations: int) -> dict[str, object]:
    """How often a90/95 from so many defects is at or above the size of which 90 % are found, over all images."""
    random = np.random.default_rng(defects)
    intercept, slope = _CURVES[scale]
    lucks = luck * stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    level = (float(optimize.brentq(lambda logit: expit(logit + lucks).mean() - 0.9, 0, 10)) - intercept) / slope
    true = float(np.exp(level) if scale == "log" else level)
    bounds = []
    for _ in range(calibrations):
        size, contrast = np.exp(random.uniform(np.log((2, _CONTRAST / 3)), np.log((40, 2 * _CONTRAST)), (defects, 2))).T
        image = np.arange(defects) // _AN_IMAGE
        logit = intercept + slope * (np.log(size) if scale == "log" else size) + np.log(contrast / _CONTRAST)
        logit += random.normal(0, luck, image[-1] + 1)[image]
        try:
            curve = PodCurve(Trials(size, contrast, random.random(defects) < expit(logit), image))
        except UndeterminedError:
            continue
        bounds.append(curve.bound_at(0.9, _CONTRAST))
    return {
        "scale": scale,
        "defects": defects,
        "spread": luck,
        "true": f"{true:.1f}",
        "held": float(np.mean(np.array(bounds) >= true)),
        "median": f"{np.median(bounds):.1f}",
        "refused": 1 - len(bounds) / calibrations,
    }


def _cells(row: dict[str, object]) -> list[str]:
    """Rates and shares in percent, the rest as it is."""
    return [
        "-" if value is None else f"{100 * value:.3g}" if isinstance(value, float) and name != "spread" else str(value)
        for name, value in row.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
