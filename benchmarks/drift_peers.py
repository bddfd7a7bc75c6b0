"""Two usual ways to watch for drift, with the channels, shares, tolerances and promise of `calibration.drift.Monitor`."""

from __future__ import annotations

import abc
import math
from statistics import NormalDist
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from calibration.drift import CHANNELS

Values = npt.NDArray[np.float64]
PROMISE: Final = 10_000.0  # parts between false ones, of all methods


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
        return float(((self.shares * self.evidence).sum(axis=1) * matters).sum()) >= PROMISE


class Cusum(_Peer):
    """Two CUSUMs a channel, tuned to shifts of 0.7 deviations; limits after Siegmund, "Sequential Analysis", 1985."""

    tuned = 0.35

    def reset(self) -> None:
        super().reset()
        self.sums = np.zeros((len(CHANNELS), 2))
        self.limits = np.array([siegmund(2 * PROMISE / channel.weight, self.tuned) for channel in CHANNELS])
        self.scale = np.where(self.deviation > 0, self.deviation, np.inf)

    def seen(self, values: Values, matters: npt.NDArray[np.bool_]) -> bool:
        standard = (values - self.mean) / self.scale
        self.sums = np.maximum(0, self.sums + np.stack([standard, -standard], axis=1) - self.tuned)
        return bool((matters & (self.sums.max(axis=1) > self.limits)).any())


def siegmund(parts: float, k: float) -> float:
    """The limit of a one-sided CUSUM of standard normal values with allowance k and that mean run length."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        b = middle + 1.166
        low, high = (middle, high) if (math.exp(2 * k * b) - 2 * k * b - 1) / (2 * k * k) < parts else (low, middle)
    return high
