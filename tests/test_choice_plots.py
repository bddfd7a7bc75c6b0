"""How the choice of alpha is shown: every figure where a reader looks for it."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from engines.images import decode_image
from tests.fakes import tiny_choice
from train.choice_plots import choice_facts, choice_plots, draw_alphas, draw_sizes


def test_every_alpha_has_its_auroc_and_error_and_the_one_taken_a_ring() -> None:
    axes = Figure().add_subplot()
    draw_alphas(axes, tiny_choice(), 1.0)
    (container,) = axes.containers
    line, _, (bars,) = container.lines
    assert list(line.get_xdata()) == [0, 0.5, 1]
    assert list(line.get_ydata()) == pytest.approx([70, 75, 74])
    heights = [float(top[1] - bottom[1]) for bottom, top in bars.get_segments()]
    assert heights == pytest.approx([4, 0, 3])
    by_label = {drawn.get_label(): drawn for drawn in axes.lines}
    assert list(by_label["taken"].get_xdata()) == [1]
    assert list(by_label["taken"].get_ydata()) == pytest.approx([74])
    assert list(by_label["plain nearest neighbour"].get_ydata()) == pytest.approx([70, 70])


def test_sizes_show_what_they_reach_and_cost() -> None:
    above, below = Figure().subplots(2, sharex=True)
    draw_sizes((above, below), tiny_choice())
    chosen, plain = above.lines
    (cost,) = below.lines
    assert list(chosen.get_xdata()) == list(cost.get_xdata()) == [50, 200]
    assert list(chosen.get_ydata()) == pytest.approx([60, 74])
    assert list(plain.get_ydata()) == pytest.approx([60, 70])
    assert list(cost.get_ydata()) == [1.5, 4]
    assert below.get_ylim()[0] == 0


def test_plots_are_pictures_and_facts_say_what_was_tried() -> None:
    plots = choice_plots(tiny_choice(), 1.0)
    assert set(plots) == {"alpha.png", "bank.png"}
    assert all(decode_image(data).shape == (780, 1120, 3) for data in plots.values())
    facts = dict(choice_facts(tiny_choice()))
    assert facts["Synthetic defects"].startswith("240, small and faint, over 12 good images")
    assert facts["Times taken on"] == "a processor, 2 cores"
