"""The studies with less data: the paper's recipe and protocol."""

from pathlib import Path

import pytest

from scratch_vs_pretrain.study.audit import audit
from scratch_vs_pretrain.study.parse import load_study
from scratch_vs_pretrain.study.plan import plan
from scratch_vs_pretrain.study.resolve import run_config
from scratch_vs_pretrain.study.tune import grid_points, search_study

PAPER = Path(__file__).parents[2] / "configs" / "studies" / "paper"
FOUND_BY_THE_PAPER = {
    "INPUT.MIN_SIZE_TRAIN": [512, 800],
    "SOLVER.BASE_LR": 0.04,
    "SOLVER.GAMMA": 0.02,
}


def test_35k_has_the_published_recipe_in_both_arms():
    study = load_study(PAPER / "less_data_35k.yaml")
    for run in study.runs():
        cfg = run_config(study, run)
        assert tuple(cfg.DATASETS.TRAIN) == ("coco_35k",)
        assert cfg.INPUT.MIN_SIZE_TRAIN == (512, 800)
        assert cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA) == (0.04, 0.02)
    assert plan(study).rows[-1].iterations == 540_000
    assert plan(study).rows[-1].epochs == pytest.approx(540_000 * 16 / 35_504)


@pytest.mark.parametrize(
    ("name", "subset", "images", "on"),
    [
        ("less_data_10k", "coco_2017_train_10k", 10_000, "pretrained"),
        ("less_data_3.5k", "coco_2017_train_3.5k", 3_500, "pretrained"),
        ("less_data_1k", "coco_2017_train_1k", 1_000, "pretrained"),
        ("less_data_1k_tuned_on_scratch", "coco_2017_train_1k", 1_000, "scratch"),
    ],
)
def test_smaller_sets_are_tuned_on_one_arm(name, subset, images, on):
    study = load_study(PAPER / f"{name}.yaml")
    assert study.tune.on == on
    assert FOUND_BY_THE_PAPER in grid_points(study.tune)
    lengths = {"scratch": 220_000, "pretrained": 60_000}
    planned = plan(study, {"coco_2017_train": 118_287})
    assert {row.arm: row.iterations for row in planned.rows} == lengths
    assert {row.iterations for row in planned.search.rows} == {lengths[on]}
    for row in planned.rows:
        assert row.epochs == pytest.approx(row.iterations * 16 / images)
    for run in (*study.runs(), *search_study(study).runs()):
        cfg = run_config(study, run)
        assert list(cfg.DATASETS.TRAIN) == [subset]
        assert cfg.DATASETS.TEST == ("coco_2017_val",)
    assert set(audit(search_study(study)).allowed) == set(study.tune.grid)
