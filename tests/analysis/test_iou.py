import pytest

from scratch_vs_pretrain.analysis.figures.iou_gap import iou_figure
from scratch_vs_pretrain.analysis.figures.named import make
from scratch_vs_pretrain.analysis.runs.records import collect
from scratch_vs_pretrain.errors import UserError


def test_iou_figure_shows_the_final_gap_per_threshold(three_pairs):
    figure = iou_figure(collect(three_pairs.root))
    curve = figure.axes[0].lines[1]
    assert curve.get_xdata().tolist() == pytest.approx([0.5 + 0.05 * k for k in range(10)])
    assert curve.get_ydata().tolist() == pytest.approx([-2] * 10)


def test_iou_figure_compares_each_arms_longest_schedule(folders):
    folders.run("scratch", iterations=900, curve={900: 33.0})
    folders.run("pretrained", iterations=600, curve={600: 32.0})
    assert set(iou_figure(collect(folders.root)).axes[0].lines[1].get_ydata()) == {1}


def test_iou_figure_needs_a_pair(folders):
    folders.run("scratch", 0)
    folders.run("pretrained", 1)
    with pytest.raises(UserError, match="pair"):
        iou_figure(collect(folders.root))


def test_band_is_over_the_seeds_gaps(three_pairs):
    """The gaps are -1, -2 and -3 at each threshold."""
    (band,) = iou_figure(collect(three_pairs.root)).axes[0].collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (-3, -1)


def test_the_arm_from_scratch_may_have_any_name(folders):
    for arm in ("random", "imagenet"):
        init = {"name": "scratch" if arm == "random" else "checkpoint"}
        folders.run(arm, init=init, arm_order=["random", "imagenet"])
    (ax,) = make([folders.root], "iou", {}).axes[:1]
    assert ax.get_title("left") == "Box AP gap, random less the other arm"
