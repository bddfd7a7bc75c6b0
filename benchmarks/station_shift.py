"""A second station, simulated from real images: what recalibration and `calibration adapt` give back.

`python -m benchmarks.station_shift --bundle B --data DIR` changes every test image as another station would (a darker gamma, a
slight blur, a fixture turned by 3 degrees, a warmer light). A third of the changed good images is for the bank, a third
calibrates, a third is judged, with all bad ones; the thirds change places, and figures are means over the six orders. The
threshold before recalibration is that of the first station, from the same images unchanged.

`--reservoir N` also measures the densities of the extended bank with N patches of the training beside the station's own, as if
the bundle carried them along.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from calibration.station_bank import Candidates, extend_bank, measure_density, nearest_of_others
from calibration.threshold import conformal_threshold
from engines import EngineError, console
from engines.atomic import write_file
from engines.bench import machine
from engines.bundle import Bank, load_bundle
from engines.images import Image, pixel_digest
from engines.inspector import Inspector, Scorer
from engines.ldknn import Floats, distance, nearest
from train.data import Sample, open_dataset
from train.metrics import image_auroc

_GAMMA, _BLUR_PX, _DEGREES, _CAST = 1.25, 0.8, 3.0, (1.05, 1.0, 0.93)
_THIRDS = 3

Doubles = npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="station_shift", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="of `train fit` on the product")
    parser.add_argument("--data", type=Path, required=True, help="the product, with good and bad test images")
    parser.add_argument("--false-reject", type=float, default=0.05, metavar="RATE", help="default: %(default)s")
    parser.add_argument(
        "--rows", type=float, default=1.0, help="of the extended bank, over those of the old (default: %(default)s)"
    )
    parser.add_argument(
        "--reservoir", type=console.count, default=0, metavar="N", help="patches of the training; default: none"
    )
    parser.add_argument("--seed", type=console.count, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=console.count, default=1, help="0 is one a core (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one bank, every fifth bad image")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def shifted(image: Image) -> Image:
    """The image as the second station takes it: uint8 RGB (h, w, 3)."""
    darker = (image.astype(np.float32) / 255) ** _GAMMA
    blurred = cv2.GaussianBlur(darker, (0, 0), _BLUR_PX)
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), _DEGREES, 1.0)
    turned = cv2.warpAffine(blurred, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(np.rint(np.clip(turned * np.array(_CAST, np.float32), 0, 1) * 255), dtype=np.uint8)


def _run(arguments: argparse.Namespace) -> int:
    dataset = open_dataset(arguments.data)
    good = [sample for sample in dataset.test if sample.good]
    bad = [sample for sample in dataset.test if not sample.good][:: 5 if arguments.quick else 1]
    if len(good) < 2 * _THIRDS or not bad:
        raise EngineError(f"{arguments.data}: {len(good)} good and {len(bad)} bad test images, expected some of each")
    bundle = load_bundle(arguments.bundle)
    third = np.random.default_rng([arguments.seed, 8]).permutation(len(good)) % _THIRDS
    turns = range(1 if arguments.quick else _THIRDS)
    with Inspector(bundle, threads=arguments.threads) as inspector:
        first = _scores(inspector, _embed(inspector, good, "first station, good", changed=False))
        first_bad = _scores(inspector, _embed(inspector, bad, "first station, bad", changed=False))
        there = _embed(inspector, good, "second station, good", changed=True)
        there_bad = _embed(inspector, bad, "second station, bad", changed=True)
        old, old_bad = _scores(inspector, there), _scores(inspector, there_bad)
        reservoir = _reservoir(inspector, dataset.train, arguments.reservoir, arguments.seed) if arguments.reservoir else None
        rows: dict[str, list[tuple[float, float, float]]] = {}
        with console.progress("banks") as advance:
            for turn in turns:
                bank = third == turn
                added = _candidates(inspector, [there[i] for i in np.flatnonzero(bank)])
                extended = _extended(inspector, added, arguments.rows, arguments.seed)
                banks = {"second, adapted and recalibrated": extended}
                if reservoir is not None:
                    banks[f"the same, with {len(reservoir.features)} patches of the training"] = _measured_with(
                        inspector, extended, added, reservoir
                    )
                adapted = []
                for name, one in banks.items():
                    scorer = Scorer(
                        inspector.bundle.manifest.method, inspector.preprocessor, one, inspector.extractor, threads=1
                    )
                    new = np.full(len(good), np.nan)
                    new[~bank] = _scores(scorer, [there[i] for i in np.flatnonzero(~bank)])
                    adapted.append((name, new, new, _scores(scorer, there_bad)))
                left, right = (third == (turn + part) % _THIRDS for part in (1, 2))
                for calibrating, judged in ((left, right), (right, left)):
                    for name, limit_of, scores, defects in (
                        ("first station", first, first, first_bad),
                        ("second, as it came", first, old, old_bad),
                        ("second, recalibrated", old, old, old_bad),
                        *adapted,
                    ):
                        limit = conformal_threshold(limit_of[calibrating], arguments.false_reject)
                        rejected, found = (float(np.mean(of > limit)) for of in (scores[judged], defects))
                        rows.setdefault(name, []).append((rejected, found, image_auroc(scores[judged], defects)))
                advance(turn + 1, len(turns))
    figures = {
        name: dict(zip(("false_rejects", "found", "auroc"), np.mean(of, axis=0).tolist(), strict=True))
        for name, of in rows.items()
    }
    console.table(
        f"threshold for {arguments.false_reject:.0%} false rejects from {len(good) // _THIRDS} good images;"
        f" {len(good) // _THIRDS} others added to the bank",
        ("station", "false rejects", "bad parts found", "image AUROC"),
        [(name, *(f"{100 * value:.1f} %" for value in of.values())) for name, of in figures.items()],
    )
    console.say(
        f"{2 * len(turns)} orders, {len(bad)} bad images, bank of {arguments.rows:g} times the old rows; seed {arguments.seed}"
    )
    console.say(f"on {machine()}, {arguments.threads} thread(s)")
    if arguments.json is not None:
        written = {"machine": machine(), "bundle": bundle.digest, "figures": figures}
        write_file(arguments.json, (json.dumps(written, indent=1) + "\n").encode())
    return console.DONE


def _embed(inspector: Inspector, samples: Sequence[Sample], title: str, *, changed: bool) -> list[npt.NDArray[np.float16]]:
    """Embeddings (patches, d) of each image, in half precision: there are many."""
    embedded = []
    with console.progress(title) as advance:
        for number, sample in enumerate(samples, 1):
            image = shifted(sample.image()) if changed else sample.image()
            embedded.append(inspector.extractor.extract(inspector.preprocessor(image)).astype(np.float16))
            advance(number, len(samples))
    return embedded


def _scores(scorer: Scorer, embedded: Sequence[npt.NDArray[np.float16]]) -> Doubles:
    return np.array([scorer.judge(one.astype(np.float32)).value for one in embedded])


def _candidates(inspector: Inspector, added: Sequence[npt.NDArray[np.float16]]) -> Candidates:
    judged = inspector.preprocessor.judged_patches(inspector.bundle.manifest.method.grid).ravel()
    features: Floats = np.concatenate([one.astype(np.float32)[judged] for one in added])
    return Candidates(features, len(added), np.flatnonzero(judged).astype(np.int32))


def _extended(inspector: Inspector, added: Candidates, rows: float, seed: int) -> Bank:
    method, bank = inspector.bundle.manifest.method, inspector.bundle.bank
    return extend_bank(
        bank,
        added,
        round(rows * len(bank.rows)),
        first_image=_first_image(inspector),
        k=method.k,
        metric=method.metric,
        rng=np.random.default_rng([seed, 1]),
    )


def _first_image(inspector: Inspector) -> int:
    return sum(image.use == "bank" for image in inspector.bundle.manifest.provenance.images)


def _reservoir(inspector: Inspector, samples: Sequence[Sample], patches: int, seed: int) -> Candidates:
    """So many patches of the images that the bank was made of, as many of each, in the order of the bank's image numbers."""
    at = {pixel_digest(image): image for image in (sample.image() for sample in samples)}
    pixels = [image.pixels for image in inspector.bundle.manifest.provenance.images if image.use == "bank"]
    if not set(pixels) <= set(at):
        raise EngineError(f"the bank was made of {len(pixels)} images, not all of them are among the {len(at)} of this product")
    each = patches // len(pixels)
    judged = np.flatnonzero(inspector.preprocessor.judged_patches(inspector.bundle.manifest.method.grid).ravel())
    if not 1 <= each <= len(judged):
        raise EngineError(f"a reservoir of {patches} patches, expected {len(pixels)} to {len(pixels) * len(judged)}")
    rng = np.random.default_rng([seed, 9])
    chosen = []
    with console.progress("reservoir") as advance:
        for number, digest in enumerate(pixels, 1):
            embedded = inspector.extractor.extract(inspector.preprocessor(at[digest]))
            chosen.append(embedded[rng.choice(judged, each, replace=False)].astype(np.float16).astype(np.float32))
            advance(number, len(pixels))
    return Candidates(np.concatenate(chosen), len(pixels), np.zeros(each, np.int32))


def _measured_with(inspector: Inspector, bank: Bank, added: Candidates, reservoir: Candidates) -> Bank:
    """The bank with densities measured on the added patches and the reservoir's together."""
    method = inspector.bundle.manifest.method
    found = [
        nearest_of_others(bank.rows, bank.image, patches, first)
        for patches, first in ((added, _first_image(inspector)), (reservoir, 0))
    ]
    distances = distance(np.concatenate([squared for squared, _ in found]), method.metric)
    apart, _ = nearest(bank.rows, bank.rows, method.k, exclude=np.arange(len(bank.rows)))
    isolation = distance(apart, method.metric).mean(axis=1)
    return replace(bank, density=measure_density(isolation, distances, np.concatenate([row for _, row in found])))


if __name__ == "__main__":
    sys.exit(main())
