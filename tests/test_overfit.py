"""scripts/overfit.py: the eight pictures' keypoints, and one of its proofs in short."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from scratch_vs_pretrain.data.shapes import make_shapes
from scratch_vs_pretrain.evaluation.evaluator import tasks_of
from scratch_vs_pretrain.study.audit import audit
from scratch_vs_pretrain.study.resolve import run_config

SCRIPT = Path(__file__).parents[1] / "scripts" / "overfit.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("overfit", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_extreme_points_of_a_cross(script):
    mask = np.zeros((9, 9), bool)
    mask[4, 1:8] = mask[2:7, 4] = True
    points = [tuple(map(int, point)) for point in script.extreme_points(mask)]
    assert points == [(4, 4), (1, 4), (4, 2), (7, 4), (4, 6)]


def test_every_object_has_keypoints_in_its_box(script, tmp_path):
    make_shapes(tmp_path / "pictures", script.PICTURES, progress=False)
    file = script.with_keypoints(tmp_path / "pictures" / "annotations" / "train.json")
    content = json.loads(file.read_text())
    assert len(content["images"]) == 8
    assert content["categories"][0]["keypoints"] == script.KEYPOINTS
    for one in content["annotations"]:
        points = np.reshape(one["keypoints"], (-1, 3))
        x, y, width, height = one["bbox"]
        assert len(points) == one["num_keypoints"] == len(script.KEYPOINTS)
        assert (points[:, 2] == 2).all()
        assert ((points[:, :2] >= (x, y)) & (points[:, :2] < (x + width, y + height))).all()
        mask = rle.decode(one["segmentation"])
        assert all(mask[row, column] for column, row, _ in points[1:])


def test_every_family_is_a_fair_study_of_its_tasks(script, tmp_path):
    tasks = {
        "mask_r18": ("bbox", "segm"),
        "mask_r50_full": ("bbox", "segm"),
        "cascade_r18": ("bbox", "segm"),
        "keypoint_r18": ("bbox", "keypoints"),
        "retinanet_r18": ("bbox",),
        "fcos_r18": ("bbox",),
        "panoptic_r18": ("bbox", "segm"),
        "vgg16": ("bbox",),
        "vgg16_full": ("bbox",),
    }
    assert set(tasks) == {file.stem for file in script.STUDIES.glob("*.yaml")}
    for family, expected in tasks.items():
        study = script.study_of(family, tmp_path)
        audit(study)
        (run,) = study.runs()
        cfg = run_config(study, run)
        assert tasks_of(cfg) == expected
        assert cfg.INPUT.RANDOM_FLIP == "none"
        assert run.arm.init == "scratch"


@pytest.mark.slow  # three minutes on a quiet core
def test_mask_rcnn_overfits(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["overfit.py", "mask_r18", "--output", str(tmp_path)])
    assert script.main() == 0
    assert "mask_r18: overfits" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["mask_r50_full", "vgg16_full"])
def test_the_papers_own_networks_overfit(family, script, tmp_path):
    assert script.overfit(family, tmp_path)["bbox"] > script.LEAST_AP
