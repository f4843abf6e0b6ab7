"""Data size as an axis of a study."""

import pytest

from scratch_vs_pretrain.analysis.registry import KINDS
from scratch_vs_pretrain.analysis.stats.cost import budget_table
from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import read_json, write_json
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.launch import run_study
from scratch_vs_pretrain.study.plan import plan, study_budgets
from scratch_vs_pretrain.study.resolve import run_config, search_study, with_recipe
from scratch_vs_pretrain.study.spec import load_study

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


def test_a_size_appears_once(write_study):
    with pytest.raises(UserError, match="sizes: 2 appears twice"):
        load_study(write_study(sizes=[2, {"images": 2, "overrides": {"SOLVER.BASE_LR": 0.5}}]))


@pytest.mark.parametrize("sizes", [["0.004k", 4], ["04", 4], [12, "full"], [3, "25pct"]])
def test_sizes_of_equally_many_images_are_refused(write_study, tmp_path, sizes):
    study = load_study(write_study(sizes=sizes))
    told = rf"tiny\.yaml: sizes: {sizes[0]} and {sizes[1]} are both \d+ images; remove one"
    for refuse in (plan, study_budgets, lambda one: run_study(one, tmp_path / "output")):
        with pytest.raises(UserError, match=told):
            refuse(study)
    assert not (tmp_path / "output").exists()


def test_what_is_wrong_with_a_size_is_told_by_file_and_key(write_study):
    wrong = {13: "13 images are more", 3: "overrides: unknown config key NOPE"}
    for images, told in wrong.items():
        size = {"images": images, "overrides": {"NOPE": 0} if images == 3 else {}}
        with pytest.raises(UserError, match=rf"tiny\.yaml: sizes\.1[.:].*{told}"):
            plan(load_study(write_study(sizes=[2, size])))


TUNE = {"on": "scratch", "grid": {"SOLVER.BASE_LR": [0.1, 0.2]}}
STATED = {"images": 3, "overrides": {"SOLVER.BASE_LR": 0.3}}


def test_each_size_without_a_recipe_has_a_search(write_study, tmp_path):
    study = load_study(
        write_study(sizes=[2, STATED, {"images": 4, "schedules": ["4it"]}], tune=TUNE)
    )
    planned = plan(study).search.rows
    found = [(row.size, row.schedule, row.base_rate) for row in planned]
    assert found == [
        ("2", "short", 0.1), ("2", "short", 0.2), ("4", "4it", 0.1), ("4", "4it", 0.2)
    ]  # fmt: skip
    for size, best in (("2", 0.2), ("4", 0.1)):
        (search,) = [one for one in search_study(study).by_size() if one.size == size]
        for folder, run in zip(prepare(search, tmp_path), search.runs(), strict=True):
            rate = run_config(search, run).SOLVER.BASE_LR
            folder.evaluations.mkdir()
            iterations = folder.update(state="finished").iterations
            write_json(
                folder.evaluation_file(iterations), {"tasks": {"bbox": {"AP": float(rate == best)}}}
            )
    tuned = with_recipe(study, tmp_path)
    rates = {
        one.size: (run_config(one, one.runs()[0]).SOLVER.BASE_LR, one.tuned_on)
        for one in tuned.by_size()
    }
    assert rates == {"2": (0.2, "scratch"), "3": (0.3, None), "4": (0.1, "scratch")}
    winner = read_json(tmp_path / "tiny-tune/images-4/tune.json")["winner"]
    assert winner["overrides"] == {"SOLVER.BASE_LR": 0.1}


def test_a_search_for_no_size_is_refused(write_study):
    with pytest.raises(UserError, match="tune: each of the sizes states its recipe"):
        load_study(write_study(sizes=[STATED], tune=TUNE))
    two = {**TUNE, "grid": {**TUNE["grid"], "SOLVER.GAMMA": [0.1, 0.2]}}
    with pytest.raises(UserError, match=r"is set by sizes\.0\.overrides already"):
        load_study(write_study(sizes=[STATED, 2], tune=two))


def test_the_budget_of_every_size(study):
    found = study_budgets(study)
    rows = [(row.size, row.schedule, row.training.images) for row in found.rows]
    assert rows == [("2", "short", 12), ("3", "4it", 8), ("full", "short", 12)]
    assert budget_table(found).header[:3] == ("size", "arm", "schedule")


@pytest.mark.slow
def test_two_sizes_from_training_to_the_report(write_study, tiny_backbone, tmp_path, capsys):
    arms = {"scratch": {"init": "scratch"}, "pretrained": {"init": str(tiny_backbone)}}
    noise = {"sd": 0.2, "because": "a test"}
    file = write_study(sizes=[4, "full"], arms=arms, noise=noise)
    output, runs = tmp_path / "out", str(tmp_path / "out/tiny")
    assert main(["run", str(file), "-o", str(output), "--jobs", "2"]) == 0
    names = ["tiny, 4 images", "tiny, 12 images"]
    said = capsys.readouterr().out
    assert [f"{name}: AP by arm and schedule" in said for name in names] == [True, True]
    assert "Does pre-training help?   tiny: scratch and pretrained, 12 training images" in said
    assert "times the training images at 4 images" in said
    for kind in (*KINDS[:6], "less-data"):
        assert main(["table", runs, "--kind", kind]) == 0
        said = capsys.readouterr().out
        assert all(name in said for name in names), kind
    assert main(["status", runs]) == 0
    assert capsys.readouterr().out.count("tiny, 4 images") == 2
    assert main(["plot", runs, "--figure", "sizes", "-o", str(tmp_path / "sizes.svg")]) == 0
    assert main(["plot", runs, "-o", str(tmp_path / "curves.svg")]) == 2
    assert "runs of 2 studies (tiny, 4 images, tiny, 12 images)" in capsys.readouterr().err
    assert main(["plot", f"{runs}/images-4", "-o", str(tmp_path / "curves.svg")]) == 0
    assert main(["report", str(output), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert all(f"Every run: {name}" in page for name in names)
    assert "AP against training images" in page
