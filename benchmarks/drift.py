"""How soon is drift seen, and how often is it seen where there is none: `python -m benchmarks.drift --bundle B --data DIR`.

Good images that the bundle was not made with are split at random into a calibration and monitoring images, again and again.
The parts of a stream are drawn from the monitoring images alone, so the error of drawing these few is part of what is measured.
Every image is scored once as it is and once under each change; the rest is arithmetic. `--scores FILE` keeps the scores.

Beside `calibration.drift` stand two usual ways, with the same channels, shares, tolerances and promise: the same bets on ranks
among the calibration alone, and CUSUMs of values standardised by the calibration's mean and deviation.
"""

from __future__ import annotations

import abc
import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from benchmarks.drift_streams import alarms_of
from calibration.appearance import measure, statistics_of
from calibration.drift import CHANNELS, FEWEST, Alarm, Monitor
from calibration.threshold import conformal_threshold
from engines import EngineError, console
from engines.atomic import write_file
from engines.bench import machine
from engines.bundle import load_bundle
from engines.images import Image, pixel_digest
from engines.inspector import Inspector
from train.data import open_dataset

Values = npt.NDArray[np.float64]
_PROMISE = 10_000.0  # parts between false ones, of all methods
_AT_ONCE = 200  # runs that are worked out side by side
_RATE = 0.02  # false rejects that the threshold allows
_STREAM = 5_000  # parts of one long run
_LATEST = 500  # parts after a change that are waited for
_BEFORE = 500  # good parts before a later change
_BURSTS = (1, 2, 5, 20)
_STEP = 1_000  # parts on each step of a slow change
_SHIFT, _CAST = 0.03, 1.08


def _gain(factor: float) -> Callable[[Image], Image]:
    return lambda image: np.clip(np.rint(image * np.float32(factor)), 0, 255).astype(np.uint8)


def _blur(sigma_px: float) -> Callable[[Image], Image]:
    return lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), np.uint8)


def _shift(image: Image) -> Image:
    pixels = round(_SHIFT * image.shape[1])  # whole ones: between them the picture would be blurred too
    return np.asarray(np.pad(image, ((0, 0), (pixels, 0), (0, 0)), mode="edge")[:, : image.shape[1]])


def _cast(image: Image) -> Image:
    return np.clip(np.rint(image * np.array([_CAST, 1, 1 / _CAST], np.float32)), 0, 255).astype(np.uint8)


_SLOW = {f"light x {factor}": _gain(factor) for factor in (0.95, 0.9, 0.85)}
CHANGES: dict[str, Callable[[Image], Image]] = {
    "light x 1.2": _gain(1.2),
    "light x 0.8": _gain(0.8),
    "blur, sigma 0.7 px": _blur(0.7),
    "blur, sigma 1 px": _blur(1.0),
    f"moved by {_SHIFT:.0%} of the width": _shift,
    f"red x {_CAST}, blue / {_CAST}": _cast,
}


class Watch(Protocol):
    """What all methods can."""

    def observe(self, score: float, statistics: Values) -> object: ...

    def reset(self) -> None: ...


class _Peer(abc.ABC):
    """Channels, tolerances and limit as `Monitor` has them; the evidence is a subclass's."""

    def __init__(self, reference: Values) -> None:
        self.reference = reference
        self.mean, self.deviation = reference.mean(axis=0), reference.std(axis=0, ddof=1)
        self.tolerance = np.array(
            [
                max(channel.absolute, channel.relative * abs(mean), channel.spreads * deviation)
                for channel, mean, deviation in zip(CHANNELS, self.mean, self.deviation, strict=True)
            ]
        )
        self.random = np.random.default_rng(0)
        self.reset()

    def reset(self) -> None:
        self.recent = self.mean.copy()

    def observe(self, score: float, statistics: Values) -> object:
        values = np.array([score, *statistics])
        self.recent += 0.1 * (values - self.recent)
        return True if self.seen(values, np.abs(self.recent - self.mean) > self.tolerance) else None

    @abc.abstractmethod
    def seen(self, values: Values, matters: npt.NDArray[np.bool_]) -> bool:
        """Whether this part, of whose channels some differ by more than is tolerated, raises the alarm."""


