import pytest

from scratch_vs_pretrain.analysis.figures.finals import bars_figure, budget_figure, short_count
from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.stats.cost import Budget, Budgets, Counts
from scratch_vs_pretrain.errors import UserError


def heights(ax):
    return [round(bar.get_y() + bar.get_height(), 6) for bar in ax.patches]


def caption(figure):
    return " ".join(figure.get_supxlabel().split())


def test_a_group_for_each_study(folders):
    for study, plus in (("base", 0.0), ("better", 2.0)):
        folders.run("scratch", study=study, curve={300: 50.0, 600: 40.0 + plus})
        folders.run("pretrained", study=study, curve={600: 39.0 + plus})
    figure = bars_figure(load_runs(folders.root), labels={"better": "+ better"})
    box, mask = figure.axes
    assert [box.get_title("left"), mask.get_title("left")] == ["Box AP (%)", "Mask AP (%)"]
    assert heights(box) == [40, 39, 42, 41]
    assert heights(mask) == [39, 38, 41, 40]
    assert [label.get_text() for label in box.get_xticklabels()] == ["base", "+ better"]
    texts = [text.get_text() for text in box.texts]
    assert texts == ["40.0", "scratch", "39.0", "pretrained", "42.0", "41.0"]


def test_bars_begin_at_zero(folders):
    folders.run("scratch", curve={600: 40.0})
    folders.run("pretrained", curve={600: 39.0})
    figure = bars_figure(load_runs(folders.root), metrics=["bbox/AP"])
    assert {bar.get_y() for bar in figure.axes[0].patches} == {0}
    assert figure.axes[0].get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("value", "label"), [(1008, "1,008"), (9999, "9,999"), (64_320, "64.3k"), (0, "0")]
)
def test_counts_are_not_rounded_where_there_is_room(value, label):
    assert short_count(value) == label


def test_mean_and_range_over_seeds(three_pairs):
    figure = bars_figure(load_runs(three_pairs.root), metrics=["bbox/AP"])
    (ax,) = figure.axes
    assert heights(ax) == [30, 32]
    ranges = [lines.get_segments()[0][:, 1].tolist() for lines in ax.collections]
    assert ranges == [[30, 30], [31, 33]]
    assert "mean of 3 seeds; lines: lowest to highest" in caption(figure)


def test_test_augmentation_is_a_group_of_its_own(folders):
    for arm in ("scratch", "pretrained"):
        folder = folders.run(arm, curve={})
        tasks = {"bbox": {"AP": 40.0}, "bbox_TTA": {"AP": 42.0}}
        folders.evaluation(folder, 600, 0.0, tasks=tasks)
    (ax,) = bars_figure(load_runs(folders.root)).axes
    assert heights(ax) == [40, 40, 42, 42]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["demo", "demo + test\naug"]
    (ax,) = bars_figure(load_runs(folders.root), labels={"demo": "+ cascade"}).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["+ cascade", "+ test aug"]


def test_runs_that_are_not_finished_leave_a_gap(folders):
    folders.run("scratch")
    folders.run("pretrained", curve={300: 20.0}, state="failed", iteration=320)
    figure = bars_figure(load_runs(folders.root), metrics=["bbox/AP"])
    assert heights(figure.axes[0]) == [30]
    assert "Not finished: pretrained of demo." in caption(figure)


def test_what_cannot_be_drawn(folders):
    folders.run("scratch")
    with pytest.raises(UserError, match="no partner"):
        bars_figure(load_runs(folders.root))
    folders.run("pretrained")
    runs = load_runs(folders.root)
    with pytest.raises(UserError, match=r"--label x=\.\.\.: no such study here; there is demo"):
        bars_figure(runs, labels={"x": "y"})
    with pytest.raises(UserError, match=r"no finished run here has bbox/XY; did you mean bbox/"):
        bars_figure(runs, metrics=["bbox/XY"])


ROWS = (
    Budget("scratch", "6x", Counts(), Counts(60, 600, 6000)),
    Budget("pre$trained", "2x", Counts(100, 100, 500, True), Counts(20, 200, 2000)),
)


def bars(ax):
    """Returns (left, width) of the bars, from top to bottom."""
    return [(patch.get_x(), patch.get_width()) for patch in ax.patches]


def test_a_panel_each_of_stacked_bars():
    figure = budget_figure(Budgets("s", ROWS, False, ("A note.",)))
    images, instances, pixels = figure.axes
    assert bars(images) == [(0, 0), (0, 60), (0, 100), (100, 20)]
    assert bars(instances) == [(0, 0), (0, 600), (0, 100), (100, 200)]
    assert bars(pixels) == [(0, 0), (0, 6000), (0, 500), (500, 2000)]
    assert [text.get_text() for text in pixels.texts] == ["6,000", "2,500"]
    assert [label.get_text() for label in images.get_yticklabels()] == [
        "scratch 6x",
        r"pre\$trained 2x",
    ]


def test_labels_and_caption_stay_within_the_figure():
    notes = ("What is assumed takes many words, and these have to be wrapped. " * 6,)
    figure = budget_figure(Budgets("s", ROWS, True, notes))
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
    row = Budget("scratch", "6x", Counts(), Counts(60, None, None))
    images, instances, _ = budget_figure(Budgets("s", (row,), False, ())).axes
    assert bars(images) == [(0, 0), (0, 60)]
    assert not instances.patches
    assert [text.get_text() for text in instances.texts] == ["unknown"]


@pytest.mark.parametrize("rows", [1, 10])
def test_bars_keep_their_height(rows):
    figure = budget_figure(Budgets("s", ROWS[:1] * rows, True, ()))
    figure.draw_without_rendering()
    points = figure.axes[0].get_window_extent().height * 72 / figure.dpi
    assert points / rows > 15
