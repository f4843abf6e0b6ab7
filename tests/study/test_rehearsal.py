"""``svp plan --check``: tries every arm, and says what the study will take."""

import dataclasses

import pytest
from detectron2.evaluation import DatasetEvaluator

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.evaluation.others import EVALUATORS
from scratch_vs_pretrain.study.plan import plan
from scratch_vs_pretrain.study.rehearsal import Measured, _costs
from scratch_vs_pretrain.study.spec import load_study

PAIR = {"scratch": {"init": "scratch"}}


def test_every_arm_is_tried_and_nothing_is_written(write_study, tiny_backbone, tmp_path, capsys):
    arms = PAIR | {"pretrained": {"init": str(tiny_backbone), "load": "backbone"}}
    study = write_study(arms=arms, seeds=[0, 1])
    before = sorted(tmp_path.iterdir())
    assert main(["plan", str(study), "--check", "-o", str(tmp_path / "out")]) == 0
    assert sorted(tmp_path.iterdir()) == before
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if "s/iteration" in line)
    rows = [line.split() for line in lines[first + 1 : first + 4]]
    assert [row[0] for row in rows] == ["scratch", "pretrained", "in"]
    for row in rows[:2]:
        seconds, evaluation, hours, disk, memory = map(float, row[1:])
        # Two runs of six iterations with an evaluation of four images each.
        assert hours == pytest.approx(2 * (6 * seconds + evaluation) / 3600, rel=0.02)
        assert disk > 0.05
        assert 0.1 < memory < 10
    assert float(rows[2][2]) == pytest.approx(sum(float(row[3]) for row in rows[:2]), rel=0.02)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"overrides": {"SVP.MAPPER": "Mine"}}, "SVP.MAPPER: no 'Mine' is registered"),
        ({"overrides": {"SOLVER.BASE_LR": 1e30}}, "in its first iterations: "),
        (
            {"overrides": {"SVP.EVALUATORS": ["Silent"]}},
            "SVP.EVALUATORS: Silent returned no numbers; let evaluate() return them by name",
        ),
    ],
)
def test_what_fails_is_said_in_a_sentence(fields, said, write_study, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(EVALUATORS._obj_map, "Silent", lambda cfg, name: DatasetEvaluator())
    study = write_study(arms=PAIR, **fields)
    assert main(["plan", str(study), "--check", "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"svp: error: {study}: arms.scratch: ")
    assert said in error
    assert not (tmp_path / "out").exists()


def test_costs_of_shared_trunks_evaluations_and_checkpoints(write_study):
    schedules = [{"iterations": 90, "name": "short"}, {"iterations": 900, "name": "long"}]
    study = load_study(write_study(arms=PAIR, schedules=schedules))
    planned = plan(study)
    short, long = planned.rows
    assert (short.trunk, short.shared, short.drops) == ("long", 60, (60, 80))
    cfg = default_config()
    cfg.TEST.EVAL_PERIOD, cfg.SVP.EVAL_ITERATIONS = 20, (70, 1000)
    cfg.SOLVER.CHECKPOINT_PERIOD = 40
    one = Measured(cfg, iteration=2.0, evaluation=100.0, checkpoint=7, memory=0)
    # Evaluated after 70, 80 and 90; kept are the newest two, and its own first drop's.
    assert _costs(planned, short, [one]) == (30 * 2 + 3 * 100, (2 + 1) * 7)
    assert _costs(planned, long, [one]) == (900 * 2 + (45 + 1) * 100, (2 + 2) * 7)
    # From iteration 500 on another config, three times as slow.
    switched = dataclasses.replace(long, switch=500)
    slow = dataclasses.replace(one, iteration=6.0)
    assert _costs(planned, switched, [one, slow])[0] == 500 * 2 + 400 * 6 + 46 * 100
