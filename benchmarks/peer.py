"""A verdict beside anomalib's PatchCore: the whole image, on the same cores, in the same run.

`python -m benchmarks.peer --data DIR` gives both the same ResNet18 weights, the same good images, the same number of bank
rows and the same number of threads. Then decoded uint8 images go in and verdicts come out, in turns of a few images each.
Where other programs run, threads that wait for each other lose most, and the peer has more of them: there, trust
`--threads 1` with `OMP_NUM_THREADS=1` alone.
anomalib is optional and serves this comparison alone: pip install anomalib, in an environment of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from engines import console
from engines.atomic import write_file
from engines.bank import k_centre
from engines.bench import machine
from engines.bundle import load_bundle
from engines.images import Image
from engines.inspector import Inspector, anomaly_map
from train import TrainError
from train.backbones import build
from train.data import Sample, open_dataset
from train.fit import fit
from train.product import Console, Settings, open_product
from train.variants import export

PEER, THIS, MAPPED, EIGHT_BITS = "anomalib", "this", "this, with the map", "this, in int8-cpu"
_TURN = 10  # images that one method judges before the other's turn: a cache is as warm as it would be alone
_PERCENTILES = (5, 50, 95)
_TRIED = 10  # images that a memory layout is tried on
_WORDS = {
    PEER: "resize and normalise (its exported transform), ResNet18 in torch, average pooling, exact search of every patch,"
    " its reweighting by 9 neighbours, the blurred anomaly map, thresholds of both",
    THIS: "resize and normalise, ResNet18 and neck in ONNX Runtime, the exact LDKNN image score, the threshold; no map",
    MAPPED: "the same, then every patch's exact score and the blurred anomaly map",
    EIGHT_BITS: "as `this`, with two thirds of the trunk in eight bits, which flipped no decision of its gate",
}

Judge = Callable[[Image], float]


@dataclass(frozen=True)
class Setup:
    """What both sides are given.

    Attributes:
        settings: as for `train fit`.
        rows: of the bank.
        good: the bank's images.
        state: the trunk's state dict, with torchvision's names.
    """

    settings: Settings
    rows: int
    good: tuple[Sample, ...]
    state: dict[str, Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    cv2.setNumThreads(1)  # as the doors do
    parser = argparse.ArgumentParser(prog="peer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a product with test images, as for `train fit`")
    parser.add_argument("--weights", help="of resnet18, as for `train fit`")
    parser.add_argument("--rows", default=2048, type=console.positive_int, help="of both banks (default: %(default)s)")
    parser.add_argument("--threads", default=2, type=console.positive_int, help="of both (default: %(default)s)")
    parser.add_argument("--images", type=console.positive_int, help="good ones to learn from (default: 60; quick: 20)")
    parser.add_argument("--repeats", type=console.positive_int, help="timed images (default: 200; quick: 20)")
    parser.add_argument("--quick", action="store_true", help="few images; AUROC over the timed ones alone")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    patchcore = import_peer()
    images = arguments.images if arguments.images is not None else 20 if arguments.quick else 60
    repeats = arguments.repeats if arguments.repeats is not None else 20 if arguments.quick else 200
    test = open_dataset(arguments.data, None).test
    if not test:
        raise TrainError(f"{arguments.data}: no test images; expected test/good and test/<defect>")
    torch.set_num_threads(arguments.threads)
    talk = Console(lambda line: None, console.warn, console.progress)
    with tempfile.TemporaryDirectory() as folder:
        setup = _setup(arguments, images, talk)
        bundle = Path(folder) / "bundle"
        fit(setup.settings, bundle, talk)
        export(bundle, arguments.data, bundle, ("int8-cpu",), talk)
        with console.progress("anomalib's bank") as advance:
            peer = PeerJudge(patchcore, setup, advance)
        loaded = load_bundle(bundle)
        with contextlib.ExitStack() as opened:
            inspector = opened.enter_context(Inspector(loaded, threads=arguments.threads))
            judges: dict[str, Judge] = {PEER: peer, THIS: _verdict(inspector), MAPPED: _verdict_and_map(inspector)}
            if "int8-cpu" in loaded.graphs:
                faster = Inspector(loaded, precision="int8-cpu", threads=arguments.threads)
                judges[EIGHT_BITS] = _verdict(opened.enter_context(faster))
            with console.progress("timing") as advance:
                taken = alternate(judges, _decoded(test, repeats), advance)
            judged = _spread(test, repeats) if arguments.quick else test
            with console.progress("test images") as advance:
                auroc = agreement(judges, judged, advance)
    figures = {method: summarise(times, taken[PEER]) for method, times in taken.items()}
    _report(arguments, images, repeats, figures, auroc, judged, peer.layout)
    if EIGHT_BITS not in figures:
        console.say(f"int8-cpu is not offered: {loaded.manifest.variants[0].reason}")
    return console.DONE


def import_peer() -> Any:
    """anomalib's Patchcore class. Raises TrainError where it cannot be imported."""
    warnings.simplefilter("ignore")  # those of anomalib's own imports
    try:
        module = importlib.import_module("anomalib.models")
    except (ImportError, RuntimeError) as error:  # torchvision raises the latter where it does not fit torch
        raise TrainError(
            f"anomalib cannot be imported ({error}), which this benchmark compares with;"
            " pip install anomalib with the torchvision of this torch, in an environment of its own"
        ) from None
    logging.getLogger("anomalib").setLevel(logging.ERROR)
    return module.Patchcore


