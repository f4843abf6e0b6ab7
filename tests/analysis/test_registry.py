import csv
import json
import re

import pytest

from scratch_vs_pretrain.analysis.registry import (
    FIGURES,
    KINDS,
    OF_FINAL_NUMBERS,
    draw,
    figure,
    in_order,
    tables,
    tables_text,
)
from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.tables import FORMATS
from scratch_vs_pretrain.errors import UserError

COCO = {
    "train": {"names": ["coco_2017_train"], "images": 117_266},
    "test": {"names": ["coco_2017_val"], "images": 5000},
}


def test_each_table_in_each_format_says_which_arm_the_recipe_favours(folders):
    for arm in ("scratch", "pretrained"):
        samples = {"images": 1, "instances": 2, "pixels": 3}
        folders.run(arm, samples=samples, losses=False, tuned_on="pretrained")
    for kind in KINDS:
        for form in FORMATS:
            text = " ".join(tables_text(folders.root, kind, form).split())
            assert "scratch" in text, (kind, form)
            assert re.search(r"arm pretrained, which (it|the recipe) favours", text), (kind, form)


@pytest.mark.parametrize("kind", OF_FINAL_NUMBERS)
def test_final_numbers_and_not_the_best_unless_asked(folders, kind):
    for arm in ("scratch", "pretrained"):
        folders.run(arm, curve={300: 40.0 if arm == "scratch" else 44.0, 600: 37.0}, losses=False)
    final = tables_text(folders.root, kind, "text")
    assert "after the last planned iteration" in final
    assert "BEST" not in final
    best = tables_text(folders.root, kind, "text", best=True)
    assert "BEST evaluation, not its final one" in best
    if kind == "gaps":
        assert "-4.0" in best
        assert "-4.0" not in final
    else:
        numbers = ("60.0", "57.0") if kind == "voc" else ("40.0", "37.0")
        assert numbers[0] in best
        assert numbers[0] not in final
        assert numbers[1] in final


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("catch-up", {"best": True}),
        ("samples", {"against": "paper"}),
        ("schedules", {"against": "paper", "best": True}),
    ],
)
def test_options_that_exclude_each_other(folders, kind, options):
    folders.run("scratch")
    with pytest.raises(UserError, match=r"does not go with --.*; leave one of them out"):
        tables_text(folders.root, kind, "text", **options)


@pytest.mark.parametrize(("by", "source"), [("paper", "Table 1"), ("zoo", "MODEL_ZOO.md")])
def test_beside_what_was_published(folders, by, source):
    for arm, ap in (("scratch", 39.5), ("pretrained", 41.0)):
        folder = folders.run(
            arm, curve={}, iterations=270_000, schedule="3x", study="baseline-r50-gn", data=COCO,
            losses=False,
        )  # fmt: skip
        folders.evaluation(folder, 270_000, ap, dataset="coco_2017_val")
    text = tables_text(folders.root, "schedules", "text", against=by)
    assert source in text
    assert ("The zoo's own arms differ" in text) == (by == "zoo")


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure(folders, name):
    for study, images in (("demo", 100), *([("more", 200)] if name == "sizes" else [])):
        data = {"train": {"names": ["train"], "images": images}}
        for arm in ("scratch", "pretrained"):
            samples = {"images": 1, "instances": 2, "pixels": 3}
            folder = folders.run(arm, study=study, samples=samples, data=data)
            folders.detections(folder)
    assert figure(load_runs(folders.root), name, x=None).axes


def test_options_reach_the_figure(three_pairs):
    runs = load_runs(three_pairs.root)
    (ax,) = figure(runs, "ap", metrics=["bbox/AP75"], x="epochs").axes
    assert (ax.get_title("left"), ax.get_xlabel()) == ("Box AP75 (%)", "epochs")


@pytest.mark.parametrize(
    ("name", "option"), [("iou", "x"), ("bars", "band"), ("ap", "labels"), ("overlay", "schedule")]
)
def test_option_that_a_figure_does_not_have(three_pairs, name, option):
    with pytest.raises(UserError, match=rf"--{option.removesuffix('s')}: figure {name} has no"):
        figure(load_runs(three_pairs.root), name, **{option: "a"})


def test_names_that_are_not_there(three_pairs):
    runs = load_runs(three_pairs.root)
    with pytest.raises(UserError, match=r"unknown figure 'pie'; choose one of ap, loss"):
        figure(runs, "pie")
    with pytest.raises(UserError, match=r"unknown kind of table 'all'; choose one of schedules"):
        tables_text(three_pairs.root, "all", "text")


def test_figures_of_one_study_refuse_several(folders, tmp_path):
    folders.run("scratch", study="a")
    folders.run("scratch", study="b")
    with pytest.raises(UserError, match=r"2 studies \(a, b\), and figure ap is of one; name the"):
        draw(folders.root, "ap", [tmp_path / "a.svg"])
    assert not (tmp_path / "a.svg").exists()
    assert len(figure(load_runs(folders.root), "loss").axes) == 4


def test_bars_stand_in_the_order_of_the_folders(folders):
    for study in ("a", "b"):
        for arm in ("scratch", "pretrained"):
            folders.run(arm, study=study)
    roots = [folders.root / "output" / name for name in ("b", "a")]
    labels = figure(in_order(roots, load_runs(roots)), "bars").axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["b", "a"]


def test_sizes_stand_as_numbers_do(folders):
    """A shell's pattern, and a sort of texts, give 100, 1000, 300."""
    sizes = (100, 1000, 300, 3000)
    for size in sizes:
        for arm in ("scratch", "pretrained"):
            folders.run(arm, study=f"less-{size}", losses=False)
    roots = [folders.root / "output" / f"less-{size}" for size in sizes]
    order = dict.fromkeys(run.study for run in in_order(roots, load_runs(roots)))
    assert list(order) == ["less-100", "less-300", "less-1000", "less-3000"]


@pytest.mark.parametrize("kind", ["schedules", "metrics", "gaps"])
def test_each_size_of_a_study_has_a_table_of_its_own(folders, kind):
    for size, scratch, pretrained in ((1000, 20.0, 24.0), (300, 5.0, 15.0)):
        for arm, ap in (("scratch", scratch), ("pretrained", pretrained)):
            data = {**COCO, "train": {"names": ["train"], "images": size}}
            out = f"images-{size}"
            folders.run(arm, curve={600: ap}, study="few", output=out, size=size, data=data)
    small, large = tables(load_runs(folders.root), kind).values()
    assert small.title.startswith("few, 300 images: ")
    assert large.title.startswith("few, 1,000 images: ")
    for table, gap in ((small, -10.0), (large, -4.0)):
        values = [getattr(cell, "value", cell) for row in table.rows for cell in row]
        assert pytest.approx(gap) in values


def test_programs_can_tell_the_tables_of_several_sizes_apart(folders):
    for size in (1000, 300):
        data = {**COCO, "train": {"names": ["train"], "images": size}}
        for arm in ("scratch", "pretrained"):
            folders.run(arm, study="few", output=f"images-{size}", size=size, data=data)
    rows = list(csv.DictReader(tables_text(folders.root, "schedules", "csv").splitlines()))
    names = ["few, 300 images", "few, 1,000 images"]
    assert [row["study"] for row in rows] == [name for name in names for _ in range(3)]
    found = json.loads(tables_text(folders.root, "schedules", "json"))
    assert [one["study"] for one in found] == names
    joint = list(csv.DictReader(tables_text(folders.root, "summary", "csv").splitlines()))
    assert [row["study"] for row in joint] == [name for name in names for _ in range(2)]
