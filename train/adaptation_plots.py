"""How a backbone was adapted, for a person: the course of its training, where it errs, and the facts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from engines.bundle import Adaptation
from train.plots import GRID, INK, LDKNN_COLOUR, plot, stack

_RIGHT = "#2f6f4f"
_SHADES = LinearSegmentedColormap.from_list("shades", ["#f5f6f8", "#12456f"])
_BLACK = "#1c2127"
_DARK = 0.62  # share of a row from which white is easier to read on its shade than black


def adaptation_plots(record: Adaptation) -> dict[str, bytes]:
    """The plots as PNG files by name: `adaptation.png`, the course of the training, and `confusion.png`."""
    return {
        "adaptation.png": stack(lambda all_axes: draw_course(all_axes, record), (3, 2)),
        "confusion.png": plot(lambda axes: draw_confusion(axes, record)),
    }


def adaptation_facts(record: Adaptation) -> list[tuple[str, str]]:
    """What was trained on what, as (name, value)."""
    weights = record.weights if record.weights_sha256 is None else f"{record.weights} (SHA-256 {record.weights_sha256[:16]})"
    window = "the whole network input" if record.window_px is None else f"{record.window_px} x {record.window_px} pixels"
    passes = record.images_per_update // record.images_per_pass
    cut = "1 pass" if passes == 1 else f"{passes} passes of {record.images_per_pass}"
    kept = record.statistics == "kept"
    return [
        ("Preset", f"{record.preset}, {record.updates} updates"),
        ("Images an update", f"{record.images_per_update} in {cut}"),
        ("Batch norm of the trunk", "statistics of the initial weights, kept" if kept else "statistics of each pass"),
        ("Early layers", "kept as they came" if record.early == "kept" else "trained with the others"),
        ("Pictures", "flipped and turned by quarters" if record.turns else "flipped"),
        ("Kept weights", f"{record.share:.0%} trained, {1 - record.share:.0%} initial"),
        ("Window", window),
        ("Maker of defects", f"{record.maker}: {', '.join(record.classes[1:])}"),
        ("Where defects are put", record.saliency),
        ("Initial weights", weights),
        ("Layers after the features", "loaded with the weights" if record.tail == "loaded" else "drawn at random"),
        ("Device", f"{record.device}, {record.precision}"),
        ("Time", f"{record.seconds / 60:.1f} minutes"),
    ]


def draw_course(all_axes: Sequence[Axes], record: Adaptation) -> None:
    """Draw the loss of every update and, below it, the share of right answers beside that of guessing."""
    loss_axes, right_axes = all_axes
    updates = np.arange(1, len(record.loss) + 1)
    loss_axes.plot(updates, record.loss, color=LDKNN_COLOUR, linewidth=1.4)
    loss_axes.set_ylim(bottom=0)
    loss_axes.set_ylabel("loss")
    right_axes.plot(updates, 100 * np.array(record.accuracy), color=_RIGHT, linewidth=1.4)
    chance = 100 / len(record.classes)
    right_axes.axhline(chance, color=INK, linewidth=1, linestyle=":")
    right_axes.annotate(
        "guessing",
        (1, chance),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        color=INK,
        fontsize=8,
    )
    right_axes.set_ylim(0, 102)
    right_axes.set_ylabel("right, %")
    right_axes.set_xlabel("update")
    right_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in all_axes:
        axes.grid(color=GRID, linewidth=0.8)


def draw_confusion(axes: Axes, record: Adaptation) -> None:
    """Draw how often each kind (row) got each answer (column): counts, shaded by their share of the row."""
    counts = np.array(record.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap=_SHADES, vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > _DARK else _BLACK
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    places = range(len(record.classes))
    axes.set_xticks(places, record.classes, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, record.classes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("answer")
    axes.set_ylabel("true kind")
    axes.set_title(
        f"{record.confusion_on} images: {100 * record.right:.0f} % of {counts.sum()} right", loc="left", fontsize=10, color=INK
    )
