from scratch_vs_pretrain.analysis.runs.records import load_runs
from scratch_vs_pretrain.analysis.tables.pairs import metrics_table, schedules_table


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