class FixedRanks(_Peer):
    """The bets of `Monitor` on ranks among the calibration alone."""

    bets = np.array((-1.7, -0.7, 0.7, 1.7))
    shares = np.array([channel.weight for channel in CHANNELS])[:, None] / 4

    def reset(self) -> None:
        super().reset()
        self.sorted = np.sort(self.reference, axis=0)
        self.evidence = np.zeros((len(CHANNELS), 4))

    def seen(self, values: Values, matters: npt.NDArray[np.bool_]) -> bool:
        below = np.array([np.searchsorted(column, value) for column, value in zip(self.sorted.T, values, strict=True)])
        to = np.array([np.searchsorted(column, value, "right") for column, value in zip(self.sorted.T, values, strict=True)])
        ranks = (below + self.random.random(len(values)) * (to - below + 1)) / (len(self.sorted) + 1)
        normal = np.array([NormalDist().inv_cdf(min(max(rank, 1e-12), 1 - 1e-12)) for rank in ranks])
        bet = np.exp(normal[:, None] * self.bets - self.bets**2 / 2)
        self.evidence = np.minimum((1 + self.evidence) * bet, 1e12)
        return float(((self.shares * self.evidence).sum(axis=1) * matters).sum()) >= _PROMISE


class Cusum(_Peer):
    """Two CUSUMs a channel, tuned to shifts of 0.7 deviations; limits after Siegmund, "Sequential Analysis", 1985."""

    tuned = 0.35

    def reset(self) -> None:
        super().reset()
        self.sums = np.zeros((len(CHANNELS), 2))
        self.limits = np.array([_siegmund(2 * _PROMISE / channel.weight, self.tuned) for channel in CHANNELS])
        self.scale = np.where(self.deviation > 0, self.deviation, np.inf)

    def seen(self, values: Values, matters: npt.NDArray[np.bool_]) -> bool:
        standard = (values - self.mean) / self.scale
        self.sums = np.maximum(0, self.sums + np.stack([standard, -standard], axis=1) - self.tuned)
        return bool((matters & (self.sums.max(axis=1) > self.limits)).any())


