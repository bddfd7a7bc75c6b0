"""The picture of docs/ldknn.md: what distance is usual at a bank row, and what the published density says.

`python -m benchmarks.density_plot --data DIR --out density.png` embeds a product's good images, and for a bank of all patches
and for a small cover of them draws how far good patches of other images lie from their nearest row (median, and the middle
80 %) over the row's published density. Where the two are alike, the line is the diagonal.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from engines import console
from engines.atomic import write_file
from engines.bank import coreset_size, k_centre
from engines.ldknn import Floats, density
from train.measured import MeasuredDensity
from train.normals import Normals, embed_normals
from train.others import Indices, OtherImages
from train.plots import GRID, INK, LDKNN_COLOUR, NN_COLOUR, png
from train.product import Console, Settings, open_product
from train.select import PUBLISHED_K

_BINS = 24


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture; returns an exit code."""
    parser = argparse.ArgumentParser(prog="density_plot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a product, as for `train fit`")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--weights", help="as for `train fit`")
    parser.add_argument("--images", type=console.positive_int, default=40, help="good ones (default: %(default)s)")
    parser.add_argument("--coreset", type=float, default=0.02, help="as for `train fit` (default: %(default)s)")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    talk = Console(lambda line: None, console.warn, console.progress)
    settings = Settings(arguments.data, weights=arguments.weights, few_shot=arguments.images)
    normals = embed_normals(open_product(settings, talk), 0, talk)
    every = np.arange(len(normals.bank_features))
    count = coreset_size(arguments.coreset, len(every))
    banks = {
        "all patches": every,
        f"a cover of {count:,} rows": k_centre(normals.bank_features, count, np.random.default_rng(0)),
    }
    figure = Figure(figsize=(9.2, 4.2), dpi=200, layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 2, sharex=True, sharey=True))
    for axes, (name, rows) in zip(panels, banks.items(), strict=True):
        with talk.progress(name) as advance:
            published = density(rows, normals.bank_features, PUBLISHED_K, progress=advance)
        draw(axes, published, *_seen(normals, rows, talk), normals.in_bank)
        axes.set_title(f"bank: {name}, of {len(every):,}", loc="left", fontsize=10, color=INK)
    panels[0].set_ylabel("distance of good patches to the row (squared)")
    panels[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    write_file(arguments.out, png(figure))
    console.say(f"wrote {arguments.out}")
    return console.DONE


def _seen(normals: Normals, rows: Indices, talk: Console) -> tuple[Floats, Indices]:
    """Of every good patch of the bank's images: squared distance to the nearest row of another image, and the row."""
    image = np.repeat(np.arange(normals.in_bank), normals.patches)
    with talk.progress("good patches") as advance:
        (found,) = OtherImages(normals.bank_features[rows], rows // normals.patches).search(
            normals.bank_features, image, (len(rows),), advance
        )
    return found.squared, found.row


def draw(axes: Axes, published: Floats, squared: Floats, row: Indices, images: int) -> None:
    """Draw distances, float32 (n,), to rows, int64 (n,), over the rows' published density, and what is taken away of them."""
    at = published[row]
    edges = np.quantile(at, np.linspace(0, 1, _BINS + 1))
    members = [np.flatnonzero((at >= low) & (at <= high)) for low, high in itertools.pairwise(edges)]
    middle = [float(np.median(at[chosen])) for chosen in members]
    low, median, high = np.array([np.quantile(squared[chosen], (0.1, 0.5, 0.9)) for chosen in members]).T
    axes.fill_between(middle, low, high, color=NN_COLOUR, alpha=0.15, linewidth=0)
    axes.plot(middle, median, color=NN_COLOUR, linewidth=2, label="good patches: median, middle 80 %")
    axes.plot(middle, middle, color=INK, linewidth=1.2, linestyle=":", label="published density")
    taken = MeasuredDensity(published, squared, row, images).density()[row]
    mean = [float(taken[chosen].mean()) for chosen in members]
    axes.plot(middle, mean, color=LDKNN_COLOUR, linewidth=2, label="measured density")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("published density of the nearest row (squared)")
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
