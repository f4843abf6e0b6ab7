from __future__ import annotations

import pytest

from scratch_vs_pretrain.analysis.figures.budget_figure import samples_figure
from scratch_vs_pretrain.analysis.stats.samples import Budget, Budgets, Counts, Pretraining

ROWS = (
    Budget("scratch", "6x", Pretraining(Counts()), Counts(60, 600, 6000)),
    Budget("pre$trained", "2x", Pretraining(Counts(100, 100, 500), True), Counts(20, 200, 2000)),
)


def bars(ax):
    """Returns (left, width) of the bars, from top to bottom."""
    return [(patch.get_x(), patch.get_width()) for patch in ax.patches]


def test_a_panel_each_of_stacked_bars():
    figure = samples_figure(Budgets("s", ROWS, False, ("A note.",)))
    images, instances, pixels = figure.axes
    assert bars(images) == [(0, 0), (0, 60), (0, 100), (100, 20)]
    assert bars(instances) == [(0, 0), (0, 600), (0, 100), (100, 200)]
    assert bars(pixels) == [(0, 0), (0, 6000), (0, 500), (500, 2000)]
    assert [text.get_text() for text in pixels.texts] == ["6000", "2500"]
    assert [label.get_text() for label in images.get_yticklabels()] == [
        "scratch 6x",
        r"pre\$trained 2x",
    ]


def test_labels_and_caption_stay_within_the_figure():
    notes = ("What is assumed takes many words, and these have to be wrapped. " * 6,)
    figure = samples_figure(Budgets("s", ROWS, True, notes))
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    for text in [figure._supxlabel, *(text for ax in figure.axes for text in ax.texts)]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    assert "Counted during training." in figure._supxlabel.get_text().replace("\n", " ")


def test_unknown_counts_are_named():
    row = Budget("scratch", "6x", Pretraining(Counts()), Counts(60, None, None))
    images, instances, _ = samples_figure(Budgets("s", (row,), False, ())).axes
    assert bars(images) == [(0, 0), (0, 60)]
    assert not instances.patches
    assert [text.get_text() for text in instances.texts] == ["unknown"]


@pytest.mark.parametrize("rows", [1, 10])
def test_bars_keep_their_height(rows):
    figure = samples_figure(Budgets("s", ROWS[:1] * rows, True, ()))
    figure.draw_without_rendering()
    points = figure.axes[0].get_window_extent().height * 72 / figure.dpi
    assert points / rows > 15
