"""Studies on data that lack what the model learns are refused before anything is written."""

import json
from pathlib import Path

import pytest

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.study.data_sets import data_problems

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "datasets"
STUDY = """
name: unfit
base: {base}
arms: {{scratch: {{init: scratch}}}}
schedules: [{{iterations: 300}}]
overrides:
  DATASETS.TRAIN: [{train}]
  DATASETS.TEST: [{test}]
  {more}
"""


@pytest.fixture
def run(tmp_path, run_code):
    def run(train, test, datasets, base="keypoint_rcnn_R_50_FPN_gn", more=""):
        base = ROOT / "configs" / f"{base}.yaml"
        file = tmp_path / "study.yaml"
        file.write_text(STUDY.format(base=base, train=train, test=test, more=more))
        command = "from scratch_vs_pretrain.cli import main; exit(main())"
        output = tmp_path / "output"
        done = run_code(command, "run", str(file), "-o", str(output), datasets=datasets)
        assert done.returncode == 2, done.stderr
        assert not output.exists()
        assert done.stderr.count("\n") == 1
        return done.stderr

    return run


@pytest.mark.skipif(not (REAL / "coco").is_dir(), reason=f"no real photographs in {REAL}")
def test_keypoints_on_photographs_without(run):
    more = "MODEL.ROI_HEADS.NUM_CLASSES: 80"
    message = run("coco_2017_train", "coco_2017_val", REAL, more=more)
    assert (
        "DATASETS.TRAIN: coco_2017_train: no annotation has keypoints, but MODEL.KEYPOINT_ON"
        in (message)
    )
    assert "DATASETS.TEST: coco_2017_val: annotation" in message


def test_masks_on_voc_without_its_files(run, tmp_path):
    message = run("voc_2007_trainval", "voc_2012_val", tmp_path, base="mask_rcnn_R_50_FPN_gn")
    assert "voc_2007_trainval: VOC trees have boxes alone, but MODEL.MASK_ON is True" in message


def test_what_a_built_in_name_says_without_its_files():
    cfg = default_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco_2017_train_10k",), ("keypoints_coco_2017_val",)
    cfg.MODEL.KEYPOINT_ON = True
    (problem,) = data_problems(cfg)
    assert "DATASETS.TRAIN: coco_2017_train_10k: no annotation has keypoints" in problem
    cfg.DATASETS.TRAIN = ("keypoints_coco_2017_train",)
    cfg.MODEL.MASK_ON = True
    assert data_problems(cfg) == []


ENTRY = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}


@pytest.mark.parametrize(
    ("changes", "settings", "messages"),
    [
        ({}, {}, []),
        ({}, {"MODEL.ROI_HEADS.NUM_CLASSES": 80}, ["1 categories, but MODEL.ROI_HEADS.NUM_CL"] * 2),
        ({"area": None}, {}, []),
        ({}, {"MODEL.MASK_ON": True}, ["no annotation has a mask"] * 2),
        (
            {"segmentation": {"size": [5, 5], "counts": [5, 20]}},
            {"MODEL.MASK_ON": True},
            ["TRAIN: one: some masks are run lengths; set INPUT.MASK_FORMAT to bitmask"],
        ),
        (
            {"keypoints": [1, 1, 2], "num_keypoints": 1},
            {"MODEL.KEYPOINT_ON": True},
            [
                "TRAIN: one: its categories name 1 keypoints, but .*NUM_KEYPOINTS is 17",
                "TRAIN: one: cannot train on it: .*no valid keypoints 1",  # as loading it says
                "TEST: one: its categories name 1 keypoints, but .*NUM_KEYPOINTS is 17",
                "TEST: one: its categories name 1 keypoints, but .*OKS_SIGMAS has 17",
                "TEST: one: cannot evaluate on it: .*no valid keypoints 1",
            ],
        ),
    ],
)
def test_own_files(tmp_path, changes, settings, messages):
    import re

    category = {"id": 1, "name": "disc", **({"keypoints": ["a"]} if "keypoints" in changes else {})}
    content = {
        "images": [{"id": 0, "file_name": "0.png", "width": 5, "height": 5}],
        "annotations": [{**ENTRY, **changes}],
        "categories": [category],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    cfg = default_config()
    cfg.SVP.DATASETS = (("one", str(tmp_path / "a.json"), str(tmp_path)),)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("one",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.merge_from_list([part for pair in settings.items() for part in pair])
    found = data_problems(cfg)
    assert len(found) == len(messages), found
    for problem, message in zip(found, messages, strict=True):
        assert re.search(message, problem)


def test_a_spoilt_set_is_refused_before_anything_is_written(tmp_path):
    """By the judgement of `svp check-data` and of training."""
    content = {
        "images": [{"id": 0, "file_name": "0.png", "width": 5, "height": 5}],
        "annotations": [{**ENTRY, "bbox": [0.1, 0.2, 0.3, 0.4]}],
        "categories": [{"id": 1, "name": "disc"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    cfg = default_config()
    cfg.SVP.DATASETS = (("one", str(tmp_path / "a.json"), str(tmp_path)),)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("one",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    look = "on it: boxes as parts of the image: 1 of 1 boxes lie in"
    train, test = data_problems(cfg)
    assert f"DATASETS.TRAIN: one: cannot train {look}" in train
    assert f"DATASETS.TEST: one: cannot evaluate {look}" in test
    cfg.SVP.MAX_DROPPED = 1.0
    assert data_problems(cfg) == []
