"""Data size as an axis of a study."""

import pytest

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.parse import load_study
from scratch_vs_pretrain.study.plan import plan
from scratch_vs_pretrain.study.prepare import prepare
from scratch_vs_pretrain.study.resolve import run_config

SIZES = [2, {"images": 3, "schedules": ["4it"], "overrides": {"SOLVER.BASE_LR": 0.5}}, "full"]


@pytest.fixture
def study(write_study):
    return load_study(write_study(sizes=SIZES))


def test_every_arm_trains_on_each_size(study, tmp_path):
    runs = study.runs()
    assert [run.size for run in runs] == ["2", "3", "full"] * 1
    assert [str(run.folder(tmp_path).path.relative_to(tmp_path)) for run in runs] == [
        f"{study.name}/images-{run.size}/scratch/{run.schedule.name}/seed0" for run in runs
    ]
    assert runs[1].schedule.name == "4it"
    trained, rates = {}, {}
    for one in study.by_size():
        cfg = run_config(one, one.runs()[0])
        trained[one.size], rates[one.size] = cfg.DATASETS.TRAIN, cfg.SOLVER.BASE_LR
    (full,) = trained["full"]
    assert trained == {"2": (f"{full}_2",), "3": (f"{full}_3",), "full": (full,)}
    assert rates["3"] == 0.5 != rates["2"]


def test_the_plan_tells_the_size(study):
    planned = plan(study)
    assert [row.size for row in planned.rows] == ["2", "3", "full"]
    assert planned.text().split()[0] == "size"


def test_run_folders_know_it(study, tmp_path):
    folders = prepare(study, tmp_path / "output")
    assert [folder.read().size for folder in folders][:2] == [2, 3]
    assert prepare(study, tmp_path / "output") == folders


@pytest.mark.parametrize("size", [0, -1, "1m", "0k", "101pct.", None, 1.5, {"images": "x"}])
def test_what_is_no_size_is_refused(write_study, size):
    with pytest.raises(UserError, match=r"sizes\.0"):
        load_study(write_study(sizes=[size]))


def test_a_search_belongs_to_one_size(write_study):
    tune = {"on": "scratch", "grid": {"SOLVER.BASE_LR": [0.1, 0.2]}}
    with pytest.raises(UserError, match="tune: is one search"):
        load_study(write_study(sizes=[2], tune=tune))
