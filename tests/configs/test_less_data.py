"""The studies with less data: the paper's recipe and protocol."""

from pathlib import Path

import pytest

from scratch_vs_pretrain.study.audit import audit
from scratch_vs_pretrain.study.plan import plan
from scratch_vs_pretrain.study.resolve import grid_points, run_config, search_study
from scratch_vs_pretrain.study.spec import load_study

PAPER = Path(__file__).parents[2] / "configs" / "studies" / "paper"
FOUND_BY_THE_PAPER = {
    "INPUT.MIN_SIZE_TRAIN": [512, 800],
    "SOLVER.BASE_LR": 0.04,
    "SOLVER.GAMMA": 0.02,
}
SIZES = ("10k", "3.5k", "1k")
BOTH = {"scratch": [220_000], "pretrained": [60_000]}


@pytest.fixture
def study():
    return load_study(PAPER / "less_data.yaml")


def test_a_third_of_coco_has_the_published_recipe_in_both_arms(study):
    whole = study.by_size()[0]
    assert whole.size == "full"
    assert len(whole.runs()) == 2 * 5
    for run in whole.runs():
        cfg = run_config(whole, run)
        assert tuple(cfg.DATASETS.TRAIN) == ("coco_35k",)
        assert cfg.DATASETS.TEST == ("coco_2017_val",)
        assert cfg.INPUT.MIN_SIZE_TRAIN == (512, 800)
        assert cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA) == (0.04, 0.02)
        assert cfg.TEST.EVAL_PERIOD == 10_000
    rows = [row for row in plan(study).rows if row.size == "full"]
    assert [row.iterations for row in rows] == [180_000, 270_000, 360_000, 450_000, 540_000] * 2
    assert rows[-1].epochs == pytest.approx(540_000 * 16 / 35_504)


def test_smaller_sets_have_one_search_each_on_the_pretrained_arm(study):
    planned = plan(study)
    assert {row.size for row in planned.search.rows} == set(SIZES)
    assert len(planned.search.rows) == len(SIZES) * 8
    for size in SIZES:
        rows = [row for row in planned.rows if row.size == size]
        assert {row.arm: [row.iterations] for row in rows} == BOTH
    assert len(planned.rows) == 2 * 5 + 2 * len(SIZES)
    tried = {size: [] for size in SIZES}
    for one in search_study(study).by_size():
        for run in one.runs():
            cfg = run_config(one, run)
            assert list(cfg.DATASETS.TRAIN) == [f"coco_2017_train_{one.size}"]
            assert cfg.SOLVER.MAX_ITER == 60_000
            assert cfg.MODEL.WEIGHTS.endswith("R-50-GN")
            recipe = list(cfg.INPUT.MIN_SIZE_TRAIN), cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA
            tried[one.size].append(recipe)
    points = [tuple(point.values()) for point in grid_points(study.tune)]
    assert tried == dict.fromkeys(SIZES, points)
    for one in study.by_size()[1:]:
        for run in one.runs():
            cfg = run_config(one, run)
            assert list(cfg.DATASETS.TRAIN) == [f"coco_2017_train_{one.size}"]
            assert cfg.TEST.EVAL_PERIOD == 5_000


@pytest.mark.parametrize(
    ("name", "on"), [("less_data", "pretrained"), ("less_data_1k_tuned_on_scratch", "scratch")]
)
def test_the_papers_winner_is_among_the_points(name, on):
    study = load_study(PAPER / f"{name}.yaml")
    assert study.tune.on == on
    assert FOUND_BY_THE_PAPER in grid_points(study.tune)
    for one in search_study(study).by_size():
        assert set(audit(one).allowed) == set(study.tune.grid)


def test_the_reverse_tunes_1k_on_scratch():
    study = load_study(PAPER / "less_data_1k_tuned_on_scratch.yaml")
    planned = plan(study)
    assert {row.arm: [row.iterations] for row in planned.rows} == BOTH
    assert {row.iterations for row in planned.search.rows} == {220_000}
    for run in (*study.runs(), *search_study(study).runs()):
        assert list(run_config(study, run).DATASETS.TRAIN) == ["coco_2017_train_1k"]
