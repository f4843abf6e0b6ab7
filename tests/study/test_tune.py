"""The recipe is searched on one arm and used by all, and everything about it is recorded."""

import json
from dataclasses import fields, replace

import pytest
from PIL import Image

from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder, read_json, write_json
from scratch_vs_pretrain.study import launch
from scratch_vs_pretrain.study.audit import audit
from scratch_vs_pretrain.study.plan import plan
from scratch_vs_pretrain.study.resolve import grid_points, search_study, with_recipe
from scratch_vs_pretrain.study.sections import Data, DataFiles, Tune, short_schedule
from scratch_vs_pretrain.study.spec import Arm, Study

SHORT, LONG = (short_schedule(n) for n in (300, 600))
GRID = {"SOLVER.BASE_LR": (0.02, 0.04, 0.08), "SOLVER.GAMMA": (0.1, 0.02)}


def own_data(folder):
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
        "categories": [{"id": 1, "name": "disc"}],
        "annotations": [box],
    }
    (folder / "a.json").write_text(json.dumps(content))
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    files = DataFiles(folder / "a.json", folder)
    return Data((files,), files)


@pytest.fixture
def study(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(
        "MODEL: {BACKBONE: {FREEZE_AT: 0}, RESNETS: {NORM: GN}}\n"
        "SOLVER: {WARMUP_ITERS: 100}\n"
        "VERSION: 2\n"
    )
    arms = (
        Arm("scratch", "scratch", (LONG,)),
        Arm("other", "scratch", (SHORT, LONG), {"TEST.DETECTIONS_PER_IMAGE": 50}),
    )
    return Study(
        "few",
        tmp_path / "study.yaml",
        base,
        arms,
        seeds=(3, 4),
        allow_differences=("TEST.DETECTIONS_PER_IMAGE",),
        data=own_data(tmp_path),
        tune=Tune("other", GRID),
    )


@pytest.fixture
def trained(monkeypatch):
    """Runs finish at once, with an AP that is best at rate 0.04 and the smaller decay factor.

    Returns the folders in the order of training, and the states to end in by rate.
    """
    order, states = [], {}

    def work(queue):
        for folder in queue.waiting:
            order.append(folder.path)
            solver = load_config(folder.config_file).SOLVER
            state = states.get(solver.BASE_LR, "finished")
            folder.update(state=state, iteration=solver.MAX_ITER)
            score = 40 - abs(solver.BASE_LR - 0.04) * 100 - solver.GAMMA
            folder.evaluations.mkdir(exist_ok=True)
            content = {"format": 1, "tasks": {"bbox": {"AP": score}}}
            write_json(folder.evaluation_file(solver.MAX_ITER), content)

    monkeypatch.setattr(launch.RunQueue, "work", work)
    # COCO's annotations are not here, and nothing trains on them.
    monkeypatch.setattr("scratch_vs_pretrain.study.rehearsal.check_trainable", lambda study: None)
    return order, states


def test_every_point_of_the_grid_once(study):
    points = grid_points(study.tune)
    assert len(points) == 6
    assert points[:2] == [
        {"SOLVER.BASE_LR": 0.02, "SOLVER.GAMMA": 0.1},
        {"SOLVER.BASE_LR": 0.02, "SOLVER.GAMMA": 0.02},
    ]


def test_the_search_is_a_fair_study_on_one_arm(study):
    search = search_study(study)
    assert search.name == "few-tune"
    assert len(search.runs()) == 6
    assert {(run.schedule, run.seed, run.arm.init) for run in search.runs()} == {
        (SHORT, 3, "scratch")
    }
    assert all(arm.overrides["TEST.DETECTIONS_PER_IMAGE"] == 50 for arm in search.arms)
    assert set(audit(search).allowed) == set(GRID)


def test_every_field_of_the_arm_reaches_the_search(study):
    arm = Arm("other", "/w.pth", (SHORT, LONG), {"A": 1}, "torchvision", "detector", "backbone")
    assert len(fields(Arm)) == 7
    search = search_study(replace(study, arms=(study.arms[0], arm)))
    for found, point in zip(search.arms, grid_points(study.tune), strict=True):
        own = {"name": found.name, "schedules": (SHORT,), "overrides": {"A": 1, **point}}
        assert found == replace(arm, **own)


def test_all_arms_train_with_the_winner_and_say_so(study, trained, tmp_path):
    outcomes = launch.run_study(study, tmp_path / "out")
    assert [outcome.state for outcome in outcomes] == ["finished"] * 6
    for outcome in outcomes:
        solver = load_config(outcome.folder.config_file).SOLVER
        assert (solver.BASE_LR, solver.GAMMA) == (0.04, 0.02)
        assert outcome.folder.read().study == "few"
        assert outcome.folder.read().tuned_on == "other"
    searched = trained[0][:6]
    assert all((tmp_path / "out" / "few-tune") in path.parents for path in searched)
    assert all(RunFolder(path).read().tuned_on is None for path in searched)


def test_the_whole_search_is_recorded(study, trained, tmp_path):
    launch.run_study(study, tmp_path)
    found = read_json(tmp_path / "few-tune" / "tune.json")
    assert found["grid"] == json.loads(json.dumps(GRID))
    assert (found["on"], found["metric"], found["schedule"], found["seed"]) == (
        "other",
        "bbox/AP",
        "300it",
        3,
    )
    assert [trial["overrides"] for trial in found["trials"]] == grid_points(study.tune)
    best = max(found["trials"], key=lambda trial: trial["score"])
    assert found["winner"] == {key: best[key] for key in ("arm", "overrides", "score")}
    assert found["winner"]["overrides"] == {"SOLVER.BASE_LR": 0.04, "SOLVER.GAMMA": 0.02}


def test_again_trains_nothing(study, trained, tmp_path):
    launch.run_study(study, tmp_path)
    trained[0].clear()
    launch.run_study(study, tmp_path)
    assert trained[0] == []


def test_diverged_points_lose(study, trained, tmp_path):
    trained[1][0.04] = "diverged"
    outcomes = launch.run_study(study, tmp_path)
    assert load_config(outcomes[0].folder.config_file).SOLVER.BASE_LR == 0.02
    states = [trial["state"] for trial in read_json(tmp_path / "few-tune" / "tune.json")["trials"]]
    assert states.count("diverged") == 2


def test_an_incomplete_search_decides_nothing(study, trained, tmp_path):
    trained[1][0.02] = "failed"
    outcomes = launch.run_study(study, tmp_path)
    assert len(outcomes) == 6
    assert not (tmp_path / "few").exists()
    assert not (tmp_path / "few-tune" / "tune.json").exists()


def test_every_point_diverged(study, trained, tmp_path):
    trained[1].update(dict.fromkeys(GRID["SOLVER.BASE_LR"], "diverged"))
    with pytest.raises(UserError, match=r"every one of the 6 runs .* diverged"):
        launch.run_study(study, tmp_path)


def test_the_first_of_equals_wins(study, trained, tmp_path):
    tied = replace(study, tune=Tune("other", {"SOLVER.MOMENTUM": (0.8, 0.9)}))
    launch.run_study(tied, tmp_path)
    winner = read_json(tmp_path / "few-tune" / "tune.json")["winner"]
    assert winner["overrides"] == {"SOLVER.MOMENTUM": 0.8}


def test_a_metric_that_is_not_there(study, trained, tmp_path):
    launch.run_study(study, tmp_path)
    masks = replace(study, tune=replace(study.tune, metric="segm/AP"))
    with pytest.raises(UserError, match="has no segm/AP, by which the study tunes"):
        with_recipe(masks, tmp_path)


def test_the_recipe_goes_to_the_study(study, trained, tmp_path):
    study = replace(study, overrides={"SOLVER.MOMENTUM": 0.8})
    launch.run_study(study, tmp_path)
    tuned = with_recipe(study, tmp_path)
    assert tuned.overrides == {
        "SOLVER.MOMENTUM": 0.8, "SOLVER.BASE_LR": 0.04, "SOLVER.GAMMA": 0.02
    }  # fmt: skip
    assert (tuned.tune, tuned.tuned_on) == (None, "other")


def test_the_plan_shows_the_search_first(study):
    text = plan(study).text()
    first, then = text.split("then, with the winner of the search:\n")
    assert "6 runs, 1,800 iterations" in first
    assert "6 runs, 2,600 iterations" in then
