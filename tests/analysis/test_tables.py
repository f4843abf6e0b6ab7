import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.tables import metrics_table, paper_table, schedules_table
from scratch_vs_pretrain.errors import UserError


def records(table):
    """Rows as dictionaries, estimates as their values."""
    return [
        {name: getattr(cell, "value", cell) for name, cell in zip(table.header, row, strict=True)}
        for row in table.rows
    ]


def test_schedules_table(folders):
    for iterations, scratch, pretrained in [(900, 33.0, 32.5), (600, 30.0, 32.0)]:
        folders.run("scratch", iterations=iterations, curve={iterations: scratch})
        folders.run("pretrained", iterations=iterations, curve={iterations: pretrained})
    table = schedules_table(load_runs(folders.root))
    rows = records(table)
    assert [(row["arm"], row["schedule"]) for row in rows] == [
        ("scratch", "600it"),
        ("pretrained", "600it"),
        ("scratch - pretrained", "600it"),
        ("scratch", "900it"),
        ("pretrained", "900it"),
        ("scratch - pretrained", "900it"),
    ]
    assert rows[0] == {
        "arm": "scratch", "schedule": "600it", "iterations": 600, "images": 4800, "epochs": 2.4,
        "seeds": 1, "box AP": 30, "box AP50": 50, "box AP75": 28,
        "mask AP": 29, "mask AP50": 49, "mask AP75": 27,
    }  # fmt: skip
    assert [row["box AP"] for row in rows] == [30, 32, -2, 33, 32.5, 0.5]


def test_each_pretrained_arm_is_compared_with_scratch(folders):
    order = ["scratch", "imagenet", "moco"]
    for arm, ap in zip(order, (30.0, 31.0, 29.0), strict=True):
        folders.run(arm, curve={600: ap}, arm_order=order)
    rows = records(schedules_table(load_runs(folders.root)))
    assert [(row["arm"], row["box AP"]) for row in rows] == [
        ("scratch", 30), ("imagenet", 31), ("moco", 29),
        ("scratch - imagenet", -1), ("scratch - moco", 1),
    ]  # fmt: skip


def test_unfinished_study_has_rows_for_what_is_there(folders):
    folders.run("scratch")
    folders.run("pretrained", state="planned", curve={}, iteration=0, losses=False)
    table = schedules_table(load_runs(folders.root))
    assert [row["arm"] for row in records(table)] == ["scratch"]
    assert any("pretrained 600it seed 0 (planned" in note for note in table.notes)

    folders.run("scratch", study="b", state="planned", curve={}, iteration=0, losses=False)
    folders.run("pretrained", study="b", state="planned", curve={}, iteration=0, losses=False)
    empty = schedules_table(load_runs(folders.root / "output" / "b"))
    assert empty.rows == ()


def test_arms_without_a_common_schedule_are_compared_in_the_metrics_table(folders):
    folders.run("scratch", iterations=900, curve={900: 33.0})
    folders.run("pretrained", iterations=600, curve={600: 32.0})
    runs = load_runs(folders.root)
    assert any("no schedule in common" in note for note in schedules_table(runs).notes)
    table = metrics_table(runs)
    assert table.header == ("metric", "scratch 900it", "pretrained 600it", "scratch - pretrained")
    row = next(row for row in records(table) if row["metric"] == "box AP")
    assert [*row.values()][1:] == [33, 32, 1]


def test_metrics_table_is_of_the_longest_planned_schedule(folders):
    """Also where a shorter one is finished and this one is not: no silent substitute."""
    for arm in ("scratch", "pretrained"):
        folders.run(arm, iterations=600, curve={600: 40.0})
    folders.run("scratch", iterations=900, curve={900: 33.0})
    folders.run("pretrained", iterations=900, curve={300: 20.0}, state="failed", iteration=300)
    table = metrics_table(load_runs(folders.root))
    rows = {row["metric"]: [*row.values()][1:] for row in records(table)}
    assert rows["seeds"] == [1, 0, 0]
    assert rows["box AP"][0] == 33
    assert rows["box AP75"][0] == 31
    assert rows["mask APl"][0] == 41
    assert all(str(value) == "nan" for value in rows["box AP"][1:])


def coco(folders, scratch, pretrained, seeds=1, data=None):
    data = data or {
        "train": {"names": ["coco_2017_train"], "images": 117_266},
        "test": {"names": ["coco_2017_val"], "images": 5000},
    }
    for arm, ap in (("scratch", scratch), ("pretrained", pretrained)):
        for seed in range(seeds):
            folder = folders.run(
                arm, seed, iterations=180_000, schedule="2x", losses=False, data=data, curve={},
                study="baseline-r50-gn",
            )  # fmt: skip
            folders.evaluation(folder, 180_000, ap + 0.1 * seed, dataset="coco_2017_val")
    return load_runs(folders.root)


def test_ours_beside_the_papers(folders):
    runs = coco(folders, 37.0, 39.9)
    table = paper_table(runs, "baseline", backbone="R50")
    scratch, pretrained = records(table)
    assert (scratch["ours"], scratch["paper"], scratch["source"]) == (37, 36.8, "Table 1")
    assert scratch["ours - paper"] == pytest.approx(0.2)
    assert scratch["within noise"] == "yes"
    assert pretrained["ours - paper"] == pytest.approx(-0.4)
    assert pretrained["within noise"] == "no"


def test_from_three_seeds_on_our_interval_decides(folders):
    runs = coco(folders, 36.6, 41.0, seeds=3)
    scratch, pretrained = records(paper_table(runs, "baseline", backbone="R50"))
    assert (scratch["within noise"], pretrained["within noise"]) == ("yes", "no")


def test_one_seed_on_other_data_leaves_noise_unknown(folders):
    data = {
        "train": {"names": ["coco_2017_train"], "images": 10_000},
        "test": {"names": ["coco_2017_val"], "images": 5000},
    }
    runs = coco(folders, 25.9, 26.0, data=data)
    rows = records(paper_table(runs, "baseline", backbone="R50"))
    assert {row["within noise"] for row in rows} == {"unknown"}


def test_best_schedule_of_the_paper_is_our_longest(folders):
    rows = records(paper_table(coco(folders, 41.0, 41.0), "metrics", backbone="R50"))
    assert [row["metric"] for row in rows[:3]] == ["box AP", "box AP50", "box AP75"]
    assert len(rows) == 12


def test_part_of_the_evaluation_set_cannot_be_compared(folders):
    data = {"test": {"names": ["coco_2017_val"], "images": 206}}
    with pytest.raises(UserError, match="coco_2017_val of 206 images"):
        paper_table(coco(folders, 30.0, 31.0, data=data), "baseline", backbone="R50")


def test_another_evaluation_set_cannot_be_compared(folders):
    folders.run("scratch")
    folders.run("pretrained")
    with pytest.raises(UserError, match="evaluated on val, the paper's baseline numbers on coco"):
        paper_table(load_runs(folders.root), "baseline")
    with pytest.raises(UserError, match="no experiment 'x'"):
        paper_table(load_runs(folders.root), "x")