def _setup(arguments: argparse.Namespace, images: int, talk: Console) -> Setup:
    settings = Settings(arguments.data, weights=arguments.weights, few_shot=images, coreset=arguments.rows, device="cpu")
    product = open_product(settings, talk)
    state = product.weights.state if product.weights is not None else None
    trunk = build(product.backbone, state, settings.seed).state_dict()
    return Setup(settings, arguments.rows, product.samples[: product.in_bank], trunk)


class PeerJudge:
    """anomalib's PatchCore with its own pre-processing, search, map and post-processing, in torch.

    Attributes:
        layout: of its convolutions' memory, the faster of two that were tried.
    """

    def __init__(self, patchcore: Any, setup: Setup, progress: Callable[[int, int], None]) -> None:
        """Load the weights, embed the good images, and give it as many of its own embeddings as the other bank has rows.

        Raises:
            TrainError: its trunk has other weights than torchvision's.
        """
        self._model = patchcore(backbone="resnet18", layers=("layer2", "layer3"), pre_trained=False)
        trunk = self._model.model.feature_extractor.feature_extractor
        wanted = trunk.state_dict().keys()
        if wanted != setup.state.keys():
            odd = ", ".join(sorted(wanted ^ setup.state.keys())[:3])
            raise TrainError(f"anomalib's trunk and this one differ in {odd}; expected torchvision's names up to layer3")
        trunk.load_state_dict(setup.state)
        self._fill(setup, progress)
        self._model.eval()
        self._format = torch.contiguous_format
        self.layout = self._choose_layout([sample.image() for sample in setup.good[:_TRIED]])

    def __call__(self, image: Image) -> float:
        """Judge one image, uint8 RGB (H, W, 3), and return its score."""
        with torch.inference_mode():
            answer = self._model(self._tensor(image))
            bool(answer.pred_label.item())  # the verdict
            return float(answer.pred_score.item())

    def _tensor(self, image: Image) -> Tensor:
        """As anomalib's own inferencer does it: float32 (1, 3, H, W), 0 to 1."""
        whole = torch.from_numpy(image).permute(2, 0, 1)[None]
        return whole.to(torch.float32).div_(255).contiguous(memory_format=self._format)

    def _fill(self, setup: Setup, progress: Callable[[int, int], None]) -> None:
        self._model.train()  # in which it keeps what it embeds
        self._format = torch.contiguous_format
        with torch.inference_mode():
            for number, sample in enumerate(setup.good, 1):
                self._model.model(self._model.pre_processor(self._tensor(sample.image())))
                progress(number, len(setup.good))
            store = self._model.model.embedding_store
            embeddings = torch.vstack(store)
            store.clear()
        # the same selection for both: anomalib's own takes ten times as long and covers less (`benchmarks.coreset`)
        chosen = k_centre(embeddings.numpy(), setup.rows, np.random.default_rng(setup.settings.seed))
        self._model.model.memory_bank = embeddings[torch.from_numpy(chosen)].clone()

    def _choose_layout(self, images: Sequence[Image]) -> str:
        medians = {}
        formats = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
        for name, layout in formats.items():
            self._set(layout)
            times = alternate({name: self}, images, lambda done, total: None)[name]
            medians[name] = float(np.median(times))
        fastest = min(medians, key=lambda name: medians[name])
        self._set(formats[fastest])
        return fastest

    def _set(self, layout: torch.memory_format) -> None:
        self._format = layout
        self._model.to(memory_format=layout)


