"""The largest bank whose search fits in a time: `fit --budget-ms`.

A search's time grows about linearly with the rows of the bank, once it is past what every search costs. So it is timed at
some sizes, on the station (`engines bench --json`) or here, and read off the line through them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from engines.bench import SearchTime, search_ms
from engines.ldknn import LDKNN, density
from engines.verdict_first import VerdictFirst
from train import TrainError
from train.normals import Normals, select_rows, whole_maps
from train.others import Indices
from train.product import Console, Settings
from train.select import PUBLISHED_ALPHA, PUBLISHED_K

LEAST_ROWS = 100  # of a bank
_PILOT_ROWS = 2048
_SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of the pilot that are timed


def select_within(budget_ms: float, timed_on: Path | None, normals: Normals, settings: Settings, console: Console) -> Indices:
    """The coreset whose search takes at most `budget_ms` an image, in the median: int64 (m,) rows of the bank's features.

    Args:
        budget_ms: time of one image score without its features.
        timed_on: what `engines bench --json` wrote on the station; None times the search on this machine.
        normals: the embedded product.
        settings: seed and metric.
        console: where to talk.

    Raises:
        TrainError: a file without such times, or a budget in which not even the smallest bank is searched.
    """
    patches = len(normals.bank_features)
    coreset = None
    if timed_on is None:
        coreset = select_rows(normals, min(_PILOT_ROWS, patches), settings.seed, console)
        times, where = _pilot(normals, coreset, settings, console), "here"
    else:
        station = read_times(timed_on)
        if (station.patches, station.dim) != (normals.judged.size, normals.network.dim):
            raise TrainError(
                f"{timed_on}: times of {station.patches} patches of {station.dim} dimensions, this network gives"
                f" {normals.judged.size} of {normals.network.dim}; bench a bundle of this backbone and --size"
            )
        times, where = station.search, f"as timed in {timed_on}"
    rows = rows_within(budget_ms, times, patches)
    console.say(f"{budget_ms:g} ms an image, {where}: {rows:,} bank rows")
    if coreset is not None and rows <= len(coreset) < patches:  # all patches come in their own order, which covers nothing
        return coreset[:rows]
    return select_rows(normals, rows, settings.seed, console)


def rows_within(budget_ms: float, times: Sequence[SearchTime], patches: int) -> int:
    """Rows of a bank that is searched in a time: between two that were timed, or on the line through the two largest.

    Args:
        budget_ms: time of an image.
        times: one or more, rows ascending.
        patches: no more rows than these.

    Raises:
        TrainError: a budget below what the smallest bank takes.
    """
    rows, taken = np.array([one.rows for one in times]), np.maximum.accumulate([one.p50 for one in times])
    if budget_ms < taken[-1]:
        found = int(np.interp(budget_ms, taken, rows, left=rows[0] * budget_ms / taken[0]))
    else:
        slope = taken[-1] / rows[-1] / 4  # more rows never come for nothing
        if len(rows) > 1:
            slope = max(slope, (taken[-1] - taken[-2]) / (rows[-1] - rows[-2]))
        found = int(rows[-1] + (budget_ms - taken[-1]) / slope)
    least = min(LEAST_ROWS, patches)
    if found < least:
        raise TrainError(
            f"a budget of {budget_ms:g} ms leaves {found} bank rows, expected {least} or more; {rows[0]:,} rows take"
            f" {taken[0]:.2g} ms: raise --budget-ms, or take a smaller --size"
        )
    return min(found, patches)


class StationTimes(BaseModel):
    """What of `engines bench --json` is looked at: search times, and what was searched."""

    patches: int
    dim: int
    search: tuple[SearchTime, ...]


def read_times(path: Path) -> StationTimes:
    """Search times from what `engines bench --json` wrote. Raises TrainError."""
    expected = "expected what `python -m engines bench --json FILE` writes on the station"
    try:
        station = StationTimes.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TrainError(f"{path}: cannot be read ({error.strerror}); {expected}") from None
    except ValidationError as error:
        raise TrainError(f"{path}: no search times ({error.errors()[0]['msg']}); {expected}") from None
    rows = [one.rows for one in station.search]
    right = all(one.rows >= 1 and math.isfinite(one.p50) and one.p50 > 0 for one in station.search)
    if not rows or rows != sorted(set(rows)) or not right:
        raise TrainError(f"{path}: search times {station.search}, expected one or more, rows ascending, above 0 ms; {expected}")
    return station


def _pilot(normals: Normals, coreset: Indices, settings: Settings, console: Console) -> tuple[SearchTime, ...]:
    """Search times in beginnings of a coreset, with the published density, on this machine."""
    with console.progress("pilot") as advance:
        dense = density(coreset, normals.bank_features, PUBLISHED_K, metric=settings.metric, progress=advance)
    images = whole_maps(normals)
    found = []
    for rows in sorted({max(2, round(share * len(coreset))) for share in _SHARES}):
        bank = normals.bank_features[coreset[:rows]]
        search = LDKNN(bank, dense[:rows], alpha=PUBLISHED_ALPHA, metric=settings.metric)
        taken = search_ms(VerdictFirst(search, normals.judged), images)
        found.append(SearchTime(rows, *np.percentile(taken, (50, 95)).tolist()))
    return tuple(found)
