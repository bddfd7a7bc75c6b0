"""How much of the density a product's score takes away: chosen on its good images alone.

The measured density (train/measured.py) says what distance is usual at each bank row, and a score that takes all of it away
(alpha 1) is right where good parts stray alike and defects do not hide in what is usual. Whether a product is like that is
tried out (train/trial.py): every good image is judged by the rows of the others, as it is and with synthetic defects, and
each alpha is given the AUROC of the ones against the others. Errors are from a bootstrap over the images.

- Plain nearest neighbour, alpha 0, stays where it is behind the best alpha by no more than half the error of that.
- Else the largest alpha is taken that is not below plain nearest neighbour, and behind the best by no more than the error.

So plain nearest neighbour is left only where the defects speak for it, and noise among the alphas does not decide. Half an
error, and the largest alpha instead of the best, because the defects are few, and because on many products, banks and numbers
of images alpha 1 lost least against the best setting in hindsight (`benchmarks.choice`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibration.saliency import Saliency
from engines.bench import machine, search_ms
from engines.bundle import BankSize, Choice, DensityKind, Tried
from engines.ldknn import LDKNN, Floats, density, distance
from engines.verdict_first import VerdictFirst
from train.measured import MeasuredDensity
from train.normals import Normals, whole_maps
from train.others import Indices, Nearest, OtherImages
from train.pictures import find_part, read_pictures
from train.product import Console, Settings
from train.trial import Defects, Doubles, Trial, auroc, hold_trials

PUBLISHED_K, PUBLISHED_ALPHA = 9, 1.0  # for MVTec AD
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
_DRAWS = 1000  # of the bootstrap
_SUPPORT = 0.5  # of the error: what plain nearest neighbour is behind by before it is left
_TELLING = 0.55  # AUROC below which the synthetic defects say nothing


@dataclass(frozen=True)
class Scoring:
    """What makes scores of distances: the density of each bank row, float32 (m,), which one it is, and its weight.

    `choice` is what alpha was chosen on; None where it was not chosen.
    """

    kind: DensityKind
    k: int
    alpha: float
    density: Floats
    choice: Choice | None


def choose_scoring(
    normals: Normals,
    coreset: Indices,
    bank: OtherImages | None,
    good: Sequence[Nearest],
    sizes: Sequence[int],
    settings: Settings,
    saliency: Path | None,
    console: Console,
) -> Scoring:
    """Measure the density of the bank's rows and choose its weight, as far as `settings` leave it open.

    With K given, the density is the published one, with the weight given or the published one. With alpha alone given, it
    is the measured one with that weight.

    Args:
        normals: the embedded product.
        coreset: int64 (m,) the bank, as rows of the features of the bank's images.
        bank: the same rows; None where they come from one image.
        good: what the patches of the bank's images find in the rows of other images, by size of bank.
        sizes: ascending, the last all of the bank.
        settings: K, alpha, metric, seed.
        saliency: folder of masks that show the part; None estimates it.
        console: where to talk.

    Raises:
        InspectionError: images or masks that cannot be used.
    """
    k = PUBLISHED_K if settings.k is None else settings.k
    with console.progress("density") as advance:
        published = density(coreset, normals.bank_features, k, metric=settings.metric, progress=advance)
    if settings.k is not None:
        return Scoring("published", k, PUBLISHED_ALPHA if settings.alpha is None else settings.alpha, published, None)
    if bank is None:
        if settings.alpha is None:
            console.warn(
                "all rows of the bank come from one image, so no density can be chosen: scores are plain distances;"
                " give more images, or a larger --coreset"
            )
        return Scoring("published", k, 0.0 if settings.alpha is None else settings.alpha, published, None)
    measured = [
        MeasuredDensity(published[:rows], distance(one.squared, settings.metric), one.row, normals.in_bank)
        for rows, one in zip(sizes, good, strict=True)
    ]
    if settings.alpha is not None:
        return Scoring("measured", k, settings.alpha, measured[-1].density(), None)
    part, trials = _hold(normals, bank, good, sizes, settings, saliency, console)
    tried = [_try(trial, one, settings.seed) for trial, one in zip(trials, measured, strict=True)]
    chosen = [alphas[choose(alphas)] for alphas in tried]
    best = max(one.auroc for one in tried[-1])
    if best < _TELLING:
        console.warn(
            f"synthetic defects can hardly be told from good parts here (AUROC {best:.0%} at best, expected {_TELLING:.0%} or"
            f" more): alpha {chosen[-1].alpha:g} rests on little; look at `train defects`, at --weights and at --size"
        )
    with console.progress("timing") as advance:
        images = whole_maps(normals)
        found = []
        for number, (rows, one, alphas, taken) in enumerate(zip(sizes, measured, tried, chosen, strict=True), 1):
            search = LDKNN(bank.rows[:rows], one.density(), alpha=taken.alpha, metric=settings.metric)
            median = float(np.median(search_ms(VerdictFirst(search, normals.judged), images)))
            found.append(BankSize(rows=rows, alpha=taken.alpha, auroc=taken.auroc, plain=alphas[0].auroc, search_ms=median))
            advance(number, len(sizes))
    record = Choice(
        images=normals.in_bank,
        defects=len(trials[-1].source),
        saliency=f"{part.source}, {part.reason}",
        tried=tuple(tried[-1]),
        sizes=tuple(found),
        machine=machine(),
    )
    return Scoring("measured", k, chosen[-1].alpha, measured[-1].density(), record)


def choose(tried: Sequence[Tried]) -> int:
    """Which of the alphas, ascending from 0, is taken: the rule of this module."""
    plain = tried[0]
    if plain.behind <= _SUPPORT * plain.error:
        return 0
    return max(number for number, one in enumerate(tried) if one.auroc >= plain.auroc and one.behind <= one.error)


def compare(wins: Doubles, drawn: Doubles, alphas: Sequence[float], seed: int) -> list[Tried]:
    """AUROC of each alpha, and how far it is behind the best.

    Args:
        wins: float64 (alphas, n, n) of `Trial.wins`.
        drawn: float64 (n,) defects on each image.
        alphas: that were tried.
        seed: of the bootstrap, which draws images with all that is on them.
    """
    images = len(drawn)
    at = auroc(wins, np.ones((1, images)), drawn)[:, 0]
    weight = np.random.default_rng([seed, 4]).multinomial(images, np.full(images, 1 / images), _DRAWS).astype(np.float64)
    resampled = auroc(wins, weight, drawn)
    best = int(at.argmax())
    error = (resampled[best] - resampled).std(axis=1)
    return [
        Tried(alpha=alpha, auroc=float(value), behind=float(at[best] - value), error=float(spread))
        for alpha, value, spread in zip(alphas, at, error, strict=True)
    ]


def _try(trial: Trial, measured: MeasuredDensity, seed: int) -> list[Tried]:
    return compare(trial.wins(measured.density, ALPHAS), trial.drawn, ALPHAS, seed)


def _hold(
    normals: Normals,
    bank: OtherImages,
    good: Sequence[Nearest],
    sizes: Sequence[int],
    settings: Settings,
    saliency: Path | None,
    console: Console,
) -> tuple[Saliency, list[Trial]]:
    """Where the part is, and a trial for each size of bank."""
    images, _ = read_pictures(replace(normals, samples=normals.samples[: normals.in_bank]), console)
    part = find_part(normals, slice(0, normals.in_bank), saliency, images, console)
    defects = Defects(images, part.masks, settings.seed)
    with console.progress("defects") as advance:
        return part, hold_trials(normals, bank, good, sizes, defects, settings.metric, advance)
