from pathlib import Path

import numpy as np
import pytest

from scratch_vs_pretrain.analysis.figures.panels import (
    Line,
    Panel,
    arm_names,
    arm_styles,
    choose_metrics,
    draw_line,
    label_arms,
    lines_of,
    metric_title,
    new_figure,
    of_schedule,
    sentences,
    subject,
)
from scratch_vs_pretrain.analysis.runs import RunRecord, load_runs
from scratch_vs_pretrain.analysis.runs.numbers import names
from scratch_vs_pretrain.errors import UserError


def test_mean_and_band_over_seeds(folders):
    for seed, shift in enumerate((0.0, 1.0, 5.0)):
        folders.run("scratch", seed, curve={100: 10 + shift, 600: 30 + shift})
    (line,) = lines_of(load_runs(folders.root, plain=True), "bbox/AP", "iterations", "range")
    assert line.x.tolist() == [100, 600]
    assert line.mean.tolist() == [12, 32]
    assert (line.low.tolist(), line.high.tolist()) == ([10, 30], [15, 35])
    assert (line.seeds, line.complete) == (3, True)
    (line,) = lines_of(load_runs(folders.root, plain=True), "bbox/AP", "iterations", "std")
    np.testing.assert_allclose(line.high - line.mean, np.std([0, 1, 5], ddof=1))


def test_mean_is_over_the_same_seeds_everywhere(folders):
    folders.run("scratch", 0, curve={100: 10.0, 300: 20.0, 600: 30.0})
    folders.run("scratch", 1, curve={100: 12.0, 300: None, 600: 40.0})
    (line,) = lines_of(load_runs(folders.root, plain=True), "bbox/AP", "iterations", "range")
    assert line.x.tolist() == [100, 600]


def test_numbers_of_users_evaluators_which_are_also_logged_are_points_once(folders):
    for seed in range(2):
        folder = folders.run("scratch", seed, curve={}, losses=False)
        folders.evaluation(folder, 600, 0.0, tasks={"Counting": {"objects": 3.0 + seed}})
        folders.metrics(folder, [599], **{"Counting/objects": 3.0 + seed})
    (line,) = lines_of(
        load_runs(folders.root, plain=True), "Counting/objects", "iterations", "range"
    )
    assert (line.x.tolist(), line.mean.tolist()) == ([600], [3.5])


def test_unfinished_runs_are_lines_of_their_own(folders):
    folders.run("scratch", 0, curve={100: 10.0, 600: 30.0})
    folders.run("scratch", 1, curve={100: 50.0}, state="diverged", iteration=120)
    whole, part = lines_of(load_runs(folders.root, plain=True), "bbox/AP", "iterations", "range")
    assert (whole.complete, whole.mean.tolist()) == (True, [10, 30])
    assert (part.complete, part.mean.tolist()) == (False, [50])


def test_x_axes(folders):
    folders.run("scratch", curve={100: 10.0, 600: 30.0})
    runs = load_runs(folders.root, plain=True)
    assert lines_of(runs, "bbox/AP", "images", "range")[0].x.tolist() == [800, 4800]
    assert lines_of(runs, "bbox/AP", "epochs", "range")[0].x.tolist() == [0.4, 2.4]
    with pytest.raises(UserError, match="'miles'"):
        lines_of(runs, "bbox/AP", "miles", "range")
    with pytest.raises(UserError, match="'wide'"):
        lines_of(runs, "bbox/AP", "images", "wide")


def test_axis_that_is_not_known(folders):
    folders.metrics(folders.root / "theirs", [19, 39])
    with pytest.raises(UserError, match="how many images"):
        lines_of(load_runs(folders.root, plain=True), "total_loss", "images", "range")


def test_logged_values_are_smoothed_and_scores_are_not(folders):
    folder = folders.run("scratch", iterations=12_000, losses=False)
    folders.metrics(folder, range(0, 6000, 10))
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 6000, "total_loss": 1000.0}\n')
    folders.metrics(folder, range(6010, 12_000, 10))
    (line,) = lines_of(load_runs(folders.root, plain=True), "total_loss", "iterations", "range")
    assert line.mean.max() < 3.1
    assert len(line.x) == 600
    assert line.x[-1] == 11_991


def test_rate_drops_are_those_of_the_plan(folders):
    """The log, a row in 20 iterations, knows them less well."""
    folders.run("scratch", iterations=600, steps=[53, 533])
    (line,) = lines_of(load_runs(folders.root, plain=True), "bbox/AP", "iterations", "range")
    assert line.drops == (53, 533)
    (line,) = lines_of(load_runs(folders.root, plain=True), "bbox/AP", "images", "range")
    assert line.drops == (8 * 53, 8 * 533)


