import math
from types import SimpleNamespace

import numpy as np
import pytest

from scratch_vs_pretrain.analysis.figures.curves import (
    answer_figure,
    ap_figure,
    loss_figure,
    overlay_figure,
)
from scratch_vs_pretrain.analysis.figures.panels import SCRATCH_COLOR, styles_of
from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.stats.answer import answer
from scratch_vs_pretrain.analysis.stats.contrast import Region
from scratch_vs_pretrain.analysis.stats.verdicts import Band
from scratch_vs_pretrain.errors import UserError


def caption(figure):
    return " ".join(figure.get_supxlabel().split())


def test_ap_figure(three_pairs):
    figure = ap_figure(load_runs(three_pairs.root, plain=True))
    box, mask = figure.axes
    assert (box.get_title("left"), mask.get_title("left")) == ("Box AP (%)", "Mask AP (%)")
    assert [text.get_text() for text in box.texts] == ["scratch", "pretrained"]
    curves = {line.get_color(): line for line in box.lines if line.get_linestyle() == "-"}
    assert curves[SCRATCH_COLOR].get_ydata().tolist() == [6, 15, 30]
    assert len(box.collections) == 2
    dotted = [line.get_xdata()[0] for line in box.lines if line.get_linestyle() == ":"]
    assert dotted == [400, 533]
    assert "mean of 3 seeds; band: lowest to highest seed" in caption(figure)
    assert "Dotted" in caption(figure)


def test_caption_says_which_band(three_pairs):
    figure = ap_figure(load_runs(three_pairs.root, plain=True), band="std", metrics=["bbox/AP75"])
    assert "one standard deviation" in caption(figure)
    assert len(figure.axes) == 1


def test_one_seed_has_no_band(folders):
    folders.run("scratch")
    figure = ap_figure(load_runs(folders.root, plain=True))
    assert not figure.axes[0].collections
    assert "One run per line." in caption(figure)


def test_unfinished_runs_are_dashed_and_the_caption_says_so(three_pairs):
    three_pairs.run("scratch", 9, curve={100: 4.0, 300: 3.0}, state="diverged", iteration=320)
    figure = ap_figure(load_runs(three_pairs.root, plain=True))
    assert "Dashed" in caption(figure)
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_ydata().tolist() for line in dashed] == [[4, 3]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["scratch", "pretrained"]


def test_study_that_has_only_begun(folders):
    folders.run("scratch", curve={100: 4.0}, state="failed", iteration=120)
    figure = ap_figure(load_runs(folders.root, plain=True))
    assert [text.get_text() for text in figure.axes[0].texts] == ["scratch"]


def test_loss_figure(three_pairs):
    figure = loss_figure(load_runs(three_pairs.root, plain=True), x="epochs")
    assert [ax.get_title("left") for ax in figure.axes] == ["Box AP (%)", "Training loss"]
    assert {ax.get_xlabel() for ax in figure.axes} == {"epochs"}
    assert "running median" not in caption(figure)  # of 30 points, as they are


def test_a_logged_curve_of_many_points_is_smoothed_and_says_so(folders):
    for arm in ("scratch", "pretrained"):
        folders.run(arm, curve={600: 30.0, 1200: 31.0}, iterations=1200)
    runs = load_runs(folders.root, plain=True)
    assert "smoothed by a running median" in caption(loss_figure(runs))
    assert "running median" not in caption(ap_figure(runs))


def test_a_row_for_each_study_with_the_fewest_images_first(folders):
    for images in (2000, 500):
        data = {"train": {"names": ["train"], "images": images}}
        for arm in ("scratch", "pretrained"):
            folders.run(arm, study=f"less-{images}", data=data)
    figure = loss_figure(load_runs(folders.root, plain=True))
    assert [ax.get_title("left") for ax in figure.axes] == [
        "Box AP (%), 500 training images", "Training loss, 500 training images",
        "Box AP (%), 2,000 training images", "Training loss, 2,000 training images",
    ]  # fmt: skip
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "iterations", "iterations"]
    for ax in figure.axes:
        assert [text.get_text() for text in ax.texts] == ["scratch", "pretrained"]
    assert "less-500, less-2000" in caption(figure) or "less-2000, less-500" in caption(figure)


