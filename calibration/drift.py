"""Does the station still see what it was calibrated on? A sequential test with a known rate of false alarms.

Each channel (the score, and the statistics of `calibration.appearance`) of each passed part is ranked among all parts
before it, those of the calibration first. As long as nothing changes, all orders of these parts are equally likely, and then
the ranks, as smoothed conformal p-values, are independent and uniform, whatever the distribution and however small the
calibration (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005). Bets against that, of mean 1 as long as
it holds, are multiplied up from every possible beginning of a change: R = (1 + R) bet, the Shiryaev-Roberts statistic (Vovk et
al., "Retrain or not retrain: conformal test martingales for change-point detection", 2021). R less the number of parts is a
martingale, so a weighted mean of all R reaches c after c parts on average or later, however the channels depend on each other.

The ranks are taken on a fixed, fine grid of values whose counts are all that is kept of the past: memory does not grow, and
ties within a cell are broken at random, which keeps the p-values exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from calibration import CalibrationError
from calibration.appearance import STATISTICS

Kind = Literal["light", "focus", "colour", "position", "product"]
Level = Literal["warning", "alarm"]

FEWEST: Final = 30  # good parts to compare with
WARNING_PARTS: Final = 10_000.0
ALARM_PARTS: Final = 100_000.0

GRID_FROM: Final = 10  # parts that the grid is laid over; the others are ranked
CELLS: Final = 4096
_CELLS_A_SPREAD = 64
BETS: Final = (-1.7, -0.7, 0.7, 1.7)  # shifts, in standard deviations, that are bet on
RECENT: Final = 0.1  # weight of the newest part in the level that is reported and held against the tolerance
_MOST = 1e12  # of R: enough for any limit, and soon forgotten once a change is over
_SEVERAL = 3  # kinds that change at once: more than one thing at the station would have to fail together
_CLOSE = 1e-12  # to 0 and to 1, where the normal deviate is not finite any more
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Channel:
    """One number that is watched.

    Attributes:
        name, unit: for people.
        kind: what changes where it does.
        weight: its share of the evidence. Light and focus have most: lamps age, lenses come loose.
        resolution: values closer than this are one value.
        absolute, relative, spreads: a change is worth an alarm above the greatest of them: in the channel's unit, as part of
            the calibration's mean, and in its standard deviations.
        remedy: what to look at.
    """

    name: str
    unit: str
    kind: Kind
    weight: float
    resolution: float
    remedy: str
    absolute: float = 0.0
    relative: float = 0.0
    spreads: float = 0.0


_LAMP = "check lamp, exposure and ambient light"
_LENS = "check focus, lens and its window for dirt"
_TINT = "check the lamp's colour, white balance, and the material"
_FIXTURE = "check fixture, trigger and camera mount"
_PARTS = "look at the parts and their surface"
CHANNELS: Final = (
    Channel("score", "", "product", 0.2, 1e-6, _PARTS, spreads=0.25),
    Channel("brightness", "grey levels", "light", 0.3, 0.02, _LAMP, absolute=1, relative=0.05),
    Channel("sharpness", "% fine detail", "focus", 0.3, 0.02, _LENS, relative=0.05),
    Channel("red", "% red", "colour", 0.05, 0.01, _TINT, absolute=0.5),
    Channel("blue", "% blue", "colour", 0.05, 0.01, _TINT, absolute=0.5),
    Channel("across", "% of the width", "position", 0.05, 0.01, _FIXTURE, absolute=1),
    Channel("down", "% of the height", "position", 0.05, 0.01, _FIXTURE, absolute=1),
)
_EVERY = np.arange(len(CHANNELS))
assert tuple(channel.name for channel in CHANNELS) == ("score", *STATISTICS)


@dataclass(frozen=True)
class Alarm:
    """What drifted.

    Attributes:
        level: `warning`, or `alarm`, which stays until `Monitor.reset`.
        kinds: what changed, the clearest first.
        channel: the clearest channel.
        got, expected: its recent mean, and its mean at the calibration.
        message: all of it in words, and what to do.
    """

    level: Level
    kinds: tuple[Kind, ...]
    channel: str
    got: float
    expected: float
    message: str


class Grid:
    """The cells that values are counted in: fine beside the spread between parts, and laid before the parts that are ranked.

    Attributes:
        middle, pitch: float64 (7,), the value at the middle of a channel's cells and the width of one.
    """

    def __init__(self, parts: npt.NDArray[np.float64]) -> None:
        """Lay it over a few parts, float64 (n, 7)."""
        self.middle = np.median(parts, axis=0)
        resolution = np.array([channel.resolution for channel in CHANNELS])
        self.pitch = np.maximum(np.abs(parts - self.middle).mean(axis=0) / _CELLS_A_SPREAD, resolution)

    def cells(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The cell of each value, int64 (..., 7), 0 to 4095; what lies beyond is in the outermost."""
        with np.errstate(over="ignore"):  # a score may be huge
            steps = np.clip((values - self.middle) / self.pitch, -CELLS, CELLS)
        return np.clip(np.floor(steps).astype(np.int64) + CELLS // 2, 0, CELLS - 1)


class Monitor:
    """Watches passed parts against the calibration's. Memory and time a part do not grow.

    The promise: as long as further good parts are like the calibration's (all orders of both are equally likely), the mean
    number of parts from a start or a reset to a warning is `warning_parts` or more, and to an alarm `alarm_parts` or more. It
    is a promise about the mean over calibrations, and it does not hold where parts come in batches that differ: such a batch
    is a change. What is too small to matter (a channel's tolerance) raises nothing, however sure it is.

    Attributes:
        grid: of the ranks.
        expected: float64 (7,), the calibration's means.
        tolerance: float64 (7,), the least change of each channel that matters.
        parts: observed since the start or the last reset.
        alarm: the alarm that stands until `reset`, if any.
    """

    def __init__(
        self,
        reference: npt.NDArray[np.float64],
        *,
        warning_parts: float = WARNING_PARTS,
        alarm_parts: float = ALARM_PARTS,
        seed: int = 0,
    ) -> None:
        """Begin to compare with the calibration.

        Args:
            reference: float64 (n, 7) of good parts that passed, n 30 or more: score and statistics, as CHANNELS.
            warning_parts, alarm_parts: fewest parts between false ones, on average; the alarm's not below the warning's.
            seed: of how ties are broken.

        Raises:
            CalibrationError: too few parts, values that are not finite, or limits that are none.
        """
        if reference.ndim != 2 or reference.shape[1] != len(CHANNELS) or len(reference) < FEWEST:
            raise CalibrationError(
                f"reference is {reference.shape}, expected {FEWEST} or more good parts of {len(CHANNELS)} numbers;"
                " take more pictures of good parts"
            )
        if not np.isfinite(reference).all():
            part, column = np.argwhere(~np.isfinite(reference))[0]
            raise CalibrationError(
                f"good part {part + 1}: {CHANNELS[column].name} is {reference[part, column]}, expected a finite number;"
                " a picture without light or structure cannot be compared with, replace it"
            )
        if not 1 <= warning_parts <= alarm_parts < _MOST / 1000:
            raise CalibrationError(
                f"a false warning in {warning_parts:g} and a false alarm in {alarm_parts:g} parts,"
                f" expected 1 or more, the second no fewer than the first, and below {_MOST / 1000:g}"
            )
        self._warning_parts, self._alarm_parts = warning_parts, alarm_parts
        self._random = np.random.default_rng(seed)
        self.expected, spread = reference.mean(axis=0), reference.std(axis=0)
        self.tolerance = np.array(
            [
                max(channel.absolute, channel.relative * abs(mean), channel.spreads * deviation)
                for channel, mean, deviation in zip(CHANNELS, self.expected, spread, strict=True)
            ]
        )
        # the grid must not depend on the parts that are ranked on it
        self.grid = Grid(reference[:GRID_FROM])
        self._counts = np.zeros((len(CHANNELS), CELLS), np.int64)
        self._counted = len(reference) - GRID_FROM
        for cells in self.grid.cells(reference[GRID_FROM:]):
            self._counts[_EVERY, cells] += 1
        self._bets = np.array(BETS)
        self._shares = np.array([channel.weight for channel in CHANNELS])[:, None] / len(BETS)
        self.reset()

    def reset(self) -> None:
        """Begin the test anew, after a person looked and found the station as it should be; what was seen is still known.

        After a repair, or a change that shall stay, start a new monitor instead: the drifted parts must not be known.
        """
        self.parts = 0
        self.alarm: Alarm | None = None
        self._evidence = np.zeros((len(CHANNELS), len(BETS)))
        self._recent = self.expected.copy()

    def observe(self, score: float, statistics: npt.NDArray[np.float64]) -> Alarm | None:
        """Take in one passed part: what has to be said after it, or None.

        Args:
            score: of the part.
            statistics: float64 (6,), of `calibration.appearance.measure`.

        A number that is not finite is an alarm at once. While an alarm stands it is returned again, and nothing is learnt.
        """
        if self.alarm is not None:
            return self.alarm
        self.parts += 1
        values = np.array([score, *statistics], np.float64)
        if values.shape != self.expected.shape:
            raise CalibrationError(f"{len(values) - 1} statistics, expected {len(STATISTICS)}; measure them as the reference's")
        if not np.isfinite(values).all():
            self.alarm = self._broken(values)
            return self.alarm
        self._recent += RECENT * (values - self._recent)
        bet = np.exp(self._deviates(values)[:, None] * self._bets - self._bets**2 / 2)
        self._evidence = np.minimum((1 + self._evidence) * bet, _MOST)
        matters = np.abs(self._recent - self.expected) > self.tolerance
        by_channel = (self._shares * self._evidence).sum(axis=1) * matters
        total = float(by_channel.sum())
        if total < self._warning_parts:
            return None
        level: Level = "alarm" if total >= self._alarm_parts else "warning"
        alarm = self._drifted(level, by_channel)
        if level == "alarm":
            self.alarm = alarm
        return alarm

    def _deviates(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Normal deviates of the smoothed ranks of one part among all before it, which it then joins."""
        cells = self.grid.cells(values)
        ties = self._random.random(len(cells))
        deviates = []
        for counts, cell, share in zip(self._counts, cells.tolist(), ties.tolist(), strict=True):
            below = int(counts[:cell].sum())
            counts[cell] += 1
            rank = (below + share * int(counts[cell])) / (self._counted + 1)
            deviates.append(_NORMAL.inv_cdf(min(max(rank, _CLOSE), 1 - _CLOSE)))
        self._counted += 1
        return np.array(deviates)

    def _drifted(self, level: Level, by_channel: npt.NDArray[np.float64]) -> Alarm:
        # the greatest is at or above one channel's part of the limit, as the sum is at or above all of it
        clear = [int(at) for at in np.argsort(-by_channel) if by_channel[at] >= self._warning_parts / len(CHANNELS)]
        # light, focus, colour and position move the score too: it is the product's alone where they stand still
        clear.sort(key=lambda at: CHANNELS[at].kind == "product")
        causes = [at for at in clear if CHANNELS[at].kind != "product"] or clear
        kinds = tuple(dict.fromkeys(CHANNELS[at].kind for at in causes))
        first = CHANNELS[clear[0]]
        got, expected = float(self._recent[clear[0]]), float(self.expected[clear[0]])
        said = "; ".join(self._change(at) for at in clear)
        remedy = first.remedy
        if len(kinds) >= _SEVERAL:
            remedy = "so much at once means another product, camera or recipe: check which one runs"
        again = "calibrate again if the change shall stay"
        return Alarm(level, kinds, first.name, got, expected, f"{' and '.join(kinds)} drifted: {said}; {remedy}; {again}")

    def _change(self, at: int) -> str:
        channel, got, expected = CHANNELS[at], self._recent[at], self.expected[at]
        unit = f" {channel.unit}" if channel.unit else ""
        return f"{channel.name} {got:.4g}{unit}, at the calibration {expected:.4g}"

    def _broken(self, values: npt.NDArray[np.float64]) -> Alarm:
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        channel, got, expected = CHANNELS[at], float(values[at]), float(self.expected[at])
        message = (
            f"{channel.name} of a passed part is {got}, expected a number near {expected:.4g}: the picture has no light or no"
            " structure, or the backend is broken; look at the camera's picture"
        )
        return Alarm("alarm", (channel.kind,), channel.name, got, expected, message)
