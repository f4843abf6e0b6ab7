"""Beside the published numbers, with differences counted by hand."""

from pathlib import Path

import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.tables import published as module
from scratch_vs_pretrain.analysis.tables.published import (
    all_published,
    paper_study,
    published,
    published_table,
)
from scratch_vs_pretrain.errors import UserError

COCO = {
    "train": {"names": ["coco_2017_train"], "images": 117_266},
    "test": {"names": ["coco_2017_val"], "images": 5000},
}


def records(table):
    """Rows as dictionaries, estimates as their values."""
    return [
        {name: getattr(cell, "value", cell) for name, cell in zip(table.header, row, strict=True)}
        for row in table.rows
    ]


def add(folders, study, arm, schedule, ap, *, seed=0, data=COCO, tasks=None, **changes):
    """Writes a finished run with box AP `ap`, AP50 20 more and AP75 2 less; masks 1 less."""
    folder = folders.run(
        arm, seed, iterations=100, schedule=schedule, losses=False, data=data, curve={},
        study=study, **changes,
    )  # fmt: skip
    more = {} if tasks is None else {"tasks": tasks}
    folders.evaluation(folder, 100, ap, dataset=data["test"]["names"][0], **more)


def pair(folders, scratch, pretrained, seeds=1, **options):
    for arm, ap in (("scratch", scratch), ("pretrained", pretrained)):
        for seed in range(seeds):
            add(folders, "baseline-r50-gn", arm, "2x", ap + 0.1 * seed, seed=seed, **options)
    return load_runs(folders.root)


def test_ours_beside_the_papers(folders):
    scratch, pretrained = records(published_table(pair(folders, 37.0, 39.9)))
    assert (scratch["ours"], scratch["paper"], scratch["source"]) == (37, 36.8, "Table 1")
    assert scratch["ours - paper"] == pytest.approx(0.2)
    assert scratch["within noise"] == "yes"
    assert pretrained["ours - paper"] == pytest.approx(-0.4)
    assert pretrained["within noise"] == "no"


def test_table_1(folders):
    """All five schedules of R101; ours are half a point above the paper's."""
    paper = {
        "scratch": (38.2, 41.0, 41.8, 42.2, 42.7), "pretrained": (41.8, 42.3, 42.3, 41.9, 42.2)
    }  # fmt: skip
    for arm, values in paper.items():
        for multiple, value in enumerate(values, start=2):
            add(folders, "baseline-r101-gn", arm, f"{multiple}x", value + 0.5)
    rows = records(published_table(load_runs(folders.root)))
    assert {(row["arm"], row["schedule"]): row["paper"] for row in rows} == {
        (arm, f"{multiple}x"): value
        for arm, values in paper.items()
        for multiple, value in enumerate(values, start=2)
    }
    assert all(row["ours - paper"] == pytest.approx(0.5) for row in rows)
    assert {row["within noise"] for row in rows} == {"no"}


def test_table_2_is_of_the_longest_schedule(folders):
    rows = records(published_table(pair(folders, 41.0, 41.0), kind="metrics"))
    assert {row["source"] for row in rows} == {"Table 2"}
    assert [row["metric"] for row in rows[:6]] == [
        "box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75",
    ]  # fmt: skip
    assert len(rows) == 12
    assert [row["ours"] for row in rows[:6]] == [41, 61, 39, 40, 60, 38]
    theirs = published(experiment="metrics", backbone="R50", init="scratch")
    assert [row["paper"] for row in rows[:6]] == [number.value for number in theirs]


def test_table_3_tells_cascade_and_test_augmentation_apart(folders):
    box = {"AP": 46.0, "AP50": 66.0, "AP75": 44.0}
    for study in ("large-x152", "large-x152-cascade"):
        tasks = {"bbox": box, "bbox_TTA": {"AP": 50.0}} if "cascade" in study else {"bbox": box}
        add(folders, study, "scratch", "9x", 0.0, tasks=tasks)
        add(folders, study, "pretrained", "6x", 0.0, tasks=tasks)
    runs = load_runs(folders.root)
    plain = records(published_table([run for run in runs if run.study == "large-x152"]))
    assert (plain[0]["metric"], plain[0]["paper"]) == ("box AP", 46.4)
    assert {row["source"] for row in plain} == {"Table 3, train aug"}
    cascade = records(published_table([run for run in runs if run.study != "large-x152"]))
    beside = {(row["arm"], row["source"], row["metric"]): row for row in cascade}
    row = beside["scratch", "Table 3, train aug + cascade", "box AP"]
    assert (row["ours"], row["paper"]) == (46, 48.6)
    row = beside["scratch", "Table 3, train aug + cascade + test aug", "box AP"]
    assert (row["ours"], row["paper"]) == (50, 50.9)
    row = beside["pretrained", "Section 5.1, train aug + cascade + test aug", "box AP"]
    assert (row["ours"], row["paper"]) == (50, 50.3)


