"""A detector of a user's own (tests/plugin_project): both arms train, stop and resume exactly."""

import json
from pathlib import Path

import pytest
import torch

from scratch_vs_pretrain.analysis.registry import tables_text
from scratch_vs_pretrain.analysis.stats.answer import answers_text
from scratch_vs_pretrain.config import default_config, merge_file, merge_overrides
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checkpoint_file import write_backbone
from scratch_vs_pretrain.training import __main__ as worker
from scratch_vs_pretrain.training.trained import predict

PROJECT = Path(__file__).parents[1] / "plugin_project"
CONFIG = Path(__file__).parents[2] / "configs" / "demo_mask_rcnn_R_18_FPN_gn.yaml"
IMPORTS = ["tiny_detector.parts", "tiny_detector.recipe"]
OWN = {
    "MODEL.BACKBONE.NAME": "TinyBackbone",
    "MODEL.ROI_HEADS.NAME": "WeightedROIHeads",
    "MODEL.TINY.CLASS_WEIGHT": 2.0,
    "MODEL.RPN.IN_FEATURES": ("c4",),
    "MODEL.ROI_HEADS.IN_FEATURES": ("c4",),
    "MODEL.ANCHOR_GENERATOR.SIZES": ((24, 48),),
    "MODEL.MASK_ON": False,
    "SVP.MAPPER": "NoisyMapper",
    "SVP.EVALUATORS": ("Counting",),
    "SVP.OPTIMIZER": "NesterovSGD",
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": (3,),
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.IMS_PER_BATCH": 2,
    "SVP.LOG_PERIOD": 1,
    "SVP.TENSORBOARD": False,
    "MODEL.DEVICE": "cpu",
    "SEED": 0,
}


@pytest.fixture
def plan(shapes, tmp_path, monkeypatch, make_run):
    """Plans a run of the project's detector; the pretrained arm starts from a backbone's file."""
    monkeypatch.syspath_prepend(str(PROJECT))

    def plan(name, pretrained=False, **overrides):
        cfg = default_config(IMPORTS)
        merge_file(cfg, CONFIG)
        sets = {
            "SVP.DATASETS": tuple(shapes),
            "DATASETS.TRAIN": (shapes[0][0],),
            "DATASETS.TEST": (shapes[1][0],),
        }
        merge_overrides(cfg, OWN | sets | overrides, name)
        if pretrained:
            cfg.MODEL.WEIGHTS = str(tmp_path / "backbone.pth")
            torch.manual_seed(3)
            write_backbone(Path(cfg.MODEL.WEIGHTS), build_bottom_up(cfg).state_dict(), {})
        folder = make_run(tmp_path / name, cfg)
        folder.update(init={"sha256": None})
        return folder

    return plan


@pytest.mark.parametrize("pretrained", [False, True], ids=["scratch", "pretrained"])
def test_both_arms_train_and_resume_exactly(plan, train_until, assert_same, run_python, pretrained):
    alone, stopped = plan("alone", pretrained), plan("stopped", pretrained)
    done = run_python("-m", "scratch_vs_pretrain.training", alone.path)
    assert done.returncode == worker.FINISHED, done.stderr
    train_until(stopped, 2)
    assert worker.main([str(stopped.path)]) == worker.FINISHED
    assert_same(alone, stopped)
    [resume] = json.loads(stopped.run_file.read_text())["resumes"]
    assert resume["exact"], resume
    run = json.loads(alone.run_file.read_text())
    assert run["provenance"]["versions"]["tiny_detector.parts"].startswith("1.0 (sha256 ")
    assert (run["init_report"] is not None) == pretrained
    tasks = json.loads(alone.evaluation_file(4).read_text())["tasks"]
    assert list(tasks) == ["bbox", "Counting"]
    assert tasks["Counting"]["objects"] >= 0
    rows = [json.loads(line) for line in alone.metrics_file.read_text().splitlines()]
    assert rows[-1]["Counting/objects"] == tasks["Counting"]["objects"]
    [file] = predict(alone.path, "detectors_test", alone.path / "out")
    assert isinstance(json.loads(file.read_text()), list)


def test_numbers_of_its_evaluator_stand_in_tables_and_answers(plan, tmp_path):
    for arm, pretrained in (("scratch", False), ("pretrained", True)):
        folder = plan(f"out/s/{arm}/short/seed0", pretrained)
        init = {"name": "checkpoint" if pretrained else "scratch", "sha256": None}
        named = {"arm": arm, "schedule": "short", "iterations": 4, "init": init}
        folder.update(**named, arm_order=["scratch", "pretrained"])
        assert worker.main([str(folder.path)]) == worker.FINISHED
    counted = json.loads(folder.evaluation_file(4).read_text())["tasks"]["Counting"]["objects"]
    row = next(
        line
        for line in tables_text(tmp_path / "out", "metrics", "text").splitlines()
        if "Counting" in line
    )
    assert f"{counted:.1f}" in row
    assert "Counting" in answers_text(tmp_path / "out", "text", "Counting/objects")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"SVP.MAPPER": "NoisyMaper"}, "SVP.MAPPER: no 'NoisyMaper' is registered; did you mean N"),
        ({"SVP.OPTIMIZER": "Adam"}, "SVP.OPTIMIZER: no 'Adam' is registered; did you mean AdamW"),
        ({"SVP.EVALUATORS": ("Count",)}, "SVP.EVALUATORS: no 'Count' is registered"),
    ],
)
def test_a_name_that_is_not_registered(plan, overrides, said):
    folder = plan("run", **overrides)
    assert worker.main([str(folder.path)]) == worker.FAILED
    assert said in json.loads(folder.run_file.read_text())["reason"]
