import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.runs.frame import COLUMNS, tidy
from scratch_vs_pretrain.errors import UserError


def collect(roots):
    return tidy(load_runs(roots, plain=True))


def test_frame_is_tidy(folders):
    folders.run(curve={100: 10.0, 600: 30.0})
    frame = collect(folders.root)
    ap = frame[frame.metric == "bbox/AP"]
    assert ap.iteration.tolist() == [100, 600]
    assert ap.images.tolist() == [800, 4800]
    assert ap.epochs.tolist() == [0.4, 2.4]
    assert ap.value.tolist() == [10, 30]
    assert set(ap.state) == {"finished"}
    assert all(source.endswith(".json") and "evaluations" in source for source in ap.source)
    losses = frame[frame.metric == "total_loss"]
    assert losses.iteration.tolist() == list(range(20, 601, 20))
    assert not frame.duplicated(["study", "arm", "schedule", "seed", "metric", "iteration"]).any()


def test_evaluation_files_win_over_metrics_rows(folders):
    folder = folders.run(curve={600: 30.0}, losses=False)
    folders.metrics(folder, [299], **{"bbox/AP": 11.0})
    folders.metrics(folder, [599], **{"bbox/AP": 99.0})
    ap = collect(folders.root).query("metric == 'bbox/AP'").sort_values("iteration")
    assert ap.value.tolist() == [11, 30]


def test_what_an_evaluation_measures_is_there_once_whatever_its_name(folders):
    folder = folders.run(curve={}, losses=False)
    folders.evaluation(folder, 600, 30.0, tasks={"panoptic_seg": {"PQ": 40.0}})
    folders.metrics(folder, [299, 599], **{"panoptic_seg/PQ": 39.0})
    quality = collect(folders.root).query("metric == 'panoptic_seg/PQ'").sort_values("iteration")
    assert dict(zip(quality.iteration, quality.value, strict=True)) == {300: 39, 600: 40}


def test_half_finished_folders(folders):
    folders.run("scratch", curve={}, state="planned", iteration=0, losses=False)
    folders.run("pretrained", curve={100: None}, state="failed", iteration=100)
    frame = collect(folders.root)
    assert set(frame.arm) == {"pretrained"}
    assert frame[frame.metric == "bbox/AP"].value.isna().tolist() == [True]


def test_arms_and_schedules_keep_their_order_in_the_frame(folders):
    folders.run("pretrained", iterations=900)
    folders.run("scratch", iterations=1000)
    frame = collect(folders.root)
    assert list(frame.arm.cat.categories) == ["scratch", "pretrained"]
    assert list(frame.schedule.cat.categories) == ["1000it", "900it"]


def test_runs_keep_the_order_they_are_given_in(folders):
    folders.run("scratch")
    folders.run("pretrained")
    frame = tidy(load_runs(folders.root)[::-1])
    assert list(dict.fromkeys(frame.arm)) == ["pretrained", "scratch"]


def test_planned_runs_alone_make_an_empty_frame(folders):
    folders.run(curve={}, state="planned", iteration=0, losses=False)
    frame = collect(folders.root)
    assert frame.empty
    assert tuple(frame.columns) == COLUMNS


def test_damaged_line_reaches_the_user(folders):
    file = folders.run() / "metrics.json"
    file.write_text(file.read_text().replace('"lr"', "lr", 1))
    with pytest.raises(UserError, match="line 1"):
        collect(folders.root)
