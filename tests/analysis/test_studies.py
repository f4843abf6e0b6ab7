import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.tables.studies import (
    large_table,
    less_data_table,
    summary_table,
    voc_table,
)
from scratch_vs_pretrain.errors import UserError


def pair(folders, study, images, scratch, pretrained):
    data = {"train": {"names": ["t"], "images": images}}
    folders.run("scratch", curve={900: scratch}, iterations=900, study=study, data=data)
    folders.run("pretrained", curve={600: pretrained}, study=study, data=data)


def values(table):
    return [tuple(getattr(cell, "value", cell) for cell in row) for row in table.rows]


@pytest.fixture
def runs(folders):
    pair(folders, "a-much", 10_000, 31.0, 30.5)
    pair(folders, "b-little", 1000, 10.0, 16.0)
    return load_runs(folders.root)


def test_less_data_is_ordered_by_training_images(runs):
    assert values(less_data_table(runs)) == [
        ("b-little", 1000, "bbox/AP", 1, "scratch 900it", 10, "pretrained 600it", 16, -6),
        ("a-much", 10_000, "bbox/AP", 1, "scratch 900it", 31, "pretrained 600it", 30.5, 0.5),
    ]


def test_voc_is_about_iou_one_half(runs):
    table = voc_table(runs)
    assert {row[2] for row in table.rows} == {"bbox/AP50"}
    assert [row[-1] for row in values(table)] == [-6, 0.5]


def test_voc_is_by_its_own_metric_where_that_was_evaluated(folders):
    for arm, ap in (("scratch", 77.0), ("pretrained", 82.5)):
        folder = folders.run(arm, curve={})
        folders.evaluation(folder, 600, 0.0, tasks={"bbox": {"AP50": 1.0}, "voc": {"AP50": ap}})
    (row,) = values(voc_table(load_runs(folders.root)))
    assert (row[2], row[5], row[7], row[8]) == ("voc/AP50", 77, 82.5, -5.5)


def test_summary_has_each_task_that_was_evaluated(runs):
    assert [row[2] for row in summary_table(runs).rows] == ["bbox/AP", "segm/AP"] * 2


def test_large_has_a_row_per_arm(runs):
    rows = values(large_table(runs))
    assert [row[:4] for row in rows] == [
        ("b-little", "scratch", "900it", "no"), ("b-little", "pretrained", "600it", "no"),
        ("a-much", "scratch", "900it", "no"), ("a-much", "pretrained", "600it", "no"),
    ]  # fmt: skip
    assert rows[2][4:] == (1, 31, 51, 29, 30, 50, 28)


def test_large_has_a_row_of_its_own_for_test_augmentation(folders):
    for arm in ("scratch", "pretrained"):
        folder = folders.run(arm, curve={})
        tasks = {"bbox": {"AP": 40.0}, "bbox_TTA": {"AP": 42.0}}
        folders.evaluation(folder, 600, 0.0, tasks=tasks)
    rows = values(large_table(load_runs(folders.root)))
    assert [row[1:6] for row in rows[:2]] == [
        ("scratch", "600it", "no", 1, 40), ("scratch", "600it", "yes", 1, 42)
    ]  # fmt: skip


def test_study_without_partner_is_left_out_unless_it_is_the_only_one(runs, folders):
    folders.run("scratch", study="c")
    table = less_data_table(load_runs(folders.root))
    assert len(table.rows) == 2
    assert any("study c" in note and "no partner" in note for note in table.notes)
    with pytest.raises(UserError, match="no partner"):
        less_data_table(load_runs(folders.root / "output" / "c"))


def test_columns_have_names_of_their_own(runs):
    for table in (large_table(runs), summary_table(runs)):
        assert len(set(table.header)) == len(table.header)


@pytest.mark.parametrize("changed", [{"sha256": "other"}, {"sha256": None, "names": ["other"]}])
def test_studies_that_are_evaluated_on_different_data_share_no_table(folders, changed):
    for study, test in (("a", {"sha256": None, "names": ["val"]}), ("b", changed), ("c", {})):
        test = {"names": ["val"], "images": 300, "sha256": "b", **test}
        for arm in ("scratch", "pretrained"):
            folder = folders.run(arm, study=study, curve={}, data={"test": test})
            folders.evaluation(folder, 600, 30.0, dataset=test["names"][0])
    runs = load_runs(folders.root)
    for table in (large_table, less_data_table, voc_table):
        with pytest.raises(UserError, match=r"different (content|name) .*cannot share this table"):
            table(runs)
    assert len(summary_table(runs).rows) == 6


def test_notes_say_of_which_study_they_are(folders):
    for study in ("a", "b"):
        folders.run("scratch", study=study)
        state = {"state": "failed", "iteration": 100, "curve": {}} if study == "b" else {}
        folders.run("pretrained", study=study, **state)
    notes = summary_table(load_runs(folders.root)).notes
    assert notes[0].startswith("Numbers: percent")
    assert notes[-1].startswith("b: Left out: pretrained 600it seed 0 (failed after 100 of 600")
