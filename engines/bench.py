"""Time the stages of scoring on the machine at hand."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.images import Image
from engines.inspector import Inspector
from engines.ldknn import LDKNN, Floats, Progress
from engines.power import PowerMeter
from engines.verdict_first import VerdictFirst

_WARM_UP = 5
STAGES = ("preprocess", "features", "LDKNN", "total")
ALONE = "features alone"
_SHARES, _FEWEST_ROWS = (1 / 8, 1 / 4, 1 / 2, 1), 32  # of the bank that the search is timed on


@dataclass(frozen=True)
class SearchTime:
    """Milliseconds that an image score takes without its features, in a bank of so many rows."""

    rows: int
    p50: float
    p95: float


@dataclass(frozen=True)
class BenchResult:
    """Stage times in milliseconds, as {stage: {p50, p95, p99}}, and what they were taken on.

    `total` is what a station does for an image; the stages before it are taken one by one, with the embeddings on this machine
    between features and search, where a GPU that does both keeps them. `search` has the search on the CPU of `patches` patches
    of `dim` dimensions in beginnings of the bank and in all of it, rows ascending. `watts` is None where the machine does not
    tell.
    """

    title: str
    machine: str
    repeats: int
    stages_ms: dict[str, dict[str, float]]
    images_per_second: float
    backend: str
    precision: str
    searched_on: str
    watts: float | None
    patches: int
    dim: int
    search: tuple[SearchTime, ...]

    @property
    def ratio(self) -> float:
        """Median total time over the median time of the features with nothing in between."""
        return self.stages_ms["total"]["p50"] / self.stages_ms[ALONE]["p50"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


def bench(inspector: Inspector, repeats: int, progress: Progress | None = None) -> BenchResult:
    """Score the bundle's golden images in turn, decoded, and time it; then each stage; then the features alone.

    Args:
        inspector: warmed up here.
        repeats: timed images.
        progress: called with (done, in all).

    Raises:
        EngineError: an image or the backend failed.
    """
    images = inspector.bundle.golden().images
    taken = {stage: np.empty(repeats) for stage in (*STAGES, ALONE)}
    with PowerMeter() as meter:
        for number in range(-_WARM_UP, repeats):
            image = images[number % len(images)]
            started = time.perf_counter()
            inspector.score(image)
            ended = time.perf_counter()
            if number >= 0:
                taken["total"][number] = 1000 * (ended - started)
                if progress is not None:
                    progress(number + 1, 3 * repeats)
    for number in range(-_WARM_UP, repeats):
        image = images[number % len(images)]
        started = time.perf_counter()
        tensor = inspector.preprocessor(image)
        prepared = time.perf_counter()
        embeddings = inspector.extractor.extract(tensor)
        embedded = time.perf_counter()
        inspector.judge(embeddings)
        judged = time.perf_counter()
        if number >= 0:
            times = (prepared - started, embedded - prepared, judged - embedded)
            for stage, seconds in zip(STAGES, times, strict=False):
                taken[stage][number] = 1000 * seconds
            if progress is not None:
                progress(repeats + number + 1, 3 * repeats)
    tensor = inspector.preprocessor(images[0])
    for number in range(-_WARM_UP, repeats):
        started = time.perf_counter()
        inspector.extractor.extract(tensor)
        if number >= 0:
            taken[ALONE][number] = 1000 * (time.perf_counter() - started)
            if progress is not None:
                progress(2 * repeats + number + 1, 3 * repeats)
    bundle, extractor = inspector.bundle, inspector.extractor
    high, wide = bundle.manifest.input.size
    return BenchResult(
        title=f"{bundle.manifest.method.backbone} {wide}x{high}, {len(bundle.bank.rows)} bank rows,"
        f" {extractor.backend} {extractor.precision} ({extractor.provider}), searched on the {inspector.searched_on.upper()}",
        machine=machine(),
        repeats=repeats,
        stages_ms={stage: {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)} for stage, values in taken.items()},
        images_per_second=1000 / float(taken["total"].mean()),
        backend=extractor.backend,
        precision=extractor.precision,
        searched_on=inspector.searched_on,
        watts=meter.watts,
        patches=bundle.manifest.method.grid[0] * bundle.manifest.method.grid[1],
        dim=bundle.manifest.method.dim,
        search=_by_rows(inspector, images, repeats),
    )


def _by_rows(inspector: Inspector, images: Sequence[Image], repeats: int) -> tuple[SearchTime, ...]:
    embedded = [inspector.extractor.extract(inspector.preprocessor(image)) for image in images[:repeats]]
    turns = [embedded[number % len(embedded)] for number in range(repeats)]
    method, bank = inspector.bundle.manifest.method, inspector.bundle.bank
    judged = inspector.preprocessor.judged_patches(method.grid)
    found = []
    for rows in sorted({max(min(_FEWEST_ROWS, len(bank.rows)), round(share * len(bank.rows))) for share in _SHARES}):
        search = LDKNN(
            bank.rows[:rows],
            bank.density[:rows],
            alpha=method.alpha,
            metric=method.metric,
            threads=inspector.ldknn.workers.threads,
        )
        taken = search_ms(VerdictFirst(search, judged, method.pooling), turns)
        found.append(SearchTime(rows, *np.percentile(taken, (50, 95)).tolist()))
    return tuple(found)


def search_ms(search: VerdictFirst, images: Sequence[Floats]) -> npt.NDArray[np.float64]:
    """Time of each image's score from its embeddings, float32 (patches, d) each, after a warm-up: float64 (n,), ms."""
    for embeddings in images[:_WARM_UP]:
        search.score(embeddings)
    taken = np.empty(len(images))
    for number, embeddings in enumerate(images):
        started = time.perf_counter()
        search.score(embeddings)
        taken[number] = 1000 * (time.perf_counter() - started)
    return taken


def machine() -> str:
    """The processor, cores that this process may use, and versions, in words."""
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, NumPy {np.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
