"""What alpha was chosen on, for a person: every alpha that was tried, and what the size of the bank brings and costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from engines.bundle import Choice
from train.plots import GRID, INK, LDKNN_COLOUR, NN_COLOUR, plot, stack


def choice_plots(choice: Choice, alpha: float) -> dict[str, bytes]:
    """The plots as PNG files by name: `alpha.png`, each alpha that was tried, and `bank.png`, sizes of bank."""
    return {
        "alpha.png": plot(lambda axes: draw_alphas(axes, choice, alpha)),
        "bank.png": stack(lambda all_axes: draw_sizes(all_axes, choice), (3, 2)),
    }


def choice_facts(choice: Choice) -> list[tuple[str, str]]:
    """What was tried on what, as (name, value)."""
    return [
        ("Synthetic defects", f"{choice.defects}, small and faint, over {choice.images} good images of the bank"),
        ("Judged by", "the bank without the rows of the image that is judged"),
        ("Where defects are put", choice.saliency),
        ("Times taken on", choice.machine),
    ]


def draw_alphas(axes: Axes, choice: Choice, alpha: float) -> None:
    """Draw the AUROC of each alpha with the error of its distance to the best, and which was taken."""
    at = np.array([one.alpha for one in choice.tried])
    value = 100 * np.array([one.auroc for one in choice.tried])
    axes.errorbar(at, value, 100 * np.array([one.error for one in choice.tried]), color=LDKNN_COLOUR, capsize=3, marker="o")
    axes.axhline(value[0], color=NN_COLOUR, linewidth=1, linestyle=":", label="plain nearest neighbour")
    axes.plot(alpha, value[at == alpha], marker="o", markersize=11, mfc="none", color=INK, linestyle="none", label="taken")
    axes.set_xticks(at)
    axes.set_xlabel("alpha: share of the density that is taken away")
    axes.set_ylabel("AUROC on synthetic defects, %")
    axes.grid(color=GRID, linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def draw_sizes(all_axes: Sequence[Axes], choice: Choice) -> None:
    """Draw the AUROC over the number of bank rows and, below it, the time of a search."""
    above, below = all_axes
    rows = [size.rows for size in choice.sizes]
    above.plot(rows, [100 * size.auroc for size in choice.sizes], color=LDKNN_COLOUR, marker="o", label="with the density")
    above.plot(rows, [100 * size.plain for size in choice.sizes], color=NN_COLOUR, marker="o", label="plain nearest neighbour")
    above.set_ylabel("AUROC on synthetic\ndefects, %")
    above.legend(frameon=False, fontsize=9, labelcolor=INK)
    below.plot(rows, [size.search_ms for size in choice.sizes], color=INK, marker="o")
    below.set_ylim(bottom=0)
    below.set_ylabel("search, ms")
    below.set_xlabel("bank rows")
    below.set_xscale("log")
    below.set_xticks(rows)
    below.xaxis.set_major_formatter(ScalarFormatter())
    below.xaxis.set_minor_formatter(NullFormatter())
    for axes in all_axes:
        axes.grid(color=GRID, linewidth=0.8)