def _verdict(inspector: Inspector) -> Judge:
    threshold = _threshold(inspector)

    def judge(image: Image) -> float:
        value = inspector.score(image).value
        bool(value > threshold)  # the verdict
        return value

    return judge


def _verdict_and_map(inspector: Inspector) -> Judge:
    threshold = _threshold(inspector)

    def judge(image: Image) -> float:
        score = inspector.score(image)
        bool(score.value > threshold)
        anomaly_map(inspector.map(score), inspector.preprocessor.size)
        return score.value

    return judge


def _threshold(inspector: Inspector) -> float:
    threshold = inspector.bundle.manifest.threshold
    return threshold.value if threshold is not None else 0.0


def alternate(
    judges: dict[str, Judge], images: Sequence[Image], progress: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """Milliseconds of each image by method. The methods take turns, so that a busy machine is busy for all."""
    taken: dict[str, list[float]] = {method: [] for method in judges}
    for start in range(0, len(images), _TURN):
        for method, judge in judges.items():
            judge(images[start])  # its own data back into the cache, for each alike
            for image in images[start : start + _TURN]:
                started = time.perf_counter()
                judge(image)
                taken[method].append(1000 * (time.perf_counter() - started))
        progress(min(start + _TURN, len(images)), len(images))
    return taken


def agreement(judges: dict[str, Judge], samples: Sequence[Sample], progress: Callable[[int, int], None]) -> dict[str, float]:
    """Image AUROC, 0 to 1, of the methods whose scores differ; NaN where the samples are all good or all bad."""
    methods = [method for method in judges if method != MAPPED]
    scores: dict[str, list[float]] = {method: [] for method in methods}
    for number, sample in enumerate(samples, 1):
        for method in methods:
            scores[method].append(judges[method](sample.image()))
        progress(number, len(samples))
    bad = [not sample.good for sample in samples]
    if all(bad) or not any(bad):
        return dict.fromkeys(methods, float("nan"))
    return {method: float(roc_auc_score(bad, scores[method])) for method in methods}


def _spread(test: Sequence[Sample], count: int) -> list[Sample]:
    return [test[index] for index in np.linspace(0, len(test) - 1, min(count, len(test))).astype(int)]


def _decoded(test: Sequence[Sample], count: int) -> list[Image]:
    """As many images as asked for, over the whole test set, again from its beginning where it is smaller."""
    images = [sample.image() for sample in _spread(test, count)]
    return [images[number % len(images)] for number in range(count)]


def summarise(times: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    """Percentiles of one method's milliseconds, and how many times as fast as the peer it is at each.

    On a busy machine the fifth is nearest to what a quiet one takes: threads that wait for each other, of which the peer has
    more, lose more time than others when a core is taken away.
    """
    own, other = (np.percentile(values, _PERCENTILES) for values in (times, peer))
    figures = {f"p{q}": float(value) for q, value in zip(_PERCENTILES, own, strict=True)}
    return {**figures, **{f"ratio_p{q}": float(value) for q, value in zip(_PERCENTILES, other / own, strict=True)}}


def _report(
    arguments: argparse.Namespace,
    images: int,
    repeats: int,
    figures: dict[str, dict[str, float]],
    auroc: dict[str, float],
    judged: Sequence[Sample],
    layout: str,
) -> None:
    table = [
        (method, *(f"{one[f'p{q}']:.1f}" for q in _PERCENTILES), *(f"{one[f'ratio_p{q}']:.2f}" for q in _PERCENTILES))
        for method, one in figures.items()
    ]
    title = f"resnet18 256x256, {arguments.rows:,} bank rows, {arguments.threads} threads, {repeats} images in turns of {_TURN}"
    names = [f"p{q}" for q in _PERCENTILES]
    console.table(title, ("image to verdict", *(f"{name}, ms" for name in names), *(f"ratio, {name}" for name in names)), table)
    for method in figures:
        console.say(f"{method}: {_WORDS[method]}")
    bad = sum(not sample.good for sample in judged)
    console.say(
        f"AUROC of the image scores, banks of {images} good images, {len(judged) - bad} good and {bad} bad test images: "
        + ", ".join(f"{method} {100 * value:.1f}" for method, value in auroc.items())
    )
    versions = f"anomalib {_version('anomalib')} ({layout}), torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}"
    console.say(f"on {machine()}; {versions}")
    if arguments.json is not None:
        document = {"rows": arguments.rows, "threads": arguments.threads, "methods": figures, "auroc": auroc}
        write_file(arguments.json, (json.dumps(document, indent=1) + "\n").encode())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


if __name__ == "__main__":
    sys.exit(main())
