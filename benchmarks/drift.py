"""How soon is drift seen, and how often is it seen where there is none: `python -m benchmarks.drift --bundle B --data DIR`.

Good images that the bundle was not made with are split at random into a calibration and monitoring images, again and again.
The parts of a stream are drawn from the monitoring images alone, so the error of drawing these few is part of what is measured.
Every image is scored once as it is and once under each change; the rest is arithmetic. `--scores FILE` keeps the scores.

Beside `calibration.drift` stand two usual ways, with the same channels, shares, tolerances and promise: the same bets on ranks
among the calibration alone, and CUSUMs of values standardised by the calibration's mean and deviation.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import beta

from benchmarks.drift_changes import CHANGES, SLOW, scores_of
from benchmarks.drift_peers import PROMISE, Cusum, FixedRanks, Values, Watch
from benchmarks.drift_streams import alarms_of
from calibration.appearance import statistics_of
from calibration.drift import CHANNELS, FEWEST, Alarm, Monitor
from calibration.threshold import conformal_threshold
from engines import EngineError, console
from engines.atomic import write_file
from engines.bench import machine

_AT_ONCE = 200  # runs that are worked out side by side
_RATE = 0.02  # false rejects that the threshold allows
_STREAM = 5_000  # parts of one long run
_LATEST = 500  # parts after a change that are waited for
_BEFORE = 500  # good parts before a later change
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
_BURSTS = (1, 2, 5, 20)
_STEP = 1_000  # parts on each step of a slow change


def _monitor(reference: Values) -> Watch:
    return Monitor(reference, warning_parts=PROMISE, alarm_parts=PROMISE)


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
    scores = scores_of(arguments.bundle, arguments.data, arguments.others, arguments.scores)
    clean = scores["clean"]
    counts = [n for n in arguments.counts if FEWEST < n <= len(clean) - 10]
    if not counts:
        raise EngineError(f"{len(clean)} good images that the bundle has not seen, expected {FEWEST + 11} or more")
    console.say(f"{len(clean)} good images")
    costs = _costs_ms(clean)
    console.say(f"a part's statistics take {costs[0]:.2f} ms, the test {costs[1]:.2f} ms of processor time, median")
    deviation = np.maximum(clean.std(axis=0), [channel.resolution for channel in CHANNELS])
    moved = {name: np.mean(scores[name] - clean, axis=0) / deviation for name in CHANGES}
    console.table(
        "what a change does, in standard deviations between good parts",
        ("change", *(channel.name for channel in CHANNELS)),
        [(name, *(f"{value:+.2f}" for value in row)) for name, row in moved.items()],
    )
    figures: dict[str, Any] = {"machine": machine(), "images": len(clean), "costs_ms": costs, "told": _told(scores)}
    figures["false"] = _false_alarms(clean, counts, parts)
    figures["bursts"] = _in_bursts(clean, counts, parts)
    figures["delays"] = _delays(scores, counts, splits)
    figures["slow"] = _slowly(scores, counts, max(splits // 4, 5))
    console.say(f"on {machine()}, one thread")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(figures, indent=1) + "\n").encode())
    return console.DONE


def _costs_ms(clean: Values) -> tuple[float, float]:
    """Processor time of measuring a picture of 256 x 256 pixels, and of observing it, each the median."""
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    monitor = Monitor(clean)
    watched = [(float(row[0]), row[1:]) for row in clean]
    return _median_ms([lambda: statistics_of(image)] * 500), _median_ms([partial(monitor.observe, *one) for one in watched])


def _median_ms(calls: Sequence[Callable[[], object]]) -> float:
    times = []
    for call in calls:
        begun = time.thread_time_ns()
        call()
        times.append((time.thread_time_ns() - begun) / 1e6)
    return float(np.median(times))


def _told(scores: dict[str, Values]) -> list[dict[str, Any]]:
    """How much one part tells, to somebody who knows the distribution of good parts, which channel moves, and how far.

    Ranks are taken among all good images; the bet is the best shift of their normal deviates, and nats are the mean logarithm
    of what it wins. An alarm of 1 in 10,000 parts takes log 10,000 of them (Lorden, "Procedures for reacting to a change in
    distribution", 1971, for bets that are likelihood ratios).
    """
    clean, found = scores["clean"], []
    for change in CHANGES:
        below, to = (
            np.array(
                [np.searchsorted(np.sort(good), moved, side) for good, moved in zip(clean.T, scores[change].T, strict=True)]
            )
            for side in ("left", "right")
        )
        deviates = ndtri(((below + to) / 2 + 0.5) / (len(clean) + 1)).mean(axis=1)
        best = int(np.argmax(np.abs(deviates)))
        nats = float(deviates[best] ** 2 / 2)  # of the shift that equals their mean
        parts = math.log(PROMISE) / nats
        found.append({"change": change, "channel": CHANNELS[best].name, "nats": nats, "parts": parts})
    console.table(
        "what one part tells to somebody who knows all but when it changes",
        ("change", "clearest channel", "nats a part", "parts for 1 in 10,000"),
        [(one["change"], one["channel"], f"{one['nats']:.2f}", f"{one['parts']:.0f}") for one in found],
    )
    return found


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
                    alarms += map(len, alarms_of([split.reference for split in splits], clean, passed, PROMISE))
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
        alarms = sum(map(len, alarms_of([split.reference for split in splits], clean, passed, PROMISE)))
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
    steps = ["clean", *SLOW, "light x 0.8"]
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
        found_at = alarms_of(references, values, streams, PROMISE)
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