@pytest.mark.parametrize(
    ("images", "name", "scratch", "pretrained"),
    [
        (35_504, "coco_35k", 36.3, 36.3),
        (10_000, "coco_2017_train_10k", 25.9, 26.0),
        (3500, "coco_2017_train_3.5k", 9.3, 16.0),
        (1000, "coco_2017_train_1k", 3.5, 9.9),
    ],
)
def test_less_data_is_compared_with_as_many_images(folders, images, name, scratch, pretrained):
    data = {**COCO, "train": {"names": [name], "images": images}}
    for arm, schedule in (("scratch", "6x"), ("pretrained", "6x")):
        add(folders, "less-data-r50", arm, schedule, 20.0, data=data, tuned_on="pretrained")
    rows = records(published_table(load_runs(folders.root), kind="less-data"))
    assert [(row["arm"], row["paper"]) for row in rows] == [
        ("scratch", scratch), ("pretrained", pretrained)
    ]  # fmt: skip
    assert {row["within noise"] for row in rows} == {"unknown"}


def test_recipe_tuned_on_the_scratch_arm_is_another(folders):
    data = {**COCO, "train": {"names": ["coco_2017_train_1k"], "images": 1000}}
    for arm in ("scratch", "pretrained"):
        add(folders, "less-data-1k", arm, "6x", 6.0, data=data, tuned_on="scratch")
    (row,) = records(published_table(load_runs(folders.root)))
    assert (row["arm"], row["paper"]) == ("scratch", 5.4)


def test_voc_is_compared_by_its_own_metric(folders):
    data = {
        "train": {"names": ["voc_2007_trainval", "voc_2012_train"], "images": 10_728},
        "test": {"names": ["voc_2012_val"], "images": 5823},
    }
    for arm, schedule, ap in (("scratch", "144k", 77.0), ("pretrained", "18k", 83.0)):
        tasks = {"bbox": {"AP50": 50.0}, "voc": {"AP50": ap}}
        add(folders, "voc-r101", arm, schedule, 0.0, data=data, tasks=tasks)
    rows = records(published_table(load_runs(folders.root), kind="voc"))
    assert [(row["ours"], row["paper"]) for row in rows] == [(77, 77.6), (83, 82.7)]


def test_from_three_seeds_on_a_prediction_interval_decides(folders):
    """The mean is 0.4 off: outside its own interval, +-0.25, and inside that of one more run."""
    scratch, pretrained = records(published_table(pair(folders, 37.1, 41.0, seeds=3)))
    assert (scratch["within noise"], pretrained["within noise"]) == ("yes", "no")


def test_a_prediction_interval_is_called_one(folders):
    """Its half-width is that of the mean times the root of one more than the seeds."""
    table = published_table(pair(folders, 37.1, 41.0, seeds=3))
    ours, gap = (table.rows[0][table.header.index(name)] for name in ("ours", "ours - paper"))
    assert gap.half_width == pytest.approx(2 * ours.half_width)
    said = [note for note in table.notes if "±" in note]
    assert said[0].startswith("Means over seeds; ± is half the two-sided 95 % t interval")
    assert said[1].startswith("The ± of ours - paper is half the 95 % prediction interval")
    assert not any("Differences are scratch" in note for note in table.notes)


def test_without_an_interval_nothing_is_said_of_one(folders):
    table = published_table(pair(folders, 37.1, 41.0, seeds=2))
    assert not any("±" in note or "Differences are" in note for note in table.notes)


def test_one_seed_on_other_data_leaves_noise_unknown(folders):
    data = {**COCO, "train": {"names": ["coco_2017_train"], "images": 10_000}}
    rows = records(published_table(pair(folders, 25.9, 26.0, data=data)))
    assert {row["within noise"] for row in rows} == {"unknown"}


