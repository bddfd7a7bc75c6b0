"""How an adaptation is shown: every figure where a reader looks for it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from engines.bundle import Adaptation
from engines.images import decode_image
from tests.fakes import tiny_adaptation
from train.adaptation_plots import adaptation_facts, adaptation_plots, draw_confusion, draw_course


def changed(**values: object) -> Adaptation:
    return tiny_adaptation().model_copy(update=values)


def confusion(record: Adaptation) -> Axes:
    axes = Figure().add_subplot()
    draw_confusion(axes, record)
    return axes


def test_the_course_has_loss_and_right_answers_of_every_update_and_guessing() -> None:
    loss_axes, right_axes = Figure().subplots(2, sharex=True)
    draw_course((loss_axes, right_axes), tiny_adaptation())
    (loss,), (right, guessing) = loss_axes.lines, right_axes.lines
    assert (list(loss.get_xdata()), list(loss.get_ydata())) == ([1, 2, 3], [0.75, 0.5, 0.25])
    assert (list(right.get_xdata()), list(right.get_ydata())) == ([1, 2, 3], [50, 75, 100])
    assert list(guessing.get_ydata()) == [50, 50]  # one of two kinds
    assert loss_axes.get_ylim()[0] == 0
    assert right_axes.get_ylim()[0] == 0 and right_axes.get_ylim()[1] > 100


def test_the_confusion_has_counts_shaded_by_row_with_true_kinds_down_the_side() -> None:
    axes = confusion(changed(confusion=((9, 1), (1, 3))))
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "9", (1, 0): "1", (0, 1): "1", (1, 1): "3"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["good", "rectangle"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["good", "rectangle"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true kind", "answer")
    (picture,) = axes.images
    assert np.asarray(picture.get_array()) == pytest.approx(np.array([[0.9, 0.1], [0.25, 0.75]]))
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is at the top


def luminance(colour: npt.ArrayLike) -> float:
    """Relative luminance of sRGB, 0 to 1 (WCAG 2.1)."""
    value = np.asarray(colour, float)[:3]
    linear = np.where(value <= 0.03928, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("right", range(0, 101, 5))
def test_numbers_can_be_read_on_their_shades(right: int) -> None:
    axes = confusion(changed(confusion=((100, 0), (100 - right, right))))
    (picture,) = axes.images
    grounds = picture.to_rgba(np.asarray(picture.get_array()))
    for text in axes.texts:
        column, row = (int(value) for value in text.get_position())
        dark, light = sorted((luminance(to_rgb(text.get_color())), luminance(grounds[row, column])))
        assert (light + 0.05) / (dark + 0.05) > 3.5, (row, column)  # WCAG's contrast; it asks for 3 in graphics


def test_the_title_says_on_which_images() -> None:
    assert confusion(tiny_adaptation()).get_title(loc="left") == "held-out images: 85 % of 20 right"
    record = changed(confusion=((4, 0), (0, 4)), confusion_on="training")
    assert confusion(record).get_title(loc="left") == "training images: 100 % of 8 right"


def test_a_kind_without_images_has_an_unshaded_row() -> None:
    (picture,) = confusion(changed(confusion=((2, 2), (0, 0)))).images
    assert np.asarray(picture.get_array()).tolist() == [[0.5, 0.5], [0, 0]]


def test_both_plots_are_pictures() -> None:
    files = adaptation_plots(tiny_adaptation())
    assert list(files) == ["adaptation.png", "confusion.png"]
    assert {decode_image(data).shape for data in files.values()} == {(780, 1120, 3)}


def test_the_facts_are_told() -> None:
    assert adaptation_facts(tiny_adaptation()) == [
        ("Preset", "quick, 3 updates"),
        ("Images an update", "24 in 2 passes of 12"),
        ("Batch norm of the trunk", "statistics of the initial weights, kept"),
        ("Early layers", "kept as they came"),
        ("Pictures", "flipped"),
        ("Kept weights", "50% trained, 50% initial"),
        ("Window", "32 x 32 pixels"),
        ("Maker of defects", "cutpaste: rectangle"),
        ("Where defects are put", "the part fills the images"),
        ("Initial weights", f"resnet18.pth (SHA-256 {8 * 'ab'})"),
        ("Layers after the features", "loaded with the weights"),
        ("Device", "cpu, float32"),
        ("Time", "1.5 minutes"),
    ]


@pytest.mark.parametrize(
    ("values", "name", "told"),
    [
        ({"window_px": None}, "Window", "the whole network input"),
        ({"weights": "none", "weights_sha256": None}, "Initial weights", "none"),
        ({"statistics": "batch"}, "Batch norm of the trunk", "statistics of each pass"),
        ({"early": "trained"}, "Early layers", "trained with the others"),
        ({"turns": True}, "Pictures", "flipped and turned by quarters"),
        ({"tail": "random"}, "Layers after the features", "drawn at random"),
        ({"images_per_pass": 24}, "Images an update", "24 in 1 pass"),
    ],
)
def test_facts_of_other_adaptations(values: dict[str, object], name: str, told: str) -> None:
    assert dict(adaptation_facts(changed(**values)))[name] == told
