import re

import pytest

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.parse import load_study, parse_study
from scratch_vs_pretrain.study.sections import Tune

GRID = {"SOLVER.BASE_LR": [0.02, 0.04], "INPUT.MIN_SIZE_TRAIN": [[800], [512, 800]]}


@pytest.fixture
def parse(tmp_path):
    (tmp_path / "base.yaml").write_text("VERSION: 2\n")

    def run(tune, **fields):
        content = {
            "name": "few",
            "base": "base.yaml",
            "arms": {"scratch": {"init": "scratch"}, "other": {"init": "/w.pth"}},
            "schedules": ["2x"],
            "tune": tune,
            **fields,
        }
        return parse_study(content, tmp_path / "study.yaml", {})

    return run


def test_is_read(parse):
    assert parse({"on": "other", "grid": GRID, "metric": "segm/AP75"}).tune == Tune(
        "other",
        {"SOLVER.BASE_LR": (0.02, 0.04), "INPUT.MIN_SIZE_TRAIN": ([800], [512, 800])},
        "segm/AP75",
    )
    assert parse({"on": "scratch", "grid": GRID}).tune.metric == "bbox/AP"


def test_as_a_study_file_has_it(parse, tmp_path):
    parse({"on": "other", "grid": GRID})
    (tmp_path / "study.yaml").write_text(
        "{name: few, base: base.yaml, arms: {scratch: {init: scratch}}, schedules: [2x],\n"
        "tune: {on: scratch, grid: {SOLVER.BASE_LR: [0.02, 0.04]}, metric: segm/AP}}"
    )
    found = load_study(tmp_path / "study.yaml").tune
    assert found == Tune("scratch", {"SOLVER.BASE_LR": (0.02, 0.04)}, "segm/AP")


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (None, "tune: has no value; give it one, or remove the line"),
        ({"grid": GRID}, "tune.on is missing"),
        ({"on": "other"}, "tune.grid is missing"),
        ({"on": "other", "grid": GRID, "gird": {}}, "tune: unknown key tune.gird; did you mean"),
        ({"on": "othr", "grid": GRID}, "tune.on: no arm is named othr; did you mean other"),
        ({"on": 5, "grid": GRID}, "tune.on: must be text"),
        ({"on": "other", "grid": {}}, "tune.grid: has nothing to try"),
        ({"on": "other", "grid": {"A": []}}, "tune.grid.A: the list is empty"),
        ({"on": "other", "grid": {"A": 0.02}}, "tune.grid.A: must be a list"),
        ({"on": "other", "grid": {"A": [1, 1]}}, "tune.grid.A: 1 appears twice"),
        ({"on": "other", "grid": {"A": [{"B": 1}]}}, "tune.grid.A: list the values"),
        ({"on": "other", "grid": {"SEED": [1]}}, "tune.grid.SEED: is set by seeds already"),
        ({"on": "other", "grid": {"TEST.AUG": [1]}}, "is set by overrides already"),
        (
            {"on": "other", "grid": {"A": list(range(99)), "B": list(range(99))}},
            "tune.grid: has 9,801 points",
        ),
        (
            {"on": "other", "grid": GRID, "metric": "bbox/AP57"},
            "tune.metric: unknown metric bbox/AP57; did you mean bbox/AP",
        ),
    ],
)
def test_what_is_wrong_is_named(parse, tune, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(tune, overrides={"TEST.AUG": True})
