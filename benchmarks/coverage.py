"""Do thresholds keep the false-reject rate that they promise? On real images, where the promise holds and where it does not.

`python -m benchmarks.coverage --data DIR`, with a product whose good images are for training and test. A bundle is fitted on
100 of them, and 300 others are scored once. Then n of these are drawn a thousand times, each method takes its threshold from
them, and the share of the others above it is the rate that it really has:

    random      n pictures are drawn, all others are judged
    tiles       whole parts are drawn: pictures that look like the same part again stay on one side; each part weighs alike
    bursts      n / 5 pictures are drawn, and each is taken in five frames: moved by up to a pixel, with noise and gain
    gamma, blur calibrated as in `random`; what is judged is darker by a gamma of 1.4, or slightly out of focus

`tiles` and `bursts` are calibrated twice: as if each picture were a part, and with the part as the unit.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from calibration.fit import score_images
from calibration.groups import by_likeness
from calibration.parts import Parts, parts_of
from calibration.tail import Tail, fit_tail
from calibration.threshold import conformal, sigma_threshold
from calibration.twins import thumbnail
from engines import console
from engines.atomic import write_file
from engines.bench import machine
from engines.bundle import load_bundle
from engines.images import Image, read_image
from engines.inspector import Inspector
from train import TrainError
from train.data import open_dataset
from train.fit import fit
from train.product import Console, Settings

RATES = (0.01, 0.02, 0.05)
COUNTS = (20, 50, 100, 200)
_FRAMES = 5  # of a burst
_NOISE = 2.0  # grey levels, standard deviation
_GAIN = 0.02

Scores = npt.NDArray[np.float64]
Random = np.random.Generator


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="coverage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a product, as for `train fit`")
    parser.add_argument("--weights", help="as for `train fit`")
    parser.add_argument("--bank", type=console.positive_int, default=100, help="images to fit on (default: %(default)s)")
    parser.add_argument("--pool", type=console.positive_int, default=300, help="others (default: %(default)s)")
    parser.add_argument("--splits", type=console.positive_int, default=1000, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a third of the images, 30 splits")
    parser.add_argument("--threads", type=console.positive_int, default=1, help="that score (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.quick:
        arguments.bank, arguments.pool, arguments.splits = arguments.bank // 3, arguments.pool // 3, 30
    pool = score_pool(arguments.data, arguments.weights, arguments.bank, arguments.pool, arguments.threads)
    rows = []
    with console.progress("splits") as advance:
        drawn = [(draw, count) for draw in DRAWS for count in COUNTS if count < arguments.pool]
        for number, (draw, count) in enumerate(drawn, 1):
            rows += measure(pool, draw, count, arguments.splits)
            advance(number, len(drawn))
    show(rows)
    parts = len(set(pool.part.tolist()))
    console.say(f"{len(pool.scores)} pictures of {parts} parts, {arguments.splits} splits, bundle fitted on {arguments.bank}")
    console.say(f"on {machine()}")
    if arguments.json is not None:
        document = {"pictures": len(pool.scores), "parts": parts, "splits": arguments.splits, "rows": rows}
        write_file(arguments.json, (json.dumps(document, indent=1) + "\n").encode())
    return console.DONE


class Pool:
    """Scores of good pictures that the bundle has not seen.

    Attributes:
        scores: float64 (pictures,).
        part: int64 (pictures,), which show the same part.
        frames: float64 (pictures, 5), of a burst of each.
        changed: float64 (pictures,) of each under a change of the station, by its name.
    """

    def __init__(self, scores: Scores, part: npt.NDArray[np.int64], frames: Scores, changed: dict[str, Scores]) -> None:
        """Hold them."""
        self.scores, self.part, self.frames, self.changed = scores, part, frames, changed


def score_pool(data: Path, weights: str | None, bank: int, pool: int, threads: int) -> Pool:
    """Fit a bundle and score what it has not seen, as it is, in bursts and changed.

    Raises:
        TrainError: fewer good images.
    """
    dataset = open_dataset(data)
    good = [sample.path for sample in (*dataset.train, *dataset.test) if sample.good]
    if len(good) < bank + pool:
        raise TrainError(f"{len(good)} good images in {data}, expected {bank + pool}; give fewer with --bank and --pool")
    order = np.random.default_rng(0).permutation(len(good))
    drawn = [good[index] for index in order[: bank + pool].tolist()]
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for number, path in enumerate(drawn[:bank]):
            (images / f"{number:04}{path.suffix}").symlink_to(path.resolve())
        talk = Console(lambda line: None, console.warn, console.progress)
        fit(Settings(images, weights=weights), Path(folder) / "bundle", talk)
        with Inspector(load_bundle(Path(folder) / "bundle"), threads=threads) as inspector:
            return _score(inspector, drawn[bank:], data)


def _score(inspector: Inspector, paths: Sequence[Path], root: Path) -> Pool:
    with console.progress("scoring") as advance:
        scored = score_images(inspector, paths, root, grouping="none", progress=advance)
    thumbs, frames, changed = [], np.empty((len(paths), _FRAMES)), {name: np.empty(len(paths)) for name in CHANGES}
    random = np.random.default_rng(1)
    with console.progress("bursts and changes") as advance:
        for number, path in enumerate(paths):
            image = read_image(path)
            thumbs.append(thumbnail(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)))
            for frame in range(_FRAMES):
                frames[number, frame] = inspector.score(another_frame(image, random)).value
            for name, change in CHANGES.items():
                changed[name][number] = inspector.score(change(image)).value
            advance(number + 1, len(paths))
    names = [str(number) for number in range(len(paths))]
    groups = by_likeness(names, thumbs)
    part = [int(group if group is not None else name) for name, group in zip(names, groups, strict=True)]
    return Pool(np.array([one.score for one in scored]), np.array(part), frames, changed)


def another_frame(image: Image, random: Random) -> Image:
    """The next frame of a burst: the part hardly moved, the sensor has noise of its own."""
    move = np.array([[1, 0, random.uniform(-1, 1)], [0, 1, random.uniform(-1, 1)]], np.float32)
    moved = cv2.warpAffine(image, move, (image.shape[1], image.shape[0]), borderMode=cv2.BORDER_REPLICATE)
    noise = random.normal(0, _NOISE, image.shape[:2])[:, :, None]
    return np.clip(moved * (1 + random.uniform(-_GAIN, _GAIN)) + noise, 0, 255).astype(np.uint8)


def _gamma(image: Image) -> Image:
    return np.asarray(cv2.LUT(image, np.rint(255 * (np.arange(256) / 255) ** 1.4).astype(np.uint8)), np.uint8)


def _blur(image: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.8 * min(image.shape[:2]) / 256), np.uint8)


CHANGES: dict[str, Callable[[Image], Image]] = {"gamma": _gamma, "blur": _blur}

Judged = dict[str, Parts]
"""What is judged, by the condition that it stands for."""


def _random(pool: Pool, count: int, random: Random) -> tuple[Parts, Judged]:
    calibrated, others = np.split(random.permutation(len(pool.scores)), [count])
    judged = {"random": pool.scores, **pool.changed}
    return parts_of(pool.scores[calibrated]), {name: parts_of(scores[others]) for name, scores in judged.items()}


def _tiles(pool: Pool, count: int, random: Random, *, grouped: bool) -> tuple[Parts, Judged]:
    """Parts in random order, until there are `count` pictures of them; the last part may be cut short."""
    order = random.permutation(int(pool.part.max()) + 1)
    taken = np.argsort(order[pool.part], kind="stable")[:count]
    groups, others = pool.part[taken].tolist() if grouped else None, ~np.isin(pool.part, pool.part[taken])
    judged = parts_of(pool.scores[others], pool.part[others].tolist())
    return parts_of(pool.scores[taken], groups), {f"tiles, by {'part' if grouped else 'picture'}": judged}


def _bursts(pool: Pool, count: int, random: Random, *, grouped: bool) -> tuple[Parts, Judged]:
    taken, others = np.split(random.permutation(len(pool.scores)), [count // _FRAMES])
    groups = np.repeat(taken, _FRAMES).tolist() if grouped else None
    judged = parts_of(pool.frames[others, 0])
    return parts_of(pool.frames[taken].ravel(), groups), {f"bursts, by {'part' if grouped else 'picture'}": judged}


DRAWS: tuple[Callable[[Pool, int, Random], tuple[Parts, Judged]], ...] = (
    _random,
    functools.partial(_tiles, grouped=False),
    functools.partial(_tiles, grouped=True),
    functools.partial(_bursts, grouped=False),
    functools.partial(_bursts, grouped=True),
)


def measure(
    pool: Pool, draw: Callable[[Pool, int, Random], tuple[Parts, Judged]], count: int, splits: int
) -> list[dict[str, object]]:
    """Realised rates of each method at each rate: their mean with its standard error over the splits, their 5th and 95th
    percentile, and how often the method refused.
    """
    random = np.random.default_rng(2)  # the same draws by picture and by part
    realised: dict[tuple[str, str, float], list[float]] = {}
    parts_in_all = 0
    for _ in range(splits):
        parts, judged = draw(pool, count, random)
        parts_in_all += parts.count
        for name, method, rate in itertools.product(judged, METHODS, RATES):
            realised.setdefault((name, method, rate), [])
        for method, rate, threshold in thresholds(parts):
            for name, others in judged.items():
                realised[name, method, rate].append(others.above(threshold) / others.count)
    return [
        {
            "condition": name,
            "n": count,
            "parts": parts_in_all / splits,
            "method": method,
            "rate": rate,
            "refused": 1 - len(rates) / splits,
            "mean": float(np.mean(rates)) if rates else None,
            "error": float(np.std(rates) / np.sqrt(len(rates))) if rates else None,
            "low": float(np.quantile(rates, 0.05)) if rates else None,
            "high": float(np.quantile(rates, 0.95)) if rates else None,
        }
        for (name, method, rate), rates in realised.items()
    ]


METHODS = ("conformal", "pareto", "sigma")


def thresholds(parts: Parts) -> Iterator[tuple[str, float, float]]:
    """Method, rate and threshold, of those methods that do not refuse."""
    tail: Tail | None = None
    with contextlib.suppress(CalibrationError):
        tail = fit_tail(parts.representatives())
    for rate in RATES:
        with contextlib.suppress(CalibrationError):
            yield "conformal", rate, conformal(parts, rate)
        if tail is not None:
            with contextlib.suppress(CalibrationError):
                yield "pareto", rate, tail.threshold(rate)[0]
        yield "sigma", rate, sigma_threshold(parts, rate)


def show(rows: Sequence[dict[str, object]]) -> None:
    """One table a rate."""
    for rate in RATES:
        table: dict[tuple[str, str], dict[object, str]] = {}
        for row in rows:
            if row["rate"] == rate:
                table.setdefault((str(row["condition"]), str(row["method"])), {})[row["n"]] = _cell(row)
        counts = [count for count in COUNTS if any(count in cells for cells in table.values())]
        console.table(
            f"realised false-reject rate, percent, where {100 * rate:g} was asked for: mean (5 to 95 of 100 splits)",
            ("drawn", "method", *(f"n {count}" for count in counts)),
            [(*key, *(cells.get(count, "") for count in counts)) for key, cells in table.items()],
        )


def _cell(row: dict[str, object]) -> str:
    if row["mean"] is None:
        return "refused"
    mean, low, high, refused = (100 * float(str(row[name])) for name in ("mean", "low", "high", "refused"))
    return f"{mean:.2f} ({low:.1f} to {high:.1f})" + (f", {refused:.0f} refused" if refused > 0 else "")


if __name__ == "__main__":
    sys.exit(main())