def test_rows_are_named_by_study_where_their_images_do_not_tell_them_apart(folders):
    for study in ("a", "b"):
        folders.run("scratch", study=study)
    titles = [ax.get_title("left") for ax in loss_figure(load_runs(folders.root, plain=True)).axes]
    assert titles[::2] == ["Box AP (%), a", "Box AP (%), b"]


def test_keypoint_ap_where_there_is_one(folders):
    folder = folders.run("scratch", curve={})
    folders.evaluation(folder, 600, 60.0, tasks={"keypoints": {"AP": 60.0}, "bbox": {"AP": 50.0}})
    frame = load_runs(folders.root, plain=True)
    assert loss_figure(frame).axes[0].get_title("left") == "Keypoint AP (%)"
    assert [ax.get_title("left") for ax in ap_figure(frame).axes] == [
        "Box AP (%)", "Keypoint AP (%)",
    ]  # fmt: skip


def test_rate_drops_that_arms_do_not_share_have_their_colours(folders):
    folders.run("scratch", iterations=900)
    folders.run("pretrained", iterations=600)
    (box, _) = ap_figure(load_runs(folders.root, plain=True)).axes
    dotted = [line for line in box.lines if line.get_linestyle() == ":"]
    assert len({line.get_color() for line in dotted}) == 2
    scratch = [line.get_xdata()[0] for line in dotted if line.get_color() == SCRATCH_COLOR]
    assert scratch == [600, 800]


def test_line_that_ends_early_is_labelled_at_its_end(folders):
    folders.run("scratch", iterations=1200, curve={100: 5.0, 1200: 30.0})
    folders.run("pretrained", iterations=600, curve={100: 5.0, 600: 31.0})
    texts = {
        text.get_text(): text
        for text in ap_figure(load_runs(folders.root, plain=True)).axes[0].texts
    }
    assert texts["pretrained"].xy == (600, 31)
    assert texts["scratch"].xy[0] > 1200


@pytest.mark.parametrize("x", ["pixels", "gpu-hours"])
def test_costs_need_the_runs(folders, x):
    folders.run("scratch")
    with pytest.raises(UserError, match=f"does not say how many {x} an iteration has"):
        ap_figure(load_runs(folders.root, plain=True), x=x)


def test_overlay_shows_every_schedule(folders):
    for iterations in (600, 900):
        folders.run("scratch", iterations=iterations, curve={100: 5.0, iterations: 30.0})
        folders.run("pretrained", iterations=iterations, curve={100: 5.0, iterations: 31.0})
    texts = [
        text.get_text()
        for text in overlay_figure(load_runs(folders.root, plain=True)).axes[0].texts
    ]
    assert sorted(texts) == ["600it", "600it", "pretrained 900it", "scratch 900it"]


def test_overlay_needs_a_finished_run(folders):
    folders.run(state="failed", curve={100: 4.0}, iteration=120)
    with pytest.raises(UserError, match="finished"):
        overlay_figure(load_runs(folders.root, plain=True))


def test_what_a_branch_has_from_its_trunk_is_drawn_once(folders):
    trunk = {100: 5.0, 200: 9.0, 400: 12.0}
    branch = {"of": "900it", "at": 300, "taken": None}
    for arm in ("scratch", "pretrained"):
        folders.run(arm, iterations=900, curve={**trunk, 900: 30.0})
        folders.run(arm, iterations=600, curve={100: 5.0, 200: 9.0, 600: 25.0}, branch=branch)
    figure = overlay_figure(load_runs(folders.root, plain=True))
    curves = [line.get_xdata().tolist() for line in figure.axes[0].lines if line._x.size > 1]
    assert curves == [[200, 600], [100, 200, 400, 900]] * 2
    assert "leaves the constant-rate trunk" in " ".join(figure.get_supxlabel().split())