def test_the_zoo_has_other_numbers(folders):
    for arm in ("scratch", "pretrained"):
        add(folders, "baseline-r50-gn", arm, "3x", 40.0)
    table = published_table(load_runs(folders.root), "zoo")
    box = {row["arm"]: row["zoo"] for row in records(table) if row["metric"] == "box AP"}
    assert box == {"scratch": 39.9, "pretrained": 42.6}
    assert "The zoo's own arms differ" in table.notes[-1]


def test_part_of_the_evaluation_set_cannot_be_compared(folders):
    data = {**COCO, "test": {"names": ["coco_2017_val"], "images": 206}}
    with pytest.raises(UserError, match="coco_2017_val of 206 images"):
        published_table(pair(folders, 30.0, 31.0, data=data))


@pytest.mark.parametrize("by", ["paper", "zoo"])
@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        ("train", "mine", "trained on mine, the {}'s baseline numbers on coco_2017_train"),
        ("test", "mine", "evaluated on mine, the {}'s baseline numbers on coco_2017_val"),
    ],
)
def test_other_data_cannot_be_compared(folders, part, name, message, by):
    data = {**COCO, part: {"names": [name], "images": 10}}
    with pytest.raises(UserError, match=message.format(by)):
        published_table(pair(folders, 30.0, 31.0, data=data), by)


def test_study_that_is_not_the_papers(folders):
    folders.run("scratch")
    with pytest.raises(UserError, match="none of the paper's by its name"):
        published_table(load_runs(folders.root))


def test_numbers_with_another_recipe_are_named(folders):
    """The paper prints the enhanced baselines' numbers with test augmentation only."""
    for arm in ("scratch", "pretrained"):
        add(folders, "enhanced-r50", arm, "6x", 40.0)
    table = published_table(load_runs(folders.root))
    assert table.rows == ()
    lacking = "segm_TTA/AP at 6x, segm_TTA/AP at 9x"
    assert table.notes[0] == f"Nothing to compare: no finished run here has the paper's {lacking}."


def test_nothing_finished_is_an_empty_table(folders):
    for arm in ("scratch", "pretrained"):
        folders.run(arm, study="baseline-r50-gn", state="failed", iteration=9, curve={})
    assert published_table(load_runs(folders.root)).rows == ()


SHARED = Path(__file__).parents[2].parent / "shared" / "paper_results.csv"


def test_every_row_is_read():
    assert len(all_published()) == 91
    assert all(0 < number.value < 100 and number.source for number in all_published())


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is absent")
def test_packaged_copy_is_the_original():
    packaged = Path(module.__file__).with_name(module.FILES["paper"])
    assert packaged.read_bytes() == SHARED.read_bytes()


def test_numbers_are_found_by_their_fields():
    (number,) = published(experiment="baseline", backbone="R50", init="scratch", schedule="2x")
    assert (number.value, number.source, number.iterations) == (36.8, "Table 1", "180000")
    assert len(published(experiment="baseline", backbone="R101", norm=None)) == 10
    assert published(experiment="baseline", backbone="R50", schedule="9x") == ()
    (number,) = published(experiment="less_data", train_set="coco_10k", init="scratch")
    assert (number.iterations, number.schedule, number.value) == ("220000", "", 25.9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline-r50-gn", ("baseline", "R50", "GN")),
        ("baseline_R101", ("baseline", "R101", "GN")),
        ("large_x152", ("large", "X152-8x32d", "GN")),
        ("large", ("large", None, "GN")),
        ("vgg16", ("vgg", "VGG16", "none")),
        ("less-data-10k", ("less_data", "R50", "GN")),
        ("voc.r101", ("voc", "R101", "GN")),
    ],
)
def test_study_is_known_by_its_name(name, expected):
    assert tuple(paper_study(name).values()) == expected


@pytest.mark.parametrize("name", ["demo", "vocabulary", ""])
def test_study_that_is_none_of_the_papers(name):
    with pytest.raises(UserError, match="none of the paper's"):
        paper_study(name)


def test_zoo_numbers_name_their_config():
    numbers = published(experiment="baseline", by="zoo", norm="GN", init="scratch", schedule="3x")
    assert {number.metric: number.value for number in numbers} == {"bbox/AP": 39.9, "segm/AP": 36.6}
    assert all("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml" in number.source for number in numbers)


def test_syncbn_is_not_compared_with_gn():
    fields = paper_study("baseline-r50-syncbn")
    assert fields["norm"] == "SyncBN"
    assert published(**fields) == ()
    assert published("zoo", **fields)