def _siegmund(parts: float, k: float) -> float:
    """The limit of a one-sided CUSUM of standard normal values with allowance k and that mean run length."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        b = middle + 1.166
        low, high = (middle, high) if (math.exp(2 * k * b) - 2 * k * b - 1) / (2 * k * k) < parts else (low, middle)
    return high


def _monitor(reference: Values) -> Watch:
    return Monitor(reference, warning_parts=_PROMISE, alarm_parts=_PROMISE)


PEERS: dict[str, Callable[[Values], Watch]] = {"ranks, calibration alone": FixedRanks, "CUSUM": Cusum}


class Split:
    """One calibration of n images, and the others as monitoring images.

    Attributes:
        calibration, pool: image numbers.
        threshold: of the calibration; what is above it does not pass and is not watched.
    """

    def __init__(self, clean: Values, order: npt.NDArray[np.int64], n: int) -> None:
        self.calibration, self.pool = order[:n], order[n:]
        self.threshold = conformal_threshold(clean[self.calibration, 0], max(_RATE, 1 / (n + 1)))
        reference = clean[self.calibration]
        # without the part that set the threshold: those below it are like the ones that pass, it is their highest by choice
        self.reference = reference[reference[:, 0] < self.threshold]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="drift", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", required=True, type=Path, help="made with few of the good images, as `fit --few-shot 100`")
    parser.add_argument("--data", required=True, type=Path, help="the product that it was made of")
    parser.add_argument("--others", nargs="*", default=(), type=Path, metavar="DIR", help="products that are put in its place")
    parser.add_argument("--counts", nargs="+", default=(50, 100, 200), type=int, help="images of a calibration")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="read from here, or written to it, an .npz file")
    parser.add_argument("--parts", default=1_000_000, type=console.positive_int, help="for each rate (default: %(default)s)")
    parser.add_argument("--splits", default=100, type=console.positive_int, help="for each delay (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="20,000 parts, 10 splits")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    cv2.setNumThreads(1)
    parts, splits = (20_000, 10) if arguments.quick else (arguments.parts, arguments.splits)
    scores = _scores(arguments)
    clean = scores["clean"]
    counts = [n for n in arguments.counts if FEWEST < n <= len(clean) - 10]
    if not counts:
        raise EngineError(f"{len(clean)} good images that the bundle has not seen, expected {FEWEST + 11} or more")
    console.say(f"{len(clean)} good images; a picture's statistics take {_cost_ms():.2f} ms on one core, median")
    deviation = np.maximum(clean.std(axis=0), [channel.resolution for channel in CHANNELS])
    moved = {name: np.mean(scores[name] - clean, axis=0) / deviation for name in CHANGES}
    console.table(
        "what a change does, in standard deviations between good parts",
        ("change", *(channel.name for channel in CHANNELS)),
        [(name, *(f"{value:+.2f}" for value in row)) for name, row in moved.items()],
    )
    figures: dict[str, Any] = {"machine": machine(), "images": len(clean)}
    figures["false"] = _false_alarms(clean, counts, parts)
    figures["bursts"] = _in_bursts(clean, counts, parts)
    figures["delays"] = _delays(scores, counts, splits)
    figures["slow"] = _slowly(scores, counts, max(splits // 4, 5))
    console.say(f"on {machine()}, one thread")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE


def _scores(arguments: argparse.Namespace) -> dict[str, Values]:
    """Channels of every image, float64 (images, 7), by change; `clean` without one, and the other products by name."""
    if arguments.scores is not None and arguments.scores.is_file():
        with np.load(arguments.scores) as kept:
            return {name: kept[name] for name in kept.files}
    bundle = load_bundle(arguments.bundle)
    learnt = bundle.learnt_from()
    data = open_dataset(arguments.data)
    frames = [sample.image() for sample in (*data.train, *data.test) if sample.good]
    frames = [frame for frame in frames if pixel_digest(frame) not in learnt]
    changes = {"clean": lambda image: image, **CHANGES, **_SLOW}
    scores: dict[str, Values] = {}
    with Inspector(bundle, threads=1) as inspector, console.progress("scoring") as advance:

        def channels(frame: Image) -> list[float]:
            return [inspector.score(frame).value, *measure(inspector.preprocessor, frame)]

        for number, (name, change) in enumerate(changes.items(), 1):
            scores[name] = np.array([channels(change(frame)) for frame in frames])
            advance(number, len(changes))
        for folder in arguments.others:
            others = [sample.image() for sample in open_dataset(folder).train]
            scores[f"product {folder.name}"] = np.array([channels(frame) for frame in others])
    if arguments.scores is not None:
        arguments.scores.parent.mkdir(parents=True, exist_ok=True)
        np.savez(arguments.scores, **scores)  # type: ignore[arg-type]  # as in engines.bundle
    return scores


def _cost_ms() -> float:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    times = []
    for _ in range(200):
        begun = time.perf_counter()
        statistics_of(image)
        times.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times))


def _false_alarms(clean: Values, counts: Sequence[int], parts: int) -> list[dict[str, Any]]:
    """Without a change: monitoring images drawn with replacement for long runs, and each image once."""
    found = []
    middle = counts[len(counts) // 2]
    cases = [(n, True, "calibration.drift", parts) for n in counts]
    cases += [(middle, False, "calibration.drift", parts)]
    cases += [(middle, True, name, parts // 5) for name in PEERS]
    with console.progress("false alarms") as advance:
        for number, (n, again, name, wanted) in enumerate(cases, 1):
            rng = np.random.default_rng([n, again])
            alarms, done = [], 0
            while done < wanted:
                splits = [Split(clean, rng.permutation(len(clean)), n) for _ in range(max(1, min(_AT_ONCE, wanted // _STREAM)))]
                streams = [rng.choice(split.pool, _STREAM) if again else split.pool for split in splits]
                passed = [drawn[clean[drawn, 0] <= split.threshold] for split, drawn in zip(splits, streams, strict=True)]
                if name in PEERS:
                    alarms += [_count(PEERS[name](split.reference), clean[p]) for split, p in zip(splits, passed, strict=True)]
                else:
                    alarms += map(len, alarms_of([split.reference for split in splits], clean, passed, _PROMISE))
                done += sum(map(len, passed))
            total = sum(alarms)
            low, high = _clopper_pearson(total, done)
            row: dict[str, Any] = {"n": n, "again": again, "method": name, "alarms": total, "parts": done}
            found.append(row | {"low": low, "high": high, "splits": sum(count > 0 for count in alarms), "runs": len(alarms)})
            advance(number, len(cases))
    console.table(
        "without a change, all methods promising at most 1 false alarm in 10,000 parts",
        ("method", "calibration", "each run", "alarms", "parts", "in 10,000", "95 % interval", "runs with one"),
        [
            (
                one["method"],
                one["n"],
                f"{_STREAM:,} drawn again and again" if one["again"] else "each image once",
                one["alarms"],
                f"{one['parts']:,}",
                f"{1e4 * one['alarms'] / one['parts']:.2f}",
                f"{1e4 * one['low']:.3f} to {1e4 * one['high']:.3f}",
                f"{one['splits']} of {one['runs']}",
            )
            for one in found
        ],
    )
    return found


def _count(watch: Watch, values: Values) -> int:
    """Alarms in a stream of passed parts; each is looked at, found false, and reset."""
    alarms = 0
    for row in values:
        if watch.observe(row[0], row[1:]) is not None:
            alarms += 1
            watch.reset()
    return alarms


def _clopper_pearson(count: int, of: int) -> tuple[float, float]:
    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, of - count + 1))
    return low, float(beta.ppf(0.975, count + 1, of - count))


def _in_bursts(clean: Values, counts: Sequence[int], parts: int) -> list[dict[str, Any]]:
    """Without a change, but each part comes several times in a row, as in batches: nothing is promised then."""
    found: list[dict[str, Any]] = []
    n = counts[len(counts) // 2]
    for burst in _BURSTS:
        rng = np.random.default_rng([n, burst, 2])
        splits = [Split(clean, rng.permutation(len(clean)), n) for _ in range(max(1, parts // 5 // _STREAM))]
        streams = [np.repeat(rng.choice(split.pool, _STREAM // burst), burst) for split in splits]
        passed = [drawn[clean[drawn, 0] <= split.threshold] for split, drawn in zip(splits, streams, strict=True)]
        alarms = sum(map(len, alarms_of([split.reference for split in splits], clean, passed, _PROMISE)))
        found.append({"n": n, "burst": burst, "alarms": alarms, "parts": sum(map(len, passed))})
    console.table(
        "without a change, each part several times in a row",
        ("times", "calibration", "alarms", "parts", "in 10,000"),
        [
            (one["burst"], one["n"], one["alarms"], f"{one['parts']:,}", f"{1e4 * one['alarms'] / one['parts']:.2f}")
            for one in found
        ],
    )
    return found


def _delays(scores: dict[str, Values], counts: Sequence[int], splits: int) -> list[dict[str, Any]]:
    changes = [*CHANGES, *(name for name in scores if name.startswith("product "))]
    found = []
    with console.progress("delays") as advance:
        middle = counts[len(counts) // 2]
        cases = [(n, before, "calibration.drift") for n in counts for before in (0, _BEFORE)]
        cases += [(middle, 0, name) for name in PEERS]
        for number, (n, before, name) in enumerate(cases, 1):
            taken: dict[str, list[float]] = {change: [] for change in changes}
            said: dict[str, list[str]] = {change: [] for change in changes}
            passed: dict[str, list[float]] = {change: [] for change in changes}
            for draw in range(splits):
                rng = np.random.default_rng([n, draw])
                split = Split(scores["clean"], rng.permutation(len(scores["clean"])), n)
                warm = PEERS.get(name, _monitor)(split.reference)
                good = rng.choice(split.pool, before)
                _count(warm, scores["clean"][good[scores["clean"][good, 0] <= split.threshold]])
                for change in changes:
                    other = change.startswith("product ")
                    drawn = rng.integers(len(scores[change]), size=_LATEST) if other else rng.choice(split.pool, _LATEST)
                    values = scores[change][drawn]
                    at, alarm = _first(copy.deepcopy(warm), values, split.threshold)
                    taken[change].append(at)
                    passed[change].append(float(np.mean(values[:, 0] <= split.threshold)))
                    if isinstance(alarm, Alarm):
                        said[change].append(alarm.kinds[0] if len(alarm.kinds) < 3 else "several")
            for change in changes:
                median, late = np.percentile(taken[change], (50, 95), method="higher")
                words = ", ".join(f"{word} {said[change].count(word) / splits:.0%}" for word in dict.fromkeys(said[change]))
                row: dict[str, Any] = {"change": change, "method": name, "n": n, "before": before, "said": words}
                row |= {"median": float(median), "late": float(late), "passed": float(np.mean(passed[change]))}
                found.append(row | {"within_50": float(np.mean(np.array(taken[change]) <= 50))})
            advance(number, len(cases))
    console.table(
        f"parts from a change to the alarm, of {splits} splits; rejected parts count",
        ("change", "method", "calibration", "good parts before", "median", "95 %", "within 50", "pass", "it says"),
        [
            (
                one["change"],
                one["method"],
                one["n"],
                one["before"],
                *(f"{one[key]:.0f}" if one[key] <= _LATEST else "-" for key in ("median", "late")),
                f"{one['within_50']:.1%}",
                f"{one['passed']:.0%}",
                one["said"],
            )
            for one in sorted(found, key=lambda one: (changes.index(one["change"]), one["n"], one["before"]))
        ],
    )
    return found


def _first(watch: Watch, values: Values, threshold: float) -> tuple[float, object]:
    for number, row in enumerate(values, 1):
        if row[0] <= threshold and (alarm := watch.observe(row[0], row[1:])) is not None:
            return number, alarm
    return math.inf, None


def _slowly(scores: dict[str, Values], counts: Sequence[int], splits: int) -> list[dict[str, Any]]:
    """The light fails in steps of 5 %; the monitor learns from each step and may miss the next for it."""
    steps = ["clean", *_SLOW, "light x 0.8"]
    values = np.concatenate([scores[step] for step in steps])
    found: list[dict[str, Any]] = []
    for n in counts:
        references, streams, numbers = [], [], []
        for draw in range(splits):
            rng = np.random.default_rng([n, draw, 1])
            split = Split(scores["clean"], rng.permutation(len(scores["clean"])), n)
            stream = np.concatenate([rng.choice(split.pool, _STEP) + step * len(scores["clean"]) for step in range(len(steps))])
            passed = np.flatnonzero(values[stream, 0] <= split.threshold)
            references.append(split.reference)
            streams.append(stream[passed])
            numbers.append(passed)
        found_at = alarms_of(references, values, streams, _PROMISE)
        at = [float(passed[places[0]] + 1) if places else math.inf for places, passed in zip(found_at, numbers, strict=True)]
        reached = [sum(place <= (number + 1) * _STEP for place in at) for number in range(len(steps))]
        found.append({"n": n, "splits": splits, "median": float(np.percentile(at, 50, method="higher")), "by_step": reached})
    console.table(
        f"light that fails in steps, {_STEP:,} parts each: alarms by the end of the step",
        ("calibration", "splits", *steps),
        [(one["n"], one["splits"], *one["by_step"]) for one in found],
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
