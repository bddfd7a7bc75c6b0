"""Many streams of parts at once through the arithmetic of `calibration.drift.Monitor`: the same alarms, at the same parts.

A million parts take a minute in one monitor and seconds here. A test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from calibration.drift import BETS, CHANNELS, GRID_FROM, RECENT, Monitor

Values = npt.NDArray[np.float64]
_SHARES = np.array([channel.weight for channel in CHANNELS])[:, None] / len(BETS)
_MOST, _CLOSE = 1e12, 1e-12  # as there


def alarms_of(
    references: Sequence[Values], values: Values, streams: Sequence[npt.NDArray[np.int64]], parts: float
) -> list[list[int]]:
    """Where each stream raises alarms, of each its parts counted from 0; a monitor is reset after every one.

    Args:
        references: one a stream, float64 (n, 7).
        values: float64 (images, 7), of all images that streams draw from.
        streams: one-dimensional arrays of image numbers.
        parts: limit, as `alarm_parts` and `warning_parts` both.
    """
    monitors = [Monitor(reference, warning_parts=parts, alarm_parts=parts) for reference in references]
    ranked = [monitor.grid.cells(reference[GRID_FROM:]) for monitor, reference in zip(monitors, references, strict=True)]
    cells = np.stack([monitor.grid.cells(values) for monitor in monitors])  # (streams, images, 7)
    counts = np.zeros((len(streams), len(CHANNELS), len(values)), np.int64)
    orders = np.empty_like(counts)
    for stream, known in enumerate(ranked):
        for channel in range(len(CHANNELS)):
            # dense numbers instead of cells; a cell of the calibration lies before the first image's that is not below it
            distinct, order = np.unique(cells[stream, :, channel], return_inverse=True)
            orders[stream, channel] = order
            place = np.searchsorted(distinct, known[:, channel])
            exact = distinct[np.minimum(place, len(distinct) - 1)] == known[:, channel]
            if not exact.all():
                raise ValueError("a part of the calibration is not among the values")
            np.add.at(counts[stream, channel], place, 1)
    counted = np.array([len(known) for known in ranked])
    longest = max(map(len, streams))
    ties = np.stack([np.random.default_rng(0).random((longest, len(CHANNELS))) for _ in streams])
    drawn = np.stack([np.pad(stream, (0, longest - len(stream))) for stream in streams])
    lengths = np.array([len(stream) for stream in streams])
    expected, tolerance = (np.stack([getattr(one, name) for one in monitors]) for name in ("expected", "tolerance"))
    recent, evidence = expected.copy(), np.zeros((len(streams), len(CHANNELS), len(BETS)))
    numbers, bets = np.arange(len(values)), np.array(BETS)
    rows, columns = np.arange(len(streams))[:, None], np.arange(len(CHANNELS))[None]
    found: list[list[int]] = [[] for _ in streams]
    for at in range(longest):
        here = drawn[:, at]
        order = orders[rows, columns, here[:, None]]
        below = np.where(numbers < order[..., None], counts, 0).sum(axis=2)
        counts[rows, columns, order] += 1
        rank = (below + ties[:, at] * counts[rows, columns, order]) / (counted + at + 1)[:, None]
        recent += RECENT * (values[here] - recent)
        bet = np.exp(ndtri(np.clip(rank, _CLOSE, 1 - _CLOSE))[..., None] * bets - bets**2 / 2)
        evidence = np.minimum((1 + evidence) * bet, _MOST)
        matters = np.abs(recent - expected) > tolerance
        raised = (((_SHARES * evidence).sum(axis=2) * matters).sum(axis=1) >= parts) & (at < lengths)
        for stream in np.flatnonzero(raised).tolist():
            found[stream].append(at)
            evidence[stream], recent[stream] = 0, expected[stream]
    return found
