"""The ablation's tables and plots, of figures that are known."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from engines.images import decode_image
from train.ablation_table import COMPARED, Row, auroc_plot, draw_curve, draw_makers, few_shot_table, makers_table


def row(maker: str | None, search: str, *values: float, few_shot: int | None = None) -> Row:
    return Row("ImageNet" if maker is None else COMPARED[maker], maker, search, few_shot, values)


def test_mean_and_deviation_over_seeds() -> None:
    three = row("draem", "nn", 0.9, 0.94, 0.98)
    assert three.mean == pytest.approx(0.94)
    assert three.deviation == pytest.approx(0.04)
    assert row(None, "nn", 0.9).deviation is None


def test_tables_are_in_percent() -> None:
    columns, cells = makers_table([row(None, "nn", 0.9, 0.94, 0.98), row("defectmaker", "ldknn", 1.0)])
    assert columns == ("method", "mean", "deviation", "lowest", "highest")
    assert cells == [
        ("ImageNet + NN", "94.00", "4.00", "90.00", "98.00"),
        ("DefectMaker + LDKNN (REB)", "100.00", "-", "100.00", "100.00"),
    ]
    rows = [
        row(maker, search, value, value + 0.02, few_shot=count)
        for maker, search, base in ((None, "nn", 0.5), ("defectmaker", "ldknn", 0.7))
        for count, value in ((1, base), (10, base + 0.1))
    ]
    columns, cells = few_shot_table(rows)
    assert columns == ("good images", "ImageNet + NN", "DefectMaker + LDKNN (REB)")
    assert cells == [
        ("1", "51.00 (50.00 to 52.00)", "71.00 (70.00 to 72.00)"),
        ("10", "61.00 (60.00 to 62.00)", "81.00 (80.00 to 82.00)"),
    ]


def test_one_seed_has_no_range() -> None:
    _, cells = few_shot_table([row(None, "nn", 0.5, few_shot=1)])
    assert cells == [("1", "50.00")]


def test_the_plot_of_makers_shows_every_seed_and_the_mean() -> None:
    axes = Figure().add_subplot()
    draw_makers(
        axes, [row(None, "nn", 0.9, 0.94, 0.98), row(None, "ldknn", 0.95, 0.97, 0.99), row("draem", "nn", 0.8, 0.8, 0.83)]
    )
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ImageNet", "DRAEM"]
    assert [text.get_text() for text in axes.texts] == ["94.0", "97.0", "81.0"]
    heights = [np.asarray(line.get_ydata(), float).round(6).tolist() for line in axes.lines]
    assert heights == [[90, 94, 98], [94, 94], [95, 97, 99], [97, 97], [80, 80, 83], [81, 81]]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["NN", "LDKNN"]


def test_no_mark_is_beyond_100_percent() -> None:
    for draw, count in ((draw_makers, None), (draw_curve, 5)):
        axes = Figure().add_subplot()
        draw(axes, [row(None, "nn", 0.999, 1.0, few_shot=count)])
        assert 99.9 < max(axes.get_yticks()) <= 100 < axes.get_ylim()[1]


def test_the_plot_of_few_images_has_a_tick_for_every_count() -> None:
    axes = Figure().add_subplot()
    rows = [
        row(maker, search, 0.8, 0.9, few_shot=n)
        for maker in (None, "defectmaker")
        for search in ("nn", "ldknn")
        for n in (1, 5)
    ]
    draw_curve(axes, rows)
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5"]
    assert list(axes.get_xticks()) == [1, 5]
    assert len(axes.get_xticks(minor=True)) == 0
    assert len(axes.lines) == 4
    assert all(np.asarray(line.get_ydata(), float) == pytest.approx([85, 85]) for line in axes.lines)
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (pytest.approx(80), pytest.approx(90))


def test_a_plot_is_a_picture_with_its_title() -> None:
    rows = [row(None, "nn", 0.9, 0.95), row("draem", "ldknn", 0.8, 0.85)]
    short, long = (decode_image(auroc_plot(title, rows, draw_makers)) for title in ("a", "a longer title"))
    assert short.shape == long.shape == (840, 1480, 3)
    assert (short != long).any()


def test_a_row_as_a_dict_has_its_spread() -> None:
    told = row("draem", "nn", 0.9, 0.94, 0.98).as_dict()
    assert (told["name"], told["lowest"], told["highest"]) == ("DRAEM + NN", 0.9, 0.98)
    assert row(None, "nn", 0.9).as_dict()["deviation"] is None