def test_rate_drops_of_a_plain_detectron2_folder(folders):
    folders.metrics(folders.root / "theirs", range(0, 100, 20))
    config = folders.root / "theirs" / "config.yaml"
    config.write_text("SOLVER: {STEPS: [53, 90], IMS_PER_BATCH: 4}\n")
    (line,) = lines_of(load_runs(folders.root, plain=True), "total_loss", "images", "range")
    assert line.drops == (4 * 53,)  # It has not come to the second.


def test_arms_are_named_by_study_where_there_are_several(folders):
    folders.run("scratch", study="a")
    folders.run("scratch", study="b")
    folders.metrics(folders.root / "output" / "theirs", [19])
    assert list(arm_names(load_runs(folders.root, plain=True)).values()) == [
        "a scratch", "b scratch", "output/theirs",
    ]  # fmt: skip
    one = arm_names(load_runs(folders.root / "output" / "a", plain=True))
    assert list(one.values()) == ["scratch"]


def test_longest_schedule_of_each_arm(folders):
    folders.run("scratch", iterations=900)
    folders.run("scratch", iterations=600)
    folders.run("pretrained", iterations=600)
    runs = load_runs(folders.root, plain=True)
    longest = [(run.arm, run.schedule) for run in of_schedule(runs, None)]
    assert longest == [("scratch", "900it"), ("pretrained", "600it")]
    assert {run.schedule for run in of_schedule(runs, "600it")} == {"600it"}
    with pytest.raises(UserError, match=r"schedule 2x; there is .*600it"):
        of_schedule(runs, "2x")


def test_metric_nobody_logged(folders):
    folders.run()
    runs = load_runs(folders.root, plain=True)
    known = {name for run in runs for name in names(run)}
    assert choose_metrics(known, None) == ("bbox/AP", "segm/AP")
    with pytest.raises(UserError, match=r"no run here has bbox/XY; did you mean bbox/"):
        choose_metrics(known, ["bbox/AP", "bbox/XY"])
    with pytest.raises(UserError, match="no run here has an AP; there is lr"):
        choose_metrics(["lr"], None)


STYLES = arm_styles(["scratch", "pretrained"])


def line(arm="scratch", schedule="2x", seeds=1, complete=True, x=(1, 2, 3)):
    mean = np.arange(len(x), dtype=float)
    look = STYLES[arm]
    return Line(arm, look, np.array(x), mean, mean - 1, mean + 1, seeds, schedule, complete)


def panels(*lines):
    return [Panel("", lines)]


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("bbox/AP", "Box AP (%)"),
        ("keypoints/AP75", "Keypoint AP75 (%)"),
        ("total_loss", "Training loss"),
        ("loss_cls", "loss_cls"),
    ],
)
def test_metric_title(metric, title):
    assert metric_title(metric) == title


def test_line_is_drawn_from_a_point_on_with_its_band():
    _, (ax,) = new_figure(1)
    draw_line(ax, line(seeds=3), start=1)
    assert ax.lines[0].get_xdata().tolist() == [2, 3]
    assert ax.lines[0].get_marker() == "o"
    (band,) = ax.collections
    assert band.get_paths()[0].vertices[:, 0].min() == 2


def test_many_points_have_no_markers():
    _, (ax,) = new_figure(1)
    draw_line(ax, line(x=range(100)))
    assert ax.lines[0].get_marker() == "None"


def test_label_stands_at_the_end_of_an_early_line():
    _, (ax,) = new_figure(1)
    lines = [line(x=(1, 2)), line("pretrained", x=(5, 10))]
    for each in lines:
        draw_line(ax, each)
    ax.set_xlim(0, 10)
    label_arms(ax, lines)
    assert {text.get_text(): text.xy[0] for text in ax.texts} == {"scratch": 2, "pretrained": 10}


def test_captions():
    many = line(seeds=3, x=range(100))
    text = " ".join(sentences(panels(many, line(seeds=2), line(complete=False)), "std"))
    assert "mean of 2 or 3 seeds; band: one standard deviation" in text
    assert "Dashed" in text
    assert "smoothed" in text
    assert list(sentences(panels(line()), "range")) == ["One run per line."]


def test_subject_names_schedules_where_there_is_one_for_each_arm():
    runs = [RunRecord(folder=Path("s"), study="s")]
    assert subject(runs, panels(line(), line("pretrained"))) == "s, 2x."
    assert (
        subject(runs, panels(line(), line("pretrained", "1x"))) == "s: scratch 2x, pretrained 1x."
    )
    assert subject(runs, panels(line(), line(schedule="3x"))) == "s."
