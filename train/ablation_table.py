"""The ablation's figures for a person: rows of image AUROC, tables of them, and plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from train.plots import GRID, INK, LDKNN_COLOUR, NN_COLOUR, plot

REB = "defectmaker"
COMPARED = {REB: "DefectMaker", "cutpaste-3way": "CutPaste 3-way", "draem": "DRAEM"}
SEARCHES = {"nn": "NN", "ldknn": "LDKNN"}
_COLOURS = {"nn": NN_COLOUR, "ldknn": LDKNN_COLOUR}
_SIZE_IN = (7.4, 4.2)


@dataclass(frozen=True)
class Row:
    """Image AUROC of one method, 0 to 1, for every seed.

    Attributes:
        weights: what embedded: the name of the initial weights, or of the maker that they were adapted with.
        maker: in `COMPARED`; None for the initial weights.
        search: in `SEARCHES`.
        few_shot: number of good images; None for all.
    """

    weights: str
    maker: str | None
    search: str
    few_shot: int | None
    values: tuple[float, ...]

    @property
    def name(self) -> str:
        """For a reader."""
        whole = " (REB)" if (self.maker, self.search) == (REB, "ldknn") else ""
        return f"{self.weights} + {SEARCHES[self.search]}{whole}"

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of a sample (n - 1); None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def as_dict(self) -> dict[str, object]:
        """For a file."""
        return {
            "name": self.name,
            "maker": self.maker,
            "search": self.search,
            "few_shot": self.few_shot,
            "mean": self.mean,
            "deviation": self.deviation,
            "lowest": min(self.values),
            "highest": max(self.values),
            "values": self.values,
        }


def makers_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and cells, in percent."""
    cells = [(row.name, _percent(row.mean), _percent(row.deviation), *map(_percent, _span(row))) for row in rows]
    return ("method", "mean", "deviation", "lowest", "highest"), cells


def few_shot_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and cells, a line for each number of good images, in percent: mean (lowest to highest), or the only seed's."""
    names = list(dict.fromkeys(row.name for row in rows))
    lines: dict[int | None, list[str]] = {}
    for row in rows:
        low, high = _span(row)
        span = f" ({_percent(low)} to {_percent(high)})" if len(row.values) > 1 else ""
        lines.setdefault(row.few_shot, []).append(f"{_percent(row.mean)}{span}")
    return ("good images", *names), [(str(count), *cells) for count, cells in lines.items()]


def auroc_plot(title: str, rows: Sequence[Row], draw: Callable[[Axes, Sequence[Row]], None]) -> bytes:
    """A plot by `draw_makers` or `draw_curve` as the bytes of a PNG file."""

    def titled(axes: Axes) -> None:
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_ylabel("image AUROC, %")
        draw(axes, rows)

    return plot(titled, _SIZE_IN)


def draw_makers(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw every seed as a point and the mean as a bar, a column for each method; NN and LDKNN side by side."""
    names = {row.maker: row.weights for row in rows}
    places = {maker: place for place, maker in enumerate(names)}
    for row in rows:
        colour = _COLOURS[row.search]
        middle = places[row.maker] + (0.19 if row.search == "ldknn" else -0.19)
        values = 100 * np.array(row.values)
        across = middle + np.linspace(-0.09, 0.09, len(values)) if len(values) > 1 else [middle]
        first = places[row.maker] == 0
        axes.plot(across, values, "o", markersize=5, color=colour, alpha=0.55, markeredgewidth=0)
        label = SEARCHES[row.search] if first else None
        axes.plot([middle - 0.15, middle + 0.15], [100 * row.mean] * 2, color=colour, linewidth=2.2, label=label)
        axes.annotate(
            f"{100 * row.mean:.1f}",
            (middle, float(values.max())),
            (0, 5),
            textcoords="offset points",
            ha="center",
            color=colour,
            fontsize=9,
        )
    axes.set_xticks(list(places.values()), list(names.values()))
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel("weights: initial, and adapted with each maker of defects")
    axes.margins(y=0.15)
    _end_at_100(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1))


def draw_curve(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the mean over the number of good images as lines, with a band from the lowest to the highest seed."""
    counts = sorted({row.few_shot for row in rows if row.few_shot is not None})
    for name in dict.fromkeys(row.name for row in rows):
        line = [row for row in rows if row.name == name]
        colour, adapted = _COLOURS[line[0].search], line[0].maker is not None
        low, high = (100 * np.array(side) for side in zip(*map(_span, line), strict=True))
        axes.fill_between(counts, low, high, color=colour, alpha=0.16 if adapted else 0.08, linewidth=0)
        axes.plot(
            counts,
            [100 * row.mean for row in line],
            color=colour,
            linestyle="-" if adapted else "--",
            linewidth=1.9,
            marker="o" if adapted else "s",
            markersize=5,
            markerfacecolor=colour if adapted else "white",
            label=name,
        )
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("good images")
    _end_at_100(axes)
    axes.grid(color=GRID, linewidth=0.8)
    axes.legend(*(side[::-1] for side in axes.get_legend_handles_labels()), frameon=False, fontsize=9, labelcolor=INK)


def _end_at_100(axes: Axes) -> None:
    """No marks beyond what a percentage can be, though there is room for labels."""
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 100)])


def _span(row: Row) -> tuple[float, float]:
    return min(row.values), max(row.values)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