def test_a_branch_is_drawn_whole_while_its_trunk_is_not_finished(folders):
    branch = {"of": "900it", "at": 300, "taken": None}
    folders.run("scratch", iterations=900, curve={100: 5.0}, state="running", iteration=300)
    folders.run("scratch", iterations=600, curve={100: 5.0, 600: 25.0}, branch=branch)
    figure = overlay_figure(load_runs(folders.root, plain=True))
    assert figure.axes[0].lines[0].get_xdata().tolist() == [100, 600]


def test_one_panel_for_each_metric(folders):
    folders.run("scratch")
    figure = overlay_figure(load_runs(folders.root, plain=True), metrics=["bbox/AP50", "segm/AP"])
    assert [ax.get_title("left") for ax in figure.axes] == ["Box AP50 (%)", "Mask AP (%)"]


def picture(low, high, seeds=3):
    x = np.array([100, 300, 600])
    band = Band(x, np.array([5.0, 15.0, 30.0]), x / 100, x / 10, seeds)
    region = Region(low, high, low, 600.0)
    runs = [
        SimpleNamespace(study="demo", arm=a, from_scratch=a == "random") for a in ("random", "moco")
    ]
    return SimpleNamespace(
        title="demo",
        setting=SimpleNamespace(metric="bbox/AP", results=SimpleNamespace(runs=runs)),
        judged=SimpleNamespace(catch_up=region),
        curves={"random": band, "moco": band},
        drops=(400,),
    )


@pytest.mark.parametrize(
    ("region", "grey", "said"),
    [
        ((300.0, 500.0), (300, 500), "random caught up between 300 and 500 (grey)"),
        ((300.0, math.inf), (300, 600), "may have caught up by 600, not before 300"),
        ((math.inf, math.inf), None, "random had not caught up by 600."),
        ((0.0, math.inf), None, "may have caught up by 600"),
    ],
)
def test_the_picture_of_an_answer_marks_where_scratch_catches_up(region, grey, said):
    figure = answer_figure(picture(*region))
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts] == ["random", "moco"]
    assert [line.get_linestyle() for line in ax.lines] == [":", "-", "-"]
    assert ax.lines[1].get_color() == SCRATCH_COLOR
    assert len(ax.collections) == 2
    assert said in caption(figure)
    assert "with its 95 % interval" in caption(figure)
    marked = [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches]
    assert [tuple(round(x, -1) for x in one) for one in marked] == ([grey] if grey else [])


def test_an_arm_has_one_color_in_all_pictures_of_a_study(folders):
    arms = ("scratch", "imagenet", "moco")
    for arm in arms:
        folders.run(arm, curve={300: 15.0, 600: 30.0}, arm_order=list(arms))
    runs = load_runs(folders.root)
    styles = styles_of(runs)
    for part in answer(runs).parts:
        drawn = [line for line in answer_figure(part).axes[0].lines if line.get_linestyle() == "-"]
        assert [line.get_color() for line in drawn] == [styles[arm].color for arm in part.curves]


@pytest.mark.parametrize(
    ("low", "high", "begins"), [(0.4, 0.5, 0), (4.0, 8.0, 0), (12.0, 40.0, 0), (30.0, 42.0, None)]
)
def test_axes_of_ap_begin_at_0_unless_all_is_high_and_close(folders, low, high, begins):
    folders.run("scratch", curve={300: low, 600: high})
    bottom, _ = (
        ap_figure(load_runs(folders.root, plain=True), metrics=["bbox/AP"]).axes[0].get_ylim()
    )
    assert bottom == 0 if begins == 0 else 25 < bottom < low
