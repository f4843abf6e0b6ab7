import numpy as np
import pytest

from scratch_vs_pretrain.analysis.figures.lines import (
    known_metrics,
    lines_of,
    named_arms,
    of_schedule,
    rate_drops,
)
from scratch_vs_pretrain.analysis.runs.records import collect
from scratch_vs_pretrain.errors import UserError


def test_mean_and_band_over_seeds(folders):
    for seed, shift in enumerate((0.0, 1.0, 5.0)):
        folders.run("scratch", seed, curve={100: 10 + shift, 600: 30 + shift})
    (line,) = lines_of(collect(folders.root), "bbox/AP", "iterations", "range")
    assert line.x.tolist() == [100, 600]
    assert line.mean.tolist() == [12, 32]
    assert (line.low.tolist(), line.high.tolist()) == ([10, 30], [15, 35])
    assert (line.seeds, line.complete) == (3, True)
    (line,) = lines_of(collect(folders.root), "bbox/AP", "iterations", "std")
    np.testing.assert_allclose(line.high - line.mean, np.std([0, 1, 5], ddof=1))


def test_mean_is_over_the_same_seeds_everywhere(folders):
    folders.run("scratch", 0, curve={100: 10.0, 300: 20.0, 600: 30.0})
    folders.run("scratch", 1, curve={100: 12.0, 300: None, 600: 40.0})
    (line,) = lines_of(collect(folders.root), "bbox/AP", "iterations", "range")
    assert line.x.tolist() == [100, 600]


def test_unfinished_runs_are_lines_of_their_own(folders):
    folders.run("scratch", 0, curve={100: 10.0, 600: 30.0})
    folders.run("scratch", 1, curve={100: 50.0}, state="diverged", iteration=120)
    whole, part = lines_of(collect(folders.root), "bbox/AP", "iterations", "range")
    assert (whole.complete, whole.mean.tolist()) == (True, [10, 30])
    assert (part.complete, part.mean.tolist()) == (False, [50])


def test_x_axes(folders):
    folders.run("scratch", curve={100: 10.0, 600: 30.0})
    frame = collect(folders.root)
    assert lines_of(frame, "bbox/AP", "images", "range")[0].x.tolist() == [800, 4800]
    assert lines_of(frame, "bbox/AP", "epochs", "range")[0].x.tolist() == [0.4, 2.4]
    with pytest.raises(UserError, match="'miles'"):
        lines_of(frame, "bbox/AP", "miles", "range")
    with pytest.raises(UserError, match="'wide'"):
        lines_of(frame, "bbox/AP", "images", "wide")


def test_axis_that_is_not_known(folders):
    folders.metrics(folders.root / "theirs", [19, 39])
    with pytest.raises(UserError, match="how many images"):
        lines_of(collect(folders.root), "total_loss", "images", "range")


def test_logged_values_are_smoothed_and_scores_are_not(folders):
    folder = folders.run("scratch", iterations=12_000, losses=False)
    folders.metrics(folder, range(0, 12_000, 10))
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 6000, "total_loss": 1000.0}\n')
    (line,) = lines_of(collect(folders.root), "total_loss", "iterations", "range")
    assert line.mean.max() < 3.1
    assert len(line.x) == 600
    assert line.x[-1] == 11_991


def test_rate_drops_come_from_the_logged_rate(folders):
    folders.run("scratch", iterations=600)
    folders.run("pretrained", iterations=600)
    frame = collect(folders.root)
    assert rate_drops(frame, "iterations") == dict.fromkeys(("scratch", "pretrained"), (400, 520))
    assert set(rate_drops(frame, "images").values()) == {(3200, 4160)}
    assert rate_drops(frame[frame.metric == "bbox/AP"], "images") == {}


def test_arms_are_named_by_study_where_there_are_several(folders):
    folders.run("scratch", study="a")
    folders.run("scratch", study="b")
    folders.metrics(folders.root / "output" / "theirs", [19])
    assert list(named_arms(collect(folders.root)).arm.cat.categories) == [
        "a scratch", "b scratch", "output/theirs",
    ]  # fmt: skip
    one = named_arms(collect(folders.root / "output" / "a"))
    assert list(one.arm.cat.categories) == ["scratch"]


def test_longest_schedule_of_each_arm(folders):
    folders.run("scratch", iterations=900)
    folders.run("scratch", iterations=600)
    folders.run("pretrained", iterations=600)
    frame = collect(folders.root)
    longest = of_schedule(frame, None)[["arm", "schedule"]].astype(str).drop_duplicates()
    assert longest.to_numpy().tolist() == [["scratch", "900it"], ["pretrained", "600it"]]
    assert set(of_schedule(frame, "600it").schedule) == {"600it"}
    with pytest.raises(UserError, match=r"schedule 2x; there is .*600it"):
        of_schedule(frame, "2x")


def test_metric_nobody_logged(folders):
    folders.run()
    frame = collect(folders.root)
    assert known_metrics(frame, None) == ("bbox/AP", "segm/AP")
    with pytest.raises(UserError, match=r"no run here has bbox/XY; there is bbox/AP,"):
        known_metrics(frame, ["bbox/AP", "bbox/XY"])
    with pytest.raises(UserError, match="no run here has an AP; there is lr"):
        known_metrics(frame[frame.metric.isin(["lr"])], None)
