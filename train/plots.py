"""The look of every plot that this room makes, without matplotlib's global state."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID = "#3f4650", "#e5e7eb"
LDKNN_COLOUR, NN_COLOUR = "#c2410c", "#1d4ed8"
_FRAME = "#9aa1ab"


def plot(draw: Callable[[Axes], None], size_in: tuple[float, float] = (5.6, 3.9)) -> bytes:
    """One plot as the bytes of a PNG file; `draw` gets empty axes, the size is (width, height) in inches of 200 pixels."""
    return stack(lambda all_axes: draw(all_axes[0]), (1.0,), size_in)


def stack(draw: Callable[[Sequence[Axes]], None], heights: Sequence[float], size_in: tuple[float, float] = (5.6, 3.9)) -> bytes:
    """As `plot`, with one plot below the other over one x axis; `heights` are relative to each other."""
    figure = Figure(figsize=size_in, dpi=200, layout="constrained")
    all_axes: list[Axes] = list(figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0])
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_FRAME)
        axes.tick_params(colors=INK, labelsize=9)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.set_axisbelow(True)
    draw(all_axes)
    return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
